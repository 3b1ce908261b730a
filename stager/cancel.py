"""Cancels what an order means, in place: what was dropped, what waits, what workers are at.

Whoever can, obeys: the instance that works on a request, or anybody while it waits. Owner rules:
orders.py.
"""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TypeVar

from stager import durable, orders
from stager.dispatch import Dispatcher
from stager.errors import Cancelled
from stager.layout import ROOMS, Claim, Waiting, is_request_name, request_name
from stager.orders import NOT_FOUND, NOT_YOURS, Answer, Received, called
from stager.spool import NotClaimable, Spool

Entry = TypeVar("Entry", Claim, Waiting)
CANCELLED, TOO_LATE = "cancelled", "already "
TAKEN_LATE_NS = 500_000_000


class Cancelling:
    """Carries out cancel orders in the name of one instance, look by look."""

    def __init__(self, spool: Spool, dispatcher: Dispatcher, rulers: set[int]) -> None:
        self.spool, self.paths, self.dispatcher = spool, spool.paths, dispatcher
        self.rulers = rulers
        """Who may give orders about others' requests: uids."""
        self._outcomes: dict[str, dict[str, str]] = {}
        self._known: list[tuple[str, Claim]] | None = None

    def look_anew(self, there: Collection[str] | None = None) -> None:
        """Forget which requests were answered, and the orders that are not `there` any more."""
        self._known = None
        if there is not None:
            self._outcomes = {file: o for file, o in self._outcomes.items() if file in there}

    def obey(self, item: Received) -> Answer | None:
        """Cancel what matches and came before the order; None: not all of it has ended yet."""
        if item.order.everything and item.uid not in self.rulers:
            return Answer(problem="only the daemon's user and root may cancel all")
        outcome = self._outcomes.setdefault(item.file, {})
        self._cancel_dropped(item, outcome)
        # In both directions, as a request may be moved from one to the other meanwhile.
        pending = self._cancel_active(item, outcome)
        pending = self._cancel_waiting(item, outcome) or pending
        pending = self._cancel_active(item, outcome) or pending
        if pending:
            return None
        self._outcomes.pop(item.file, None)
        return Answer({**self._ended(item, outcome), **outcome})

    def _cancel_dropped(self, item: Received, outcome: dict[str, str]) -> None:
        for name in self._dropped(item):
            if not self.may(item, self.paths.requests / name):
                if _is_there(self.paths.requests / name):
                    outcome.setdefault(request_name(name), NOT_YOURS)
                continue
            try:
                claim = self.spool.take(name)
            except NotClaimable:
                continue
            if claim and not self.may(item, self.paths.active / str(claim)):
                # Somebody else's has taken the name since.
                self.dispatcher.admit(claim)
            elif claim and self.dispatcher.intake.end_claim(claim, _cancelled(item)):
                outcome[called(item.order, claim)] = CANCELLED

    def _cancel_waiting(self, item: Received, outcome: dict[str, str]) -> bool:
        pending = False
        for waiting in self._matching(item, self.spool.waiting()):
            path = self.paths.waiting / str(waiting)
            if not self.may(item, path) and _is_there(path):
                outcome.setdefault(called(item.order, waiting), NOT_YOURS)
            elif self.dispatcher.intake.end(waiting, _cancelled(item)):
                outcome[called(item.order, waiting)] = CANCELLED
            else:
                pending = True
        return pending

    def _cancel_active(self, item: Received, outcome: dict[str, str]) -> bool:
        """Tell the workers of ours that are at it; other instances tell theirs."""
        pending = False
        mine = {str(case.claim): case for case in self.dispatcher.cases()}
        for claim in self._matching(item, self.spool.active()):
            path = self.paths.active / str(claim)
            if not self.may(item, path):
                if _is_there(path):
                    outcome.setdefault(called(item.order, claim), NOT_YOURS)
                else:
                    pending = True  # it has moved on: the next look finds it
                continue
            pending = True
            if case := mine.get(str(claim)):
                case.progress.cancelled_by = f"uid {item.uid}"
                case.interrupt()
        return pending

    def _dropped(self, item: Received) -> Iterator[str]:
        """Yield the names in the drop box that an order means."""
        for name in durable.listing(self.paths.requests):
            named = {name, request_name(name)} & set(item.order.names)
            if not is_request_name(name) or not (named or item.order.everything):
                continue
            if item.order.state not in {"", "waiting"} or item.order.code:
                continue
            try:
                before = os.lstat(self.paths.requests / name).st_ctime_ns <= item.time_ns
            except OSError:
                continue
            if before:
                yield name

    def _matching(self, item: Received, entries: list[Entry]) -> Iterator[Entry]:
        for entry in entries:
            state = "waiting" if isinstance(entry, Waiting) else "active"
            if item.order.state not in {"", state}:
                continue
            if item.order.code and item.order.code != self._code(entry):
                continue
            if not (item.order.everything or orders.matches(item.order.names, entry)):
                continue
            if self._came_before(item, entry):
                yield entry

    def _came_before(self, item: Received, entry: Claim | Waiting) -> bool:
        """Whether a request was dropped before an order, if maybe taken in after it.

        One taken in later was, if it was written before: a turn can take long.
        """
        in_time = entry.arrived_ns <= item.time_ns + TAKEN_LATE_NS
        if in_time or entry.retry_of:
            return in_time
        room = self.paths.waiting if isinstance(entry, Waiting) else self.paths.active
        try:
            return os.lstat(room / str(entry)).st_mtime_ns <= item.time_ns
        except OSError:
            return False

    def _code(self, entry: Claim | Waiting) -> str:
        """Return the code of what a waiting request waits for."""
        backlog = self.dispatcher.backlog
        known = backlog.entries.get(entry.id)
        lulls = (backlog.lulls.get(k) for k in (known.key, known.archive_url)) if known else ()
        return next((lull.error.code for lull in lulls if lull and lull.error), "")

    def _ended(self, item: Received, known: dict[str, str]) -> dict[str, str]:
        """Say of the names nothing is pending for how they ended."""
        left = tuple(name for name in item.order.names if name not in known)
        found = dict.fromkeys(left, NOT_FOUND)
        for room, claim in self.answered() if left else ():
            if name := orders.matches(left, claim):
                was_it = room == "cancelled" and claim.arrived_ns <= item.time_ns
                found[name] = CANCELLED if was_it else f"{TOO_LATE}{room}"
        return found

    def answered(self) -> list[tuple[str, Claim]]:
        """Return the answered requests, in the order they came; listed once a look."""
        if self._known is not None:
            return self._known
        claims = [
            (room, claim)
            for room in ROOMS
            for claim in map(Claim.parse, durable.listing(self.paths.spool / room))
            if claim
        ]
        self._known = sorted(claims, key=lambda pair: pair[1].arrived_ns)
        return self._known

    def may(self, item: Received, path: Path) -> bool:
        """Whether who gave an order may give it about a request."""
        try:
            return item.uid in self.rulers or os.lstat(path).st_uid == item.uid
        except OSError:
            return False


def _is_there(path: Path) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _cancelled(item: Received) -> Cancelled:
    return Cancelled(f"cancelled by uid {item.uid}")
