"""Obeys the orders in control/: cancel, retry, pause, resume, pin, unpin.

A cancel is obeyed in place, by whoever can (cancel.py). The others are taken first, so that they
are done once. Owner rules: orders.py.
"""

import errno
import itertools
import os
from collections.abc import Callable, Container
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from stager import again, durable, orders
from stager.cancel import Cancelling
from stager.dispatch import Dispatcher
from stager.errors import MachineFault, StagerError, StorageError
from stager.finish import finish
from stager.layout import PIN_PREFIX, parse_build
from stager.orders import Answer, Received
from stager.spool import Spool

log = structlog.get_logger()

ALL_MACHINES = "all machines"


class Clerk:
    """Reads orders and carries them out in the name of one instance."""

    def __init__(self, spool: Spool, dispatcher: Dispatcher, uid: int) -> None:
        self.spool, self.paths, self.dispatcher = spool, spool.paths, dispatcher
        self._rulers = {0, uid}
        self._cancelling = Cancelling(spool, dispatcher, self._rulers)
        self._ignored: set[str] = set()
        self._leftover = True
        self.must_wait: dict[str, str] = {}
        """Orders that can't be obeyed for now, with the machine's fault where it is one."""

    def obey(self) -> bool:
        """Take one look at control/ and do what can be done now; True: something was done.

        Each order on its own: none, however odd, keeps the daemon from its work.
        """
        received, bad, unread = orders.received(
            self.paths, self._ignored, self.must_wait, self.spool.scan
        )
        for name, error in unread.items():
            # What somebody holds a lease on, say, is no fault of the machine.
            self._wait(name, error, durable.PASSING - {errno.EAGAIN})
        for name in bad:
            log.warning("not an order; use the stager command", entry=name)
            self._ignored.add(name)
            with suppress(OSError):
                orders.remove(self.paths, self.spool.heart.inst, name)
        self._cancelling.look_anew({item.file for item in received})
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
        reply = self._cancelling.obey(item)
        if reply is None:
            return False
        orders.close(self.paths, self.spool.heart.inst, item, reply)
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
        except (OSError, StorageError) as e:
            self._wait(orders.file_of(path), e)
            return False

        if item is None:
            # Its owner has spoilt it since: he could hold it open.
            durable.discard(path)
            return False

        def carry_out(item: Received) -> bool:
            if not orders.is_answered(self.paths, item.file):
                reply = self._once(item)
                orders.answer(self.paths, self.spool.heart.inst, item, reply)
                self._said(item, reply)
            durable.discard(path)
            return True

        return self._alone(item, carry_out)

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
        self.spool.outbox.note(self.paths.control)
        some = dict(itertools.islice(reply.outcome.items(), 10))
        facts: dict[str, Any] = {"problem": reply.problem} if reply.problem else {"outcome": some}
        log.info(f"obeyed: {item.order.verb}", uid=item.uid, **facts)

    def _once(self, item: Received) -> Answer:
        """Carry out an order that is ours alone; doing it twice would do no harm.

        Doing it late would: one whose taker died may be older than what was ordered since.
        """
        if item.order.verb == "retry":
            return self._retry(item)
        if item.uid not in self._rulers:
            return Answer(problem="only the daemon's user and root may do that")
        subjects = {*item.order.names} or {item.order.host or ALL_MACHINES}
        if orders.is_overtaken(self.paths, item, subjects):
            return Answer(problem="a later order came before it: nothing was done")
        if item.order.verb in {"pin", "unpin"}:
            return self._pin(item)
        name = f"paused.{item.order.host}" if item.order.host else "paused"
        if "/" in name or not name.isprintable():
            return Answer(problem="this is no host name")
        self._post(name, "", there=item.order.verb == "pause")
        return Answer({item.order.host or ALL_MACHINES: f"{item.order.verb}d"})

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
            durable.sync_dir(self.paths.spool)
        elif name in durable.listing(self.paths.spool):
            durable.move(self.paths.spool / name, tmp)
            durable.sync_dir(self.paths.spool)
            durable.discard(tmp)

    def _retry(self, item: Received) -> Answer:
        """Make new requests of answered ones; of several with one NAME, of the last."""
        if item.order.everything and item.uid not in self._rulers:
            return Answer(problem="only the daemon's user and root may retry all")
        # An answer that is not published yet would lose its claim.
        finish(self.spool)
        self._cancelling.look_anew()
        may, answered = partial(self._cancelling.may, item), self._cancelling.answered()
        outcome = again.retry(self.spool, item, answered, may, self.dispatcher.admit)
        return Answer(outcome)
