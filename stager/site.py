"""The set of directories a spool is made of: made once by `stager init`, checked ever after.

The daemon never makes them: an unmounted mount point must not become a spool. Each of the three
has a LAYOUT file with the same set id.
"""

import contextlib
import errno
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

import yaml

from stager import durable, mounts
from stager.config import Config
from stager.errors import NotNow, SetupError
from stager.layout import Paths

VERSION = 1
OPEN_MODE = 0o1777
GROUP_MODE = 0o3770


@dataclass(frozen=True, slots=True)
class Layout:
    """What a LAYOUT file says; lease and heartbeat in seconds."""

    version: int
    set_id: str
    lease: float
    heartbeat: float
    uid: int

    def text(self) -> str:
        return (
            f"version: {self.version}\nset: {self.set_id}\nlease: {self.lease:g}\n"
            f"heartbeat: {self.heartbeat:g}\nuid: {self.uid}\n"
        )

    @classmethod
    def read(cls, path: Path) -> "Layout":
        """Read a LAYOUT file; SetupError says what to do where there is none."""
        run = "run `stager init` once as the daemon's user, on one machine"
        try:
            data = yaml.safe_load(durable.read_file(path))
            return cls(
                int(data["version"]), str(data["set"]), float(data["lease"]),
                float(data["heartbeat"]), int(data["uid"]),
            )  # fmt: skip
        except FileNotFoundError:
            raise SetupError(
                f"no {path}: the filesystem is not mounted, or nothing was set up; {run}"
            ) from None
        except OSError as e:
            kind = NotNow if e.errno in durable.PASSING else SetupError
            raise kind(f"can't read {path}: {e.strerror}") from None
        except (yaml.YAMLError, KeyError, TypeError, ValueError):
            raise SetupError(f"{path} is not a layout file; {run} in a new place") from None


def init(config: Config, group: int | None = None) -> Layout:
    """Make all directories; what is there already is kept, and only completed."""
    paths = config.paths
    layout = _existing(paths) or Layout(
        VERSION, secrets.token_hex(8), config.lease, config.heartbeat, os.geteuid()
    )
    rooms = _rooms(paths, OPEN_MODE if group is None else GROUP_MODE)
    try:
        for path, mode in rooms.items():
            _make(path, mode, layout.uid, group if path == paths.requests else None)
        for mark in paths.marks:
            _mark(mark, layout)
            # Of two that set up at the same time, the first mark's maker is followed by both.
            layout = Layout.read(paths.marks[0])
    except OSError as e:
        raise SetupError(f"can't set up {e.filename}: {e.strerror}") from None
    if any(Layout.read(mark).set_id != layout.set_id for mark in paths.marks):
        raise SetupError("spool, static and results belong to different sets; give others")
    check_links(paths)
    return layout


def _mark(mark: Path, layout: Layout) -> None:
    """Write a LAYOUT whole, where there is none."""
    if mark.exists():
        return
    tmp = mark.with_name(f".{mark.name}.{durable.nonce()}.tmp")
    durable.write_new(tmp, layout.text().encode())
    try:
        _give(tmp, layout.uid)
        durable.link(tmp, mark)
    finally:
        durable.discard(tmp)
    durable.sync_dir(mark.parent)


def _make(path: Path, mode: int, uid: int, group: int | None) -> None:
    """Make a directory (and its parents, open to all); an open one keeps the mode it has."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    for directory in reversed(missing):
        # It may be there: another machine does the same just now.
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
        _give(directory, uid)
        durable.sync_dir(directory.parent)
    if group is not None:
        os.chown(path, -1, group)
    if missing or group is not None or mode & 0o777 != 0o777:
        os.chmod(path, mode)


def _give(path: Path, uid: int) -> None:
    """Give what root made to the daemon's user."""
    if os.geteuid() == 0:
        os.chown(path, uid, -1)


def _existing(paths: Paths) -> Layout | None:
    found = [Layout.read(mark) for mark in paths.marks if mark.exists()]
    if len({layout.set_id for layout in found}) > 1:
        raise SetupError("spool, static and results belong to different sets; give others")
    return found[0] if found else None


def check(config: Config, *, as_root: bool = False) -> Layout:
    """See that the directories are the ones that were set up, and ours (or root may look)."""
    first, *others = (Layout.read(mark) for mark in config.paths.marks)
    if any(other.set_id != first.set_id for other in others):
        where = ", ".join(str(mark) for mark in config.paths.marks)
        raise SetupError(f"spool, static and results are not of one set: compare {where}")
    if first.version != VERSION:
        raise SetupError(f"the spool has layout version {first.version}; this is for {VERSION}")
    if first.uid != os.geteuid() and not (as_root and os.geteuid() == 0):
        raise SetupError(
            f"the spool belongs to uid {first.uid}, and this is uid {os.geteuid()}: "
            f"start the daemon as that user"
        )
    compare(config, first)
    return first


def compare(config: Config, layout: Layout) -> None:
    """See that lease and heartbeat are the spool's; SetupError says where they differ."""
    differ = [
        f"{key} is {getattr(config, key):g} s in the configuration and {ours:g} s in "
        f"{config.paths.marks[0]}"
        for key, ours in (("lease", layout.lease), ("heartbeat", layout.heartbeat))
        if ours != getattr(config, key)
    ]
    if differ:
        raise SetupError(
            f"lease and heartbeat must be the spool's on all machines: {'; '.join(differ)}: set "
            f"lease: {layout.lease:g} and heartbeat: {layout.heartbeat:g}"
        )


def marks(paths: Paths) -> list[tuple[int, int, int]]:
    """Return which files the LAYOUTs are and when they changed; nothing where one is missing."""
    try:
        infos = [os.stat(mark) for mark in paths.marks]
    except OSError:
        return []
    return [(info.st_dev, info.st_ino, info.st_ctime_ns) for info in infos]


def check_links(paths: Paths) -> None:
    """See that what must be one filesystem is one, on one mount, and that it has hard links."""
    _probe(paths.tmp, paths.results, "spool and results")
    _probe(paths.static_tmp, paths.images, "static/.stager and static/images")
    mounts.check_together([*(p for p in _rooms(paths, 0) if paths.spool in (p, *p.parents))])
    mounts.check_together(
        [paths.stager, *(p for p in _rooms(paths, 0) if paths.stager in p.parents)]
    )


def _probe(source: Path, target: Path, what: str) -> None:
    # One name for all: what a daemon that died here left, the next one replaces and removes.
    name = f".probe.{durable.nonce()}"
    first, second, there = source / name, source / f"{name}.2", target / ".probe"
    try:
        durable.write_new(first, b"")
        os.link(first, second)
        os.rename(second, there)
    except OSError as e:
        if e.errno in durable.PASSING:
            remedy = f": {_way_out(e, source, target)}" if e.errno == errno.EROFS else ""
            raise NotNow(f"{what}: {e.strerror} ({e.filename}){remedy}") from None
        raise SetupError(
            f"{what}: {e.strerror} ({e.filename}): {_way_out(e, source, target)}"
        ) from None
    finally:
        for path in (first, second, there):
            with contextlib.suppress(OSError):
                path.unlink()


def _way_out(error: OSError, source: Path, target: Path) -> str:
    """Say what to do about two directories between which nothing can be linked or renamed."""
    one, other = mounts.mount_of(source), mounts.mount_of(target)
    if error.errno == errno.EXDEV:
        return (
            f"{source} is on {one.point} ({one.kind}), {target} on {other.point} ({other.kind}): "
            f"both must be on one filesystem and one mount"
        )
    if error.errno in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
        return f"{one.kind} has no hard links: use one filesystem that has, as ext4, XFS or NFS"
    if error.errno == errno.EROFS:
        return (
            "both must be writable; in a service, `make install SPOOL= STATIC= RESULTS=` lets it "
            "write elsewhere than below /srv/watcherd"
        )
    return "both must be writable, on one filesystem that has hard links"


@dataclass(frozen=True, slots=True)
class Misfit:
    """A path that is not as it must be: what is wrong, and what mends it."""

    path: Path
    what: str
    uid: int | None = None
    mode: int | None = None

    def __str__(self) -> str:
        return f"{self.path} {self.what}: {self.command}"

    @property
    def command(self) -> str:
        """Return what a person would type."""
        if self.uid is not None:
            return f"chown {self.uid} {self.path}"
        if self.mode is not None:
            return f"chmod {self.mode:o} {self.path}"
        return "stager init"

    def mend(self) -> None:
        """Set the owner or the mode; OSError where that is not ours to do."""
        if self.uid is not None:
            os.chown(self.path, self.uid, -1, follow_symlinks=False)
        elif self.mode is not None:
            os.chmod(self.path, self.mode)


def check_modes(paths: Paths, uid: int) -> list[Misfit]:
    """Return what is wrong with the owners and modes of the directories."""
    problems = []
    for path, mode in _rooms(paths, OPEN_MODE).items():
        try:
            info = path.lstat()
        except FileNotFoundError:
            problems.append(Misfit(path, "is not there"))
            continue
        modes = {mode, GROUP_MODE} if path == paths.requests else {mode}
        if not stat.S_ISDIR(info.st_mode):
            problems.append(Misfit(path, "is no directory; move it away"))
        elif info.st_uid != uid:
            problems.append(Misfit(path, f"belongs to uid {info.st_uid}", uid=uid))
        elif stat.S_IMODE(info.st_mode) not in modes:
            problems.append(Misfit(path, "has the wrong mode", mode=mode))
    return problems


def _rooms(paths: Paths, open_mode: int) -> dict[Path, int]:
    """Return all directories with their modes; parents first."""
    rooms = dict.fromkeys((paths.spool, paths.static, paths.results), 0o755)
    rooms |= {paths.requests: open_mode, paths.control: OPEN_MODE}
    for name in ("active", "waiting", "done", "failed", "cancelled", "instances"):
        rooms[paths.spool / name] = 0o755
    rooms |= {paths.private: 0o700, paths.tmp: 0o700, paths.images: 0o755, paths.stager: 0o755}
    return rooms | dict.fromkeys((paths.locks, paths.work, paths.sidecars, paths.static_tmp), 0o755)
