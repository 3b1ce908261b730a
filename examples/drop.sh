#!/bin/sh
# Ask for a build's test image and wait for the answer; nothing but a shell is needed.
#   SPOOL=/srv/watcherd/spool RESULTS=/srv/watcherd/results ./drop.sh gs://BUCKET/PATH/BUILD
# Exit code: 0 staged, 1 not, 2 usage, 4 no answer within WAIT seconds (the request goes on).
set -eu
[ $# -eq 1 ] || { echo "usage: drop.sh gs://BUCKET/PATH/BUILD" >&2; exit 2; }
build=$1
spool=${SPOOL:-/srv/watcherd/spool}
results=${RESULTS:-/srv/watcherd/results}
wait=${WAIT:-3600}

# A NAME of its own: where one is used again, only the last answer stays.
name="$(basename "$0" .sh)-$(uname -n)-$(date +%s)-$$"

# Write beside, then move: the daemon never sees half a file.
cat > "$spool/requests/.$name.tmp" <<END
build: $build
images: [test]
END
mv "$spool/requests/.$name.tmp" "$spool/requests/$name.yaml"

end=$(($(date +%s) + wait))
# A listing asks the file server anew; `test -e` may be told an old "no such file" on NFS.
until ls "$results" | grep -qxF "$name.yaml"; do
    [ "$(date +%s)" -lt "$end" ] || { echo "$name: no answer yet" >&2; exit 4; }
    sleep 1
done
cat "$results/$name.yaml"
case $(head -n 1 "$results/$name.yaml") in
    *staged) ;;
    *) exit 1 ;;
esac
