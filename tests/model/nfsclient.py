"""One machine's NFS client: what its processes see of the server, and what gets lost on the way.

Replies are lost, so that a request is executed again and its second result returned, or an error
is returned for what was done, or is done later; duplicates are executed much later. Listings are
old where the directory's time did not change (NFSv3), or split by a rename; what else is old is
the cache's.
"""

import errno
import os
import zlib
from collections.abc import Callable, Iterator

from model.cached import Cache
from model.network import Network, Sent
from model.turns import Killed


class Client(Cache):
    """The calls that reach the server, for one machine."""

    def __init__(self, network: Network, name: str) -> None:
        super().__init__(network, name)
        self.cut_until = 0.0
        self.files: dict[int, str] = {}

    # -- the way to the server -------------------------------------------------------------------

    def travel(self) -> None:
        """Let time pass, as a call to the server does."""
        rng = self.world.rng
        seconds = rng.expovariate(50.0)
        if rng.random() < self.network.odds.slow:
            seconds += rng.choice((0.2, 1.0, 8.0))
        self.world.sleep(seconds)
        if self.cut_until > self.world.now:
            self.network.count("cut off")
            raise OSError(errno.EIO, "cut off")

    def _change(self, call: Callable[..., None], *paths: str) -> None:
        """Have the server change something, and perhaps hear of it."""
        sent = Sent(self.name, call, paths)
        try:
            self.travel()
        except Killed:
            if self.world.is_dying() and self.world.rng.random() < 0.3:
                self.network.count("sent by a process that died")
                self.network.hold(sent)
            raise
        self.network.send(sent)

    # -- changes ---------------------------------------------------------------------------------

    def rename(self, source: str, target: str) -> None:
        try:
            self._change(self.disk.rename, source, target)
        except OSError as e:
            self._forget(target)
            if e.errno == errno.ENOENT:
                self._forget(source)
            raise
        self._own_change(source, target)
        # The kernel moves what it has cached, whatever the server renamed.
        moved = self._cached(source)
        self._forget(target)
        if moved is not None and moved.handle is not None:
            self._names.setdefault(os.path.dirname(target), {})[os.path.basename(target)] = moved
            self._names[os.path.dirname(source)].pop(os.path.basename(source))
        else:
            self._forget(source)

    def link(self, source: str, target: str) -> None:
        try:
            self._change(self.disk.link, source, target)
        finally:
            self._forget(target)
            self._forget(source)
        self._own_change(target)

    def unlink(self, path: str) -> None:
        try:
            self._change(self.disk.unlink, path)
        finally:
            self._forget(path)
        self._own_change(path)

    def mkdir(self, path: str) -> None:
        try:
            self._change(self.disk.mkdir, path)
        finally:
            self._forget(path)
        self._own_change(path)

    def rmdir(self, path: str) -> None:
        if self.world.rng.random() < self.network.odds.busy:
            # A file in it that was removed while it was open has another name, `.nfs...`.
            self.travel()
            self.network.count("directory kept")
            raise OSError(errno.ENOTEMPTY, "kept", path)
        try:
            self._change(self.disk.rmdir, path)
        finally:
            self._forget(path)
        self._own_change(path)

    def utime(self, path: str) -> None:
        name = self._look(path)
        self.travel()
        name = self._kept(path, name)
        # One's own change of a directory: the client asks for its names anew.
        self._listed.pop(path, None)
        self._drop_names(path)
        if name is not None and name.handle is not None and os.fstat(name.handle).st_nlink:
            # A time is set by handle: of the file that had the name.
            self.disk.touch(os.fstat(name.handle).st_ino)
            return
        self.disk.touch(os.stat(path).st_ino)
        self._forget(path)

    # -- looks -----------------------------------------------------------------------------------

    def listdir(self, path: str) -> list[str]:
        self.travel()
        mark = self.disk.changed(path)
        cached = self._listed.get(path)
        odds, rng = self.network.odds, self.world.rng
        if cached and cached[0] == mark and rng.random() < odds.stale_listing:
            if sorted(cached[1]) != sorted(os.listdir(path)):
                self.network.count("stale listing")
                self.network.trace(self.name, "stale listing", path, cached[1])
            return list(cached[1])
        if cached is None or cached[0] != mark:
            self._drop_names(path)
        names = sorted(os.listdir(path))
        if rng.random() < odds.split_listing:
            salt = rng.getrandbits(32)
            half = {n for n in names if zlib.crc32(n.encode(), salt) & 1}
            self.world.sleep(rng.expovariate(20.0))
            then = sorted(os.listdir(path))
            split = sorted(half) + [n for n in then if not zlib.crc32(n.encode(), salt) & 1]
            if sorted(split) != then:
                self.network.count("split listing")
                self.network.trace(self.name, "split listing", path, split)
            names = split
            self._listed.pop(path, None)
        else:
            self._listed[path] = (mark, names)
        return list(names)

    def lstat(self, path: str, *, follow: bool = False) -> os.stat_result:
        name = self._look(path)
        if name is not None:
            if name.info is None:
                raise FileNotFoundError(errno.ENOENT, "cached: no such file", path)
            return name.info
        self.travel()
        info = self._remember(path)
        return self.disk.stat(path, follow=True) if follow else info

    def open(self, path: str, flags: int, mode: int) -> int:
        if flags & os.O_CREAT:
            try:
                self._change(self._create, path)
            finally:
                self._forget(path)
            self._own_change(path)
            fd = os.open(path, flags & ~(os.O_CREAT | os.O_EXCL), mode)
        else:
            fd = self._open_old(path, flags)
        self.files[fd] = path
        return fd

    def _create(self, who: str, path: str, *, late: bool = False) -> None:
        # A second execution at once is known by its verifier, and is a success.
        try:
            self.disk.create(who, path, late=late)
        except FileExistsError:
            if late or path != self._created:
                raise
        if not late:
            self._created = path

    _created = ""

    def _open_old(self, path: str, flags: int) -> int:
        """Open what the name leads to, which can be the file that had it before."""
        name = self._look(path)
        self.travel()
        name = self._kept(path, name)
        if name is not None and name.handle is None:
            raise FileNotFoundError(errno.ENOENT, "cached: no such file", path)
        if name is not None and name.handle is not None:
            if os.fstat(name.handle).st_nlink:
                return os.open(f"/proc/self/fd/{name.handle}", flags & ~os.O_NOFOLLOW)
            self._forget(path)
            if self.world.rng.random() < 0.1:
                self.network.count("stale handle")
                raise OSError(errno.ESTALE, "stale handle", path)
        self._remember(path)
        return os.open(path, flags)

    def synced(self, fd: int) -> None:
        """Send what was written to the server."""
        self.travel()
        if self.world.rng.random() < self.network.odds.refused:
            self.network.count("sync failed")
            raise OSError(errno.EIO, "refused", self.files[fd])
        self._synced(fd)

    def inodes(self, path: str) -> Iterator[tuple[str, int]]:
        for name in self.listdir(path):
            try:
                yield name, os.lstat(f"{path}/{name}").st_ino
            except FileNotFoundError:
                yield name, 0
