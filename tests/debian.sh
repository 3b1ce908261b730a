#!/bin/sh
# The Debian packages that some checks use: a User Mode Linux kernel and an NFS server, systemd,
# strace, nginx and the like. Root gets what is missing installed; anybody else is told. No service
# is started by it.
set -eu
packages="
    user-mode-linux kmod iproute2 iptables e2fsprogs nfs-kernel-server nfs-common rpcbind gcc libc6-dev
    python3-venv procps systemd dbus debootstrap strace faketime dmsetup quota xfsprogs fuse3 libfuse2
    nginx-light unzip mandoc bsdextrautils zsh fish
    chromium fonts-dejavu-core prometheus rclone
"
missing=""
for package in $packages; do
    dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
    echo "some tests need Debian packages; as root: apt-get install --no-install-recommends$missing" >&2
    exit 1
fi
echo "installing Debian packages for the tests:$missing"
deny=/usr/sbin/policy-rc.d
if [ ! -e $deny ]; then
    printf '#!/bin/sh\nexit 101\n' > $deny
    chmod 755 $deny
    trap 'rm -f $deny' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >/dev/null
# shellcheck disable=SC2086
apt-get install -y -q --no-install-recommends $missing >/dev/null
