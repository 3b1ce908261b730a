"""An archive at one generation: exact spans, one version, whatever is damaged."""

import os
import random
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from archives import BASE, BROKEN, RECOVERY, TEST, far_zip64, make_archive, make_image
from hypothesis import given, settings
from hypothesis import strategies as st

from stager.ahead import Check
from stager.archive import Archive, DirectorySource, GenerationGone
from stager.errors import (
    ArchiveCorrupt,
    ArchiveNotFound,
    ArchiveUnavailable,
    StagerError,
    StorageError,
)
from stager.inflate import unpack
from stager.layout import Build
from stager.zipdir import Member

BUILD = Build("bucket", "board-release", "R1-2.3")
ARCHIVE_ROOM_BYTES = 64
Damage = Callable[[bytes], bytes]


class Memory:
    """A `Reader` of bytes that come in pieces, and may break off."""

    def __init__(self, data: bytes, piece_bytes: int = 1 << 20, breaks_at: int = -1) -> None:
        self.data, self.piece_bytes, self.breaks_at = data, piece_bytes, breaks_at
        self.spans: list[tuple[int, int]] = []

    def read(self, start: int, end: int, check: Check, most: int) -> Iterator[bytes]:
        check()
        size = min(self.piece_bytes, most)
        self.spans.append((start, end))
        assert 0 <= start < end <= len(self.data), (start, end)
        for at in range(start, end, size):
            if at <= self.breaks_at < at + size:
                raise ArchiveUnavailable("broken")
            yield self.data[at : min(end, at + size)]

    def interrupt(self) -> None:
        pass


def in_memory(reader: Memory, connections: int = 1) -> Archive:
    return Archive("gs://b/o", 1, len(reader.data), reader, connections)


def go_on() -> None:
    pass


def pause(seconds: float) -> None:
    raise AssertionError(f"a directory is not waited for ({seconds} s)")


def content(archive: Archive, member: Member) -> bytes:
    """Return what a member comes out as: streamed, inflated, checked."""
    with tempfile.TemporaryFile() as file:
        unpack(archive.stream(member, go_on), member, file.fileno())
        return os.pread(file.fileno(), member.size + 1, 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / BUILD.bucket / BUILD.object_name
    made.parent.mkdir(parents=True)
    return made


@pytest.fixture
def source(tmp_path: Path) -> DirectorySource:
    return DirectorySource(tmp_path)


VARIANTS: list[Any] = [
    pytest.param({}, id="as-zip-writes-it"),
    pytest.param({"method": "stored"}, id="stored"),
    pytest.param({"zip64": True, "descriptors": True}, id="zip64-data-descriptors"),
    pytest.param({"prefix": b"#!/bin/sh\n" * 99, "comment": b"a remark"}, id="prefix-comment"),
    pytest.param({"order": [RECOVERY, BASE, TEST], "extra": False}, id="images-only"),
    pytest.param({"images": {TEST: b"", BASE: b"x", RECOVERY: bytes(9)}}, id="tiny-images"),
]


@pytest.mark.parametrize("options", VARIANTS)
def test_each_member_comes_out_and_no_other_is_fetched(
    source: DirectorySource, path: Path, options: dict[str, Any]
) -> None:
    images = make_archive(path, **options)
    archive = source.look(BUILD, pause)
    assert (archive.url, archive.size) == (BUILD.archive_url, path.stat().st_size)
    directory = archive.directory()
    for name, expected in images.items():
        member, before = directory.member(name), archive.fetched
        assert content(archive, member) == expected
        header_bytes = 30 + len(name) + ARCHIVE_ROOM_BYTES
        assert archive.fetched - before <= member.compressed + header_bytes


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 70_000),
    st.integers(0, 60_000),
    st.sampled_from([1, 29, 4096, 1 << 20]),
    st.booleans(),
)
def test_a_local_header_may_have_an_extra_field_of_any_length(
    size: int, extra_bytes: int, piece_bytes: int, is_last: bool
) -> None:
    data, info = random.Random(size).randbytes(size), zipfile.ZipInfo(TEST)
    piece_bytes = max(piece_bytes, extra_bytes // 100)
    info.extra = b"\xfe\xca" + extra_bytes.to_bytes(2, "little") + bytes(extra_bytes)
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(info, data)
            if not is_last:
                archive.writestr(RECOVERY, b"behind it")
        reader = Memory(os.pread(file.fileno(), 1 << 20, 0), piece_bytes)
    opened = in_memory(reader)
    member = opened.directory().member(TEST)
    assert b"".join(opened.stream(member, go_on)) == data


def test_headers_may_lie_beyond_4_gib(source: DirectorySource, path: Path) -> None:
    images = far_zip64(path)
    archive = source.look(BUILD, pause)
    directory = archive.directory()
    for name, expected in images.items():
        member = directory.member(name)
        assert member.header_offset > 1 << 32
        assert content(archive, member) == expected
    assert archive.fetched < 3_000_000


LIES = [
    pytest.param(name, id=name)
    for name in BROKEN
    if name not in {"truncated", "not_a_zip", "empty_file"} and not name.startswith("directory_")
]


@pytest.mark.parametrize("name", LIES)
def test_a_broken_member_is_refused_and_the_sound_one_beside_it_comes_out(
    source: DirectorySource, path: Path, name: str
) -> None:
    BROKEN[name](path)
    archive = source.look(BUILD, pause)
    directory = archive.directory()
    with pytest.raises(ArchiveCorrupt, match=TEST):
        content(archive, directory.member(TEST))
    make_archive(path.with_suffix(".good"))
    with zipfile.ZipFile(path.with_suffix(".good")) as good:
        assert content(archive, directory.member(RECOVERY)) == good.read(RECOVERY)


@cache
def sound() -> tuple[bytes, dict[str, bytes]]:
    with tempfile.NamedTemporaryFile() as file:
        images = {TEST: make_image(1, 9_000), BASE: make_image(2, 5_000), RECOVERY: b"a" * 800}
        make_archive(Path(file.name), images, extra=False)
        return Path(file.name).read_bytes(), images


def damages(data: bytes) -> st.SearchStrategy[bytes]:
    """Damage anywhere, half of it in the few bytes that say where and what everything is."""
    size, told = len(data), data.index(b"PK\1\2")
    place = st.one_of(st.integers(0, size - 1), st.integers(told, size - 1), st.integers(0, 90))
    change = st.tuples(place, st.one_of(st.sampled_from([0, 1, 0xFF]), st.integers(0, 255)))

    def apply(
        changes: list[tuple[int, int]], cut: tuple[int, int], put: tuple[int, bytes]
    ) -> bytes:
        damaged = bytearray(data)
        for at, value in changes:
            damaged[at] = value
        damaged[put[0] : put[0]] = put[1]
        del damaged[cut[0] : cut[0] + cut[1]]
        return bytes(damaged)

    few, none = st.integers(0, 30), st.just((0, 0))
    cuts = st.one_of(none, none, st.tuples(place, few))
    puts = st.one_of(st.just((0, b"")), st.tuples(place, st.binary(max_size=30)))
    return st.builds(apply, st.lists(change, max_size=6), cuts, puts)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_damage_of_an_archive_gives_another_image_or_an_error_outside_the_tree(
    data: st.DataObject,
) -> None:
    whole, images = sound()
    archive = in_memory(Memory(data.draw(damages(whole)), 1000))
    for name, expected in images.items():
        try:
            assert content(archive, archive.directory().member(name)) == expected
        except StagerError as e:
            assert e.code in {"archive_corrupt", "image_not_in_archive"}  # noqa: PT017


# -- a directory -----------------------------------------------------------------------------------


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def test_an_archive_replaced_while_it_is_read_comes_out_as_it_was(
    source: DirectorySource, path: Path
) -> None:
    images = make_archive(path)
    archive = source.look(BUILD, pause)
    directory = archive.directory()
    make_archive(path.with_suffix(".new"), {TEST: b"other"})
    path.with_suffix(".new").rename(path)
    for name, expected in images.items():
        assert content(archive, directory.member(name)) == expected
    assert source.look(BUILD, pause).generation != archive.generation


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: make_archive(path, {TEST: make_image(5, 9_000_000)}), id="anew"),
        pytest.param(lambda path: os.truncate(path, 3_000_000), id="cut-off"),
        pytest.param(grow, id="grown"),
    ],
)
def test_an_archive_written_to_while_it_is_read_is_never_mixed(
    source: DirectorySource, path: Path, change: Callable[[Path], object]
) -> None:
    make_archive(path, {TEST: make_image(4, 9_000_000)}, method="stored")
    os.utime(path, (1, 1))
    archive = source.look(BUILD, pause)
    stream = archive.stream(archive.directory().member(TEST), go_on)
    next(stream)
    change(path)
    with pytest.raises(GenerationGone):
        list(stream)


@pytest.mark.parametrize(
    ("prepare", "error"),
    [
        pytest.param(lambda path: path.unlink(), ArchiveNotFound, id="no-file"),
        pytest.param(lambda path: path.rename(f"{path}.part"), ArchiveNotFound, id="other-name"),
        pytest.param(
            lambda path: path.rename(path.with_name("factory_image.zip")),
            ArchiveNotFound, id="factory-image-beside-it",
        ),
        pytest.param(
            lambda path: path.parent.rename(path.parents[1] / "x"), ArchiveNotFound, id="no-build"
        ),
        pytest.param(
            lambda path: (path.unlink(), path.parent.rmdir(), path.parent.write_text("")),
            ArchiveNotFound, id="a-file-for-a-directory",
        ),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), ArchiveNotFound, id="a-directory"),
        pytest.param(make_fifo, ArchiveNotFound, id="a-fifo"),
        pytest.param(
            lambda path: path.parents[2].rename(f"{path.parents[2]}.gone"),
            ArchiveNotFound, id="no-bucket",
        ),
        pytest.param(
            lambda path: path.parents[3].rename(f"{path.parents[3]}.gone"),
            StorageError, id="archive-directory-not-mounted",
        ),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_to_be_missing(
    source: DirectorySource, path: Path, prepare: Callable[[Path], object], error: type[StagerError]
) -> None:
    path.write_bytes(b"")
    prepare(path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(error):
        source.look(BUILD, pause)
    assert len(os.listdir("/proc/self/fd")) == before
