#!/bin/sh
# install.sh install|uninstall - what `make install` and `make uninstall` do; again: an upgrade.
#
#   PREFIX=/usr/local      programs, units, completions, man pages, schemas; APPDIR=/opt/watcherd: the rest
#   DESTDIR=               a root for packagers: nothing outside it is touched or started
#   SPOOL= STATIC= RESULTS=   the directories; default: the configuration's, else /srv/watcherd/...
#   STAGER_UID=            the daemon's uid; default: the owner of an existing spool
#   INSTANCE=              a further spool: watcherd@INSTANCE with /etc/stager/INSTANCE.yaml
#   WHEELS=DIR             install from there instead of an index;  PYTHON=  3.11 or newer
#
# Each installation is a virtual environment of its own below APPDIR/releases, and one rename makes
# it the current one: what runs keeps its files, and a failed installation changes nothing.
set -eu
umask 022
source=$(cd "$(dirname "$0")/.." && pwd)
PREFIX=${PREFIX:-/usr/local} APPDIR=${APPDIR:-/opt/watcherd} DESTDIR=${DESTDIR:-}
INSTANCE=${INSTANCE:-} WHEELS=${WHEELS:-} wanted_uid=${STAGER_UID:-}
unset STAGER_UID  # else watcherd takes it for a setting
etc=$DESTDIR/etc/stager
case $PREFIX in /usr | /usr/local) lib=$DESTDIR$PREFIX/lib ;; *) lib=$DESTDIR/etc ;; esac
units=$lib/systemd/system share=$DESTDIR$PREFIX/share
unit=watcherd config=$etc/config.yaml base=/srv/watcherd
if [ -n "$INSTANCE" ]; then
    unit=watcherd@$INSTANCE config=$etc/$INSTANCE.yaml base=/srv/watcherd/$INSTANCE
fi

say() { echo "watcherd: $*"; }
die() { echo "watcherd: $*" >&2; exit 1; }
has_systemd() { [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; }

find_python() {
    python=${PYTHON:-python3}
    # A python3 of root's own (pyenv, conda) would not run for the daemon's user.
    if [ "$python" = python3 ] && [ -x /usr/bin/python3 ]; then python=/usr/bin/python3; fi
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "Python 3.11 or newer is needed: apt install python3, or PYTHON=..."
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "Python's venv module is missing: apt install python3-venv"
}

install_program() {
    release=$APPDIR/releases/$(date +%Y%m%d-%H%M%S)-$$
    mkdir -p "$DESTDIR$APPDIR/releases"
    trap 'rm -rf "$DESTDIR$release"' EXIT
    say "installing into $DESTDIR$release ..."
    "$python" -m venv "$DESTDIR$release"
    set -- --disable-pip-version-check --no-warn-script-location -q
    [ -z "$WHEELS" ] || set -- "$@" --no-index --find-links "$WHEELS"
    "$DESTDIR$release/bin/python" -m pip install "$@" "$source"
    if [ -n "$DESTDIR" ]; then
        grep -rlI -- "$DESTDIR" "$DESTDIR$release/bin" "$DESTDIR$release/pyvenv.cfg" |
            xargs -r sed -i "s|$DESTDIR||g"
    fi
}

switch_program() {
    ln -sfn "releases/${release##*/}/bin" "$DESTDIR$APPDIR/.bin"
    mv -T "$DESTDIR$APPDIR/.bin" "$DESTDIR$APPDIR/bin"
    trap - EXIT
    mkdir -p "$DESTDIR$PREFIX/bin"
    for program in watcherd stager; do
        ln -sfn "$APPDIR/bin/$program" "$DESTDIR$PREFIX/bin/$program"
    done
}

find_paths() {
    spool=$base/spool static=$base/static results=$base/results
    if [ -e "$config" ]; then
        said=$(env -i STAGER_CONFIG="$config" "$DESTDIR$release/bin/python" -c '
from stager.config import find_config, load_config
paths = load_config(find_config(None), {}).paths
print(paths.spool, paths.static, paths.results, sep="\n")' 2>&1) ||
            die "$config is not good: $(echo "$said" | tail -n 1)"
        spool=$(echo "$said" | sed -n 1p) static=$(echo "$said" | sed -n 2p)
        results=$(echo "$said" | sed -n 3p)
        for wanted in "${SPOOL:-$spool}" "${STATIC:-$static}" "${RESULTS:-$results}"; do
            case $wanted in "$spool" | "$static" | "$results") ;; *)
                say "note: $config has other directories than $wanted; it is not changed" ;;
            esac
        done
    fi
    spool=${SPOOL:-$spool} static=${STATIC:-$static} results=${RESULTS:-$results}
    # Answers are renamed from the spool to the results, which must be one mount for the service.
    common=$spool
    while case $results/ in "$common"/*) false ;; esac; do common=${common%/*}; done
    [ -n "$common" ] || die "spool and results need a common directory above them: $spool, $results"
}

check_user() {
    has=$([ -n "$DESTDIR" ] || id -u stager 2>/dev/null || true)
    if [ -n "$1" ] && [ -n "$has" ] && [ "$has" != "$1" ]; then
        die "the user stager is uid $has here, and should be $1: usermod -u $1 stager"
    fi
}

install_user() {
    uid=$wanted_uid
    if [ -z "$uid" ] && [ -e "$DESTDIR$spool/LAYOUT" ]; then
        uid=$(stat -c %u "$DESTDIR$spool/LAYOUT")
        [ "$uid" != 0 ] || uid=
    fi
    check_user "$uid"
    mkdir -p "$lib/sysusers.d" "$lib/tmpfiles.d"
    sed "s/^u stager -/u stager ${uid:-${has:--}}/" "$source/systemd/sysusers.conf" \
        > "$lib/sysusers.d/watcherd.conf"
    chmod 644 "$lib/sysusers.d/watcherd.conf"
    install -m 644 "$source/systemd/tmpfiles.conf" "$lib/tmpfiles.d/watcherd.conf"
    [ -z "$DESTDIR" ] || return 0
    systemd-sysusers "$lib/sysusers.d/watcherd.conf"
    [ -z "$uid" ] || [ "$(id -u stager)" = "$uid" ] || die "uid $uid belongs to somebody else here"
    runuser -u stager -- "$release/bin/watcherd" --version >/dev/null ||
        die "the user stager can't run $python: give another with PYTHON="
}

install_config() {
    mkdir -p "$etc"
    if [ ! -e "$config" ]; then
        # Left out, `rescan` fits the filesystem: NFS is looked at more often.
        sed -e "s|^rescan:|# rescan:|" -e "s|/srv/watcherd/spool|$spool|" -e "s|/srv/watcherd/static|$static|" \
            -e "s|/srv/watcherd/results|$results|" \
            -e "s|schema=schema/|schema=$PREFIX/share/watcherd/schema/|" \
            "$source/config.yaml" > "$config.new"
        chmod 644 "$config.new"
        mv "$config.new" "$config"
    fi
}

# The default place only, and only where nothing is: any other may be a mount that is not there now.
make_base() {
    [ -z "$DESTDIR" ] && [ ! -e "$base" ] || return 0
    case $spool in "$base"/*) install -d -o stager -g stager "$base" ;; esac
}

# The mount unit that a directory is on, or will be by fstab; nothing for the root filesystem.
mount_unit() {
    point=$1
    while [ -n "$point" ]; do
        if findmnt -n --mountpoint "$point" >/dev/null || findmnt -n --fstab "$point" >/dev/null
        then systemd-escape -p --suffix=mount "$point"; return; fi
        point=${point%/*}
    done
}

quoted() { printf '"%s"' "$(printf %s "$1" | sed 's/%/%%/g')"; }

install_units() {
    mkdir -p "$units"
    for file in watcherd.service watcherd@.service; do
        sed "s|/opt/watcherd/|$APPDIR/|" "$source/systemd/$file" > "$units/.$file"
        chmod 644 "$units/.$file"
        mv "$units/.$file" "$units/$file"
    done
    dropin=$units/$unit.service.d/10-paths.conf
    rm -f "$dropin"
    # Only of a machine that is there can be known what it mounts.
    mounts=$([ -n "$DESTDIR" ] || for path in "$spool" "$static" "$results"; do
        mount_unit "$path"; done | sort -u)
    case $spool,$static,$results,$mounts in
        "$base"/*,"$base"/*,"$base"/*,) rmdir "${dropin%/*}" 2>/dev/null || true; return 0 ;;
    esac
    mkdir -p "${dropin%/*}"
    {
        echo "# By make install, which writes it anew."
        echo "[Unit]"
        echo "RequiresMountsFor=$(quoted "$spool") $(quoted "$static") $(quoted "$results")"
        echo "[Service]"
        echo "ReadWritePaths="
        echo "ReadWritePaths=$(quoted "-$common") $(quoted "-$static")"
        if [ -n "$mounts" ]; then
            echo "# A mount that failed at boot and comes later starts the service, too."
            echo "[Install]"
            for mount in $mounts; do echo "WantedBy=$mount"; done
        fi
    } > "$dropin"
    chmod 644 "$dropin"
}

install_extras() {
    for file in "$source"/schema/*.json; do
        install -D -m 644 "$file" "$share/watcherd/schema/${file##*/}"
    done
    for page in "$source"/man/*.[1-8]; do
        [ -e "$page" ] || continue
        install -D -m 644 "$page" "$share/man/man${page##*.}/${page##*/}"
    done
    for shell in bash zsh fish; do
        case $shell in
            bash) file=$share/bash-completion/completions/stager ;;
            zsh) file=$share/zsh/site-functions/_stager ;;
            fish) file=$share/fish/vendor_completions.d/stager.fish ;;
        esac
        mkdir -p "${file%/*}"
        _STAGER_COMPLETE=${shell}_source "$DESTDIR$release/bin/python" \
            -c 'from stager.cli import cli; cli(prog_name="stager")' > "$file" 2>/dev/null ||
            rm -f "$file"
    done
}

# The new program takes over: requests in flight are given back and go on in it.
take_over() {
    has_systemd || return 0
    systemctl daemon-reload
    systemd-tmpfiles --create "$lib/tmpfiles.d/watcherd.conf"
    if systemctl -q is-enabled "$unit.service" 2>/dev/null; then
        systemctl -q reenable "$unit.service"
    fi
    for running in $(systemctl list-units --plain --no-legend --state=active 'watcherd.service' \
        'watcherd@*.service' | cut -d' ' -f1); do
        file=$(systemctl show -p Environment --value "$running" | sed 's/.*STAGER_CONFIG=//; s/ .*//')
        env -i "$APPDIR/bin/watcherd" --check-config --config "$file" >/dev/null ||
            die "$running goes on with the program it has: mend $file, then systemctl restart $running"
        say "restarting $running"
        systemctl try-restart "$running"
    done
    # The one before stays for commands that still run.
    find "$APPDIR/releases" -mindepth 1 -maxdepth 1 -type d | sort | head -n -2 | xargs -r rm -rf
}

case ${1:-} in
install)
    [ -n "$DESTDIR" ] || [ "$(id -u)" = 0 ] || die "to be run as root, or with DESTDIR="
    find_python
    check_user "$wanted_uid"
    install_program
    find_paths
    install_user
    install_config
    make_base
    install_units
    install_extras
    switch_program
    take_over
    [ -z "$DESTDIR" ] || exit 0
    say "installed; the user stager is uid $(id -u stager) (on all machines of a spool: STAGER_UID=)"
    systemctl -q is-active "$unit.service" 2>/dev/null || cat <<END
next:  edit $config      (spool, static, results, archive)
       sudo -u stager stager init${INSTANCE:+ --config $config}
       systemctl enable --now $unit
END
    ;;
uninstall)
    if has_systemd; then
        systemctl disable --now watcherd.service $(systemctl list-units --all --plain --no-legend \
            'watcherd@*.service' | cut -d' ' -f1) || true
    fi
    rm -rf "$DESTDIR$APPDIR/bin" "$DESTDIR$APPDIR/releases"
    rmdir "$DESTDIR$APPDIR" 2>/dev/null || true
    for program in watcherd stager; do
        if [ "$(readlink "$DESTDIR$PREFIX/bin/$program")" = "$APPDIR/bin/$program" ]; then
            rm -f "$DESTDIR$PREFIX/bin/$program"
        fi
    done
    rm -f "$units/watcherd.service" "$units/watcherd@.service" "$units"/watcherd*.d/10-paths.conf \
        "$lib/sysusers.d/watcherd.conf" "$lib/tmpfiles.d/watcherd.conf" \
        "$share/bash-completion/completions/stager" "$share/zsh/site-functions/_stager" \
        "$share/fish/vendor_completions.d/stager.fish"
    rmdir "$units"/watcherd*.d 2>/dev/null || true
    rm -rf "$share/watcherd/schema"
    rmdir "$share/watcherd" 2>/dev/null || true
    for page in "$source"/man/*.[1-8]; do rm -f "$share/man/man${page##*.}/${page##*/}"; done
    ! has_systemd || systemctl daemon-reload
    say "removed; /etc/stager, the user stager, spools, images and answers are left as they are"
    ;;
*) die "install.sh install|uninstall" ;;
esac
