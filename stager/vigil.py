"""Whether the daemon's threads get on, and what the service manager is told of it.

The manager's watchdog is for faults of ours: the loop, a worker or the heartbeat stands still
while storage answers. A storage outage is none, so it never ends a daemon and its downloads. Two
things tell them apart. A thread in an uninterruptible sleep waits for a disk or a file server,
whatever else is wrong. And whether storage answers is asked by a thread made for each question,
which hangs where the storage hangs. Looks are counted, not seconds: a machine that was stopped or
asleep for a while proves nothing.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from stager import log as ours
from stager import service
from stager.progress import Sign

log = structlog.get_logger()

LOOK_SECONDS = 2.0
OUTAGE_SECONDS = 10.0
PATIENCE_SECONDS = 300.0
"""Without a service manager's WATCHDOG_USEC: when a thread that stands still is said to."""

Places = Callable[[], Mapping[str, Callable[[], object]]]
"""Returns for each place of storage a question that only its server can answer."""


class Asker:
    """Asks whether storage answers, in a thread that may hang with it."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._thread: threading.Thread | None = None
        self.at, self.since = "", 0.0
        """What is asked now, and since when (monotonic)."""

    def ask(self) -> None:
        """Begin to ask all places; nothing where the last question is not answered yet."""
        if not self.waits():
            self.since = time.monotonic()
            self._thread = threading.Thread(target=self._ask, name="asker", daemon=True)
            self._thread.start()

    def waits(self) -> float:
        """Return for how long a question has been open; 0: none is."""
        if self._thread is None or not self._thread.is_alive():
            return 0.0
        return max(time.monotonic() - self.since, 0.001)

    def _ask(self) -> None:
        for place, question in self._places().items():
            self.at, self.since = place, time.monotonic()
            with suppress(OSError):  # an error is an answer, too
                question()


class Vigil:
    """A thread that looks at the others' signs of life and pings the watchdog; a context."""

    def __init__(
        self,
        places: Places,
        signs: Callable[[], Iterable[Sign]],
        summary: Callable[[], str],
    ) -> None:
        seconds = service.watchdog_seconds()
        self._patience = seconds or PATIENCE_SECONDS
        self._every = min(LOOK_SECONDS, self._patience / 10)
        self._outage_seconds = min(OUTAGE_SECONDS, self._patience / 3)
        self._signs, self._summary = signs, summary
        self._asker = Asker(places)
        self._seen: dict[Sign, tuple[int, int, int]] = {}
        self._given_up: Sign | None = None
        self._outage, self._outage_began = "", 0.0
        self._told = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="vigil", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def tell(self, *lines: str) -> None:
        """Send lines and, where it is news, the one-line status; any thread may."""
        status = "; ".join(filter(None, (self._outage, self._summary())))
        if status != self._told:
            self._told = status
            lines = (*lines, f"STATUS={status}")
        if lines:
            service.notify(*lines)

    def _keep(self) -> None:
        while not self._ended.wait(self._every):
            try:
                self.look()
            except Exception:
                # No thread or descriptor left, say: the next look may find some.
                log.exception("a fault of ours in the watch over the threads")

    def look(self) -> None:
        """Take one look at every thread; ping, or have the daemon ended."""
        signs = list(self._signs())
        self._judge_storage()
        self._seen = {sign: self._look_at(sign) for sign in signs}
        if any(silent > 1 for _, silent, _ in self._seen.values()) or self._outage:
            self._asker.ask()
        stuck = [s for s, (_, _, idle) in self._seen.items() if idle * self._every > self._patience]
        if not stuck:
            self._given_up = None
            self.tell("WATCHDOG=1")
        elif stuck[0] is not self._given_up:
            self._give_up(stuck[0])

    def _look_at(self, sign: Sign) -> tuple[int, int, int]:
        """Return its steps, for how many looks it is silent, and for how many without excuse."""
        steps, silent, idle = self._seen.get(sign, (-1, 0, 0))
        if sign.steps != steps or time.monotonic() < sign.rests_until + self._every:
            return sign.steps, 0, 0
        outage = self._asker.waits() > self._every / 2
        excused = outage or any(map(_waits_for_storage, sign.threads))
        return steps, silent + 1, 0 if excused else idle + 1

    def _judge_storage(self) -> None:
        """Say once that storage does not answer, and once that it does again."""
        waits = self._asker.waits()
        if waits >= self._outage_seconds and not self._outage:
            self._outage_began = self._asker.since
            since = time.strftime("%H:%M:%S", time.localtime(time.time() - waits))
            self._outage = f"{self._asker.at} does not answer since {since}"
            log.error(f"{self._outage}; requests wait")
        elif self._outage and not waits:
            seconds = round(time.monotonic() - self._outage_began)
            self._outage = ""
            log.info(f"storage answers again after {seconds} s")

    def _give_up(self, sign: Sign) -> None:
        """Have the manager end us: its watchdog is triggered, and no longer pinged."""
        self._given_up = sign
        seconds = round(self._seen[sign][2] * self._every)
        log.critical(
            f"{sign.name} has stood still for {seconds} s while storage answers: a fault of ours",
            traceback=_where(sign.threads[0]),
        )
        service.notify("WATCHDOG=trigger", f"STATUS={sign.name} stands still: a fault of ours")


def _waits_for_storage(thread_id: int) -> bool:
    """Whether a thread of ours is in an uninterruptible sleep."""
    try:
        stat = Path(f"/proc/self/task/{thread_id}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[0] == b"D"


def _where(thread_id: int) -> str:
    """Return where in the code a thread is."""
    for thread in threading.enumerate():
        if thread.native_id == thread_id and thread.ident in (frames := sys._current_frames()):  # noqa: SLF001
            return ours.frames_of(frames[thread.ident])
    return "its thread has ended"
