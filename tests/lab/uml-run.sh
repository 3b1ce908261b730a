#!/bin/bash
# uml-run.sh - run one command in a throw-away User Mode Linux guest.
#   apt-get install -y --no-install-recommends user-mode-linux kmod iproute2 e2fsprogs
#   uml-run.sh [-m MEM] [-t SECONDS] [-d DISK_MB] [-n NET]... [-k KARG]... -- COMMAND [ARG]...
# The guest sees the host's file tree (python, venv, everything) under a
# tmpfs overlay: its writes vanish.  $LAB (default: a new /tmp/uml.XXXXXX) is
# shared read-write.  -d gives /dev/ubda, an ext4 image of that size (kept if there).
# -n adds a UML network argument (e.g. -n vec0:transport=tap,ifname=tapA).
set -u
MEM=768M T=300 DISK=0 ARGS=()
while [ $# -gt 0 ]; do case $1 in
    -m) MEM=$2; shift 2;; -t) T=$2; shift 2;; -d) DISK=$2; shift 2;;
    -n|-k) ARGS+=("$2"); shift 2;; --) shift; break;; *) break;;
esac; done
HERE=$(cd "$(dirname "$0")" && pwd)
LAB=${LAB:-$(mktemp -d /tmp/uml.XXXXXX)}; mkdir -p "$LAB"
cp "$HERE"/uml-init.sh "$HERE"/nfs-lab.sh "$HERE"/sd-prep.sh "$LAB"/ 2>/dev/null
rm -f "$LAB/rc"
{ printf 'export LAB=%q HOME=/root LANG=C.UTF-8 HERE=%q\ncd /\n' "$LAB" "$HERE"; printf '%q ' "$@"; echo; } > "$LAB/cmd.sh"
if [ "$DISK" -gt 0 ]; then
    [ -e "$LAB/ubda" ] || { truncate -s "${DISK}M" "$LAB/ubda" && mkfs.ext4 -q -F "$LAB/ubda"; }
    ARGS+=("ubda=$LAB/ubda")
fi
ID=lab$$
# Debian 12's needs help on CPUs with AMX: see xstate.c.
gcc -O2 -shared -fPIC -o "$LAB/xstate.so" "$HERE/xstate.c" || exit 125
LD_PRELOAD=$LAB/xstate.so timeout -k 5 "$T" linux.uml mem="$MEM" umid=$ID uml_dir="$LAB/.uml" quiet loglevel=3 \
    rootfstype=hostfs rootflags=/ ro init="$LAB/uml-init.sh" LAB="$LAB" panic=1 \
    con0=null,fd:1 con=null ssl=null "${ARGS[@]}" </dev/null 2>"$LAB/stderr" |
    grep --line-buffered -avE '^(Core dump limits|.*(soft|hard) - NONE|.*(soft|hard) - [0-9]+|Checking |Adding |[0-9]+ ?$)'
RC=$(cat "$LAB/rc" 2>/dev/null || echo 125)
exit "$RC"
