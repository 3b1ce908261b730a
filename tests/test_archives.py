"""The archives, sound and broken, held against zipfile, unzip and a strict reader of our own."""

import shutil
import struct
import subprocess
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from archives import (
    BLOCK_BYTES,
    BROKEN,
    EXTRAS,
    RECOVERY,
    TEST,
    crc_after_zeros,
    far_zip64,
    make_archive,
    make_image,
    small_images,
    sparse_zip64,
)

DEADLINE_SECONDS = 60


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "image.zip"


def unzip(path: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    if shutil.which("unzip") is None:
        pytest.skip("unzip is not installed")
    command = ["unzip", *options, str(path)]
    return subprocess.run(command, capture_output=True, timeout=DEADLINE_SECONDS, check=False)


@pytest.mark.parametrize("size", [0, 1, 1000, 65_536, 1_000_003])
def test_an_image_has_its_size_and_depends_on_its_seed_alone(size: int) -> None:
    assert len(make_image(1, size)) == size
    assert make_image(1, size) == make_image(1, size)
    assert size < 1000 or make_image(1, size) != make_image(2, size)


def test_an_image_is_a_mixture_with_zero_runs_on_and_off_block_edges() -> None:
    image = make_image(5, 8 << 20)
    assert 0.38 < image.count(0) / len(image) < 0.43
    assert 0.25 < len(zlib.compress(image)) / len(image) < 0.4
    blocks = [image[at : at + BLOCK_BYTES] for at in range(0, len(image), BLOCK_BYTES)]
    assert 10 < sum(not any(block) for block in blocks) < 60
    assert any(not any(block[:1000]) and any(block) for block in blocks)
    assert any(not any(block[-1000:]) and any(block) for block in blocks)


SOUND: dict[str, dict[str, Any]] = {
    "plain": {},
    "stored": {"method": "stored"},
    "descriptors": {"descriptors": True},
    "zip64": {"zip64": True},
    "zip64-descriptors": {"zip64": True, "descriptors": True},
    "longest-comment": {"comment": b"#" * 65_535},
    "prefix": {"prefix": b"#!/bin/sh\n" * 1000},
    "zip64-prefix-comment": {"zip64": True, "prefix": b"stub" * 99, "comment": b"a remark"},
    "images-only": {"extra": False, "images": {TEST: b"tiny"}},
    "empty-image": {"images": {TEST: b""}},
}


@pytest.mark.parametrize("options", SOUND.values(), ids=SOUND)
def test_a_sound_archive_opens_and_every_sum_is_right(path: Path, options: dict[str, Any]) -> None:
    images = make_archive(path, **options)
    assert images == options.get("images", small_images())
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        contents = {name: archive.read(name) for name in archive.namelist()}
        assert contents == images | (EXTRAS if options.get("extra", True) else {})
        assert archive.comment == options.get("comment", b"")
        methods = {info.compress_type for info in archive.infolist() if info.file_size > 1000}
    assert methods <= ({0} if options.get("method") == "stored" else {8})
    tested = unzip(path, "-tq")
    assert tested.returncode == (1 if "prefix" in options else 0), tested  # 1 is its warning


def test_members_come_in_the_order_asked_for(path: Path) -> None:
    make_archive(path, order=[RECOVERY, "esp/", TEST])
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist()[:3] == [RECOVERY, "esp/", TEST]
        assert len(archive.namelist()) == len(EXTRAS) + 3


def test_local_extra_fields_are_longer_than_the_directory_says(path: Path) -> None:
    make_archive(path)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(TEST)
    local = path.read_bytes()[info.header_offset :][:30]
    assert (struct.unpack("<H", local[28:])[0], len(info.extra)) == (28, 24)
    assert (info.create_system, info.external_attr >> 16) == (3, 0o100644)


def test_the_same_call_writes_the_same_bytes(path: Path, tmp_path: Path) -> None:
    make_archive(path)
    make_archive(tmp_path / "again.zip")
    assert path.read_bytes() == (tmp_path / "again.zip").read_bytes()


@pytest.mark.parametrize(("start", "count"), [(b"", 0), (b"", 9), (b"a", 1), (b"abc", 1_000_001)])
def test_a_crc_is_carried_over_zeros(start: bytes, count: int) -> None:
    assert crc_after_zeros(zlib.crc32(start), count) == zlib.crc32(start + bytes(count))


def test_a_sparse_archive_holds_what_it_says(path: Path) -> None:
    sparse = sparse_zip64(path, gib=0.03)
    with zipfile.ZipFile(path) as archive:
        content = archive.read(TEST)
        assert archive.testzip() is None
    assert len(content) == sparse.size
    assert content == sparse.head + bytes(sparse.size - 500_001) + sparse.tail
    assert zlib.crc32(content) == sparse.crc


def test_a_sparse_archive_may_pass_4_gib(path: Path) -> None:
    sparse = sparse_zip64(path)
    assert path.stat().st_size < 8_000_000
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(TEST)
        assert (info.file_size, info.CRC) == (sparse.size, sparse.crc)
        assert sparse.size > 1 << 32
        assert info.file_size < 1032 * info.compress_size
        assert archive.read(RECOVERY) == small_images()[RECOVERY]
        with archive.open(TEST) as member:
            assert member.read(len(sparse.head)) == sparse.head


def test_headers_may_lie_beyond_4_gib(path: Path) -> None:
    images = far_zip64(path)
    assert path.stat().st_blocks * 512 < 8_000_000
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo(TEST).header_offset > 1 << 32
        assert {name: archive.read(name) for name in images} == images


def verdict(path: Path, name: str) -> str:
    """Say what a reader that believes nothing finds wrong with a member first, or `sound`."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos, start = archive.infolist(), archive.start_dir
    except zipfile.BadZipFile as error:
        return str(error)
    named = [info for info in infos if info.filename == name]
    if len(named) != 1:
        return "duplicate name"
    return entry_verdict(named[0]) or place_verdict(path.read_bytes()[:start], named[0], infos)


def entry_verdict(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & 0x2041:
        return "encrypted"
    if info.compress_type not in (0, 8):
        return f"method {info.compress_type}"
    return "bomb" if info.file_size > 1032 * info.compress_size + BLOCK_BYTES else None


def place_verdict(data: bytes, info: zipfile.ZipInfo, others: list[zipfile.ZipInfo]) -> str:
    local = data[info.header_offset :][:30]
    if len(local) < 30:
        return "header outside"
    signature, name_length, extra_length = struct.unpack("<4s22x2H", local)
    if signature != b"PK\3\4":
        return "bad signature"
    begin = info.header_offset + 30 + name_length + extra_length
    if data[info.header_offset + 30 :][:name_length] != info.filename.encode():
        return "other name"
    end = begin + info.compress_size
    if end > len(data):
        return "data past the directory"
    if any(info.header_offset < other.header_offset < end for other in others):
        return "overlap"
    return content_verdict(data[begin:end], info)


def content_verdict(packed: bytes, info: zipfile.ZipInfo) -> str:
    content = packed
    if info.compress_type == 8:
        inflater = zlib.decompressobj(-15)
        try:
            content = inflater.decompress(packed)
        except zlib.error:
            return "bad stream"
        if not inflater.eof:
            return "stream ends early"
        if inflater.unused_data:
            return "trailing garbage"
    if len(content) != info.file_size:
        return "short" if len(content) < info.file_size else "long"
    return "sound" if zlib.crc32(content) == info.CRC else "wrong sum"


WRONG = {
    "encrypted": "encrypted",
    "strongly_encrypted": "encrypted",
    "method_deflate64": "method 9",
    "method_zstd": "method 93",
    "wrong_crc_in_directory": "wrong sum",
    "flipped_bit": "wrong sum",
    "flipped_bit_stored": "wrong sum",
    "size_too_small": "long",
    "size_too_small_crc_agrees": "long",
    "size_too_big": "short",
    "stored_sizes_differ": "short",
    "packed_size_too_small": "stream ends early",
    "packed_size_too_big": "overlap",
    "packed_size_past_the_end": "data past the directory",
    "deflate_ends_early": "stream ends early",
    "deflate_invalid_block": "bad stream",
    "deflate_trailing_garbage": "trailing garbage",
    "bomb": "bomb",
    "bomb_zip64": "bomb",
    "local_header_other_name": "other name",
    "local_header_bad_signature": "bad signature",
    "member_past_the_end": "header outside",
    "overlapping_members": "overlap",
    "duplicate_name": "duplicate name",
    "truncated": "File is not a zip file",
    "not_a_zip": "File is not a zip file",
    "empty_file": "File is not a zip file",
    "directory_larger_than_the_file": "Bad offset for central directory",
}
WITHOUT_DIRECTORY = {"truncated", "not_a_zip", "empty_file", "directory_larger_than_the_file"}
ACCEPTED_BY_ZIPFILE = ["size_too_big", "deflate_trailing_garbage", "bomb", "stored_sizes_differ"]


def test_every_broken_archive_is_accounted_for() -> None:
    assert set(BROKEN) == set(WRONG) | {"directory_past_the_end"}


@pytest.mark.parametrize("name", WRONG)
def test_a_broken_archive_is_broken_as_its_name_says_and_only_there(path: Path, name: str) -> None:
    BROKEN[name](path)
    assert verdict(path, TEST) == WRONG[name]
    if name not in WITHOUT_DIRECTORY:
        assert verdict(path, RECOVERY) == "sound"
        with zipfile.ZipFile(path) as archive:
            assert archive.read(RECOVERY) == small_images()[RECOVERY]


def test_a_directory_past_the_end_is_only_found_out_when_a_member_is_read(path: Path) -> None:
    BROKEN["directory_past_the_end"](path)
    with pytest.raises((OSError, zipfile.BadZipFile)), zipfile.ZipFile(path) as archive:
        archive.read(RECOVERY)


@pytest.mark.parametrize("name", ACCEPTED_BY_ZIPFILE)
def test_the_standard_library_accepts_some_broken_ones(path: Path, name: str) -> None:
    BROKEN[name](path)
    with zipfile.ZipFile(path) as archive:
        assert archive.read(TEST) == small_images()[TEST]


@pytest.mark.parametrize("name", ["flipped_bit", "deflate_ends_early", "method_zstd"])
def test_unzip_agrees_that_it_is_broken(path: Path, name: str) -> None:
    BROKEN[name](path)
    assert unzip(path, "-tq").returncode > 1


def test_the_sound_default_passes_the_strict_reader_whole(path: Path) -> None:
    make_archive(path)
    assert {verdict(path, name) for name in [*small_images(), *EXTRAS]} == {"sound"}
