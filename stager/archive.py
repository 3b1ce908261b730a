"""An archive at one generation: one look pins it, every later read carries it.

`Source.look` answers with an `Archive`, which reads ranges; from Google Cloud Storage (gcs.py) or
from a directory. `Archive.stream` gives one member's exact compressed bytes, read ahead in slices
where that pays, resumed where a connection broke; never the whole archive.
"""

import os
import stat
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Protocol

from stager.ahead import BEYOND, USED_BYTES, Ahead, Check
from stager.errors import (
    ArchiveCorrupt,
    ArchiveDenied,
    ArchiveNotFound,
    ArchivesAway,
    ArchiveUnavailable,
)
from stager.layout import Build
from stager.zipdir import LOCAL_HEADER, Directory, Member, read_directory

SLICE_BYTES, LAST_SLICE_BYTES = 8 << 20, 1 << 20
"""Slices become shorter towards the end, so that all connections have work until then."""
AHEAD_BYTES = 32 << 20
"""So much may be read ahead of one worker's inflaters, all its members together."""
Pause = Callable[[float], None]


class GenerationGone(ArchiveUnavailable):
    """The pinned generation is no longer there: look again, nothing was mixed."""


class Source(Protocol):
    """Where archives come from."""

    def look(self, build: Build, pause: Pause) -> "Archive":
        """Return the build's archive as it is now; `pause` waits between tries.

        Raises ArchiveMissing, ArchiveUnavailable or CredentialsRefused where that can't be.
        """


class Reader(Protocol):
    """Reads ranges of one object at one generation."""

    def read(self, start: int, end: int, check: Check, most: int) -> Iterator[bytes]:
        """Yield the bytes from `start` up to `end`, about `most` at a time; resume by itself.

        `check` is called before every try and may end it.
        """

    def interrupt(self) -> None:
        """Make reads that wait for bytes fail now; may be called by any thread."""


class Archive:
    """One object at one generation, and how many of its bytes were fetched."""

    def __init__(
        self, url: str, generation: int, size: int, reader: Reader, connections: int
    ) -> None:
        self.url, self.generation, self.size = url, generation, size
        self.fetched = 0
        self.streams = 1
        """How many members are read side by side."""
        self._reader, self._connections = reader, connections
        self._lock = threading.Lock()

    def interrupt(self) -> None:
        """Wake a worker that waits for bytes, so that it looks whether it should go on."""
        self._reader.interrupt()

    def directory(self, check: Check = lambda: None) -> Directory:
        """Read the zip's directory; `check` may end it."""
        return read_directory(self.size, partial(self._bytes, check=check))

    def stream(self, member: Member, check: Check) -> Generator[bytes, None, None]:
        """Yield exactly the member's compressed bytes, in order; `check` may end it.

        The first read begins at the local header, which tells where the data begins: no extra
        round trip, and at most 64 bytes more than the member.
        """
        # Closed here: an error that is kept would keep its connection as well.
        with closing(self._ahead(member.header_offset, member.likely_end, check)) as pieces:
            head = b""
            while len(head) < LOCAL_HEADER.size + len(member.raw_name):
                head += next(pieces, b"") or _short(member)
            data = member.data_offset(head)
            if data + member.compressed > member.end:
                raise ArchiveCorrupt(f"{member.name} overlaps what follows it in the archive")
            yield from self._exactly(head, pieces, data - member.header_offset, member.compressed)
        start, end = max(data, member.likely_end), data + member.compressed
        if start < end:
            yield from self._ahead(start, end, check)

    @staticmethod
    def _exactly(head: bytes, pieces: Iterator[bytes], skip: int, left: int) -> Iterator[bytes]:
        """Yield `left` bytes after the first `skip`, or as many of them as there are."""
        piece: bytes | None = head
        while piece is not None and left > 0:
            part = piece[skip : skip + left] if skip or len(piece) > left else piece
            skip, left = max(0, skip - len(piece)), left - len(part)
            if part:
                yield part
            piece = next(pieces, None)

    def _ahead(self, start: int, end: int, check: Check) -> Generator[bytes, None, None]:
        """Yield a range, fetched in slices by several connections where it is long."""
        if self._connections == 1 or end - start <= self._slice_bytes():
            yield from self._counted(start, end, check, USED_BYTES)
            return
        yield from Ahead(self._counted, (start, end), self._cut, self._connections, check)

    def _cut(self, start: int, end: int) -> int:
        """Return where the slice ends that begins at `start`."""
        share = max(LAST_SLICE_BYTES, (end - start) // self._connections)
        return min(start + min(self._slice_bytes(), share), end)

    def _slice_bytes(self) -> int:
        return min(SLICE_BYTES, AHEAD_BYTES // ((self._connections + BEYOND) * self.streams))

    def _counted(self, start: int, end: int, check: Check, most: int) -> Iterator[bytes]:
        for piece in self._reader.read(start, end, check, most):
            check()
            with self._lock:
                self.fetched += len(piece)
            yield piece

    def _bytes(self, start: int, end: int, check: Check = lambda: None) -> bytes:
        return b"".join(self._counted(start, end, check, USED_BYTES))


def _short(member: Member) -> bytes:
    raise ArchiveCorrupt(f"{member.name}: the archive ends inside it")


class DirectorySource:
    """Archives in a directory: DIRECTORY/<bucket>/<object>, a mirror or the demo."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def look(self, build: Build, pause: Pause) -> Archive:  # noqa: ARG002 (a disk needs no pause)
        """Open the file; its generation is its modification time in nanoseconds."""
        path = self.directory / build.bucket / build.object_name
        try:
            if not self.directory.is_dir():
                raise ArchivesAway(f"archive.directory is not there ({self.directory})")
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            reader = _FileReader(fd)
        except (FileNotFoundError, NotADirectoryError):
            raise ArchiveNotFound(f"no archive {build.archive_url}") from None
        except PermissionError:
            hint = f"let uid {os.geteuid()} read {path} and search the directories above it"
            raise ArchiveDenied(f"no permission to read {build.archive_url}", hint) from None
        except OSError as e:
            hint = f"look at the disk or mount of {path}, and drop the request again later"
            raise ArchiveUnavailable(f"{build.archive_url}: {e.strerror}", hint) from None
        if not stat.S_ISREG(reader.info.st_mode):
            raise ArchiveNotFound(f"{build.archive_url} is not a file")
        generation, size = reader.info.st_mtime_ns, reader.info.st_size
        return Archive(build.archive_url, generation, size, reader, 1)


class _FileReader:
    """Ranges of an open file that must not change meanwhile."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.info = os.fstat(fd)

    def __del__(self) -> None:
        os.close(self._fd)

    @staticmethod
    def _state(info: os.stat_result) -> tuple[int, int]:
        return info.st_mtime_ns, info.st_size

    def interrupt(self) -> None:
        """Do nothing: a disk's reads can't be interrupted."""

    def read(self, start: int, end: int, check: Check, most: int) -> Iterator[bytes]:
        """Yield a range of the file."""
        while start < end:
            check()
            try:
                piece = os.pread(self._fd, min(most, end - start), start)
                info = os.fstat(self._fd)
            except OSError as e:
                raise ArchiveUnavailable(f"reading the archive: {e.strerror}") from None
            if not piece or self._state(info) != self._state(self.info):
                raise GenerationGone("the archive's file was written to while it was read")
            start += len(piece)
            yield piece
