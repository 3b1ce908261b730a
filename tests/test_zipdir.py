"""The zip's directory, read by range: what is found, what is refused, and how little is fetched."""

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from archives import BASE, BROKEN, EXTRAS, RECOVERY, TEST, make_archive, small_images

from stager.errors import ArchiveCorrupt, ArchiveUnavailable, ImageNotInArchive
from stager.zipdir import Directory, Member, read_directory

END_BYTES = 22


class Object:
    """Bytes that are read by range, and what was asked of them."""

    def __init__(self, data: bytes) -> None:
        self.data, self.asked = data, 0

    def read(self, start: int, end: int) -> bytes:
        assert 0 <= start < end <= len(self.data), (start, end)
        self.asked += end - start
        return self.data[start:end]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "image.zip"


def directory_of(path: Path) -> Directory:
    source = Object(path.read_bytes())
    return read_directory(len(source.data), source.read)


def packed(data: bytes, member: Member) -> bytes:
    """Return a member's compressed bytes, from where its local header says they begin."""
    header = data[member.header_offset :]
    name_length, extra_length = struct.unpack("<26x2H", header[:30])
    return header[30 + name_length + extra_length :][: member.compressed]


SOUND: list[Any] = [
    pytest.param({}, id="as-zip-writes-it"),
    pytest.param({"method": "stored"}, id="stored"),
    pytest.param({"descriptors": True}, id="data-descriptors"),
    pytest.param({"zip64": True}, id="zip64"),
    pytest.param({"zip64": True, "descriptors": True}, id="zip64-data-descriptors"),
    pytest.param({"comment": b"#"}, id="short-comment"),
    pytest.param({"comment": b"PK\3\4PK\1\2" * 8191}, id="longest-comment"),
    pytest.param({"prefix": b"#!/bin/sh\n" * 1000}, id="prefix"),
    pytest.param({"zip64": True, "prefix": b"MZ" * 99, "comment": b"a remark"}, id="all-together"),
    pytest.param({"order": [RECOVERY, "esp/", BASE, "id_rsa"]}, id="another-order"),
    pytest.param({"extra": False}, id="images-only"),
    pytest.param({"images": {TEST: b"", BASE: b"x", RECOVERY: b"yz"}}, id="tiny-images"),
]


@pytest.mark.parametrize("options", SOUND)
def test_the_members_of_a_sound_archive_are_where_zipfile_finds_them(
    path: Path, options: dict[str, Any]
) -> None:
    images = make_archive(path, **options)
    data, directory = path.read_bytes(), directory_of(path)
    with zipfile.ZipFile(path) as archive:
        assert directory.names == archive.namelist()
        for name in images:
            info, member = archive.getinfo(name), directory.member(name)
            assert (member.size, member.compressed) == (info.file_size, info.compress_size)
            assert (member.crc32, member.method) == (info.CRC, info.compress_type)
            raw = packed(data, member)
            assert (zlib.decompress(raw, -15) if member.method else raw) == images[name]
            assert member.header_offset + member.compressed < member.end <= archive.start_dir


@pytest.mark.parametrize("options", SOUND)
def test_hardly_more_than_the_directory_is_fetched(path: Path, options: dict[str, Any]) -> None:
    make_archive(path, **options)
    source = Object(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        directory_bytes = len(source.data) - archive.start_dir
    read_directory(len(source.data), source.read)
    # A comment can be found only by looking through the 64 KiB where its beginning may be.
    comment_bytes = 0xFFFF + END_BYTES if "comment" in options else 0
    assert source.asked <= directory_bytes + 1024 + comment_bytes


def test_a_directory_of_thousands_of_members_is_read_whole(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(70_000):
            archive.writestr(zipfile.ZipInfo(f"d/{number}"), b"")
        archive.writestr(TEST, b"content")
    directory = directory_of(path)
    assert len(directory.names) == 70_001
    assert directory.member(TEST).size == 7


REFUSED: list[Any] = [
    pytest.param("encrypted", "encrypted", id="encrypted"),
    pytest.param("strongly_encrypted", "encrypted", id="strongly-encrypted"),
    pytest.param("method_deflate64", "method 9", id="deflate64"),
    pytest.param("method_zstd", "method 93", id="zstd"),
    pytest.param("stored_sizes_differ", "sizes differ", id="stored-sizes-differ"),
    pytest.param("packed_size_too_big", "overlaps", id="packed-size-reaches-the-next-member"),
    pytest.param("packed_size_past_the_end", "overlaps", id="packed-size-past-the-end"),
    pytest.param("member_past_the_end", "overlaps", id="member-past-the-end"),
    pytest.param("overlapping_members", "overlaps", id="overlapping-members"),
    pytest.param("bomb", "more bytes than", id="bomb"),
    pytest.param("bomb_zip64", "more bytes than", id="zip64-bomb"),
    pytest.param("duplicate_name", "2 times", id="duplicate-name"),
]


@pytest.mark.parametrize(("name", "reason"), REFUSED)
def test_a_broken_member_is_refused_with_the_reason_and_the_others_are_not(
    path: Path, name: str, reason: str
) -> None:
    BROKEN[name](path)
    directory = directory_of(path)
    with pytest.raises(ArchiveCorrupt, match=reason) as caught:
        directory.member(TEST)
    assert TEST in caught.value.message
    recovery = directory.member(RECOVERY)
    content = zlib.decompress(packed(path.read_bytes(), recovery), -15)
    assert content == small_images()[RECOVERY]


def test_of_two_members_that_overlap_neither_is_believed(path: Path) -> None:
    BROKEN["overlapping_members"](path)
    directory = directory_of(path)
    for name in (TEST, BASE):
        with pytest.raises(ArchiveCorrupt, match=f"{name} overlaps"):
            directory.member(name)


UNREADABLE = ["truncated", "not_a_zip", "empty_file", "directory_larger_than_the_file"]


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_archive_without_a_sound_directory_is_refused_whole(path: Path, name: str) -> None:
    BROKEN[name](path)
    with pytest.raises(ArchiveCorrupt, match="not a sound zip archive"):
        directory_of(path)


def test_every_truncation_is_refused_or_the_member_lies_past_the_end(path: Path) -> None:
    make_archive(path, {TEST: b"content" * 20, RECOVERY: b"more"}, extra=False)
    whole = path.read_bytes()
    for size in range(len(whole)):
        source = Object(whole[:size])
        with pytest.raises(ArchiveCorrupt):
            read_directory(size, source.read).member(TEST)


def test_a_missing_member_is_told_with_what_the_archive_does_hold(path: Path) -> None:
    make_archive(path, {BASE: b"base", RECOVERY: b"recovery"})
    with pytest.raises(ImageNotInArchive) as caught:
        directory_of(path).member(TEST)
    message = caught.value.message
    assert TEST in message
    for name in [BASE, RECOVERY, *(n for n in EXTRAS if "/" not in n)]:
        assert name in message
    assert "startup.nsh" not in message


@pytest.mark.parametrize(
    ("names", "present", "absent"),
    [
        pytest.param([], "no file", "None", id="nothing"),
        pytest.param([f"n{i:03}" for i in range(400)], "380 more", "n399", id="very-many"),
        pytest.param(["a" * 60_000], "a" * 64, "a" * 65, id="a-very-long-name"),
        pytest.param(["good", "evil\x1b[2J\nname"], "good", "\x1b", id="control-characters"),
    ],
)
def test_what_the_archive_holds_is_told_in_few_and_harmless_words(
    path: Path, names: list[str], present: str, absent: str
) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), b"")
    with pytest.raises(ImageNotInArchive) as caught:
        directory_of(path).member(TEST)
    message = caught.value.message
    assert present in message
    assert absent not in message
    assert "\n" not in message
    assert len(message) < 2000


@pytest.mark.parametrize(
    "name",
    ["esp/" + TEST, TEST.upper(), TEST + "/", "./" + TEST, "/" + TEST, TEST + ".bak", "x" + TEST],
)
def test_only_the_exact_name_at_the_top_is_the_member(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"")
    with pytest.raises(ImageNotInArchive):
        directory_of(path).member(TEST)


def test_a_directory_said_to_be_enormous_is_refused_unread() -> None:
    size, claimed = 3 << 30, 1 << 30
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, claimed, size - END_BYTES - claimed, 0)
    asked = 0

    def read(start: int, stop: int) -> bytes:
        nonlocal asked
        asked += stop - start
        assert asked < 1 << 20
        return (bytes(stop - start) + end)[-(stop - start) :] if stop == size else b"\0" * asked

    with pytest.raises(ArchiveCorrupt, match="too large"):
        read_directory(size, read)


def test_an_error_of_the_reader_is_not_taken_for_a_broken_archive() -> None:
    def read(start: int, end: int) -> bytes:
        raise ArchiveUnavailable(f"{start} to {end}")

    with pytest.raises(ArchiveUnavailable):
        read_directory(5000, read)
