"""Hands requests to workers: what may start, and what waits.

All of it runs in the daemon's one loop; workers only run jobs. A turn takes in what is new, looks
at what waits, and starts what may start. Whatever a turn can't finish it leaves on disk, where the
next turn, of this instance or another, finds it.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field

import structlog

from stager import durable, job
from stager.backlog import Backlog, Entry
from stager.case import Case, Tools
from stager.errors import ArchiveMissing, BuildBusy, Expired, StagerError, StorageError
from stager.intake import Intake
from stager.layout import Claim, Waiting
from stager.outcome import BUSY_POLL_SECONDS, Outcomes

log = structlog.get_logger()

INTAKE = 64
MOST_WAITING = 1_000


@dataclass(slots=True)
class Dispatcher:
    """Everything between the intake and the workers."""

    tools: Tools
    intake: Intake
    wake: Callable[[], None]
    backlog: Backlog = field(default_factory=Backlog)
    running: dict[Future[None], Case] = field(default_factory=dict)
    ready: list[Case] = field(default_factory=list)
    takes_in: bool = True
    pool: ThreadPoolExecutor = field(init=False)
    outcomes: Outcomes = field(init=False)

    def __post_init__(self) -> None:
        self.pool = ThreadPoolExecutor(self.tools.config.workers, "worker")
        self.outcomes = Outcomes(self.backlog, self.intake.tally, self.tools.heart)

    def turn(self, *, claim: bool = True, look: bool = True) -> None:
        """Do everything that can be done now; raises MachineFault where the spool fails.

        Without a `look`, what others put into waiting/ is left for later, unless something waits.
        """
        with durable.storage():
            self.collect()
            for case in self.cases():
                if time.monotonic() >= case.progress.deadline:
                    case.interrupt()
            self._list_waiting(look=look)
            room = self._room() if claim else 0
            self.takes_in = room > 0
            if self.takes_in:
                self.ready.extend(self.intake.dropped(room))
            if claim:
                self._start()
            self._put_back_ready()
            if self.backlog.hold and not (self.running or self.backlog.entries):
                # Nobody waits, so nobody would ever find out that the fault is gone.
                if self.backlog.hold.said:
                    log.info("nobody waits any more", code=self.backlog.hold.error.code)
                self.backlog.hold = None

    def _room(self) -> int:
        """Return how many to take in: some while a worker is free, else up to MOST_WAITING."""
        if len(self.running) < self.tools.config.workers and self.backlog.hold is None:
            return INTAKE
        now = self.tools.heart.server_now()
        could_start = sum(entry.waiting.due <= now for entry in self.backlog.entries.values())
        return max(0, min(INTAKE, MOST_WAITING - could_start))

    def is_work(self, kind: str, name: str) -> bool:
        """Whether an event in waiting/ tells of work for us: others have too much, we a worker."""
        spool, waiting = self.tools.spool, Waiting.parse(name)
        if kind != "moved" or waiting is None or name in spool.put:
            return False
        is_free = len(self.running) < self.tools.config.workers and self.backlog.hold is None
        return is_free and waiting.due <= self.tools.heart.server_now()

    def adopt(self) -> None:
        """Take up what nobody works on."""
        with durable.storage():
            self.ready.extend(self.intake.orphans())
            self._put_back_ready()

    def admit(self, claim: Claim) -> None:
        """Take in a claim that an order made."""
        if case := self.intake.admit(claim):
            self.ready.append(case)
        self._put_back_ready()

    def collect(self) -> None:
        """Take the outcomes of the jobs that ended."""
        for future in [f for f in self.running if f.done()]:
            case = self.running.pop(future)
            self.intake.deadly.discard(case.claim.id)
            future.result()
            self.outcomes.ended(case)

    def stop(self) -> None:
        """Have every worker end at its next safe point; may be called by any thread."""
        for case in list(self.running.values()):
            case.progress.stopping.set()
            case.interrupt()

    def close(self) -> None:
        """Wait for the workers."""
        wait_for(self.running)
        self.pool.shutdown(wait=True)
        self.collect()

    def reconfigure(self, tools: Tools) -> None:
        """Work by other settings from the next job on; running jobs keep theirs."""
        self.tools = self.intake.tools = tools
        self.pool.shutdown(wait=False)
        self.pool = ThreadPoolExecutor(tools.config.workers, "worker")

    def cases(self) -> list[Case]:
        """Return the requests that workers of this instance are at."""
        return list(self.running.values())

    def unread(self) -> str:
        """Say why requests can't be read, where it seems to be the filesystem; empty: they can."""
        why = [e for i, e in self.intake.unread.items() if i in self.backlog.entries]
        return f"requests can't be read: {why[0]}" if len(why) > 1 else ""

    # -- what waits ----------------------------------------------------------------------------

    def _list_waiting(self, *, look: bool) -> None:
        """Look at what waits; answer what needs no work for its answer."""
        now = self.tools.heart.server_now()
        self.backlog.looked_at = now
        self.backlog.patience = self.tools.config.wait_for_archive
        spool = self.tools.spool
        listed = spool.waiting(spool.scan) if look or self.backlog.entries else []
        self.backlog.update(listed, self.intake.peek)
        for entry in list(self.backlog.entries.values()):
            if error := self._final_error(entry, now):
                del self.backlog.entries[entry.waiting.id]
                self.intake.end(entry.waiting, error)

    def _final_error(self, entry: Entry, now: float) -> StagerError | None:
        """Return the error that ends a waiting request now, without any work."""
        if entry.expired(now):
            return Expired("not finished in time")
        lull = self.backlog.lulls.get(entry.archive_url)
        if lull is None or not isinstance(lull.error, ArchiveMissing):
            return None
        if self.backlog.lull(entry) is None or entry.arrived > lull.looked_at:
            return None
        over = entry.patience_over(now, self.tools.config.wait_for_archive)
        return lull.error if over else None

    def _put_back_ready(self) -> None:
        """Let everybody have what no worker of ours can take now."""
        while self.ready:
            case, now = self.ready[-1], self.tools.heart.server_now()
            assert case.request is not None
            waiting = self.tools.spool.put_back(
                case.claim, case.request.priority, now, case.dropped.uid, case.claim.a
            )
            self.ready.pop()
            if waiting:
                self.backlog.entries[waiting.id] = Entry(waiting, case.request)

    # -- starting ------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start the next requests, as many as there are free workers."""
        fresh, now = {case.claim.id: case for case in self.ready}, self.tools.heart.server_now()
        entries = [*self.backlog.entries.values(), *map(_as_entry, self.ready)]
        eligible = [e for e in entries if self._eligible(e, now)]
        if hold := self.backlog.hold:
            # Another build's than those that met the fault: it may be their own.
            eligible = [e for e in eligible if e.key not in hold.keys] or eligible
        for entry in self.backlog.in_order(eligible):
            if len(self.running) >= self.tools.config.workers or not self.backlog.may_start():
                return
            if not self._eligible(entry, now) or self._still_busy(entry):
                continue
            if self._is_apart(entry):
                return
            case = fresh.get(entry.waiting.id)
            if case is not None:
                self.ready.remove(case)
            else:
                del self.backlog.entries[entry.waiting.id]
                case = self.intake.resume(entry.waiting)
            if case is not None:
                self._run(case, entry)

    def _eligible(self, entry: Entry, now: float) -> bool:
        """Whether a request may start now, as far as its build and its due time go."""
        if entry.waiting.due > now:
            return False
        if any(c.request and c.request.build.key == entry.key for c in self.running.values()):
            return False
        return self.backlog.lull(entry) is None

    def _is_apart(self, entry: Entry) -> bool:
        """Whether a request must be worked on alone, or another is, and some are at work.

        An instance died on it: should the next one die as well, the others were not the reason.
        """
        at_work = {case.claim.id for case in self.cases()}
        return bool(at_work and {entry.waiting.id, *at_work} & self.intake.deadly)

    def alone(self) -> str:
        """Return the request that is, or comes next and is to be, worked on alone; empty: none."""
        cases, deadly = self.cases(), self.intake.deadly
        if not (cases and deadly):
            return ""
        alone: list[Claim | Waiting] = [case.claim for case in cases if case.claim.id in deadly]
        now, entries = self.tools.heart.server_now(), map(self.backlog.entries.get, deadly)
        alone += [entry.waiting for entry in entries if entry and self._eligible(entry, now)]
        return (alone[0].file or alone[0].request_id) if alone else ""

    def _still_busy(self, entry: Entry) -> bool:
        """Poll the token of a build that was busy: once for all its requests, without a claim."""
        lull = self.backlog.lulls.get(entry.key)
        if entry.request is None or lull is None or not isinstance(lull.error, BuildBusy):
            return False
        owner = self.tools.locks.busy(entry.key)
        if owner:
            self.backlog.set_lull(entry.key, BuildBusy(owner), BUSY_POLL_SECONDS)
        return bool(owner)

    def _run(self, case: Case, entry: Entry) -> None:
        assert case.request is not None
        build, hold = case.request.build, self.backlog.hold
        if case.request.expires is not None:
            left = case.claim.arrived_ns / 1e9 + case.request.expires
            left -= self.tools.heart.server_now()
            case.progress.deadline = time.monotonic() + left
        case.verdict = entry.verdict
        case.look_seconds = self.backlog.look_seconds(build.archive_url)
        if hold:
            case.is_probe = hold.probing = True
        self.backlog.served(case.dropped.uid)
        try:
            future = self.pool.submit(job.run, self.tools, case)
        except RuntimeError as e:
            # Should the pool run it later, it finds its claim taken over.
            self.tools.spool.drop(case.claim)
            self.backlog.put_off_probe()
            raise StorageError(f"no thread for a worker: {e}") from None
        self.running[future] = case
        future.add_done_callback(lambda _: self.wake())


def _as_entry(case: Case) -> Entry:
    """Return a claimed request as it would wait."""
    assert case.request is not None
    c, priority = case.claim, case.request.priority
    waiting = Waiting(priority, 0, case.dropped.uid, c.file, c.id, c.g, c.a, c.nonce)
    return Entry(waiting, case.request)
