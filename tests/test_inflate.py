"""Compressed bytes become a verified sparse file: whatever they hold, however they come."""

import hashlib
import os
import random
import struct
import subprocess
import sys
import tempfile
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NoReturn

import pytest
from archives import make_image
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import ROOT

from stager.behind import LOT
from stager.errors import ArchiveCorrupt
from stager.inflate import (
    BLOCK,
    OUTPUT_BYTES,
    digest,
    unpack,
)
from stager.zipdir import DEFLATED, STORED, Member

IMAGE = make_image(7, 400_000)
Alter = Callable[[Member, bytes], tuple[Member, bytes]]


def compressed(data: bytes, level: int = 6) -> bytes:
    maker = zlib.compressobj(level, zlib.DEFLATED, -15)
    return maker.compress(data) + maker.flush()


def member_of(data: bytes, packed: bytes, method: int = DEFLATED) -> Member:
    name = "image.bin"
    return Member(
        name, name.encode(), 0, len(packed), len(data), zlib.crc32(data), method, 1 << 62
    )  # fmt: skip


def chunked(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """Cut data into chunks of these sizes, over and over; empty ones too."""
    at = 0
    while at < len(data):
        for size in sizes:
            yield data[at : at + size]
            at += size


@contextmanager
def empty_file() -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        yield file.fileno()


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size + 1, 0)


def noise(seed: int, count: int) -> bytes:
    return random.Random(seed).randbytes(count)


SEGMENTS = st.lists(
    st.one_of(
        st.integers(0, 5 * BLOCK).map(bytes),
        st.builds(lambda n: bytes(n * BLOCK), st.integers(0, 40)),
        st.binary(max_size=300),
        st.builds(noise, st.integers(), st.integers(0, 9000)),
    ),
    max_size=12,
).map(b"".join)  # fmt: skip
SIZES = st.lists(st.integers(0, 70_000), min_size=1, max_size=5).filter(any)


LEVELS = st.sampled_from([None, 0, 1, 6, 9])


def packed_at(data: bytes, level: int | None) -> tuple[Member, bytes]:
    packed = data if level is None else compressed(data, level)
    return member_of(data, packed, STORED if level is None else DEFLATED), packed


@settings(max_examples=150, deadline=None)
@given(SEGMENTS, SIZES, LEVELS)
def test_any_content_in_any_chunks_comes_out_right(
    data: bytes, sizes: list[int], level: int | None
) -> None:
    member, packed = packed_at(data, level)
    with empty_file() as fd:
        unpacked = unpack(chunked(packed, sizes), member, fd)
        assert content(fd) == data
        assert digest(fd) == unpacked
    assert (unpacked.size, unpacked.crc32) == (len(data), f"{zlib.crc32(data):08x}")
    assert unpacked.sha256 == hashlib.sha256(data).hexdigest()


@settings(max_examples=150, deadline=None)
@given(SEGMENTS, SIZES, LEVELS)
def test_no_block_of_zeros_takes_room_however_the_chunks_fall(
    data: bytes, sizes: list[int], level: int | None
) -> None:
    member, packed = packed_at(data, level)
    fd = os.memfd_create("image")  # its blocks are pages, and none is spent on its map
    with os.fdopen(fd, "wb"):
        unpack(chunked(packed, sizes), member, fd)
        allocated = os.fstat(fd).st_blocks * 512
    unit = max(BLOCK, os.sysconf("SC_PAGE_SIZE"))
    blocks = (data[at : at + unit] for at in range(0, len(data), unit))
    assert allocated <= sum(any(block) for block in blocks) * unit


def test_a_short_last_block_of_zeros_counts_to_the_size() -> None:
    data = b"head" + bytes(3 * BLOCK + 17)
    with empty_file() as fd:
        unpack([compressed(data)], member_of(data, b""), fd)
        assert os.fstat(fd).st_size == len(data)
        assert content(fd) == data


@pytest.mark.parametrize("method", [STORED, DEFLATED])
def test_an_empty_member_becomes_an_empty_file(method: int) -> None:
    packed = b"" if method == STORED else compressed(b"")
    with empty_file() as fd:
        unpacked = unpack([packed], member_of(b"", packed, method), fd)
        assert (os.fstat(fd).st_size, unpacked.size, unpacked.crc32) == (0, 0, "00000000")


def stored(member: Member) -> Member:
    return replace(member, method=STORED)


GZIP = b"\x1f\x8b\x08"


def sums(data: bytes) -> bytes:
    """Return what a gzip file has after its stream."""
    return struct.pack("<II", zlib.crc32(data), len(data))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


WRONG: list[Any] = [
    pytest.param(lambda m, p: (replace(m, crc32=m.crc32 ^ 1), p), "CRC", id="other-sum"),
    pytest.param(lambda m, p: (replace(m, size=m.size + 1), p), "says", id="one-byte-missing"),
    pytest.param(lambda m, p: (replace(m, size=m.size - 1), p), "says", id="a-byte-too-much"),
    pytest.param(
        lambda m, p: (replace(m, size=m.size - 1, crc32=zlib.crc32(IMAGE[:-1])), p),
        "says", id="a-byte-too-much-but-the-sum-of-the-rest",
    ),
    pytest.param(lambda m, p: (replace(m, size=0, crc32=0), p), "says", id="said-to-be-none"),
    pytest.param(lambda m, p: (m, p[:-1]), ".", id="last-byte-missing"),
    pytest.param(lambda m, p: (m, p[: len(p) // 2]), ".", id="half"),
    pytest.param(lambda m, _: (m, b""), ".", id="nothing"),
    pytest.param(lambda m, p: (m, p + b"\0"), "CRC", id="a-byte-behind"),
    pytest.param(lambda m, p: (m, p + p), "CRC", id="a-second-stream"),
    pytest.param(lambda m, p: (m, p + sums(IMAGE) + p), ".", id="a-second-stream-as-in-gzip"),
    pytest.param(lambda m, p: (m, p + sums(IMAGE)), ".", id="sums-as-in-gzip"),
    pytest.param(
        lambda m, p: (m, b"\3\0" + sums(b"") + GZIP + bytes(7) + p), "after the stream's end",
        id="an-empty-stream-before-as-in-gzip",
    ),
    pytest.param(
        lambda m, p: (m, p + sums(IMAGE) + GZIP + b"\b" + bytes(6) + b"x" * (1 << 20)), ".",
        id="a-header-without-end-behind",
    ),
    pytest.param(lambda m, p: (m, b"\7" + p[1:]), "damaged", id="no-such-block-type"),
    pytest.param(lambda m, _: (m, zlib.compress(IMAGE)), ".", id="with-a-zlib-header"),
    pytest.param(lambda m, p: (m, flipped(p, len(p) // 2)), ".", id="flipped-bit"),
    pytest.param(lambda m, _: (stored(m), IMAGE[:-1]), "says", id="stored-too-short"),
    pytest.param(lambda m, _: (stored(m), IMAGE + b"x"), "more bytes", id="stored-too-long"),
    pytest.param(lambda m, _: (stored(m), flipped(IMAGE, 9)), "CRC-32", id="stored-flipped-bit"),
]  # fmt: skip


@pytest.mark.parametrize("chunk_bytes", [1 << 20, 4099])
@pytest.mark.parametrize(("alter", "reason"), WRONG)
def test_what_is_not_what_its_entry_says_is_refused(
    alter: Alter, reason: str, chunk_bytes: int
) -> None:
    packed = compressed(IMAGE)
    member, packed = alter(member_of(IMAGE, packed), packed)
    with empty_file() as fd, pytest.raises(ArchiveCorrupt, match=reason) as caught:
        unpack(chunked(packed, [chunk_bytes]), member, fd)
    assert member.name in caught.value.message


@settings(max_examples=150, deadline=None)
@given(st.integers(0), st.integers(1, 255), st.integers(0, 40))
def test_no_damage_of_the_stream_gives_another_image(place: int, change: int, cut: int) -> None:
    good = compressed(IMAGE[:40_000])
    damaged = bytearray(good)
    damaged[place % len(good)] ^= change
    damaged = damaged[: len(damaged) - cut]
    with empty_file() as fd:
        try:
            unpack([bytes(damaged)], member_of(IMAGE[:40_000], good), fd)
        except ArchiveCorrupt:
            return
        assert content(fd) == IMAGE[:40_000]


def test_memory_stays_small_whatever_the_input_expands_to() -> None:
    data = bytes(200 << 20)
    packed, member = compressed(data, 9), member_of(data, b"")
    del data
    with empty_file() as fd:
        tracemalloc.start()
        try:
            unpack([packed], member, fd)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert os.fstat(fd).st_size == member.size
    assert peak < (3 * LOT + 8) * OUTPUT_BYTES


def test_a_member_that_goes_on_for_ever_is_given_up_at_its_size() -> None:
    member, chunk = stored(member_of(IMAGE, b"")), b"x" * 65_536
    left = iter(range(1_000_000))
    with empty_file() as fd:
        with pytest.raises(ArchiveCorrupt):
            unpack((chunk for _ in left), member, fd)
        assert os.fstat(fd).st_size <= member.size
    assert next(left) * len(chunk) <= member.size + OUTPUT_BYTES


def test_an_error_of_the_source_comes_through() -> None:
    def broken() -> Iterator[bytes]:
        yield compressed(IMAGE)[:1000]
        raise ConnectionResetError

    with empty_file() as fd, pytest.raises(ConnectionResetError):
        unpack(broken(), member_of(IMAGE, b""), fd)


def test_without_a_thread_that_writes_it_is_said_what_was_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_thread(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    data = noise(1, 3 * OUTPUT_BYTES)
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with empty_file() as fd, pytest.raises(RuntimeError, match="new thread"):
        unpack([compressed(data)], member_of(data, b""), fd)


@pytest.mark.parametrize("when", ["at its beginning", "at its end"])
def test_an_error_of_the_other_threads_context_comes_through(when: str) -> None:
    @contextmanager
    def failing() -> Iterator[None]:
        if when == "at its beginning":
            raise MemoryError(when)
        yield
        raise MemoryError(when)

    data = noise(1, 8 * OUTPUT_BYTES)
    with empty_file() as fd, pytest.raises(MemoryError, match=when):
        unpack([compressed(data)], member_of(data, b""), fd, helped=failing, lot=2)


def test_what_expands_to_just_more_than_one_piece_comes_out_whole() -> None:
    for more in range(0, 2000, 40):
        data = bytes(OUTPUT_BYTES + more)
        packed = compressed(data)
        with empty_file() as fd:
            assert unpack([packed], member_of(data, packed), fd).size == len(data)


def test_without_a_core_for_another_thread_one_does_it_all() -> None:
    data = noise(1, OUTPUT_BYTES) + bytes(3 * OUTPUT_BYTES) + noise(2, OUTPUT_BYTES)
    packed, before = compressed(data), threading.active_count()

    def watched() -> Iterator[bytes]:
        for chunk in chunked(packed, [4099]):
            assert threading.active_count() == before
            yield chunk

    with empty_file() as fd:
        unpacked = unpack(watched(), member_of(data, packed), fd, helped=lambda: None)
        assert os.pread(fd, len(data) + 1, 0) == data
    assert unpacked.sha256 == hashlib.sha256(data).hexdigest()


def test_another_thread_begins_as_soon_as_there_is_a_core_for_it() -> None:
    data = noise(1, 5 * OUTPUT_BYTES)
    asked: list[int] = []

    def helped() -> AbstractContextManager[None] | None:
        asked.append(len(asked))
        return nullcontext() if len(asked) == 3 else None

    with empty_file() as fd:
        unpacked = unpack([data], member_of(data, data, STORED), fd, helped=helped)
        assert content(fd) == data
    # Not for the first piece, and no more once it has begun.
    assert asked == [0, 1, 2]
    assert unpacked.sha256 == hashlib.sha256(data).hexdigest()


def test_the_standard_librarys_zlib_does_the_same_work() -> None:
    program = f"""
import sys, zlib
sys.modules["isal"] = None
sys.path.insert(0, {str(ROOT / "tests")!r})
import test_inflate as t
from stager import deflate
assert deflate.crc32 is zlib.crc32
t.test_any_content_in_any_chunks_comes_out_right()
for wrong in t.WRONG:
    t.test_what_is_not_what_its_entry_says_is_refused(*wrong.values, 4099)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
