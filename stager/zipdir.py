"""The directory of a zip, read by range, and what must hold before a member is trusted.

Parsing is the standard library's (ZIP64, comments, any order); this module gives it a view that
fetches only what it asks for, and refuses what `zipfile` would let pass.
"""

import errno
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from stager.errors import ArchiveCorrupt, ImageNotInArchive

TAIL_BYTES = 1024
MAX_DIRECTORY_BYTES = 4 << 20
LOCAL_HEADER = struct.Struct("<4s5H3L2H")
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_REFUSED_FLAGS = {0x1: "encrypted", 0x20: "a patch", 0x40: "encrypted", 0x2000: "encrypted"}
_MAX_RATIO = 1032


@dataclass(frozen=True, slots=True)
class Member:
    """A wanted member: where it is, and what it must come out as. Sizes in bytes."""

    name: str
    raw_name: bytes
    header_offset: int
    compressed: int
    size: int
    crc32: int
    method: int
    end: int
    """No byte of this member lies at or beyond: the next member or the directory begins there."""

    @property
    def likely_end(self) -> int:
        """Where its data ends if the local header is like the directory's, with a little room."""
        return min(self.end, self.header_offset + 30 + len(self.raw_name) + 64 + self.compressed)

    def data_offset(self, header: bytes) -> int:
        """Return where its data begins, from its local header (fixed part and name)."""
        fields = LOCAL_HEADER.unpack_from(header)
        if fields[0] != b"PK\3\4":
            raise ArchiveCorrupt(f"{self.name}: no local header where the directory says")
        if header[LOCAL_HEADER.size :][: int(fields[9])] != self.raw_name:
            raise ArchiveCorrupt(f"{self.name}: its local header has another name")
        return self.header_offset + LOCAL_HEADER.size + int(fields[9]) + int(fields[10])


class Directory:
    """The members of one archive by name."""

    def __init__(self, entries: list[zipfile.ZipInfo], start: int) -> None:
        self.entries, self.start = entries, start
        self.names = [entry.filename for entry in entries]

    def member(self, name: str) -> Member:
        """Return a wanted member; raise ArchiveCorrupt with the reason, or ImageNotInArchive."""
        found = [entry for entry in self.entries if entry.filename == name]
        if not found:
            raise ImageNotInArchive(f"no {name} in the archive; it holds {self.holdings()}")
        if len(found) > 1:
            raise ArchiveCorrupt(f"{name} stands in the archive's directory {len(found)} times")
        return self._checked(found[0])

    def facts(self, name: str) -> tuple[int, str] | None:
        """Return size and CRC-32 of a member as its entry says; None: there is none, or several."""
        found = [entry for entry in self.entries if entry.filename == name]
        return (found[0].file_size, f"{found[0].CRC:08x}") if len(found) == 1 else None

    def holdings(self) -> str:
        """Say which files stand at the archive's top."""
        top = [name for name in self.names if "/" not in name and name.isprintable()]
        more = f" and {len(top) - 20} more" if len(top) > 20 else ""
        return (", ".join(name[:64] for name in sorted(top)[:20]) + more) or "no file at its top"

    def _checked(self, entry: zipfile.ZipInfo) -> Member:
        name = entry.filename
        for bit, what in _REFUSED_FLAGS.items():
            if entry.flag_bits & bit:
                raise ArchiveCorrupt(f"{name} is {what}")
        if entry.compress_type not in {STORED, DEFLATED}:
            raise ArchiveCorrupt(
                f"{name} is compressed by method {entry.compress_type}; "
                f"only stored (0) and deflate (8) are read"
            )
        if entry.compress_type == STORED and entry.compress_size != entry.file_size:
            raise ArchiveCorrupt(f"{name} is stored, but its two sizes differ")
        if entry.file_size > _MAX_RATIO * entry.compress_size + 65536:
            raise ArchiveCorrupt(f"{name} claims more bytes than its data can hold")
        raw = entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")
        start, least = _span(entry)
        others = [_span(other) for other in self.entries if other is not entry]
        if start < 0 or least > self.start or _overlap(start, least, others, self.start):
            raise ArchiveCorrupt(f"{name} overlaps something else in the archive")
        end = min([self.start, *(s for s, _ in others if s >= least)])
        return Member(
            name, raw, entry.header_offset, entry.compress_size, entry.file_size, entry.CRC,
            entry.compress_type, end,
        )  # fmt: skip


def _overlap(start: int, end: int, others: list[tuple[int, int]], directory: int) -> bool:
    """Whether another entry begins inside this one, or this one inside another that can be."""
    return any(start <= s < end or s < start < e <= directory for s, e in others)


def _span(entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Return the bytes that an entry takes at the least."""
    return (
        entry.header_offset,
        entry.header_offset + LOCAL_HEADER.size + len(entry.filename) + entry.compress_size,
    )


def read_directory(size: int, read: Callable[[int, int], bytes]) -> Directory:
    """Read the directory of an archive of `size` bytes; `read(start, end)` fetches a range."""
    view = _View(size, read)
    try:
        with zipfile.ZipFile(view) as archive:
            return Directory(archive.infolist(), archive.start_dir)
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OverflowError) as e:
        raise ArchiveCorrupt(f"not a sound zip archive: {_words(e)}") from e
    except (UnicodeError, IndexError, zlib.error, EOFError, OSError) as e:
        raise ArchiveCorrupt("not a sound zip archive: its directory can't be read") from e


def _words(error: Exception) -> str:
    text = str(error)
    return text[0].lower() + text[1:200] if text and text.isprintable() else "damaged directory"


class _View(io.RawIOBase):
    """A seekable file over ranged reads: the archive's last bytes at once, the rest as asked."""

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        self._size, self._read, self._at = size, read, 0
        self._tail_start = max(0, size - TAIL_BYTES)
        self._tail = read(self._tail_start, size) if size else b""

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            # As a real file does; zipfile takes it for "no ZIP64 record".
            raise OSError(errno.EINVAL, "an offset before the archive's first byte")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        wanted = self._size - self._at if size is None or size < 0 else size
        end = min(self._at + wanted, self._size)
        if end - self._at > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile("its directory is too large")
        if end <= self._at:
            return b""
        head_end = min(end, self._tail_start)
        head = self._read(self._at, head_end) if self._at < head_end else b""
        tail = self._tail[max(0, self._at - self._tail_start) : max(0, end - self._tail_start)]
        self._at = end
        return head + tail
