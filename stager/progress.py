"""How far a request's work is, and whether it should go on."""

import threading
import time
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
    """Shared by one worker (writes) and the daemon's loop (reads, stops); compressed bytes."""

    sign: Sign = field(default_factory=lambda: Sign("a worker"))
    phase: str = "starting"
    image: str = ""
    done_bytes: int = 0
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

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than the work should go on."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            self.stopping.wait(min(left, 0.2))

    def view(self) -> dict[str, Any]:
        """Return what `status` shows."""
        seconds = time.monotonic() - self.began
        rate = self.done_bytes / seconds if seconds > 0 else 0.0
        left = self.total_bytes - self.done_bytes
        return {
            "phase": self.phase,
            "image": self.image,
            "bytes": self.done_bytes,
            "total_bytes": self.total_bytes,
            "bytes_per_second": round(rate),
            "seconds_left": round(left / rate) if rate and self.total_bytes else None,
        }
