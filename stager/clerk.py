"""Obeys the orders in control/: cancel, retry, pause, resume, pin, unpin.

A cancel is obeyed in place by whoever can: the instance that works on the request, or anybody while
it waits. The others are taken first, so that they are done once. Owner rules: orders.py.
"""

import errno
import itertools
import os
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from stager import again, durable, orders
from stager.dispatch import Dispatcher
from stager.errors import Cancelled, MachineFault, StagerError
from stager.finish import finish
from stager.layout import (
    PIN_PREFIX,
    ROOMS,
    Claim,
    Waiting,
    is_request_name,
    parse_build,
    request_name,
)
from stager.orders import NOT_FOUND, NOT_YOURS, Answer, Received, called
from stager.spool import NotClaimable, Spool

log = structlog.get_logger()

Entry = TypeVar("Entry", Claim, Waiting)
CANCELLED, TOO_LATE = "cancelled", "already "
TAKEN_LATE_NS = 500_000_000


class Clerk:
    """Reads orders and carries them out in the name of one instance."""

    def __init__(self, spool: Spool, dispatcher: Dispatcher, uid: int) -> None:
        self.spool, self.paths, self.dispatcher = spool, spool.paths, dispatcher
        self._rulers = {0, uid}
        self._outcomes: dict[str, dict[str, str]] = {}
        self._ignored: set[str] = set()
        self._known: list[tuple[str, Claim]] | None = None
        self._leftover = True
        self.must_wait: dict[str, str] = {}
        """Orders that can't be obeyed for now, with the machine's fault where it is one."""

    def obey(self) -> bool:
        """Take one look at control/ and do what can be done now; True: something was done.

        Each order on its own: none, however odd, keeps the daemon from its work.
        """
        received, bad, unread = orders.received(self.paths, self._ignored, self.spool.scan)
        for name, error in unread.items():
            self._wait(name, error)
        for name in bad:
            log.warning("not an order; use the stager command", entry=name)
            self._ignored.add(name)
            with suppress(OSError):
                orders.remove(self.paths, self.spool.heart.inst, name)
        self._known = None
        done = [self._alone(item, self._obey_one) for item in received]
        if received or self._leftover:
            taken = orders.taken(self.paths, self.spool.scan)
            for path, inst in taken.items():
                if inst == self.spool.heart.inst or self.spool.heart.dead(inst):
                    done.append(self._finish_taken(path, inst))
            there = {item.file for item in received} | {*map(orders.file_of, taken), *unread}
            self.must_wait = {name: why for name, why in self.must_wait.items() if name in there}
        self._leftover = False
        return any(done)

    def trouble(self) -> str:
        """Say what fault of the machine keeps an order waiting; empty: none."""
        return next(filter(None, self.must_wait.values()), "")

    def look_for_leftovers(self) -> None:
        """Have the next look take up orders that an instance took and could not answer."""
        self._leftover = True

    def _obey_one(self, item: Received) -> bool:
        if item.order.verb != "cancel":
            return orders.take(self.paths, self.spool.heart.inst, item) is not None
        reply = self._cancel(item)
        if reply is None:
            return False
        self._outcomes.pop(item.file, None)
        orders.close(self.paths, self.spool.heart.inst, item.file, reply)
        self._said(item, reply)
        return True

    def _finish_taken(self, path: Path, inst: str) -> bool:
        """Carry out an order that was taken, then answer it, then let it go."""
        if inst != self.spool.heart.inst:
            mine = path.with_name(f"{self.spool.heart.inst}.{path.name.partition('.')[2]}")
            if not durable.move(path, mine):
                return False
            path = mine
            # What the dead made by it may not even have its id yet.
            self.dispatcher.adopt()
        try:
            item = orders.read_taken(path)
        except OSError as e:
            self._wait(orders.file_of(path), e)
            return False

        def carry_out(item: Received) -> bool:
            reply = self._once(item)
            orders.answer(self.paths, self.spool.heart.inst, item.file, reply)
            self._said(item, reply)
            durable.discard(path)
            return True

        return item is not None and self._alone(item, carry_out)

    def _alone(self, item: Received, call: Callable[[Received], bool]) -> bool:
        try:
            done = call(item)
        except (OSError, StagerError) as e:
            # In rooms of our own, where nobody else's modes could be the reason.
            self._wait(item.file, e, durable.PASSING | {errno.EACCES, errno.EPERM})
        except Exception:
            log.exception("a fault of ours, met by an order", order=item.file)
            self._ignored.add(item.file)
        else:
            if done:
                self.must_wait.pop(item.file, None)
            return done
        return False

    def _wait(
        self, file: str, error: Exception, machines: Container[int | None] = durable.PASSING
    ) -> None:
        """Look at an order again later; what is a fault of the machine is the daemon's to say."""
        is_machines = isinstance(error, MachineFault)
        if isinstance(error, OSError):
            is_machines = error.errno in machines
        if not is_machines and file not in self.must_wait:
            log.warning(f"an order must wait: {error}", order=file)
        self.must_wait[file] = f"an order must wait: {error}" if is_machines else ""

    def _said(self, item: Received, reply: Answer) -> None:
        self.spool.note_published(self.paths.control)
        log.info(
            f"obeyed: {item.order.verb}",
            uid=item.uid,
            outcome=dict(itertools.islice(reply.outcome.items(), 10)),
            problem=reply.problem,
        )

    # -- cancel --------------------------------------------------------------------------------

    def _cancel(self, item: Received) -> Answer | None:
        """Cancel what matches and came before the order; None: not all of it has ended yet."""
        if item.order.everything and item.uid not in self._rulers:
            return Answer(problem="only the daemon's user and root may cancel all")
        outcome = self._outcomes.setdefault(item.file, {})
        self._cancel_dropped(item, outcome)
        # In both directions, as a request may be moved from one to the other meanwhile.
        pending = self._cancel_active(item, outcome)
        pending = self._cancel_waiting(item, outcome) or pending
        pending = self._cancel_active(item, outcome) or pending
        return None if pending else Answer({**self._ended(item, outcome), **outcome})

    def _cancel_dropped(self, item: Received, outcome: dict[str, str]) -> None:
        for name in self._dropped(item):
            if not self._may(item, self.paths.requests / name):
                outcome.setdefault(request_name(name), NOT_YOURS)
                continue
            try:
                claim = self.spool.take(name)
            except NotClaimable:
                continue
            if claim and self.dispatcher.intake.end_claim(claim, _cancelled(item)):
                outcome[called(item.order, claim)] = CANCELLED

    def _cancel_waiting(self, item: Received, outcome: dict[str, str]) -> bool:
        pending = False
        for waiting in self._matching(item, self.spool.waiting()):
            if not self._may(item, self.paths.waiting / str(waiting)):
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
            if not self._may(item, self.paths.active / str(claim)):
                outcome.setdefault(called(item.order, claim), NOT_YOURS)
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
            # It may have been dropped before the order and taken in just after it.
            if entry.arrived_ns > item.time_ns + TAKEN_LATE_NS:
                continue
            if item.order.everything or orders.matches(item.order.names, entry):
                yield entry

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
        for room, claim in self._answered() if left else ():
            if name := orders.matches(left, claim):
                was_it = room == "cancelled" and claim.arrived_ns <= item.time_ns
                found[name] = CANCELLED if was_it else f"{TOO_LATE}{room}"
        return found

    def _answered(self) -> list[tuple[str, Claim]]:
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

    def _may(self, item: Received, path: Path) -> bool:
        if item.uid in self._rulers:
            return True
        try:
            return os.lstat(path).st_uid == item.uid
        except OSError:
            return False

    # -- the others ----------------------------------------------------------------------------

    def _once(self, item: Received) -> Answer:
        """Carry out an order that is ours alone; doing it twice would do no harm."""
        if item.order.verb == "retry":
            return self._retry(item)
        if item.uid not in self._rulers:
            return Answer(problem="only the daemon's user and root may do that")
        if item.order.verb in {"pin", "unpin"}:
            return self._pin(item)
        name = f"paused.{item.order.host}" if item.order.host else "paused"
        if "/" in name or not name.isprintable():
            return Answer(problem="this is no host name")
        self._post(name, "", there=item.order.verb == "pause")
        return Answer({item.order.host or "all machines": f"{item.order.verb}d"})

    def _pin(self, item: Received) -> Answer:
        """Keep builds from retention, or no longer."""
        files = frozenset(self.dispatcher.tools.config.images.values())
        for url in item.order.names:
            try:
                build = parse_build(url, files)
            except ValueError as e:
                return Answer(problem=str(e))
            self._post(f"{PIN_PREFIX}{build.key}", f"{url}\n", there=item.order.verb == "pin")
        return Answer(dict.fromkeys(item.order.names, f"{item.order.verb}ned"))

    def _post(self, name: str, content: str, *, there: bool) -> None:
        """Have a notice in the spool's own directory, or none."""
        tmp = self.paths.tmp / f"{self.spool.heart.inst}.{durable.nonce()}"
        if there:
            durable.write_new(tmp, content.encode())
            os.rename(tmp, self.paths.spool / name)
        elif name in durable.listing(self.paths.spool):
            durable.move(self.paths.spool / name, tmp)
            durable.discard(tmp)

    def _retry(self, item: Received) -> Answer:
        """Make new requests of answered ones; of several with one NAME, of the last."""
        if item.order.everything and item.uid not in self._rulers:
            return Answer(problem="only the daemon's user and root may retry all")
        # An answer that is not published yet would lose its claim.
        finish(self.spool)
        self._known = None
        may = partial(self._may, item)
        outcome = again.retry(self.spool, item, self._answered(), may, self.dispatcher.admit)
        return Answer(outcome)


def _cancelled(item: Received) -> Cancelled:
    return Cancelled(f"cancelled by uid {item.uid}")
