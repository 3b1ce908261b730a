"""What filesystem events say about files in the drop box: hints, which only ever shorten a wait."""

import threading
import time
from collections.abc import Callable

from stager.layout import is_request_name

LINKED_SECONDS = 0.05
"""A name made without an open within this time was linked in: open and create are one call."""
KEPT_SECONDS = 1.0


class Hints:
    """Remembers what was moved, linked, opened and closed; called by any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._moved: dict[str, float] = {}
        self._created: dict[str, float] = {}
        self._closed: dict[str, float] = {}
        self._open: set[str] = set()
        self._lock = threading.Lock()

    def note(self, kind: str, name: str) -> bool:
        """Take a hint: moved, created, opened, closed after writing, or read. True: scan."""
        with self._lock:
            if kind == "moved":
                self._moved[name] = self.clock()
            elif kind == "created":
                self._created[name] = self.clock()
                self._moved.pop(name, None)
            elif kind == "opened":
                self._created.pop(name, None)
                self._open.add(name)
            elif kind == "closed":
                self._closed[name] = self.clock()
                self._open.discard(name)
            elif kind == "read":
                self._open.discard(name)
        return kind not in {"opened", "read"} and is_request_name(name)

    def moved(self) -> list[str]:
        """Return the names that were moved in."""
        with self._lock:
            return list(self._moved)

    def forget(self, name: str) -> None:
        """Forget a name: its file is out of the drop box."""
        with self._lock:
            self._moved.pop(name, None)
            self._closed.pop(name, None)
            self._created.pop(name, None)

    def keep(self, there: set[str], listed: float) -> None:
        """Forget the names that a listing begun at `listed` does not show any more."""
        with self._lock:
            self._open &= there
            # A hint that came after the listing began is for the next one.
            self._moved = {n: t for n, t in self._moved.items() if n in there or t >= listed}
            for hints in (self._closed, self._created):
                old = [n for n, t in hints.items() if n not in there and listed - t > KEPT_SECONDS]
                for name in old:
                    del hints[name]

    def changed(self, name: str, looked: float) -> None:
        """Forget that a file was closed before it was last looked at: it has changed since."""
        with self._lock:
            if self._closed.get(name, looked) < looked:
                del self._closed[name]

    def is_closed(self, name: str) -> bool:
        """Whether its writer was seen to close it, and nobody to open it since."""
        with self._lock:
            return name in self._closed and name not in self._open

    def patience(self, name: str, since: float, *, is_empty: bool) -> float | None:
        """Return for how long a file must stay the same from `since` on; None: nothing is known."""
        with self._lock:
            if name in self._moved:
                return 0.0
            if name in self._created and not is_empty:
                # Created and not opened: linked in. Wait for the open that might still be told.
                return max(0.0, LINKED_SECONDS - (since - self._created[name]))
        return None
