"""Work on a stream's pieces by a thread of its own, a little behind the one that makes them.

Libraries let go of the interpreter's lock while they inflate, hash and write: two threads share the
work of one image. Where all cores are in use a second thread only costs; so one is asked for with
each piece, and begins once there is a core for it. It is given several pieces at once: to be
woken for each one takes a twentieth of the CPU (docs/decisions.md).
"""

import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Generic, Self, TypeVar

LOT = 8
"""So many pieces are handed over at once. Three lots at most are in memory: one that is filled, one
that waits and one that is used."""
Piece = TypeVar("Piece")
Helped = Callable[[], AbstractContextManager[object] | None]


class Behind(Generic[Piece]):
    """Uses pieces in order, at the latest at the end of the block; its errors come to the maker.

    What waits when the block ends by an error is not used any more.
    `helped` gives the thread's context; None: no core is free now, the piece is used at once.
    """

    def __init__(
        self, use: Callable[[Piece], None], helped: Helped = nullcontext, lot: int = LOT
    ) -> None:
        self._use, self._helped, self._most = use, helped, lot
        self._lot: deque[Piece] = deque()
        self._lots: queue.Queue[deque[Piece] | None] = queue.Queue(1)
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._is_first, self._is_given_up = True, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._is_given_up = kind is not None
        if self._thread is not None:
            self._lots.put(self._lot)
            self._lots.put(None)
            self._thread.join()
            # An error that is kept would keep what was not used.
            self._lot.clear()
        if kind is None:
            self._raise()

    def put(self, piece: Piece) -> None:
        """Use a piece, or have it used soon; wait where too many are waiting."""
        # The first piece of a small image is its last: not worth a thread.
        if self._thread is None and (self._is_first or not self._begins()):
            self._is_first = False
            self._use(piece)
        else:
            self._raise()
            self._lot.append(piece)
            if len(self._lot) >= self._most:
                self._lots.put(self._lot)
                self._lot = deque()

    def _begins(self) -> bool:
        context = self._helped()
        if context is None:
            return False
        thread = threading.Thread(target=self._work, args=[context], name="behind")
        thread.start()
        # Not before: one that could not be started can't be waited for either.
        self._thread = thread
        return True

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self, context: AbstractContextManager[object]) -> None:
        lot: deque[Piece] | None = deque()
        try:
            with context:
                while (lot := self._lots.get()) is not None:
                    while lot and not self._is_given_up:
                        self._use(lot.popleft())
        except BaseException as e:  # noqa: BLE001 (raised again where pieces are made)
            self._error = e
            # The maker may be waiting for room.
            while lot is not None:
                lot = self._lots.get()
