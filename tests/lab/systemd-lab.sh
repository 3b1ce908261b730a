#!/bin/bash
# systemd-lab.sh - boot a machine whose PID 1 is a real systemd: namespaces of this host (no VM,
# same kernel), a file tree (LOWER, or this host's) below a tmpfs overlay, cgroup v2, D-Bus, journald,
# no network but loopback. As root. It runs COMMAND and then ends; the exit status is COMMAND's.
#   [LOWER=ROOT] systemd-lab.sh LAB SECONDS COMMAND [ARG]...
# The directory LAB is shared with the host; LAB/pid has the host's number of its PID 1.
set -eu
LAB=$1 T=$2; shift 2
export LAB LOWER=${LOWER:-/} HERE=$(cd "$(dirname "$0")" && pwd)
{ printf 'export LAB=%q\ncd /\n' "$LAB"; printf '%q ' "$@"; echo; } > "$LAB/cmd.sh"
cat > "$LAB/outer.sh" <<'X'
set -e
umount -R -l /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup      # in this mount namespace only
C=/sys/fs/cgroup/sdlab.$PPID; mkdir -p $C; echo $$ > $C/cgroup.procs
W=$LAB/.w; mkdir -p $W; mount -t tmpfs -o mode=755 tmpfs $W; mkdir $W/up $W/wk $W/root; R=$W/root
mount -t overlay -o lowerdir=$LOWER,upperdir=$W/up,workdir=$W/wk overlay $R
mkdir -p "$R$LAB"; mount --bind "$LAB" "$R$LAB"
sh "$HERE/sd-prep.sh" $R "bash $LAB/cmd.sh" "$LAB" exit-force
exec unshare --pid --fork --kill-child --mount --uts --ipc --net --cgroup bash "$LAB/inner.sh" $R
X
cat > "$LAB/inner.sh" <<'X'
R=$1; set -e
read -r pid _ < /proc/self/stat                                           # the host's /proc still
mount -t proc proc $R/proc; mount -t sysfs sysfs $R/sys; mount -t cgroup2 cgroup2 $R/sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs $R/run; mount -t tmpfs -o mode=755 tmpfs $R/dev; mkdir $R/dev/pts $R/dev/shm
for d in null zero full random urandom tty fuse; do touch $R/dev/$d; mount --bind /dev/$d $R/dev/$d; done
mount -t devpts -o newinstance,ptmxmode=666 devpts $R/dev/pts; ln -s pts/ptmx $R/dev/ptmx; ln -s /proc/self/fd $R/dev/fd
mknod $R/dev/loop-control c 10 237; for n in $(seq 0 63); do mknod $R/dev/loop$n b 7 $n; done
hostname sdlab; ip link set lo up
cd $R; mkdir -p .old; mount --make-rprivate /; pivot_root . .old; umount -l /.old; mount --make-rshared /
echo $pid > $LAB/pid
export container=lab; exec chroot . /lib/systemd/systemd </dev/null
X
timeout -k 5 "$T" unshare --mount --propagation private bash "$LAB/outer.sh" >"$LAB/console" 2>&1 </dev/null || true
find /sys/fs/cgroup -path '*/sdlab.*' -depth -type d -exec rmdir {} + 2>/dev/null || true
exit "$(cat "$LAB/rc" 2>/dev/null || echo 125)"
