"""What the kernel's mount table says about the spool's filesystems: kinds, dangers seen beforehand.

Reads /proc/self/mountinfo and nothing else. A notice never stops the daemon; directories that
belong together and are on different mounts do: no rename goes from one mount to another, not even
of one filesystem. How a filesystem really behaves is found by `stager probe`.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stager.errors import SetupError

MOUNTINFO = Path("/proc/self/mountinfo")
MOST_CACHED_SECONDS = 60
"""How long an NFS client trusts a directory's attributes by default."""
NETWORK_FILESYSTEMS = frozenset([
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse.glusterfs", "fuse.sshfs", "gfs2",
    "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb3", "smbfs",
])  # fmt: skip
FLEETING = {"tmpfs": "memory", "ramfs": "memory", "overlay": "a container's or live system's layer"}
OWN_RULES = frozenset(["9p", "cifs", "smb3", "smbfs", "afs", "ncpfs", "coda", "vboxsf", "virtiofs"])
NFS = {
    "nocto": "a listing opened anew may then be old: take the option out",
    "soft": "an error then may be a success that comes later: mount with `hard`",
    "softerr": "an error then may be a success that comes later: mount with `hard`",
    "softreval": "old names are served while the server is away: take the option out",
    "noac": "every look asks the server: take it out; watcherd asks where it matters",
    "nolock": "watcherd takes no file locks, but what else uses this mount may: take it out",
    "lookupcache=none": "every name is looked up again: `lookupcache=pos` is enough",
    "proto=udp": "requests are sent twice and answered late under load: mount with proto=tcp",
    "vers=2": "it syncs nothing and knows no large files: mount with vers=4.2",
}
LOCAL = {
    "nobarrier": "what was synced may be gone after a power loss: take the option out",
    "barrier=0": "what was synced may be gone after a power loss: take the option out",
    "sync": "every write waits for the disk: watcherd syncs where it must; take the option out",
    "dirsync": "every change waits for the disk: watcherd syncs where it must; take it out",
}
OTHER = {
    "cache=loose": "one machine's changes are not seen by the others: mount with cache=strict/none",
    "cache=fscache": "one machine's changes are not seen by the others: mount with cache=none",
    "cache=mmap": "one machine's changes are not seen by the others: mount with cache=none",
    "nounix": "owners and modes are made up: mount with the unix or posix extensions",
    "noserverino": "file numbers are made up: mount with serverino",
}


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the mount table; options are those of the mount and of its filesystem."""

    point: str
    kind: str
    source: str
    options: frozenset[str]

    @property
    def is_nfs(self) -> bool:
        return self.kind in {"nfs", "nfs4"}

    def value(self, key: str) -> str:
        """Return the value of an option `key=value`; empty if there is none."""
        return next((o.partition("=")[2] for o in self.options if o.startswith(f"{key}=")), "")

    def seconds(self, key: str) -> int:
        """Return an option's number of seconds; 0 if there is none."""
        value = self.value(key)
        return int(value) if value.isdigit() else 0


@dataclass(frozen=True, slots=True)
class Notice:
    """Something about a mount that somebody should know, and what to do."""

    what: str
    hint: str

    def __str__(self) -> str:
        return f"{self.what}: {self.hint}"


def mounts(table: Path = MOUNTINFO) -> list[Mount]:
    """Return all mounts, later ones on top of earlier ones; none where the kernel tells none."""
    found = []
    try:
        lines = table.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    for line in lines:
        fields, _, rest = line.partition(" - ")
        first, second = fields.split(), rest.split()
        if len(first) < 6 or len(second) < 2:
            continue
        options = {*first[5].split(","), *(second[2].split(",") if len(second) > 2 else [])}
        found.append(Mount(_plain(first[4]), second[0], _plain(second[1]), frozenset(options)))
    return found


def _plain(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), field)


def mount_of(path: Path, among: Iterable[Mount] | None = None) -> Mount:
    """Return the mount that holds `path`."""
    real = str(path.resolve())
    best = Mount("", "unknown", "", frozenset())
    for mount in mounts() if among is None else among:
        inside = real == mount.point or real.startswith(mount.point.rstrip("/") + "/")
        if inside and len(mount.point) >= len(best.point):
            best = mount
    return best


def filesystem_kind(path: Path) -> str:
    """Return the type of the filesystem that holds `path`, as the mount table names it."""
    return mount_of(path).kind


def is_network(path: Path) -> bool:
    """Whether other machines may change what is below `path` without this kernel knowing."""
    return filesystem_kind(path) in NETWORK_FILESYSTEMS


def is_nfs(path: Path) -> bool:
    """Whether `path` is on NFS, whose cached names and listings can be old."""
    return filesystem_kind(path).startswith("nfs")


def check_together(rooms: Iterable[Path], among: Iterable[Mount] | None = None) -> None:
    """Raise SetupError where one of `rooms` is on another mount than the first."""
    table = list(mounts() if among is None else among)
    first, *others = rooms
    home = mount_of(first, table)
    for room in others:
        if (mount := mount_of(room, table)) != home:
            raise SetupError(
                f"{room} is on a mount of its own ({mount.kind} on {mount.point}), {first} is not "
                f"({home.kind} on {home.point}): nothing can be renamed from one to the other; "
                f"unmount it, or mount one filesystem that holds both"
            )


def notices(paths: Iterable[Path], among: Iterable[Mount] | None = None) -> list[Notice]:
    """Return what is to be known about the mounts that hold `paths`, each once."""
    table = list(mounts() if among is None else among)
    held = dict.fromkeys(mount_of(path, table) for path in paths)
    return list(dict.fromkeys(notice for mount in held for notice in _notices(mount)))


def _notices(mount: Mount) -> Iterator[Notice]:
    where = f"{mount.point} ({mount.kind})"
    if mount.kind in FLEETING:
        yield Notice(
            f"{where} is {FLEETING[mount.kind]}",
            "what is in it ends with the machine or container: use a disk's or a server's",
        )
    if mount.is_nfs:
        known = NFS
        yield from _nfs(mount, where)
    else:
        known = OTHER if mount.kind in OWN_RULES else LOCAL
    for option, hint in known.items():
        if option in mount.options:
            yield Notice(f"{where} is mounted with {option}", hint)
    if mount.kind in OWN_RULES or mount.kind.startswith("fuse"):
        yield Notice(
            f"{where} keeps rules of its own",
            f"run `stager probe {mount.point}` on two machines at once before you rely on it",
        )


def _nfs(mount: Mount, where: str) -> Iterator[Notice]:
    """Judge options that have values."""
    for key in ("acregmax", "acdirmax"):
        if (seconds := mount.seconds(key)) > MOST_CACHED_SECONDS:
            hint = "waiting clients hear late of answers: 60 or less (10 is better)"
            yield Notice(f"{where} is mounted with {key}={seconds}", hint)
    locks = mount.value("local_lock")
    if locks not in {"", "none"} and "nolock" not in mount.options:
        yield Notice(f"{where} is mounted with local_lock={locks}", NFS["nolock"])
