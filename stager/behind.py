"""Work on a stream's pieces by a thread of its own, a little behind the one that makes them.

Libraries let go of the interpreter's lock while they inflate, hash and write: two threads share the
work of one image. Where all cores are in use a second thread only costs; so one is asked for with
each piece, and begins once there is a core for it.
"""

import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Self

WAITING = 2
"""So many pieces may wait: the two threads need not keep step, and all is cached still."""
Helped = Callable[[], AbstractContextManager[object] | None]


class Behind:
    """Uses pieces in order, at the latest at the end of the block; its errors come to the maker.

    `helped` gives the thread's context; None: no core is free now, the piece is used at once.
    """

    def __init__(self, use: Callable[[bytes], None], helped: Helped = nullcontext) -> None:
        self._use, self._helped = use, helped
        self._pieces: queue.Queue[bytes | None] = queue.Queue(WAITING)
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._is_first = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._pieces.put(None)
            self._thread.join()
        if kind is None:
            self._raise()

    def put(self, piece: bytes) -> None:
        """Use a piece, or have it used soon; wait where too many are waiting."""
        # The first piece of a small image is its last: not worth a thread.
        if self._thread is None and (self._is_first or not self._begins()):
            self._is_first = False
            self._use(piece)
        else:
            self._raise()
            self._pieces.put(piece)

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
        has_ended = False
        try:
            with context:
                while (piece := self._pieces.get()) is not None:
                    self._use(piece)
                has_ended = True
        except BaseException as e:  # noqa: BLE001 (raised again where pieces are made)
            self._error = e
            # The maker may be waiting for room.
            while not has_ended and self._pieces.get() is not None:
                pass
