#!/bin/sh
# clean-root.sh - print where a fresh Debian 12 is: a file tree made by debootstrap, nothing but the
# basics, systemd and what the README asks for. It is made once (as root), and kept for later runs.
set -eu
root=${CLEAN_ROOT:-/var/tmp/watcherd-clean-debian-12}
if [ ! -e "$root" ]; then
    new=$(mktemp -d "$root.XXXXXX")
    trap 'rm -rf "$new" "$new.log"' EXIT
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' \
        'Codename: bookworm' 'Component: main' | head -n 1)
    # shellcheck disable=SC2086
    debootstrap --variant=minbase --include=systemd-sysv,dbus,procps,make,python3,python3-venv \
        bookworm "$new" $mirror > "$new.log" 2>&1 || { tail -n 20 "$new.log" >&2; exit 1; }
    rm -rf "$new"/var/cache/apt/archives/*.deb
    chmod 755 "$new"
    mv -T "$new" "$root" 2>/dev/null || [ -e "$root" ] # somebody else was quicker
fi
echo "$root"
