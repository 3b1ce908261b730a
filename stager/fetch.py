"""Members become verified files in the work directory, side by side: one core inflates one of them.

What one worker's members still need of the disk is put aside as a whole. An error of one member
lets the others end; only when the caller is gone are they told to.
"""

import os
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from stager import durable
from stager.archive import Archive
from stager.behind import LOT
from stager.config import Config
from stager.errors import ArchiveCorrupt, ArchiveUnavailable, BuildBusy, NoSpace
from stager.inflate import Unpacked, unpack
from stager.lock import Work
from stager.progress import Progress
from stager.words import in_bytes
from stager.zipdir import Member

CORES = len(os.sched_getaffinity(0))
SIDE_BY_SIDE = min(4, CORES)
"""Members of one build at a time; each is one thread's work, and all share AHEAD_BYTES and LOT."""
_computing: set[object] = set()
"""One for each thread that inflates, hashes or writes, of all this process's workers."""
Fetched = tuple[Path, Unpacked]


class Room:
    """What the filesystem still has for this process's workers."""

    def __init__(self, static: Path, config: Config) -> None:
        self.static, self.config = static, config
        self._reserved: dict[int, int] = {}
        self._lock = threading.Lock()

    def reserve(self, owner: int, wanted: int) -> None:
        """Put `wanted` bytes aside for `owner`; raise NoSpace where they are not there."""
        with self._lock:
            fs = os.statvfs(self.static)
            free = fs.f_bavail * fs.f_frsize
            keep = self.config.min_free_bytes(fs.f_blocks * fs.f_frsize)
            others = sum(n for other, n in self._reserved.items() if other != owner)
            if free - wanted < keep:
                raise self._no_space(wanted, free, keep)
            if free - others - wanted < keep:
                raise BuildBusy("this machine, which needs the room for another build first")
            self._reserved[owner] = wanted

    def _no_space(self, wanted: int, free: int, keep: int) -> NoSpace:
        """Say which key is in the way, what there is, and how much must go."""
        missing = in_bytes(keep + wanted - free)
        return NoSpace(
            f"{in_bytes(wanted)} are needed, {in_bytes(free)} are free on {self.static}, of which "
            f"`min_free: {self.config.min_free}` keeps {in_bytes(keep)}: {missing} are missing",
            f"free {missing} on the filesystem of {self.static} (`stager gc` removes what "
            "`retention` lets go), or lower `min_free` in the configuration; requests wait",
        )

    def left(self, owner: int, wanted: int) -> None:
        """Say how much of what was put aside is not written yet."""
        with self._lock:
            self._reserved[owner] = max(0, wanted)

    def release(self, owner: int) -> None:
        """Give back what was put aside."""
        with self._lock:
            self._reserved.pop(owner, None)


@dataclass(slots=True)
class Fetching:
    """One build's members on their way into its work directory."""

    work: Work
    archive: Archive
    room: Room
    progress: Progress
    members: dict[str, Member]
    """By image."""
    _written: dict[str, int] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fetched(self) -> Generator[tuple[str, Fetched | Exception], None, None]:
        """Yield each image, in order, and its file: whole, checked and on disk; or the error."""
        self.archive.streams = max(1, min(SIDE_BY_SIDE, len(self.members)))
        if self.archive.streams == 1:
            for image in self.members:
                yield image, _outcome(partial(self._twice, image))
            return
        with ThreadPoolExecutor(self.archive.streams, "member") as pool:
            futures: dict[str, Future[Fetched]] = {}
            try:
                for image in self.members:
                    futures[image] = pool.submit(self._twice, image)
                for image, future in futures.items():
                    yield image, _outcome(future.result)
            finally:
                self._ended.set()
                if not all(future.done() for future in futures.values()):
                    self.archive.interrupt()
                pool.shutdown(wait=True, cancel_futures=True)

    def _twice(self, image: str) -> Fetched:
        """Fetch again, directory entry and all, where the archive looks corrupt at first."""
        member = self.members[image]
        with self.progress.at(image), self._computes():
            with suppress(ArchiveCorrupt):
                return self._once(image, member)
            try:
                return self._once(image, self.archive.directory(self._check).member(member.name))
            except ArchiveCorrupt:
                self._note(image, member.size)  # it needs no room any more
                raise

    def _once(self, image: str, member: Member) -> Fetched:
        file = self.work.file()
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Closed here: an error that is kept would keep its buffers and threads as well.
            with durable.at(self.room.static):
                with closing(self.archive.stream(member, self._check)) as chunks:
                    watched, lot = self._watched(image, chunks, fd), LOT // self.archive.streams
                    unpacked = unpack(watched, member, fd, self._check, self._helped, lot)
                os.fchmod(fd, 0o644)
                os.fsync(fd)
        except BaseException:
            self.progress.forget(image)
            # First: else another worker could take for free what this one needs again.
            self._note(image, 0)
            durable.discard(file)
            raise
        finally:
            os.close(fd)
        return file, unpacked

    def _helped(self) -> AbstractContextManager[None] | None:
        """Return what a second thread for an image works in; None while each core has one."""
        return self._computes() if len(_computing) < CORES else None

    @contextmanager
    def _computes(self) -> Iterator[None]:
        """Count this thread among those that keep a core busy, for the length of a block."""
        one = object()
        with self.progress.sign.helped():
            _computing.add(one)
            try:
                yield
            finally:
                _computing.discard(one)

    def _check(self) -> None:
        self.progress.check()
        if self._ended.is_set():
            raise ArchiveUnavailable("the work on its build has ended")

    def _watched(self, image: str, chunks: Iterator[bytes], fd: int) -> Iterator[bytes]:
        for chunk in chunks:
            self.progress.advance(image, len(chunk))
            self._note(image, os.fstat(fd).st_blocks * 512)
            yield chunk

    def _note(self, image: str, written: int) -> None:
        """Say how many bytes of an image are on the disk."""
        with self._lock:
            self._written[image] = written
            wanted = sum(member.size for member in self.members.values())
            self.room.left(id(self.work), wanted - sum(self._written.values()))


def _outcome(call: Callable[[], Fetched]) -> Fetched | Exception:
    try:
        return call()
    except Exception as e:  # noqa: BLE001 (raised again once the other members are through)
        return e
