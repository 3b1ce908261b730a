"""How far a request's work is, and whether it should go on."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from stager.errors import Cancelled, Expired, Stopping


@dataclass(eq=False, slots=True)
class Sign:
    """A thread's sign of life, for whoever keeps watch over it."""

    name: str
    steps: int = 0
    """Rises wherever the thread gets on."""
    rests_until: float = 0.0
    """Until then (monotonic) it need not."""
    thread_id: int = 0

    def step(self) -> None:
        """Get on; by the very thread that is watched."""
        self.steps += 1
        self.rests_until = 0.0
        self.thread_id = threading.get_native_id()

    def rest(self, seconds: float) -> None:
        """Go to sleep for so long."""
        self.step()
        self.rests_until = time.monotonic() + seconds


@dataclass(slots=True)
class Progress:
    """Shared by a worker and its members' threads (write) and the daemon's loop (reads, stops).

    Bytes are compressed ones.
    """

    sign: Sign = field(default_factory=lambda: Sign("a worker"))
    phase: str = "starting"
    images: list[str] = field(default_factory=list)
    """Those that are fetched now."""
    done: dict[str, int] = field(default_factory=dict)
    """Bytes fetched, by image; each is counted by one thread."""
    total_bytes: int = 0
    began: float = field(default_factory=time.monotonic)
    deadline: float = float("inf")
    stopping: threading.Event = field(default_factory=threading.Event)
    cancelled_by: str = ""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds in each phase that is over."""
    entered: float = field(default_factory=time.monotonic)

    def enter(self, phase: str) -> None:
        """Begin another phase of the work."""
        now = time.monotonic()
        self.spent[self.phase] = self.spent.get(self.phase, 0.0) + now - self.entered
        self.phase, self.entered = phase, now

    def check(self) -> None:
        """Raise where the work should end: at every safe point."""
        self.sign.steps += 1
        if self.cancelled_by:
            raise Cancelled(f"cancelled by {self.cancelled_by}")
        if time.monotonic() >= self.deadline:
            raise Expired("not finished in time")
        if self.stopping.is_set():
            raise Stopping("the daemon is stopping")

    @contextmanager
    def at(self, image: str) -> Iterator[None]:
        """Say that an image is fetched for the length of a block."""
        self.images.append(image)
        try:
            yield
        finally:
            self.images.remove(image)

    def advance(self, image: str, size: int) -> None:
        """Count bytes that came."""
        self.done[image] = self.done.get(image, 0) + size

    def forget(self, image: str) -> None:
        """Count an image from its start again."""
        self.done[image] = 0

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than the work should go on."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            self.stopping.wait(min(left, 0.2))

    def view(self) -> dict[str, Any]:
        """Return what `status` shows."""
        seconds = time.monotonic() - self.began
        done = sum(self.done.copy().values())
        rate = done / seconds if seconds > 0 else 0.0
        left = self.total_bytes - done
        return {
            "phase": self.phase,
            "image": ", ".join(self.images.copy()),
            "bytes": done,
            "total_bytes": self.total_bytes,
            "bytes_per_second": round(rate),
            "seconds_left": round(left / rate) if rate and self.total_bytes else None,
        }
