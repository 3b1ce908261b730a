"""A member's compressed bytes become a verified sparse file, in one pass and bounded memory.

Zero runs become holes (whole 4 KiB blocks); size, CRC-32 and the deflate stream's end are checked,
SHA-256 is computed on the way. A truncated deflate stream raises nothing in any library, so its
end is asked for.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

from stager.behind import Behind, Helped
from stager.deflate import DamagedStream, crc32, new_inflater
from stager.errors import ArchiveCorrupt
from stager.zipdir import DEFLATED, Member

BLOCK = 4096
OUTPUT_BYTES = 1 << 20
RUN = 16 * BLOCK
FLUSH_BYTES = 8 << 20
"""So often the kernel is told to begin to write to the disk: little is left for the sync."""
_ZEROS, _ZERO_RUN = bytes(BLOCK), bytes(RUN)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came out: bytes, CRC-32 and SHA-256 in hex."""

    size: int
    crc32: str
    sha256: str


def unpack(
    chunks: Iterable[bytes], member: Member, fd: int, helped: Helped | None = nullcontext
) -> Unpacked:
    """Write a member into the empty file `fd`; ArchiveCorrupt where it is not what it says.

    This thread inflates, another one hashes and writes; `helped` is its context, None: no other.
    """
    crc, size, sha, file = 0, 0, hashlib.sha256(), _SparseFile(fd)

    def use(piece: bytes) -> None:
        sha.update(piece)
        file.write(piece)

    pieces = _inflated(chunks, member) if member.method == DEFLATED else chunks
    with Behind(use, helped) as behind:
        for piece in pieces:
            if size + len(piece) > member.size:
                raise ArchiveCorrupt(f"{member.name} holds more bytes than its entry says")
            crc = crc32(piece, crc)
            behind.put(piece)
            size += len(piece)
    if size != member.size:
        raise ArchiveCorrupt(f"{member.name} holds {size} bytes; its entry says {member.size}")
    if crc != member.crc32:
        want = f"{member.crc32:08x}"
        raise ArchiveCorrupt(f"{member.name} has CRC-32 {crc:08x}; its entry says {want}")
    file.finish(size)
    return Unpacked(size, f"{crc:08x}", sha.hexdigest())


def digest(fd: int, check: Callable[[], None] = lambda: None) -> Unpacked:
    """Read a file that is there and say what it is; `check` may end it."""
    crc, sha, size = 0, hashlib.sha256(), 0
    while piece := os.pread(fd, OUTPUT_BYTES, size):
        check()
        crc, size = crc32(piece, crc), size + len(piece)
        sha.update(piece)
    return Unpacked(size, f"{crc:08x}", sha.hexdigest())


def _inflated(chunks: Iterable[bytes], member: Member) -> Iterator[bytes]:
    """Inflate; never more than OUTPUT_BYTES at once, whatever the input expands to."""
    inflater = new_inflater()
    for chunk in chunks:
        data = chunk
        while data or not (inflater.eof or inflater.needs_input):
            if inflater.eof:
                raise ArchiveCorrupt(f"{member.name}: data goes on after the stream's end")
            try:
                piece = inflater.decompress(data, OUTPUT_BYTES)
            except DamagedStream:
                raise ArchiveCorrupt(f"{member.name}: the compressed data is damaged") from None
            if piece:
                yield piece
            # The inflater keeps what it has not used yet.
            data = inflater.unused_data
    if not inflater.eof:
        raise ArchiveCorrupt(f"{member.name}: the compressed data ends too early")


class _SparseFile:
    """Writes in order, in whole blocks; blocks of zeros are left out and become holes."""

    def __init__(self, fd: int) -> None:
        self._fd, self._at, self._rest = fd, 0, b""
        self._flushed = 0

    def write(self, piece: bytes) -> None:
        """Write what makes whole blocks; keep the rest for the next piece."""
        start = 0
        if self._rest:
            start = BLOCK - len(self._rest)
            block = self._rest + piece[:start]
            if len(block) < BLOCK:
                self._rest = block
                return
            self._blocks(block, 0, BLOCK)
        end = start + (len(piece) - start) // BLOCK * BLOCK
        self._blocks(piece, start, end)
        self._rest = piece[end:]

    def finish(self, size: int) -> None:
        """Write the last, partial block, and give the file its size."""
        if self._rest.strip(b"\0"):
            _write(self._fd, memoryview(self._rest), self._at)
        os.ftruncate(self._fd, size)

    def _blocks(self, piece: bytes, start: int, end: int) -> None:
        view, base = memoryview(piece), self._at - start
        begin = start
        at = start
        while at < end:
            step = BLOCK
            if piece.startswith(_ZEROS, at):
                # Most zeros come in long runs: sixteen blocks at one look.
                if at + RUN <= end and piece.startswith(_ZERO_RUN, at):
                    step = RUN
                _write(self._fd, view[begin:at], base + begin)
                begin = at + step
            at += step
        _write(self._fd, view[begin:end], base + begin)
        self._at += end - start
        if self._at - self._flushed >= FLUSH_BYTES:
            # Linux begins to write back what is dirty there, and drops only what is clean.
            os.posix_fadvise(
                self._fd, self._flushed, self._at - self._flushed, os.POSIX_FADV_DONTNEED
            )
            self._flushed = self._at


def _write(fd: int, view: memoryview, offset: int) -> None:
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
