"""Raw deflate streams (RFC 1951): inflated by ISA-L, by the standard library where that is not.

ISA-L keeps its input by itself, which saves copies: a tenth of the CPU of a whole fetch less than
with zlib-ng (docs/decisions.md). Not before 1.9, whose predecessors asked for input while output
was held back. It takes some incomplete Huffman codes that zlib refuses; sizes and sums are checked.
"""

import importlib
import zlib
from collections.abc import Callable
from typing import Any, Protocol

crc32: Callable[[bytes, int], int]
DamagedStream: type[Exception]
_igzip: Any


class Inflater(Protocol):
    """A stream on its way."""

    eof: bool
    needs_input: bool
    """False while more can come out of what was put in."""
    unused_data: bytes
    """What was put in after the stream's end."""

    def decompress(self, data: bytes, most: int, /) -> bytes:
        """Put `data` in, after all that was put in before; return `most` bytes at most."""


class _Zlib:
    """The standard library's inflater, with the same manners and three times the CPU."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(-15)
        self.eof, self.needs_input, self.unused_data = False, True, b""

    def decompress(self, data: bytes, most: int, /) -> bytes:
        """Put `data` in; return `most` bytes at most."""
        piece = self._stream.decompress(self._stream.unconsumed_tail + data, most)
        self.eof, self.unused_data = self._stream.eof, self._stream.unused_data
        self.needs_input = len(piece) < most and not self._stream.unconsumed_tail
        return piece


try:
    _igzip = importlib.import_module("isal.igzip_lib")
    crc32 = importlib.import_module("isal.isal_zlib").crc32
    DamagedStream = _igzip.IsalError
except ImportError:
    _igzip = None
    crc32, DamagedStream = zlib.crc32, zlib.error


def new_inflater() -> Inflater:
    """Return one for a stream without a header."""
    if _igzip is None:
        return _Zlib()
    inflater: Inflater = _igzip.IgzipDecompressor(flag=_igzip.DECOMP_DEFLATE)
    return inflater
