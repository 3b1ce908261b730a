"""Connections are opened only while the user of the bytes waits for them."""

import threading
import time
from collections.abc import Callable, Iterator

from stager.ahead import BEYOND, Ahead, Check
from stager.errors import ArchiveUnavailable

SLICES = [(start, start + 8) for start in range(0, 8 * 40, 8)]


class Network:
    """Gives bytes, one piece each, after `seconds`; counts who reads at the same time."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.most = seconds, 0, 0
        self.fetched: list[int] = []
        self._lock = threading.Lock()

    def read(self, start: int, end: int, check: Check) -> Iterator[bytes]:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.fetched.append(start)
        try:
            for at in range(start, end):
                check()
                time.sleep(self.seconds)
                yield bytes([at % 251])
        finally:
            with self._lock:
                self.now -= 1


def whole() -> bytes:
    return bytes(at % 251 for at in range(SLICES[-1][1]))


def ahead(network: Network, connections: int) -> Iterator[bytes]:
    return iter(Ahead(network.read, iter(SLICES), connections, lambda: None))


def test_one_connection_is_used_while_it_gives_more_than_is_used() -> None:
    network, came = Network(0), bytearray()
    # A second goes by for each piece that is used, and none while one is waited for.
    slices = Ahead(network.read, iter(SLICES), 4, lambda: None, clock=lambda: float(len(came)))
    for piece in slices:
        came += piece
    assert came == whole()
    assert network.most == 1


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
    assert not [t for t in threading.enumerate() if t.name.startswith("slice")]


def test_an_error_comes_after_the_bytes_before_it() -> None:
    def breaks(start: int, end: int, check: Check) -> Iterator[bytes]:
        check()
        if start >= 80:
            raise ArchiveUnavailable("broken")
        yield bytes(end - start)

    came = bytearray()
    try:
        for piece in Ahead(breaks, iter(SLICES), 3, lambda: None):
            came += piece
    except ArchiveUnavailable:
        assert len(came) == 80
    else:
        raise AssertionError("no error came")
