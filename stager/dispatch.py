"""Hands requests to workers: intake, parking, starting, and what an outcome means for others.

All of it runs in the daemon's one loop; workers only run jobs. A turn takes in what is new, looks
at what waits, and starts what may start. Whatever a turn can't finish it leaves on disk, where the
next turn, of this instance or another, finds it.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog

from stager import durable, job
from stager.backlog import Backlog, Entry
from stager.dropbox import DropBox
from stager.errors import (
    ArchiveMissing,
    BuildBusy,
    Cancelled,
    Expired,
    Internal,
    MachineFault,
    RequestError,
    StagerError,
    Then,
)
from stager.job import Case, Tools
from stager.layout import Claim, Waiting
from stager.request import MAX_BYTES, Request, parse_request
from stager.spool import STALE_OPEN_SECONDS, Dropped, NotClaimable, StaleOpen

log = structlog.get_logger()

INTAKE = 64
MOST_WAITING = 1_000
BUSY_POLL_SECONDS = 1.0
SHARED_CODES = {"archive_corrupt", "archive_changed", "target_conflict", "archive_unavailable"}


@dataclass(slots=True)
class Tally:
    """What this instance answered."""

    good: int = 0
    bad: int = 0


@dataclass(slots=True)
class Dispatcher:
    """Everything between the drop box and the workers."""

    tools: Tools
    dropbox: DropBox
    wake: Callable[[], None]
    backlog: Backlog = field(default_factory=Backlog)
    running: dict[Future[None], Case] = field(default_factory=dict)
    ready: list[Case] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    stopping: bool = False
    pool: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self.pool = ThreadPoolExecutor(self.tools.config.workers, "worker")

    # -- a turn --------------------------------------------------------------------------------

    def turn(self, *, claim: bool = True) -> None:
        """Do everything that can be done now; raises MachineFault where the spool fails."""
        with durable.storage():
            self.collect()
            self._list_waiting()
            if claim:
                self._take_in()
                self._start()
            self._put_back_ready()

    def collect(self) -> None:
        """Take the outcomes of the jobs that ended."""
        for future in [f for f in self.running if f.done()]:
            case = self.running.pop(future)
            future.result()
            self._ended(case)

    def adopt(self) -> list[Claim]:
        """Take up the claims of the dead, and ours that no worker holds."""
        taken = []
        with durable.storage():
            for orphan in self.tools.spool.orphans(self.tools.spool.active()):
                claim = self.tools.spool.take_over(orphan)
                if claim is not None:
                    taken.append(claim)
                    log.info("took over", request_id=claim.request_id, owner=orphan.inst)
                    self._admit(claim)
            self._put_back_ready()
        return taken

    def stop(self) -> None:
        """Have every worker end at its next safe point; what is unstarted goes back."""
        self.stopping = True
        for case in self.running.values():
            case.progress.stopping.set()

    def close(self) -> None:
        """Wait for the workers."""
        self.pool.shutdown(wait=True, cancel_futures=False)
        self.collect()

    def reconfigure(self, tools: Tools) -> None:
        """Work by other settings from the next job on; running jobs keep theirs."""
        old, self.tools = self.pool, tools
        self.pool = ThreadPoolExecutor(tools.config.workers, "worker")
        old.shutdown(wait=False)

    def cases(self) -> Iterator[Case]:
        """Return the requests that workers of this instance are at."""
        yield from self.running.values()

    # -- intake --------------------------------------------------------------------------------

    def _take_in(self) -> None:
        """Claim and read what is settled; bad files and staged images are answered at once."""
        room = MOST_WAITING - len(self.backlog.entries)
        for name in self.dropbox.settled(min(INTAKE, room) if room > 0 else 0):
            try:
                claim = self.tools.spool.take(name)
            except NotClaimable as e:
                if self.dropbox.skip(name, str(e)):
                    log.warning("can't claim an entry of the drop box", entry=name, reason=str(e))
                continue
            self.dropbox.claimed(name)
            if claim is not None:
                self._admit(claim)

    def _admit(self, claim: Claim) -> None:
        """Read a claim of ours: answer it at once, or make it ready to start."""
        case = self.read(claim)
        if case is None:
            return
        if case.error is None and self._answer_at_once(case):
            return
        if case.error is not None:
            self.settle(case, case.error)
        else:
            self.ready.append(case)

    def read(self, claim: Claim) -> Case | None:
        """Read a claimed request; `error` is set where it can't be acted on, None: it is gone."""
        spool, uid = self.tools.spool, 0
        try:
            uid = spool.submitter(claim)
            dropped = spool.read(claim)
        except FileNotFoundError:
            spool.drop(claim)
            return None
        except StaleOpen:
            due = self.tools.heart.server_now() + STALE_OPEN_SECONDS
            spool.put_back(claim, 5, due, claim.a)
            return None
        except RequestError as e:
            return Case(claim, Dropped(b"", uid), error=e)
        case = Case(claim, dropped)
        try:
            case.request = parse_request(dropped.data, self.tools.config.rules)
        except RequestError as e:
            case.error = e
        except Exception:
            log.exception("a fault of ours", request_id=claim.request_id)
            case.error = Internal("a fault in watcherd while the request was read")
        return case

    def _answer_at_once(self, case: Case) -> bool:
        """Answer where all images are staged, without a worker, the network or a token."""
        case.started_at = self.tools.heart.server_now()
        if not job.is_staged(self.tools, case):
            return False
        self._answered(case, lambda: job.answer(self.tools, case))
        return True

    def settle(self, case: Case, error: StagerError) -> None:
        """Answer a claimed request with an error, here and now."""
        case.started_at = case.started_at or self.tools.heart.server_now()
        self._answered(case, lambda: job.settle(self.tools, case, error))

    def _answered(self, case: Case, call: Callable[[], None]) -> None:
        try:
            call()
        except StagerError as e:
            self.tools.spool.drop(case.claim)
            if e.then is not Then.DROP:
                raise
            return
        if isinstance(case.error, MachineFault):
            raise case.error
        self._count(case)

    # -- what waits ----------------------------------------------------------------------------

    def _list_waiting(self) -> None:
        self.backlog.update(self.tools.spool.waiting(), self._peek)
        now = self.tools.heart.server_now()
        patience = self.tools.config.wait_for_archive
        for entry in list(self.backlog.entries.values()):
            if error := self._final_error(entry, now, patience):
                self.end(entry.waiting, error)

    def _peek(self, waiting: Waiting) -> Request | None:
        """Read a waiting request without claiming it: a hint which build it is for."""
        try:
            data = durable.read_file(self.tools.spool.paths.waiting / str(waiting), MAX_BYTES + 1)
            return parse_request(data, self.tools.config.rules)
        except Exception:
            return None

    def _final_error(self, entry: Entry, now: float, patience: float) -> StagerError | None:
        """Return the error that ends a waiting request now, without any work."""
        if entry.expired(now):
            return Expired("not finished in time")
        lull = self.backlog.lull(entry.key)
        if lull and isinstance(lull.error, ArchiveMissing) and entry.patience_over(now, patience):
            return lull.error
        return None

    def end(self, waiting: Waiting, error: StagerError) -> bool:
        """Claim a waiting request and answer it with an error; False: somebody else has it."""
        claim = self.tools.spool.resume(waiting)
        self.backlog.entries.pop(waiting.id, None)
        case = self.read(claim) if claim else None
        if case is None:
            return False
        self.settle(case, case.error or error)
        return True

    def _put_back_ready(self) -> None:
        """Let everybody have what no worker of ours can take now."""
        ready, self.ready = self.ready, []
        for case in ready:
            assert case.request is not None
            claim, now = case.claim, self.tools.heart.server_now()
            waiting = self.tools.spool.put_back(claim, case.request.priority, now, claim.a)
            if waiting:
                self.backlog.entries[waiting.id] = Entry(waiting, case.request)

    # -- starting ------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start the next requests, as many as there are free workers."""
        waiting = [e for e in self.backlog.entries.values() if self._eligible(e)]
        fresh = {case.claim.id: case for case in self.ready}
        mine = [Entry(_as_waiting(case), case.request) for case in self.ready]
        for entry in self.backlog.order(waiting + [e for e in mine if self._eligible(e)]):
            if len(self.running) >= self.tools.config.workers or not self.backlog.may_start():
                return
            if not self._eligible(entry):
                continue
            case = fresh.get(entry.waiting.id)
            if case is not None:
                self.ready.remove(case)
            else:
                claim = self.tools.spool.resume(entry.waiting)
                del self.backlog.entries[entry.waiting.id]
                case = self.read(claim) if claim else None
                if case is not None and case.error:
                    self.settle(case, case.error)
                    continue
            if case is not None:
                self._run(case, entry)

    def _eligible(self, entry: Entry) -> bool:
        """Whether a request may start now, as far as its build and its due time go."""
        if entry.waiting.due > self.tools.heart.server_now():
            return False
        if any(c.request and c.request.build.key == entry.key for c in self.running.values()):
            return False
        lull = self.backlog.lulls.get(entry.key)
        if lull and lull.busy and entry.request and lull.until > time.monotonic():
            return False
        return self.backlog.lull(entry.key) is None

    def _run(self, case: Case, entry: Entry) -> None:
        assert case.request is not None
        build, server_now = case.request.build, self.tools.heart.server_now()
        if case.request.expires is not None:
            left = case.claim.arrived_ns / 1e9 + case.request.expires - server_now
            case.progress.deadline = time.monotonic() + left
        case.verdict = entry.verdict
        case.look_seconds = self.backlog.look_seconds(build.key)
        if self.backlog.hold:
            self.backlog.hold.probing = True
        self.backlog.served(case.dropped.uid)
        future = self.pool.submit(job.run, self.tools, case)
        self.running[future] = case
        future.add_done_callback(lambda _: self.wake())

    # -- outcomes ------------------------------------------------------------------------------

    def _ended(self, case: Case) -> None:
        """See what an outcome means for the other requests of the build, and for all."""
        assert case.request is not None
        build, error = case.request.build, case.error
        if isinstance(error, MachineFault):
            self.set_hold(error)
            return
        self.clear_hold()
        if error is None or error.code in SHARED_CODES or case.due is None:
            self.backlog.judge(build.key, self._verdict(case))
        if isinstance(error, ArchiveMissing):
            self.backlog.set_lull(build.key, error, case.look_seconds)
        elif isinstance(error, BuildBusy):
            self.backlog.set_lull(build.key, error, BUSY_POLL_SECONDS, busy=True)
        elif error is not None and error.then is Then.DEFER and case.due is not None:
            seconds = case.due - self.tools.heart.server_now()
            self.backlog.set_lull(build.key, error, max(0.0, seconds))
            log.warning(f"deferred for {seconds:.0f} s: {error.message}",
                        request_id=case.claim.request_id, code=error.code)  # fmt: skip
        if case.due is None:
            self._count(case)

    @staticmethod
    def _verdict(case: Case) -> dict[str, StagerError]:
        """Return what is now known for good about the build's images."""
        assert case.request is not None
        if case.error is None:
            return dict(case.failures)
        if case.error.code in SHARED_CODES and case.due is None:
            return dict.fromkeys(case.request.images, case.error)
        return {}

    def set_hold(self, error: MachineFault) -> None:
        """Make everything wait for a machine's or service's fault to end; said once."""
        if self.backlog.set_hold(error):
            log.error(f"the queue waits: {error.message}", code=error.code, hint=error.hint)

    def clear_hold(self) -> None:
        """Go on after a fault; said once."""
        hold, self.backlog.hold = self.backlog.hold, None
        if hold:
            seconds = round(time.monotonic() - hold.since)
            log.info(f"work goes on after {seconds} s", code=hold.error.code)

    def cancel(self, case: Case, by: str) -> None:
        """End a running request at its next safe point."""
        case.progress.cancelled_by = by

    def cancel_claim(self, claim: Claim, by: str) -> bool:
        """Answer a claim of ours as cancelled."""
        case = self.read(claim)
        if case is None:
            return False
        self.settle(case, Cancelled(f"cancelled by {by}"))
        return True

    def admit(self, claim: Claim) -> None:
        """Take in a claim that an order made."""
        self._admit(claim)
        self._put_back_ready()

    def _count(self, case: Case) -> None:
        error = case.error or (next(iter(case.failures.values()), None))
        if error is None:
            self.tally.good += 1
        elif error.then in {Then.FAIL, Then.REJECT, Then.LOOK_AGAIN, Then.DEFER}:
            self.tally.bad += 1


def _as_waiting(case: Case) -> Waiting:
    """Return a claimed request as it would wait."""
    assert case.request is not None
    c = case.claim
    return Waiting(case.request.priority, 0, case.dropped.uid, c.file, c.id, c.g, c.a, c.nonce)
