"""Work on a stream's pieces by a thread of its own, a little behind the one that makes them.

Libraries let go of the interpreter's lock while they inflate, hash and write: two threads share the
work of one image, and a third one's, which receives, goes on meanwhile.
"""

import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Self

BATCH_BYTES, BATCHES = 1 << 20, 1
"""Pieces are handed over by so many bytes; so many batches may wait: more are no longer cached."""
Helped = Callable[[], AbstractContextManager[object]]


class Behind:
    """Uses pieces in order, at the latest at the end of the block; its errors come to the maker.

    `helped` is the thread's context; None: no core is left for one, pieces are used at once.
    """

    def __init__(self, use: Callable[[bytes], None], helped: Helped | None = nullcontext) -> None:
        self._use, self._helped = use, helped
        self._batches: queue.Queue[list[bytes]] = queue.Queue(BATCHES)
        self._some: list[bytes] = []
        self._size = 0
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        """None while all there was is less than one batch: that is used at the end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._batches.put([])
            self._thread.join()
        if kind is None:
            self._raise()
            for piece in self._some:
                self._use(piece)

    def put(self, piece: bytes) -> None:
        """Have a piece used soon; wait where too many are waiting."""
        if self._helped is None:
            self._use(piece)
            return
        self._some.append(piece)
        self._size += len(piece)
        if self._size >= BATCH_BYTES:
            self._raise()
            self._hand_over(self._helped)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _hand_over(self, helped: Helped) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._work, args=[helped], name="behind")
            thread.start()
            # Not before: one that could not be started can't be waited for either.
            self._thread = thread
        self._batches.put(self._some)
        self._some, self._size = [], 0

    def _work(self, helped: Helped) -> None:
        has_ended = False
        try:
            with helped():
                while batch := self._batches.get():
                    for piece in batch:
                        self._use(piece)
                has_ended = True
        except BaseException as e:  # noqa: BLE001 (raised again where pieces are made)
            self._error = e
            # The maker may be waiting for room.
            while not has_ended and self._batches.get():
                pass
