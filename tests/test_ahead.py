"""Connections are opened only while the user of the bytes waits for them."""

import threading
import time
from collections.abc import Callable, Iterator

from stager.ahead import BEYOND, Ahead, Check
from stager.errors import ArchiveUnavailable

END = 8 * 40


def cut(start: int, end: int) -> int:
    return min(start + 8, end)


class Network:
    """Gives bytes, one piece each, after `seconds`; counts who reads at the same time."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.most, self.given = seconds, 0, 0, 0
        self.fetched: list[int] = []
        self._lock = threading.Lock()

    def read(self, start: int, end: int, check: Check, most: int) -> Iterator[bytes]:
        assert most >= 1
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.fetched.append(start)
        try:
            for at in range(start, end):
                check()
                time.sleep(self.seconds)
                self.given += 1
                yield bytes([at % 251])
        finally:
            with self._lock:
                self.now -= 1


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("slice")]


def whole() -> bytes:
    return bytes(at % 251 for at in range(END))


def ahead(network: Network, connections: int) -> Iterator[bytes]:
    return iter(Ahead(network.read, (0, END), cut, connections, lambda: None))


def test_one_connection_and_no_thread_is_used_while_it_gives_more_than_is_used() -> None:
    network, came = Network(0), bytearray()
    # A second goes by for each piece that is used, and none while one is waited for.
    slices = Ahead(
        network.read, (0, END), cut, 4, lambda: None, lambda: float(len(came)), lambda: 0.0
    )
    for piece in slices:
        came += piece
        assert not threads()
    assert came == whole()
    assert network.most == 1
    assert network.fetched[:4] == [0, 8, 24, 56], "each request asks for twice as much"


def test_a_connection_that_becomes_slow_is_joined_by_others() -> None:
    network, came, slow = Network(0), bytearray(), 100
    slices = Ahead(
        network.read, (0, END), cut, 4, lambda: None, lambda: float(len(came)),
        lambda: float(max(0, network.given - slow)),
    )  # fmt: skip
    for piece in slices:
        came += piece
        assert not threads() or len(came) > slow
    assert came == whole()
    assert network.fetched[:4] == [0, 8, 24, 56]
    assert sorted(network.fetched[4:7]) == [120, 128, 136], "slices behind the last long request"


def test_all_connections_are_used_where_bytes_are_waited_for_and_they_come_in_order() -> None:
    network = Network(0.005)
    assert b"".join(ahead(network, 4)) == whole()
    assert network.most == 4


def test_no_more_than_two_slices_beyond_the_connections_are_at_hand() -> None:
    network = Network(0.005)
    pieces = ahead(network, 4)
    taken = sum(len(next(pieces)) for _ in range(8 * 20))
    time.sleep(0.1)
    assert len(network.fetched) <= taken // 8 + 1 + 4 + BEYOND
    close: Callable[[], None] = pieces.close  # type: ignore[attr-defined]
    close()
    assert not threads()


def test_an_error_comes_after_the_bytes_before_it() -> None:
    def breaks(start: int, end: int, check: Check, most: int) -> Iterator[bytes]:
        check()
        assert most >= end - start
        if start >= 120:
            raise ArchiveUnavailable("broken")
        yield bytes(end - start)

    came = bytearray()
    try:
        for piece in Ahead(breaks, (0, END), cut, 3, lambda: None):
            came += piece
    except ArchiveUnavailable:
        assert len(came) == 120
    else:
        raise AssertionError("no error came")
