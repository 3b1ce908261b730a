"""What one machine's NFS client keeps of the server: names, attributes, listings, written data.

A name and its attributes are old for a while, and a cached name opens the file that had
it before. What was written and not synced is gone when the machine loses its power.
"""

import os
from dataclasses import dataclass

from model.network import Network

MOST_CACHED = 60


@dataclass(slots=True)
class Name:
    """A cached name: the file it led to (None: nothing), as it was then."""

    handle: int | None
    info: os.stat_result | None
    since: float


class Cache:
    """What a machine has seen of the server, and not yet forgotten."""

    def __init__(self, network: Network, name: str) -> None:
        self.network, self.name = network, name
        self.world, self.disk = network.world, network.disk
        self._listed: dict[str, tuple[tuple[int, int], list[str]]] = {}
        self._names: dict[str, dict[str, Name]] = {}
        self._unsynced: dict[int, int] = {}
        """By inode: a descriptor of what was written since it was synced."""

    def _look(self, path: str) -> Name | None:
        """Return what is cached for a name, if this look is served from there."""
        name = self._cached(path)
        if name is None or self.world.rng.random() >= self.network.odds.stale_name:
            return None
        if self.world.now - name.since > self.network.cached_seconds:
            return None
        self._tell_stale(path, name)
        return name

    def _tell_stale(self, path: str, name: Name) -> None:
        try:
            inode = os.lstat(path).st_ino
        except FileNotFoundError:
            inode = 0
        cached = name.info.st_ino if name.info else 0
        if inode != cached:
            self.network.count("stale name")
            self.network.trace(self.name, "stale name", path, f"{cached} for {inode}")

    def _remember(self, path: str) -> os.stat_result:
        self._forget(path)
        names = self._names.setdefault(os.path.dirname(path), {})
        while len(names) >= MOST_CACHED:
            self._close(names.pop(next(iter(names))))
        try:
            info = self.disk.stat(path)
        except FileNotFoundError:
            names[os.path.basename(path)] = Name(None, None, self.world.now)
            raise
        handle = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        names[os.path.basename(path)] = Name(handle, info, self.world.now)
        return info

    def _cached(self, path: str) -> Name | None:
        return self._names.get(os.path.dirname(path), {}).get(os.path.basename(path))

    def _kept(self, path: str, name: Name | None) -> Name | None:
        """Return what was looked up before, if no other thread had it forgotten meanwhile."""
        return name if name is self._cached(path) else None

    def _forget(self, path: str) -> None:
        name = self._names.get(os.path.dirname(path), {}).pop(os.path.basename(path), None)
        if name is not None:
            self._close(name)

    def _drop_names(self, directory: str) -> None:
        for name in self._names.pop(directory, {}).values():
            self._close(name)

    def _own_change(self, *paths: str) -> None:
        # Only a success tells the client so; a failure does if the directory's time shows it.
        for path in paths:
            self._listed.pop(os.path.dirname(path), None)

    @staticmethod
    def _close(name: Name) -> None:
        if name.handle is not None:
            os.close(name.handle)

    # -- what is not synced ----------------------------------------------------------------------

    def written(self, fd: int) -> None:
        """Take note of a write to an open file."""
        inode = os.fstat(fd).st_ino
        self.disk.touch(inode)
        if inode not in self._unsynced:
            for removed in [i for i, f in self._unsynced.items() if not os.fstat(f).st_nlink]:
                os.close(self._unsynced.pop(removed))
            self._unsynced[inode] = os.dup(fd)

    def _synced(self, fd: int) -> None:
        if (written := self._unsynced.pop(os.fstat(fd).st_ino, None)) is not None:
            os.close(written)

    def lose_power(self) -> None:
        """Lose what was not synced, and forget everything."""
        for fd in self._unsynced.values():
            if os.fstat(fd).st_nlink:
                self.network.count("unsynced, lost")
                os.ftruncate(fd, 0)
        self.shut()

    def shut(self) -> None:
        """Forget everything, and close the handles."""
        for fd in self._unsynced.values():
            os.close(fd)
        self._unsynced.clear()
        for directory in list(self._names):
            self._drop_names(directory)
        self._listed.clear()
