"""Pieces used by another thread: in order, several at once, and its errors come to the maker."""

import gc
import weakref

import pytest
from lab import until

from stager.behind import Behind


class Watched(bytearray):
    """Can be watched."""


def test_pieces_are_handed_over_several_at_once() -> None:
    used: list[bytes] = []
    with Behind(used.append, lot=3) as behind:
        behind.put(b"the first needs no thread")
        assert len(used) == 1
        for piece in (b"1", b"2"):
            behind.put(piece)
        assert len(used) == 1, "not before there are enough"
        behind.put(b"3")
        until(lambda: len(used) == 4)
        behind.put(b"4")
    assert used[1:] == [b"1", b"2", b"3", b"4"], "what is left at the end is used as well"


def test_three_lots_are_in_memory_at_most_and_an_error_stops_the_maker() -> None:
    made, used, lot = list[int](), list[int](), 4

    def use(piece: int) -> None:
        if piece == 1:
            until(lambda: len(made) > 3 * lot)
        assert len(made) - len(used) <= 3 * lot + 1, "and the one that is put"
        used.append(piece)
        if piece == 50:
            raise OSError(28, "full")

    def make() -> None:
        with Behind(use, lot=lot) as behind:
            for n in range(1000):
                made.append(n)
                behind.put(n)

    with pytest.raises(OSError, match="full"):
        make()
    assert used == list(range(51))
    assert len(made) <= 50 + 3 * lot + 2


def test_where_both_fail_the_makers_error_is_told() -> None:
    used: list[bytes] = []

    def use(piece: bytes) -> None:
        used.append(piece)
        if piece == b"1":
            raise OSError(28, "full")

    def make() -> None:
        with Behind(use, lot=1) as behind:
            behind.put(b"0")
            behind.put(b"1")
            until(lambda: len(used) == 2)
            raise ConnectionError

    with pytest.raises(ConnectionError):
        make()


def test_what_waits_when_the_maker_fails_is_not_used() -> None:
    used: list[bytes] = []

    def make() -> None:
        with Behind(used.append, lot=3) as behind:
            for piece in (b"0", b"1", b"2"):
                behind.put(piece)
            raise ConnectionError

    with pytest.raises(ConnectionError):
        make()
    assert used == [b"0"]


@pytest.mark.parametrize("lot", [3, 100])
@pytest.mark.parametrize("number", range(1, 10))
def test_an_error_comes_to_the_maker_and_keeps_no_piece_that_waits(number: int, lot: int) -> None:
    used: list[int] = []
    pieces: list[weakref.ref[Watched]] = []

    def use(piece: Watched) -> None:
        used.append(piece[0])
        if piece[0] == number:
            raise OSError(28, "full")

    def make() -> None:
        with Behind(use, lot=lot) as behind:
            for n in range(50):
                piece = Watched([n])
                pieces.append(weakref.ref(piece))
                behind.put(piece)
                del piece

    with pytest.raises(OSError, match="full") as raised:
        make()
    gc.collect()
    assert used == list(range(number + 1))
    alive = [piece[0] for ref in pieces if (piece := ref())]
    assert alive[0] == number
    assert len(alive) <= 2, "in the error's frames: the one being used, and the one being put"
    assert raised.value
