# Run as root in a guest whose PID 1 is systemd (uml-run.sh -k SYSTEMD=1): watcherd, installed below
# $LAB/root, on a real NFS mount; then its server stops for a while. Prints what test_nfs_mount.py
# wants to see, and then the service's journal.
set -eu
. "$HERE/nfs-lab.sh"
wait_for() { # SECONDS COMMAND...: until it succeeds
    local end=$((SECONDS + $1)); shift
    until "$@"; do [ $SECONDS -lt $end ] || { echo "never: $*"; journalctl -u watcherd; exit 1; }; sleep 0.2; done
}
show() { systemctl show -p "$1" --value watcherd; }
status_has() { show StatusText | grep -q "$1"; }
status_lacks() { ! status_has "$1"; }
ask() { runuser -u nobody -- stager submit "gs://chromeos-image-archive/$1" test --wait --timeout 150 | head -1; }

cp -a "$LAB/root/usr" "$LAB/root/etc" /
mkdir -p /opt/watcherd && mount --bind "$LAB/root/opt/watcherd" /opt/watcherd
mkdir -p /opt/archive && mount --bind "$LAB/archive" /opt/archive  # the service has a /tmp of its own
systemd-sysusers
nfs_server
rmdir /srv/export/spool 2>/dev/null || true
chown stager /srv/export
mkdir -p /etc/systemd/system/watcherd.service.d
printf '[Mount]\nWhat=10.9.0.1:/\nWhere=/mnt/lab\nType=nfs\nTimeoutSec=5min\nOptions=vers=4.2,hard,timeo=20\n' > /etc/systemd/system/mnt-lab.mount
# The machine may be a slow one: what must not happen is a restart within three watchdog periods.
printf '[Service]\nWatchdogSec=15s\nTimeoutStartSec=5min\n' > /etc/systemd/system/watcherd.service.d/50-test.conf
systemctl daemon-reload
systemctl start mnt-lab.mount
runuser -u stager -- stager init > /dev/null
umount /mnt/lab
systemctl start watcherd
echo "mounted: $(findmnt -n -o FSTYPE /mnt/lab)"
echo "status: $(show StatusText)"
echo "first: $(ask x86-alex-release/R23-1.0.0)"
srv_stop
wait_for 60 status_has "does not answer since"
over=$((SECONDS + 45))
until [ $SECONDS -ge $over ]; do sleep 1; done
echo "outage: $(show ActiveState) $(show StatusText)"
srv_start
wait_for 120 status_lacks "does not answer since"
echo "second: $(ask x86-alex-release/R23-2.0.0)"
echo "restarts: $(show NRestarts)"
systemctl stop watcherd
echo "result: $(show Result)"
echo "the journal of watcherd.service"
journalctl -q -o short-precise --no-hostname -u watcherd
