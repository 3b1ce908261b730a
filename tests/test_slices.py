"""A long member is read in slices by several connections: in order, bounded, ended in time."""

import os
import random
import struct
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from functools import cache

import pytest
from archives import TEST
from lab import DEADLINE, Lab
from test_archive import ARCHIVE_ROOM_BYTES, Memory, go_on, in_memory

from stager import ahead, fetch
from stager.ahead import BEYOND, Check
from stager.archive import AHEAD_BYTES, LAST_SLICE_BYTES, SLICE_BYTES
from stager.config import load_config
from stager.errors import ArchiveCorrupt, ArchiveUnavailable, Stopping
from stager.fetch import Fetching, Room
from stager.progress import Progress
from stager.zipdir import Member


def drain(stream: Iterator[bytes], into: bytearray) -> None:
    for piece in stream:
        into += piece


@cache
def long_member() -> tuple[bytes, Member, bytes]:
    """Return an archive of some slices, its only member, and what that holds."""
    data = random.Random(3).randbytes(3 * SLICE_BYTES + 12_345)
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(TEST, data)
        whole = os.pread(file.fileno(), 1 << 30, 0)
    return whole, in_memory(Memory(whole)).directory().member(TEST), data


@pytest.mark.parametrize("connections", [1, 2, 3, 8])
def test_a_long_member_is_read_by_several_connections_and_comes_in_order(
    connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Any wait for a first piece is too long.
    monkeypatch.setattr(ahead, "STARVED_SECONDS", 0)
    monkeypatch.setattr(ahead, "STARVED", -1)
    whole, member, data = long_member()
    reader = Memory(whole)
    archive = in_memory(reader, connections)
    assert b"".join(archive.stream(member, go_on)) == data
    sizes = [end - start for start, end in sorted(reader.spans)]
    if connections == 1:
        assert len(sizes) == 1
    else:
        assert max(sizes) <= min(SLICE_BYTES, AHEAD_BYTES // (connections + BEYOND))
        assert sizes[-1] <= LAST_SLICE_BYTES
        assert sizes == sorted(sizes, reverse=True)
    assert archive.fetched <= member.compressed + ARCHIVE_ROOM_BYTES + 30 + len(TEST)


def test_no_more_is_read_ahead_than_the_connections_may_hold() -> None:
    whole, member, _ = long_member()
    reader, connections = Memory(whole), 2
    stream = in_memory(reader, connections).stream(member, go_on)
    next(stream)
    stream.close()
    assert len(reader.spans) <= connections + 1
    assert not [t for t in threading.enumerate() if t.name.startswith("slice")]


@pytest.mark.parametrize("connections", [1, 3])
def test_a_broken_slice_ends_the_stream_with_its_error(connections: int) -> None:
    whole, member, data = long_member()
    archive = in_memory(Memory(whole, breaks_at=2 * SLICE_BYTES), connections)
    came = bytearray()
    with pytest.raises(ArchiveUnavailable, match="broken"):
        drain(archive.stream(member, go_on), came)
    assert data.startswith(came)
    assert SLICE_BYTES < len(came) <= 2 * SLICE_BYTES
    assert not [t for t in threading.enumerate() if t.name.startswith("slice")]


@pytest.mark.parametrize("connections", [1, 3])
def test_a_stream_ends_where_the_work_should_end(connections: int) -> None:
    whole, member, _ = long_member()
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise Stopping("enough")

    reader = Memory(whole)
    with pytest.raises(Stopping):
        list(in_memory(reader, connections).stream(member, check))
    assert len(reader.spans) <= 1 + connections


def damaged() -> bytes:
    """Return the archive with a member that claims to be deflated, and is no such thing."""
    whole, member, _ = long_member()
    stored, deflated = (struct.pack("<HHH", 20, 0, method) for method in (0, 8))
    head, tail = member.header_offset + 4, whole.rindex(b"PK\1\2") + 6
    assert whole[head:][:6] == whole[tail:][:6] == stored
    whole = whole[:head] + deflated + whole[head + 6 : tail] + deflated + whole[tail + 6 :]
    data = member.end - member.compressed
    return whole[:data] + b"\xff" + whole[data + 1 :]


def test_a_broken_member_leaves_no_thread_and_no_file_while_its_error_is_kept(lab: Lab) -> None:
    """It is kept until the other members are through: that may take an hour."""
    config, archive = load_config(lab.config, {}), in_memory(Memory(damaged()), 3)
    member = archive.directory().member(TEST)
    with lab.peer().locks.take("key") as work:
        room = Room(config.static, config)
        [(_, error)] = Fetching(work, archive, room, Progress(), {"test": member}).fetched()
        assert isinstance(error, ArchiveCorrupt)
        assert error.__traceback__
        assert not [t for t in threading.enumerate() if t.name.startswith("slice")]
        assert os.listdir(work.dir) == []


def test_a_broken_member_is_read_again_with_all_its_room_put_aside(lab: Lab) -> None:
    """What was written of it is gone, and must not be another worker's to take meanwhile."""
    put_aside = list[int]()

    class Watched(Memory):
        """Remembers what was put aside whenever the member's beginning is asked for."""

        def read(self, start: int, end: int, check: Check, most: int) -> Iterator[bytes]:
            if start == member.header_offset:
                put_aside.append(sum(room._reserved.values()))
            return super().read(start, end, check, most)

    whole, member, data = long_member()
    broken = whole[: member.end - 1] + bytes([whole[member.end - 1] ^ 1]) + whole[member.end :]
    config, archive = load_config(lab.config, {}), in_memory(Watched(broken))
    with lab.peer().locks.take("key") as work:
        room = Room(config.static, config)
        room.reserve(id(work), len(data))
        [(_, error)] = Fetching(work, archive, room, Progress(), {"test": member}).fetched()
    assert isinstance(error, ArchiveCorrupt)
    assert put_aside == [len(data), len(data)]


def test_a_thread_that_can_not_begin_ends_those_that_did(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted, start = threading.Event(), threading.Thread.start

    class Stalled(Memory):
        """Gives nothing until it is interrupted."""

        def read(self, start: int, end: int, check: Check, most: int) -> Iterator[bytes]:
            assert interrupted.wait(DEADLINE)
            check()
            return super().read(start, end, check, most)

        def interrupt(self) -> None:
            interrupted.set()

    def start_one(thread: threading.Thread) -> None:
        if [t for t in threading.enumerate() if t.name.startswith("member")]:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(fetch, "SIDE_BY_SIDE", 2)
    whole, member, _ = long_member()
    reader = Stalled(whole)
    config, archive, members = load_config(lab.config, {}), in_memory(reader), ("test", "base")
    with lab.peer().locks.take("key") as work:
        room = Room(config.static, config)
        fetching = Fetching(work, archive, room, Progress(), dict.fromkeys(members, member))
        monkeypatch.setattr(threading.Thread, "start", start_one)
        with pytest.raises(RuntimeError, match="new thread"):
            list(fetching.fetched())
        assert interrupted.is_set()
        assert os.listdir(work.dir) == []
    assert reader.spans == []


def test_an_image_gets_a_second_thread_once_a_core_is_free(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    another, has_helper = -1, list[bool]()
    monkeypatch.setattr(fetch, "CORES", 2)
    monkeypatch.setattr(fetch, "_computing", {another})

    class Watched(Memory):
        """Remembers at each piece whether there is another thread; the core is free at the 12th."""

        def read(self, start: int, end: int, check: Check, most: int) -> Iterator[bytes]:
            for piece in super().read(start, end, check, most):
                has_helper.append("behind" in [thread.name for thread in threading.enumerate()])
                if len(has_helper) == 12:
                    fetch._computing.discard(another)
                yield piece

    whole, member, data = long_member()
    config, archive = load_config(lab.config, {}), in_memory(Watched(whole))
    with lab.peer().locks.take("key") as work:
        room = Room(config.static, config)
        [(_, file)] = Fetching(work, archive, room, Progress(), {"test": member}).fetched()
        assert isinstance(file, tuple)
        assert file[0].read_bytes() == data
    assert not any(has_helper[:12])
    assert all(has_helper[15:])
    assert not fetch._computing
