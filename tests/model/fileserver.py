"""The file server: real directories, whose every change is told to the observers.

Times are the model's. A request that was held up in the network is executed by directory handle:
it finds a directory that was renamed, and does not find one that was removed and made again.
"""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

EPOCH = 1_800_000_000


@dataclass(slots=True)
class Change:
    """One change of a name: what happened, by whom, and whether long after it was asked for."""

    verb: str
    path: str
    source: str
    inode: int
    replaced: int
    who: str
    late: bool


class Disk:
    """Executes what clients ask for; knows when each directory was last changed."""

    def __init__(self, root: str, now: Callable[[], float], tick_seconds: float) -> None:
        self.root, self._now, self._tick_seconds = root, now, tick_seconds
        self.times: dict[int, tuple[int, int]] = {}
        self.watch: Callable[[Change], None] = lambda _: None

    def time_ns(self) -> int:
        """Return the server's time, in its own coarse ticks."""
        ticks = int(self._now() / self._tick_seconds)
        return int((EPOCH + ticks * self._tick_seconds) * 1e9)

    def changed(self, path: str) -> tuple[int, int]:
        """Return which directory has this name, and its time of change."""
        info = os.stat(path)
        return info.st_ino, self.times.get(info.st_ino, (0, 0))[1]

    def stat(self, path: str | int, *, follow: bool = False) -> os.stat_result:
        """Return the attributes, with the times of the model."""
        real = os.stat(path) if follow or isinstance(path, int) else os.lstat(path)
        start = EPOCH * 10**9
        mtime, ctime = self.times.get(real.st_ino, (start, start))
        return os.stat_result(
            (*real[:7], start // 10**9, mtime // 10**9, ctime // 10**9),
            {
                "st_atime": EPOCH, "st_mtime": mtime / 1e9, "st_ctime": ctime / 1e9,
                "st_atime_ns": start, "st_mtime_ns": mtime, "st_ctime_ns": ctime,
                "st_blocks": real.st_blocks, "st_blksize": real.st_blksize, "st_rdev": 0,
            },
        )  # fmt: skip

    def touch(self, inode: int, *, data: bool = True) -> None:
        now = self.time_ns()
        self.times[inode] = (now if data else self.times.get(inode, (now, now))[0], now)

    def _touch_dirs(self, *paths: str) -> None:
        for directory in {os.path.dirname(path) for path in paths}:
            self.touch(os.stat(directory).st_ino)

    def _tell(self, verb: str, path: str, inode: int, who: str, late: bool, source: str = "",
              replaced: int = 0) -> None:  # fmt: skip
        self.watch(Change(verb, path, source, inode, replaced, who, late))

    def rename(self, who: str, source: str, target: str, *, late: bool = False) -> None:
        inode, replaced = os.lstat(source).st_ino, 0
        with suppress(FileNotFoundError):
            replaced = os.lstat(target).st_ino
        os.rename(source, target)
        self.touch(inode, data=False)
        self._touch_dirs(source, target)
        self._tell("rename", target, inode, who, late, source, replaced)

    def link(self, who: str, source: str, target: str, *, late: bool = False) -> None:
        os.link(source, target, follow_symlinks=False)
        inode = os.lstat(target).st_ino
        self.touch(inode, data=False)
        self._touch_dirs(target)
        self._tell("link", target, inode, who, late, source)

    def unlink(self, who: str, path: str, *, late: bool = False) -> None:
        inode = os.lstat(path).st_ino
        os.unlink(path)
        self._touch_dirs(path)
        self._tell("unlink", path, inode, who, late)

    def mkdir(self, who: str, path: str, *, late: bool = False) -> None:
        os.mkdir(path)
        inode = os.lstat(path).st_ino
        self.touch(inode)
        self._touch_dirs(path)
        self._tell("mkdir", path, inode, who, late)

    def rmdir(self, who: str, path: str, *, late: bool = False) -> None:
        inode = os.lstat(path).st_ino
        os.rmdir(path)
        self._touch_dirs(path)
        self._tell("rmdir", path, inode, who, late)

    def create(self, who: str, path: str, *, late: bool = False) -> None:
        """Make an empty file; FileExistsError where the name is there."""
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        inode = os.lstat(path).st_ino
        self.touch(inode)
        self._touch_dirs(path)
        self._tell("create", path, inode, who, late)


class Handles:
    """Names held by the handles of their directories, as a request in the network holds them."""

    def __init__(self, *paths: str) -> None:
        self._held = [
            (os.open(os.path.dirname(p), os.O_PATH | os.O_DIRECTORY), os.path.basename(p))
            for p in paths
        ]

    def paths(self) -> list[str]:
        """Return where the names are now; ESTALE where a directory is gone."""
        found = []
        for fd, name in self._held:
            if os.fstat(fd).st_nlink == 0:
                raise OSError(errno.ESTALE, "stale handle", name)
            found.append(f"{os.readlink(f'/proc/self/fd/{fd}')}/{name}")
        return found

    def close(self) -> None:
        for fd, _ in self._held:
            os.close(fd)
