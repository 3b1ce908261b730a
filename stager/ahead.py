"""A long range, read by several connections ahead of whoever uses it: in order, bounded memory.

Where the bytes come as fast as they are used, the user's own thread reads them, over one
connection: that is cheapest. While it has to wait for them more connections are opened, each with a
thread that fetches one slice after the other, handed on while it still comes.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TypeVar

from stager.errors import ArchiveUnavailable

Check = Callable[[], None]
Read = Callable[[int, int, Check, int], Iterator[bytes]]
"""Yields a range in pieces of so many bytes at most, unless more are there for certain."""
Cut = Callable[[int, int], int]
_Piece = TypeVar("_Piece")
BEYOND = 2
"""So many slices may be fetched and not used yet: a connection need not wait for the user."""
USED_BYTES, WAITING_BYTES = 1 << 20, 64 << 10
"""What is asked for at once where it is used at once, and where it waits: memory that was asked for
and not filled leaves holes between the pieces that wait, as all threads share a heap."""
ALONE_BYTES = 16 << 20
"""So much one connection asks for at once at most, where it is enough: each request costs."""
STARVED_SECONDS, STARVED = 0.05, 0.6
PATIENT_SECONDS, PATIENCE = 0.5, 0.35
"""After so long, shares of the time spent waiting beyond which all connections are opened, or
twice as many."""


@dataclass(slots=True)
class _Slice:
    """A span on its way: its pieces, at last None or what ended it."""

    pieces: SimpleQueue[bytes | BaseException | None] = field(default_factory=SimpleQueue)
    future: "Future[None] | None" = None


def _idle() -> float:
    """Return a clock that goes on while this thread does not run."""
    return time.monotonic() - time.thread_time()


class Ahead:
    """One range; `connections` of its slices at most are fetched at a time, cut off by `cut`."""

    def __init__(
        self,
        read: Read,
        span: tuple[int, int],
        cut: Cut,
        connections: int,
        check: Check,
        clock: Callable[[], float] = time.monotonic,
        idle: Callable[[], float] = _idle,
    ) -> None:
        self._read, self._cut, self._check = read, cut, check
        self._start, self._end = span
        self._most, self._wanted = connections, 1
        self._alone_bytes = cut(*span) - span[0]
        self._under_way: deque[_Slice] = deque()
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(connections, "slice")
        self._clock, self._idle = clock, idle
        self._since, self._waited = clock(), 0.0

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes, in order."""
        try:
            while self._start < self._end or self._under_way:
                if self._under_way:
                    yield from self._handed(self._under_way[0])
                    self._under_way.popleft()
                    self._fetch_more()
                else:
                    yield from self._alone()
        finally:
            self._ended.set()
            self._pool.shutdown(wait=True, cancel_futures=True)
            # An error that is kept would keep what was not used.
            self._under_way.clear()

    def _alone(self) -> Iterator[bytes]:
        """Yield the bytes of one request by this thread; others may begin behind them meanwhile."""
        start, self._start = self._start, min(self._start + self._alone_bytes, self._end)
        self._alone_bytes = min(2 * self._alone_bytes, ALONE_BYTES)
        pieces = self._read(start, self._start, self._go_on, USED_BYTES)
        while (piece := self._awaited(lambda: next(pieces, None))) is not None:
            yield piece
            self._fetch_more(besides=1)

    def _handed(self, head: _Slice) -> Iterator[bytes]:
        """Yield one slice's pieces as they come."""
        while (piece := self._awaited(head.pieces.get)) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
            self._fetch_more()

    def _awaited(self, get: Callable[[], _Piece]) -> _Piece:
        began = self._idle()
        piece = get()
        self._waited += self._idle() - began
        self._judge()
        return piece

    def _judge(self) -> None:
        """Open more connections by the share of the time that was spent waiting."""
        now = self._clock()
        seconds = now - self._since
        if seconds > STARVED_SECONDS and self._waited > STARVED * seconds:
            self._wanted = self._most
        elif seconds > PATIENT_SECONDS:
            if self._waited > PATIENCE * seconds:
                self._wanted = min(2 * self._wanted, self._most)
        else:
            return
        self._since, self._waited = now, 0.0

    def _fetch_more(self, besides: int = 0) -> None:
        """Keep so many fetching as are wanted, and no more than BEYOND slices more at hand."""
        fetching = besides + sum(not s.future.done() for s in self._under_way if s.future)
        while (
            self._start < self._end
            and fetching < self._wanted
            and len(self._under_way) < self._wanted + BEYOND
        ):
            start, self._start = self._start, self._cut(self._start, self._end)
            new = _Slice()
            new.future = self._pool.submit(self._fetch, start, self._start, new)
            self._under_way.append(new)
            fetching += 1

    def _fetch(self, start: int, end: int, into: _Slice) -> None:
        try:
            for piece in self._read(start, end, self._go_on, WAITING_BYTES):
                into.pieces.put(piece)
            into.pieces.put(None)
        except BaseException as e:  # noqa: BLE001 (raised again where the bytes are used)
            into.pieces.put(e)

    def _go_on(self) -> None:
        self._check()
        if self._ended.is_set():
            raise ArchiveUnavailable("the reader has gone")
