"""What an instance tells of itself, for the page, `stager status` and all who wait.

That is `instances/<inst>.status`, replaced by rename at most once a second, not synced; nothing is
decided by it.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stager import __version__, durable, mounts
from stager.config import Config
from stager.dispatch import Dispatcher
from stager.dropbox import DropBox
from stager.errors import StorageError
from stager.instance import Heart
from stager.layout import Paths
from stager.request import Request

STATUS_SECONDS = 1.0
OLD_SECONDS = 10.0
"""So long nothing is written where nothing has changed that others should hear of soon."""
MOST_IN_STATUS = 200


@dataclass(slots=True)
class Bulletin:
    """The state of an instance, as others may know it."""

    paths: Paths
    heart: Heart
    dispatcher: Dispatcher
    dropbox: DropBox
    config: Config
    mode: str = ""
    fault: str | None = None
    """What is wrong with the spool."""
    paused: bool = False
    scanned_at: float = field(default_factory=time.monotonic)
    """When the last scan ended well, by our own clock."""
    _slow: dict[str, int] = field(init=False)
    """What nobody waits to hear of; on a network filesystem that goes for the counts, too."""
    _is_late: bool = False
    """Whether it is yet to be told why something waits."""
    _next: float = 0.0
    _told: dict[str, str] | None = None
    _content: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = ("answered", "fetched_bytes") if mounts.is_network(self.paths.instances) else ()
        self._slow = dict.fromkeys(("scanned", *counts), 0)

    def publish(self) -> None:
        """Write it, once a second; a fault is told at once, and so is its end."""
        now, fault = time.monotonic(), self.standing_fault()
        if now < self._next and fault == self._told:
            self._is_late = bool(self.dispatcher.backlog.entries)
            return
        self._is_late = False
        target, view = self._path, self.view()
        content = view | self._slow
        if content == self._content and now < self._next + OLD_SECONDS:
            return
        tmp = self.paths.tmp / f"{self.heart.inst}.{durable.nonce()}"
        try:
            durable.replace(tmp, target, json.dumps(view).encode())
        except OSError:
            # Where nothing new can be made, what is there can still say so, in few bytes.
            few = view | {"reasons": {}, "hints": {}, "wanted": {}, "active": {}, "unclaimable": {}}
            durable.overwrite(target, json.dumps(few).encode())
            raise
        self._next, self._told, self._content = now + STATUS_SECONDS, fault, content

    def due(self) -> float:
        """Return the seconds until something is to be told; infinite: nothing is."""
        return max(0.0, self._next - time.monotonic()) if self._is_late else float("inf")

    @property
    def _path(self) -> Path:
        return self.paths.instances / f"{self.heart.inst}.status"

    @property
    def scanned(self) -> float:
        """When the last scan ended well, by the clock on the wall."""
        return time.time() - (time.monotonic() - self.scanned_at)

    def withdraw(self) -> None:
        """Take it away: we leave."""
        durable.discard(self._path)

    def standing_fault(self) -> dict[str, str] | None:
        """Return what makes requests wait on this machine, if anything does."""
        hold = self.dispatcher.backlog.hold
        if self.fault:
            hint = StorageError.default_hint
            return {"code": StorageError.code, "message": self.fault, "hint": hint}
        if hold:
            error = hold.error
            return {"code": error.code, "message": error.message, "hint": error.hint}
        return None

    def news(self) -> tuple[str, int, bool, int]:
        """Return what changes when others should hear of us soon; may be asked by any thread."""
        fault, tally = self.standing_fault(), self.dispatcher.intake.tally
        said = fault["message"] if fault else ""
        answered = 0 if "answered" in self._slow else tally.good + tally.bad
        return said, self.dropbox.stuck, self.paused, answered

    def view(self) -> dict[str, Any]:
        """Return what is told; bounded, however much waits."""
        backlog, tally = self.dispatcher.backlog, self.dispatcher.intake.tally
        waiting = list(backlog.entries.values())[:MOST_IN_STATUS]
        lulls = {e.waiting.request_id: lull for e in waiting if (lull := backlog.lull(e))}
        # Also while one looks again: it is said until something else is known.
        missing = [(e.waiting.request_id, e.request) for e in waiting]
        missing += [(c.claim.request_id, c.request) for c in self.dispatcher.cases()]
        for rid, request in missing[:MOST_IN_STATUS]:
            if request and rid not in lulls and (lull := backlog.missed(request.build)):
                lulls[rid] = lull
        wanted = {e.waiting.request_id: _wanted(e.request) for e in waiting if e.request}
        active = {}
        for case in self.dispatcher.cases():
            view = case.progress.view()
            if case.request:
                view |= _wanted(case.request)
            active[case.claim.request_id] = view
        return {
            "host": self.heart.identity.host,
            "version": __version__,
            "mode": self.mode,
            "scanned": round(self.scanned, 3),
            "paused": self.paused,
            "workers": self.config.workers,
            "active": active,
            "reasons": {rid: lull.reason for rid, lull in lulls.items()},
            "alone": self.dispatcher.alone(),
            "hints": {rid: lull.hint for rid, lull in lulls.items() if lull.hint},
            "wanted": wanted,
            "fault": self.standing_fault(),
            "unclaimable": dict(list(self.dropbox.unclaimable().items())[:MOST_IN_STATUS]),
            "answered": {"good": tally.good, "bad": tally.bad},
            "fetched_bytes": tally.bytes_fetched(self.dispatcher.cases()),
        }


def _wanted(request: Request) -> dict[str, Any]:
    return {"build": request.build.url, "images": list(request.images)}
