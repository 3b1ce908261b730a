#!/bin/bash
# guest_probe.sh VERSION PYTHON ROOT - in a guest of uml-run.sh: `stager probe` on two NFS clients at
# once; what they found goes to $LAB/{a,b}.json, their exit codes to $LAB/{a,b}.code.
. "$HERE/nfs-lab.sh"
nfs_server; install -d -m 1777 /srv/export/spool; cd "$3" || exit 1
for n in a b; do
    nfs_client $n; nfs_mount $n /mnt/$n "$1"
done
for n in a b; do
    {
        in_ns $n env WATCHERD_BOOT_ID=$n "$2" -m stager.cli probe /mnt/$n/spool --json --seconds 8 \
            > "$LAB/$n.json" 2> "$LAB/$n.err"
        echo $? > "$LAB/$n.code"
    } &
    running="$running $!"
done
wait $running
ls -A /srv/export/spool > "$LAB/left"
