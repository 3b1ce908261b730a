"""Small real archives like the ChromiumOS `image.zip`, sound ones and broken ones.

Headers are laid out as Info-ZIP's `zip -r ARCHIVE .` lays them out: no leading directory, local
extra fields longer than the directory's, deflate at level 6, nothing gained means stored.
The archives are deterministic: the same call writes the same bytes.
"""

import functools
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

TEST, BASE = "chromiumos_test_image.bin", "chromiumos_base_image.bin"
RECOVERY = "recovery_image.bin"
EXTRAS = {
    "license_credits.html": b"<html><body><h1>Credits</h1>" + b"<p>a licence</p>\n" * 500,
    "config.txt": b"--noenable_rootfs_verification\n--boot_args=console=tty2\n",
    "esp/": b"",
    "esp/startup.nsh": b"\\efi\\boot\\bootx64.efi\r\n",
    "id_rsa": b"this stands where the test key is\n",
    "id_rsa.pub": b"ssh-rsa AAAA not a key\n",
    "mount_image.sh": b'#!/bin/sh\nset -e\nexec losetup --find --partscan "$1"\n' * 20,
    "umount_image.sh": b"#!/bin/sh\n",
}
ORDER = ("license_credits.html", BASE, "config.txt", "esp/", "esp/startup.nsh", "id_rsa", TEST)
BLOCK_BYTES = 64 * 1024
_STORED, _DEFLATED = 0, 8
_MAX32 = 0xFFFFFFFF
_UNIX_TIME, _DOS_TIME, _DOS_DATE = 1_700_000_000, 45482, 22382
_OWNER = struct.pack("<HHBBIBI", 0x7875, 11, 1, 4, 1000, 4, 1000)
_LOCAL_EXTRA = struct.pack("<HHBII", 0x5455, 9, 3, _UNIX_TIME, _UNIX_TIME) + _OWNER
_DIRECTORY_EXTRA = struct.pack("<HHBI", 0x5455, 5, 3, _UNIX_TIME) + _OWNER


@dataclass(frozen=True)
class Member:
    """One entry: what is written, and what its headers say of it, true or not."""

    name: str
    packed: bytes
    packed_size: int
    size: int
    crc: int
    method: int = _DEFLATED
    flags: int = 0
    hole: int = 0  # so many zero bytes after `packed`, not written to the disk
    offset: int | None = None  # given: an entry of the directory only, pointing there
    local_name: str | None = None
    local_crc: int | None = None
    signature: bytes = b"PK\3\4"


def make_image(seed: int, size: int) -> bytes:
    """Make a disk image's like: 40 % zeros, 40 % text, 20 % random, zero runs on and off blocks."""
    draw, image = random.Random(seed), bytearray()
    words = [f"{draw.getrandbits(40):x}"[:length] for length in range(1, 11) for _ in range(40)]
    text = " ".join(draw.choices(words, k=60_000)).encode()
    share = {"text": 0.4, "zeros": 0.4, "random": 0.2}
    have = dict.fromkeys(share, 0)
    longest = max(1, min(3 * BLOCK_BYTES, size // 8))
    while len(image) < size:
        kind = max(share, key=lambda name: share[name] * (len(image) + 1) - have[name])
        count, start = draw.randint(1, longest), len(image)
        if kind == "zeros" and size >= 16 * BLOCK_BYTES and draw.random() < 0.5:
            image += text[: -len(image) % BLOCK_BYTES]
            have["text"] += len(image) - start
            start, count = len(image), draw.randint(1, 3) * BLOCK_BYTES
        if kind == "text":
            place = draw.randrange(len(text) - count)
            image += text[place : place + count]
        else:
            image += bytes(count) if kind == "zeros" else draw.randbytes(count)
        have[kind] += len(image) - start
    return bytes(image[:size])


@functools.cache
def _small_images() -> dict[str, bytes]:
    sizes = {TEST: 1_200_007, BASE: 1_048_576, RECOVERY: 400_000}
    return {name: make_image(seed, size) for seed, (name, size) in enumerate(sizes.items())}


def small_images() -> dict[str, bytes]:
    """Return the images put in an archive when none are given; all of BROKEN hold them."""
    return dict(_small_images())


def make_archive(
    path: Path,
    images: dict[str, bytes] | None = None,
    *,
    extra: bool = True,
    order: Sequence[str] | None = None,
    method: Literal["deflate", "stored"] = "deflate",
    descriptors: bool = False,
    comment: bytes = b"",
    prefix: bytes = b"",
    zip64: bool = False,
) -> dict[str, bytes]:
    """Write a sound archive and return its images; `order` names members to come first."""
    images = small_images() if images is None else dict(images)
    contents = (EXTRAS if extra else {}) | images
    first = [name for name in order or ORDER if name in contents]
    names = dict.fromkeys([*first, *contents])
    members = [_member(name, contents[name], method) for name in names]
    if descriptors:
        members = [replace(m, flags=m.flags | 8 if m.size else 0) for m in members]
    _write(path, members, comment=comment, prefix=prefix, zip64=zip64)
    return images


class Sparse(NamedTuple):
    """What a member holds: `head`, then zeros, then `tail`, `size` bytes in all."""

    size: int
    crc: int
    head: bytes
    tail: bytes


def sparse_zip64(path: Path, gib: float = 4.5) -> Sparse:
    """Write a test image of that size, nearly all zeros, in megabytes and about a second."""
    draw, step = random.Random(gib), 16 << 20
    head, tail = draw.randbytes(300_001), draw.randbytes(200_000)
    size = int(gib * (1 << 30)) + 4097
    steps, rest = divmod(size - len(head) - len(tail), step)
    # After a full flush a stream is at a byte's edge and looks back at nothing before it,
    # so pieces by separate compressors may be joined, and one of them repeated.
    packed = _deflate(head, zlib.Z_FULL_FLUSH) + steps * _deflate(bytes(step), zlib.Z_FULL_FLUSH)
    packed += _deflate(bytes(rest) + tail)
    crc = zlib.crc32(tail, crc_after_zeros(zlib.crc32(head), steps * step + rest))
    _write(path, [Member(TEST, packed, len(packed), size, crc), *_small_members()[1:]])
    return Sparse(size, crc, head, tail)


def far_zip64(path: Path, gib: float = 4.1) -> dict[str, bytes]:
    """Write the small images behind a member so long that their headers lie beyond 4 GiB."""
    count = int(gib * (1 << 30))
    crc = crc_after_zeros(0, count)
    filler = Member("filler.bin", b"", count, count, crc, _STORED, hole=count)
    _write(path, [filler, *_small_members()])
    return small_images()


def crc_after_zeros(crc: int, count: int) -> int:
    """Return the CRC-32 of some bytes, given by theirs, with that many zero bytes after them."""
    # A zero byte multiplies the register by x^8 modulo the polynomial; bits are reflected.
    power, square, exponent = 1 << 31, 1 << 30, 8 * count
    while exponent:
        power = _times(power, square) if exponent & 1 else power
        square, exponent = _times(square, square), exponent >> 1
    return _times(power, crc ^ _MAX32) ^ _MAX32


def _times(a: int, b: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        product ^= b if a >> bit & 1 else 0
        b = b >> 1 ^ (0xEDB88320 if b & 1 else 0)
    return product


def _deflate(data: bytes, end: int = zlib.Z_FINISH) -> bytes:
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    return compressor.compress(data) + compressor.flush(end)


def _member(name: str, data: bytes, method: str = "deflate") -> Member:
    packed, crc = _deflate(data), zlib.crc32(data)
    if method == "stored" or len(packed) >= len(data):
        return Member(name, data, len(data), len(data), crc, _STORED)
    return Member(name, packed, len(packed), len(data), crc)


@functools.cache
def _small_members() -> tuple[Member, ...]:
    return tuple(_member(name, data) for name, data in _small_images().items())


def _local(member: Member, zip64: bool) -> bytes:
    streamed = bool(member.flags & 8)
    crc = member.crc if member.local_crc is None else member.local_crc
    sizes = (0, 0) if streamed else (member.size, member.packed_size)
    wide = struct.pack("<HHQQ", 1, 16, *sizes) if zip64 else b""
    narrow = (_MAX32, _MAX32) if zip64 else sizes
    name, extra = (member.local_name or member.name).encode(), wide + _LOCAL_EXTRA
    return member.signature + struct.pack(
        "<5H3L2H", 45 if zip64 else 20, member.flags, member.method, _DOS_TIME, _DOS_DATE,
        0 if streamed else crc, narrow[1], narrow[0], len(name), len(extra),
    ) + name + extra  # fmt: skip


def _descriptor(member: Member, zip64: bool) -> bytes:
    layout = "<4sL2Q" if zip64 else "<4sL2L"
    return struct.pack(layout, b"PK\7\x08", member.crc, member.packed_size, member.size)


def _entry(member: Member, offset: int, zip64: bool) -> bytes:
    values = (member.size, member.packed_size, offset)
    wide = [value for value in values if zip64 or value >= _MAX32]
    size, packed, where = (_MAX32 if zip64 or v >= _MAX32 else v for v in values)
    extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    extra, name = extra + _DIRECTORY_EXTRA, member.name.encode()
    mode = 0o40755 if member.name.endswith("/") else 0o100644
    return struct.pack(
        "<4s6H3L5H2L", b"PK\1\2", 3 << 8 | 30, 45 if wide else 20, member.flags, member.method,
        _DOS_TIME, _DOS_DATE, member.crc, packed, size, len(name), len(extra), 0, 0, 0,
        mode << 16 | (0x10 if member.name.endswith("/") else 0), where,
    ) + name + extra  # fmt: skip


def _write(
    path: Path,
    members: Sequence[Member],
    *,
    comment: bytes = b"",
    prefix: bytes = b"",
    zip64: bool = False,
    moved: int = 0,
    grown: int = 0,
) -> None:
    """Write an archive whose end says its directory is `moved` and `grown` by so many bytes.

    Offsets do not count the prefix, as when a stub is put before a zip.
    """
    directory = b""
    with path.open("wb") as out:
        out.write(prefix)
        for member in members:
            offset, wide = out.tell() - len(prefix), zip64 or member.size >= _MAX32
            if member.offset is None:
                out.write(_local(member, wide) + member.packed)
                out.seek(member.hole, 1)
                out.write(_descriptor(member, wide) if member.flags & 8 else b"")
            else:
                offset = member.offset
            directory += _entry(member, offset, zip64)
        start, size = out.tell() - len(prefix), len(directory) + grown
        end, count = out.tell() + len(directory) - len(prefix), len(members)
        out.write(directory)
        start += moved
        if zip64 or start >= _MAX32:
            record = (b"PK\6\6", 44, 3 << 8 | 45, 45, 0, 0, count, count, size, start)
            out.write(struct.pack("<4sQ2H2L4Q", *record))
            out.write(struct.pack("<4sLQL", b"PK\6\7", 0, end, 1))
            count, size, start = 0xFFFF, _MAX32, _MAX32
        tail = (b"PK\5\6", 0, 0, count, count, size, start, len(comment))
        out.write(struct.pack("<4s4H2LH", *tail) + comment)


def _packed(member: Member, packed: bytes) -> Member:
    return replace(member, packed=packed, packed_size=len(packed))


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]


# What is wrong with the wanted member, made from the sound one and its content.
_MEMBERS: dict[str, Callable[[Member, bytes], Member]] = {
    "encrypted": lambda m, _: replace(m, flags=0x1),
    "strongly_encrypted": lambda m, _: replace(m, flags=0x41),
    "method_deflate64": lambda m, _: replace(m, method=9),
    "method_zstd": lambda m, _: replace(m, method=93),
    "wrong_crc_in_directory": lambda m, _: replace(m, crc=m.crc ^ 1, local_crc=m.crc),
    "flipped_bit": lambda m, _: _packed(m, _flipped(m.packed)),
    "flipped_bit_stored": lambda m, data: _packed(replace(m, method=_STORED), _flipped(data)),
    "size_too_small": lambda m, _: replace(m, size=m.size - 4096),
    "size_too_small_crc_agrees": lambda m, data: replace(
        m, size=m.size - 4096, crc=zlib.crc32(data[:-4096])
    ),
    "size_too_big": lambda m, _: replace(m, size=m.size + 4096),
    "stored_sizes_differ": lambda m, data: replace(
        _packed(replace(m, method=_STORED), data), size=m.size + 4096
    ),
    "packed_size_too_small": lambda m, _: replace(m, packed_size=m.packed_size - 4096),
    "packed_size_too_big": lambda m, _: replace(m, packed_size=m.packed_size + 4096),
    "packed_size_past_the_end": lambda m, _: replace(m, packed_size=1 << 30),
    "deflate_ends_early": lambda m, _: _packed(m, m.packed[: len(m.packed) // 2]),
    "deflate_invalid_block": lambda m, _: _packed(m, b"\7" + m.packed[1:]),
    "deflate_trailing_garbage": lambda m, _: _packed(m, m.packed + bytes(range(200))),
    "bomb": lambda m, _: replace(m, size=_MAX32 - 15),
    "bomb_zip64": lambda m, _: replace(m, size=1 << 62),
    "local_header_other_name": lambda m, _: replace(m, local_name="chromiumos_best_image.bin"),
    "local_header_bad_signature": lambda m, _: replace(m, signature=b"PK\3\5"),
    "member_past_the_end": lambda m, _: replace(m, offset=1 << 30),
}


def _broken(alter: Callable[[Member, bytes], Member], path: Path) -> None:
    test, *others = _small_members()
    _write(path, [alter(test, _small_images()[TEST]), *others])


def _overlapping_members(path: Path) -> None:
    """Both sums are right, but the base image's whole record lies inside the test image's data."""
    _, base, recovery = _small_members()
    head = b"before" * 1000
    test = _member(TEST, head + _local(base, zip64=False) + base.packed + b"after", "stored")
    base = replace(base, offset=len(_local(test, zip64=False)) + len(head))
    _write(path, [test, base, recovery])


def _duplicate_name(path: Path) -> None:
    _write(path, [*_small_members(), _member(TEST, make_image(99, 300_000))])


def _truncated(path: Path) -> None:
    _write(path, _small_members())
    _fill(path, path.read_bytes()[: path.stat().st_size // 2])


def _fill(path: Path, content: bytes) -> None:
    path.write_bytes(content)


BROKEN: dict[str, Callable[[Path], None]] = {
    **{name: functools.partial(_broken, alter) for name, alter in _MEMBERS.items()},
    "overlapping_members": _overlapping_members,
    "duplicate_name": _duplicate_name,
    "truncated": _truncated,
    "not_a_zip": lambda path: _fill(path, b"<html>404 Not Found</html>\n" * 99),
    "empty_file": lambda path: _fill(path, b""),
    "directory_past_the_end": lambda path: _write(path, _small_members(), moved=1 << 30),
    "directory_larger_than_the_file": lambda path: _write(path, _small_members(), grown=1 << 30),
}
