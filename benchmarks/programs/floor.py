"""The least work that gives the right file: the members' spans, inflated, summed, written sparsely.

    python floor.py isal|zlib-ng URL DIRECTORY MEMBER...

No retry, no check of what the server says, no lock, no hash; synced like ours.
"""

import io
import os
import struct
import sys
import zipfile
from collections.abc import Iterator
from http.client import HTTPConnection
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BLOCK = 64 << 10
ZEROS = bytes(BLOCK)
INPUT, OUTPUT = 64 << 10, 256 << 10
READ = 1 << 20


class Remote:
    """Ranges of one URL over one connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        self.connection = HTTPConnection(parts.hostname, parts.port)
        self.path = f"{parts.path}?{parts.query}"
        self.size = 0

    def stream(self, first: int, last: int | str) -> Iterator[bytes]:
        """Yield a range."""
        span = f"bytes={first}-{last}" if first >= 0 else f"bytes={first}"
        self.connection.request("GET", self.path, headers={"Range": span})
        answer = self.connection.getresponse()
        self.size = int((answer.headers["Content-Range"] or "/0").rpartition("/")[2])
        while piece := answer.read(READ):
            yield piece


def directory(remote: Remote) -> dict[str, zipfile.ZipInfo]:
    """Return the archive's entries, from its last 64 KiB."""
    tail = b"".join(remote.stream(-(64 << 10), ""))

    class View(io.BytesIO):
        """The tail at its place; nothing before it is ever read."""

        shift = remote.size - len(tail)

        def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
            at = offset - self.shift if whence == io.SEEK_SET else offset
            return super().seek(at, whence) + self.shift

        def tell(self) -> int:
            return super().tell() + self.shift

    with zipfile.ZipFile(View(tail)) as archive:
        return {info.filename: info for info in archive.infolist()}


def inflated_isal(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Inflate with ISA-L."""
    from isal import igzip_lib  # noqa: PLC0415 (only one of the two is there to be chosen)

    inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_DEFLATE)
    for chunk in chunks:
        data: Any = chunk
        while not inflater.eof:
            if piece := inflater.decompress(data, OUTPUT):
                yield piece
            data = b""
            if inflater.needs_input:
                break


def inflated_zlib_ng(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Inflate with zlib-ng."""
    from zlib_ng import zlib_ng  # noqa: PLC0415

    inflater: Any = zlib_ng.decompressobj(-15)
    for chunk in chunks:
        view = memoryview(chunk)
        for start in range(0, len(view), INPUT):
            data: Any = view[start : start + INPUT]
            while data:
                yield inflater.decompress(data, OUTPUT)
                data = inflater.unconsumed_tail
    while piece := inflater.decompress(b"", OUTPUT):
        yield piece


def write(fd: int, at: int, piece: bytes) -> None:
    """Write a piece; whole blocks of zeros become holes."""
    view, begin = memoryview(piece), 0
    for start in range(0, len(piece), BLOCK):
        if piece.startswith(ZEROS, start):
            os.pwrite(fd, view[begin:start], at + begin)
            begin = start + BLOCK
    os.pwrite(fd, view[begin:], at + begin)


def fetch(remote: Remote, info: zipfile.ZipInfo, path: Path, kind: str) -> None:
    """Make one member a file."""
    inflated = inflated_isal if kind == "isal" else inflated_zlib_ng
    module: Any = import_module("isal.isal_zlib" if kind == "isal" else "zlib_ng.zlib_ng")
    head = b"".join(remote.stream(info.header_offset, info.header_offset + 29))
    name, extra = struct.unpack("<2H", head[26:30])
    start = info.header_offset + 30 + name + extra
    crc, at = 0, 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for piece in inflated(remote.stream(start, start + info.compress_size - 1)):
        crc = module.crc32(piece, crc)
        write(fd, at, piece)
        at += len(piece)
    os.ftruncate(fd, at)
    os.fsync(fd)
    os.close(fd)
    if crc != info.CRC or at != info.file_size:
        sys.exit(f"{info.filename}: not what its entry says")


def main() -> None:
    """Fetch the members one after the other."""
    kind, url, target, *members = sys.argv[1:]
    remote = Remote(url)
    entries = directory(remote)
    for member in members:
        fetch(remote, entries[member], Path(target) / member, kind)


if __name__ == "__main__":
    main()
