#!/bin/sh
# uml-init.sh - PID 1 inside the User Mode Linux guest (started by uml-run.sh).
# Stage 1: the guest's root is the host's root, read-only, through hostfs; put a
# tmpfs-backed overlay over it, so that nothing the tests do touches the host,
# and go there.  Stage 2: run the command, leave its exit status, power off.
# Kernel command line: LAB=<host dir shared read-write with the guest>
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; export PATH
if [ "${STAGE:-1}" = 1 ]; then
    mount -t proc proc /proc
    M=/usr/lib/uml/modules/$(uname -r)
    insmod "$M/kernel/fs/overlayfs/overlay.ko"
    mount -t tmpfs -o mode=755 tmpfs /mnt
    mkdir /mnt/up /mnt/wk /mnt/root
    mount -t overlay -o lowerdir=/,upperdir=/mnt/up,workdir=/mnt/wk overlay /mnt/root
    R=/mnt/root
    mkdir -p $R/lib/modules "$R$LAB"
    ln -sfn "$M" "$R/lib/modules/$(uname -r)"
    mount -t proc proc $R/proc
    mount -t sysfs sysfs $R/sys
    mount -t devtmpfs dev $R/dev
    mkdir -p $R/dev/pts $R/dev/shm $R/dev/mqueue
    mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts $R/dev/pts
    mount -t tmpfs -o mode=1777 tmpfs $R/dev/shm
    ln -sfn /proc/self/fd $R/dev/fd
    mount -t tmpfs -o mode=755 tmpfs $R/run
    mkdir -p $R/run/lock
    mount -t hostfs -o "$LAB" none "$R$LAB"
    cd $R && mkdir -p .old && pivot_root . .old && umount -l /.old
    if [ -n "$SYSTEMD" ]; then exec chroot . /lib/systemd/systemd; fi
    STAGE=2 exec chroot . /bin/sh "$LAB/uml-init.sh"
fi
ip link set lo up
hostname uml
ulimit -n 4096
bash "$LAB/cmd.sh"; echo $? > "$LAB/rc"
sync
echo o > /proc/sysrq-trigger
sleep 10
