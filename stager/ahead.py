"""A long range, read by several connections ahead of whoever uses it: in order, bounded memory.

The range is cut into slices, each fetched by one connection and handed on while it still comes. One
connection is enough where the bytes come as fast as they are used; it costs a tenth less CPU than
four. More are opened while the user of the bytes has to wait for them.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from stager.errors import ArchiveUnavailable

Check = Callable[[], None]
Read = Callable[[int, int, Check], Iterator[bytes]]
BEYOND = 2
"""So many slices may be fetched and not used yet: a connection need not wait for the user."""
JUDGED_SECONDS = 0.05
"""So long connections are watched before more are opened."""
PATIENCE, STARVED = 0.2, 0.6
"""Shares of the time spent waiting beyond which twice as many are opened, or all."""


@dataclass(slots=True)
class _Slice:
    """A span on its way: its pieces, at last None or what ended it."""

    pieces: SimpleQueue[bytes | BaseException | None] = field(default_factory=SimpleQueue)
    future: "Future[None] | None" = None


class Ahead:
    """The slices of one range, `connections` of them at most being fetched at a time."""

    def __init__(
        self,
        read: Read,
        spans: Iterator[tuple[int, int]],
        connections: int,
        check: Check,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._spans, self._check = read, spans, check
        self._most, self._wanted = connections, 1
        self._under_way: deque[_Slice] = deque()
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(connections, "slice")
        self._clock = clock
        self._since, self._waited = clock(), 0.0

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes, in order."""
        try:
            self._fetch_more()
            while self._under_way:
                yield from self._handed(self._under_way[0])
                self._under_way.popleft()
                self._fetch_more()
        finally:
            self._ended.set()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _handed(self, head: _Slice) -> Iterator[bytes]:
        """Yield one slice's pieces as they come."""
        while (piece := self._next(head)) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
            self._fetch_more()

    def _next(self, head: _Slice) -> bytes | BaseException | None:
        try:
            return head.pieces.get_nowait()
        except Empty:
            began = self._clock()
            piece = head.pieces.get()
            now = self._clock()
            self._waited += now - began
            if now - self._since > JUDGED_SECONDS:
                self._judge(self._waited / (now - self._since))
                self._since, self._waited = now, 0.0
            return piece

    def _judge(self, waiting: float) -> None:
        """Open more connections by the share of the time that was spent waiting."""
        if waiting > STARVED:
            self._wanted = self._most
        elif waiting > PATIENCE:
            self._wanted = min(2 * self._wanted, self._most)

    def _fetch_more(self) -> None:
        """Keep so many fetching as are wanted, and no more than BEYOND slices more at hand."""
        fetching = sum(not s.future.done() for s in self._under_way if s.future)
        while fetching < self._wanted and len(self._under_way) < self._wanted + BEYOND:
            span = next(self._spans, None)
            if span is None:
                return
            new = _Slice()
            new.future = self._pool.submit(self._fetch, *span, new)
            self._under_way.append(new)
            fetching += 1

    def _fetch(self, start: int, end: int, into: _Slice) -> None:
        try:
            for piece in self._read(start, end, self._go_on):
                into.pieces.put(piece)
            into.pieces.put(None)
        except BaseException as e:  # noqa: BLE001 (raised again where the bytes are used)
            into.pieces.put(e)

    def _go_on(self) -> None:
        self._check()
        if self._ended.is_set():
            raise ArchiveUnavailable("the reader has gone")
