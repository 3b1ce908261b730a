"""A member's compressed bytes become a verified sparse file, in one pass and bounded memory.

Zero runs become holes (whole 4 KiB blocks); size, CRC-32 and the deflate stream's end are checked,
SHA-256 is computed on the way. A truncated deflate stream raises nothing in any library, so its
end is asked for.
"""

import hashlib
import importlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from stager.errors import ArchiveCorrupt
from stager.zipdir import DEFLATED, Member

zlib: Any
try:
    zlib = importlib.import_module("zlib_ng.zlib_ng")
except ImportError:  # the standard library's does the same work at three times the CPU
    zlib = importlib.import_module("zlib")

BLOCK = 4096
INPUT_BYTES = 64 << 10
OUTPUT_BYTES = 1 << 20
_ZEROS = bytes(BLOCK)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came out: bytes, CRC-32 and SHA-256 in hex."""

    size: int
    crc32: str
    sha256: str


def unpack(chunks: Iterable[bytes], member: Member, fd: int) -> Unpacked:
    """Write a member into the empty file `fd`; ArchiveCorrupt where it is not what it says."""
    crc, sha, size = 0, hashlib.sha256(), 0
    pieces = _inflated(chunks, member) if member.method == DEFLATED else chunks
    for piece in pieces:
        if size + len(piece) > member.size:
            raise ArchiveCorrupt(f"{member.name} holds more bytes than its directory entry says")
        crc = zlib.crc32(piece, crc)
        sha.update(piece)
        _write_sparse(fd, piece, size)
        size += len(piece)
    if size != member.size:
        raise ArchiveCorrupt(f"{member.name} holds {size} bytes; its entry says {member.size}")
    if crc != member.crc32:
        want = f"{member.crc32:08x}"
        raise ArchiveCorrupt(f"{member.name} has CRC-32 {crc:08x}; its entry says {want}")
    os.ftruncate(fd, size)
    return Unpacked(size, f"{crc:08x}", sha.hexdigest())


def digest(fd: int) -> Unpacked:
    """Read a file that is there and say what it is."""
    crc, sha, size = 0, hashlib.sha256(), 0
    while piece := os.pread(fd, OUTPUT_BYTES, size):
        crc, size = zlib.crc32(piece, crc), size + len(piece)
        sha.update(piece)
    return Unpacked(size, f"{crc:08x}", sha.hexdigest())


def _inflated(chunks: Iterable[bytes], member: Member) -> Iterator[bytes]:
    """Inflate; never more than OUTPUT_BYTES at once, whatever the input expands to."""
    inflater: Any = zlib.decompressobj(-15)
    for chunk in chunks:
        view = memoryview(chunk)
        for start in range(0, len(view), INPUT_BYTES):
            data: Any = view[start : start + INPUT_BYTES]
            while data:
                try:
                    piece = inflater.decompress(data, OUTPUT_BYTES)
                except zlib.error:
                    raise ArchiveCorrupt(f"{member.name}: the compressed data is damaged") from None
                if inflater.unused_data:
                    raise ArchiveCorrupt(f"{member.name}: data goes on after the stream's end")
                data = inflater.unconsumed_tail
                if piece:
                    yield piece
    # What the inflater still holds back comes out with nothing put in.
    while not inflater.eof and (piece := inflater.decompress(b"", OUTPUT_BYTES)):
        yield piece
    if not inflater.eof:
        raise ArchiveCorrupt(f"{member.name}: the compressed data ends too early")


def _write_sparse(fd: int, piece: bytes, offset: int) -> None:
    """Write `piece` at `offset`, leaving out whole blocks of zeros (the file has holes there)."""
    view, end = memoryview(piece), len(piece)
    begin, at = 0, min(-offset % BLOCK, end)
    while at + BLOCK <= end:
        if piece.startswith(_ZEROS, at):
            _write(fd, view[begin:at], offset + begin)
            begin = at + BLOCK
        at += BLOCK
    _write(fd, view[begin:end], offset + begin)


def _write(fd: int, view: memoryview, offset: int) -> None:
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
