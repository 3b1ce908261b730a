"""Deflated members are read as gzip files (RFC 1952): a header before, sum and size behind.

So the library's own reader fills whole pieces and checks both on the way, in C. ISA-L's takes a
third of the CPU; the standard library's is there where ISA-L is not. Not before 1.9, whose
predecessors asked for input while output was held back. ISA-L takes some incomplete Huffman codes
that zlib refuses; sums and sizes are checked.
"""

import gzip
import hashlib
import importlib
import io
import secrets
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from stager.errors import ArchiveCorrupt
from stager.zipdir import Member

_BLOCK = bytes(128)
crc32: Callable[[bytes, int], int]
GzipFile: type[gzip.GzipFile]
DamagedStream: type[Exception]

try:
    _isal_zlib = importlib.import_module("isal.isal_zlib")
    GzipFile = importlib.import_module("isal.igzip").IGzipFile
    crc32, DamagedStream = _isal_zlib.crc32, _isal_zlib.error
except ImportError:
    GzipFile, crc32, DamagedStream = gzip.GzipFile, zlib.crc32, zlib.error


def wipe_vectors() -> None:
    """Leave the processor's vector registers as SHA-256 wants them; to be called before it.

    ISA-L's CRC-32 ends without VZEROUPPER, and the SHA instructions then take a third longer, in
    threads begun later as well. OpenSSL's SHA-512 ends with one.
    """
    hashlib.sha512(_BLOCK)


def inflated(chunks: Iterable[bytes], member: Member, most: int) -> Iterator[bytes]:
    """Inflate a member's data and check its sum; yield `most` bytes each time, fewer at the end.

    ArchiveCorrupt where it is not what its entry says.
    """
    # The header's time is by chance: where the member's data holds another header it is another.
    mark = secrets.randbits(32)
    header = struct.pack("<2sBBIBB", b"\x1f\x8b", 8, 0, mark, 0, 255)
    trailer = struct.pack("<II", member.crc32, member.size & 0xFFFFFFFF)
    try:
        file = GzipFile(fileobj=Chunks(chain([header], chunks, [trailer])), mode="rb")
        while piece := file.read(most):
            yield piece
        if file.mtime != mark:
            raise ArchiveCorrupt(f"{member.name}: data goes on after the stream's end")
    except DamagedStream:
        raise ArchiveCorrupt(f"{member.name}: the compressed data is damaged") from None
    except EOFError:
        raise ArchiveCorrupt(f"{member.name}: the compressed data ends too early") from None
    # An overflow: another header that is too long.
    except (OverflowError, gzip.BadGzipFile):
        raise ArchiveCorrupt(
            f"{member.name}: the data is not what its entry says: {member.size} bytes of CRC-32 "
            f"{member.crc32:08x}"
        ) from None


def stored(chunks: Iterable[bytes], member: Member, most: int) -> Iterator[bytes]:
    """Do the same for data that is not compressed."""
    file, crc = io.BufferedReader(Chunks(chunks)), 0
    while piece := file.read(most):
        crc = crc32(piece, crc)
        yield piece
    if crc != member.crc32:
        raise ArchiveCorrupt(
            f"{member.name} has CRC-32 {crc:08x}; its entry says {member.crc32:08x}"
        )


class Chunks(io.RawIOBase):
    """Chunks of any size as a file that is read once."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = filter(None, chunks)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Say that it is for reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with what is left of a chunk, or with the next one; 0 at the end."""
        rest, into = self._rest or memoryview(next(self._chunks, b"")), memoryview(buffer)
        count = min(len(into), len(rest))
        into[:count] = rest[:count]
        self._rest = rest[count:]
        return count
