"""A member's compressed bytes become a verified sparse file, in one pass and bounded memory.

Zero runs become holes (whole 4 KiB blocks); size, CRC-32 and the deflate stream's end are checked,
SHA-256 is computed on the way.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

from stager.behind import LOT, Behind, Helped
from stager.deflate import crc32, inflated, stored, wipe_vectors
from stager.errors import ArchiveCorrupt
from stager.zipdir import DEFLATED, Member

BLOCK = 4096
OUTPUT_BYTES = 1 << 20
RUN = 16 * BLOCK
WRITE_BYTES = 512 << 10
"""So much goes into one write(2): the larger, the fewer folios the page cache takes; the largest
cost more again (docs/decisions.md)."""
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
    chunks: Iterable[bytes],
    member: Member,
    fd: int,
    check: Callable[[], None] = lambda: None,
    helped: Helped = nullcontext,
    lot: int = LOT,
) -> Unpacked:
    """Write a member into the empty file `fd`; ArchiveCorrupt where it is not what it says.

    This thread inflates, another one hashes and writes where `helped` has a core for it, which is
    given `lot` pieces of OUTPUT_BYTES at once. `check` may end it.
    """
    size, sha, file = 0, hashlib.sha256(), _SparseFile(fd)

    def use(piece: bytes) -> None:
        check()
        wipe_vectors()
        sha.update(piece)
        file.write(piece)

    pieces = (inflated if member.method == DEFLATED else stored)(chunks, member, OUTPUT_BYTES)
    with Behind(use, helped, lot) as behind:
        for piece in pieces:
            if size + len(piece) > member.size:
                raise ArchiveCorrupt(f"{member.name} holds more bytes than its entry says")
            behind.put(piece)
            size += len(piece)
    if size != member.size:
        raise ArchiveCorrupt(f"{member.name} holds {size} bytes; its entry says {member.size}")
    file.finish(size)
    return Unpacked(size, f"{member.crc32:08x}", sha.hexdigest())


def digest(fd: int, check: Callable[[], None] = lambda: None) -> Unpacked:
    """Read a file that is there and say what it is; `check` may end it."""
    crc, sha, size = 0, hashlib.sha256(), 0
    while piece := os.pread(fd, OUTPUT_BYTES, size):
        check()
        crc, size = crc32(piece, crc), size + len(piece)
        wipe_vectors()
        sha.update(piece)
    return Unpacked(size, f"{crc:08x}", sha.hexdigest())


class _SparseFile:
    """Written in order, in whole blocks but for the last; blocks of zeros become holes."""

    def __init__(self, fd: int) -> None:
        self._fd, self._at, self._flushed = fd, 0, 0

    def write(self, piece: bytes) -> None:
        """Write a piece, but for what is a whole block of zeros."""
        view, base, begin = memoryview(piece), self._at, 0
        first_bytes, block = piece[::BLOCK], 0
        # Only a block that begins with a zero can be one of zeros: few others are looked at.
        while (block := first_bytes.find(0, block)) >= 0:
            at = end = block * BLOCK
            # Most zeros come in long runs: sixteen blocks at one look.
            while piece.startswith(_ZERO_RUN, end):
                end += RUN
            while piece.startswith(_ZEROS, end):
                end += BLOCK
            if end > at:
                _write(self._fd, view[begin:at], base + begin)
                begin = end
            block = max(end // BLOCK, block + 1)
        end = len(piece)
        # Only the last piece of all has a short block at its end.
        if not piece[end - end % BLOCK :].strip(b"\0"):
            end -= end % BLOCK
        _write(self._fd, view[begin:end], base + begin)
        self._at += len(piece)
        if self._at - self._flushed >= FLUSH_BYTES:
            # Linux begins to write back what is dirty there, and drops only what is clean.
            os.posix_fadvise(
                self._fd, self._flushed, self._at - self._flushed, os.POSIX_FADV_DONTNEED
            )
            self._flushed = self._at

    def finish(self, size: int) -> None:
        """Give the file its size: it may end in a hole."""
        os.ftruncate(self._fd, size)


def _write(fd: int, view: memoryview, offset: int) -> None:
    while view:
        written = os.pwrite(fd, view[:WRITE_BYTES], offset)
        view, offset = view[written:], offset + written
