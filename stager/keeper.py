"""Has the rules of retention applied now and then, by one instance, beside the daemon's work."""

import threading
import time

import structlog

from stager import durable, gc, prune
from stager.errors import StagerError
from stager.instance import Buried
from stager.visit import Visit

log = structlog.get_logger()

PERIOD_SECONDS = 600.0
HURRY_SECONDS = 30.0


class Keeper:
    """A thread that runs while there is something to look at, at most one at a time."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._last = float("-inf")
        self._known: set[str] = set()
        """Who lived at the last look, or came since."""
        self._fault = ""

    def turn(self, visit: Visit, *, hurry: bool = False) -> None:
        """Start a look if one is due, and we have the lowest name of the living.

        `hurry`: requests wait for room. One is due, too, where somebody has gone since the last:
        a removal may be half done, and its build was not to be had then.
        """
        now, living = time.monotonic(), visit.heart.living()
        is_due = now - self._last >= (HURRY_SECONDS if hurry else PERIOD_SECONDS)
        self._known |= set(living)
        if not is_due and self._known == set(living):
            return
        if living[0] != visit.heart.inst or (self._thread is not None and self._thread.is_alive()):
            return
        self._last, self._known = now, set(living)
        self._thread = threading.Thread(target=self._keep, args=(visit,), name="keeper")
        self._thread.start()

    def stop(self) -> None:
        """End at the next safe point."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _keep(self, visit: Visit) -> None:
        try:
            with durable.storage():
                for removal in gc.collect(visit):
                    if removal.spared:
                        log.info(f"a build stays: {removal.spared}", build=removal.build.target)
                    else:
                        log.info(f"removed a build: {removal.why}", build=removal.build.target)
                    if self._stopping.is_set():
                        return
                for number, _ in enumerate(prune.prune(visit), 1):
                    if self._stopping.is_set():
                        return
                    if number == 1:
                        log.info("removing old requests and answers")
            self._fault = ""
        except (StagerError, Buried) as e:
            if self._fault != str(e):
                log.warning(f"retention must wait: {e}")
            self._fault = str(e)
        except Exception:
            log.exception("a fault of ours in retention")
