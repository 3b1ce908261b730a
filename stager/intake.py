"""From the drop box to a readable case: claim, read, answer at once what needs no worker.

Bad files and requests for images that are staged already are answered here, in the daemon's loop,
even while every worker is busy.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import structlog

from stager import durable, job
from stager.answer import is_staged
from stager.case import Case, Tools
from stager.dropbox import DropBox
from stager.dropped import Dropped, StaleOpen
from stager.errors import Internal, MachineFault, RequestError, StagerError, Then
from stager.layout import Claim, Waiting
from stager.request import MAX_BYTES, PRIORITIES, Request, Rules, parse_request
from stager.spool import STALE_OPEN_SECONDS, NotClaimable
from stager.tally import Tally

log = structlog.get_logger()

UNREAD_SECONDS = 5
BATCH = 8
ANSWERED_AT_ONCE = 32


@dataclass(slots=True)
class Intake:
    """Takes requests in; what it returns as a case is claimed by us and can be started."""

    tools: Tools
    dropbox: DropBox
    tally: Tally = field(default_factory=Tally)
    unread: dict[str, str] = field(default_factory=dict)
    """The requests that could not be read since one could, and why."""
    deadly: set[str] = field(default_factory=set)
    """The requests that an instance died on, and that we took over: they are worked on alone."""
    _unread_at: float = 0.0
    """Since when something can't be read, by the file server's clock."""
    _said: set[str] = field(default_factory=set)
    _answers: list[Case] | None = None
    """Those that wait for others to share their syncs; None: nobody would come."""

    def dropped(self, limit: int) -> Iterator[Case]:
        """Claim up to `limit` settled files; yield those that need a worker.

        Some at a time, so that on NFS one listing tells of all of them what was claimed.
        """
        with self._answering():
            names = self.dropbox.settled(limit)
            for start in range(0, len(names), BATCH):
                yield from self._claimed(names[start : start + BATCH])

    def _claimed(self, names: list[str]) -> Iterator[Case]:
        claims: deque[Claim] = deque()
        try:
            for name in names:
                if claim := self._claim(name):
                    claims.append(claim)
            seen = self.tools.spool.inodes() if claims else None
            while claims:
                if case := self.admit(claims.popleft(), seen):
                    yield case
        finally:
            for claim in claims:
                self.tools.spool.drop(claim)

    def _claim(self, name: str) -> Claim | None:
        try:
            claim = self.tools.spool.take(name)
        except NotClaimable as e:
            if self.dropbox.skip(name, str(e)):
                log.warning("can't claim an entry of the drop box", entry=name, reason=str(e))
            return None
        self.dropbox.claimed(name)
        return claim

    def orphans(self) -> Iterator[Case]:
        """Take up the claims of the dead, and ours that no worker holds."""
        spool = self.tools.spool
        fault: Exception | None = None
        for orphan in spool.orphans(spool.active(spool.scan)):
            claim = None
            try:
                claim = spool.take_over(orphan)
                if claim and orphan.inst != self.tools.heart.inst:
                    self.tally.takeovers += 1
                    if claim.a:
                        self.deadly.add(claim.id)
                    log.info("took over", request_id=claim.request_id, owner=orphan.inst)
                case = self.admit(claim) if claim else None
            except (OSError, MachineFault) as e:
                # One of them must not keep the others waiting; a folder, nobody at all.
                if not (claim and spool.is_folder(claim)):
                    fault = e
                continue
            if case:
                yield case
        if fault:
            raise fault

    def admit(self, claim: Claim, seen: dict[str, int] | None = None) -> Case | None:
        """Read a claim of ours; None: it is answered, or gone."""
        with self._held(claim):
            case = self.read(claim, seen)
            if case is None:
                return None
            case.started_at = self.tools.heart.server_now()
            if case.error is not None:
                self.settle(case, case.error)
                return None
            return None if self._answered_at_once(case) else case

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Keep what can be answered at once, some at a time: they share the syncs."""
        self._answers = []
        try:
            yield
        finally:
            answers, self._answers = self._answers, None
            self._answer_all(answers)

    @contextmanager
    def _held(self, claim: Claim) -> Iterator[None]:
        """Let go of a claim where something fails, so that it is adopted."""
        try:
            yield
        except BaseException:
            self.tools.spool.drop(claim)
            raise

    def read(self, claim: Claim, seen: dict[str, int] | None = None) -> Case | None:
        """Read a claimed request; `error` is set where it can't be acted on, None: it is gone."""
        spool, uid = self.tools.spool, 0
        try:
            uid = spool.submitter(claim)
            dropped = spool.read(claim, seen)
        except FileNotFoundError:
            spool.drop(claim)
            return None
        except (StaleOpen, OSError) as e:
            self._read_later(claim, uid, e)
            return None
        except RequestError as e:
            return Case(claim, Dropped(b"", uid), error=e)
        self.unread.clear()
        case = Case(claim, dropped)
        try:
            case.request = parse_request(dropped.data, self._rules(dropped.uid))
        except RequestError as e:
            case.error = e
        except Exception:
            log.exception("a fault of ours", request_id=claim.request_id)
            case.error = Internal("a fault in watcherd while the request was read")
        return case

    def _read_later(self, claim: Claim, uid: int, error: StaleOpen | OSError) -> None:
        """Let a request wait that can't be read now.

        It may be something about this file: a stale name, somebody's lease on it, a bad sector.
        That is said of it when it can't be read for a while. Where several and no others can't be
        read, it is the filesystem, and `unread` tells.
        """
        wait = STALE_OPEN_SECONDS if isinstance(error, StaleOpen) else UNREAD_SECONDS
        now = self.tools.heart.server_now()
        self.tools.spool.put_back(claim, PRIORITIES["normal"], now + wait, uid, claim.a)
        if not self.unread:
            self._unread_at = now
        lasts = now - self._unread_at >= UNREAD_SECONDS
        if lasts and [*self.unread] == [claim.id] and claim.id not in self._said:
            self._said.add(claim.id)
            log.warning(f"can't read a request now: {error}", request_id=claim.request_id)
        self.unread[claim.id] = str(error)

    def _rules(self, uid: int) -> Rules:
        """Return what a submitter may ask for: the daemon's user and root may always force."""
        rules = self.tools.config.rules
        return replace(rules, allow_force=True) if uid in {0, os.geteuid()} else rules

    def peek(self, waiting: Waiting) -> Request | None:
        """Read a waiting request without claiming it: a hint which build it is for."""
        try:
            data = durable.read_file(self.tools.spool.paths.waiting / str(waiting), MAX_BYTES + 1)
            return parse_request(data, self._rules(waiting.uid))
        except Exception:  # noqa: BLE001
            # Whatever is wrong with it is said when it is claimed and read.
            return None

    def resume(self, waiting: Waiting) -> Case | None:
        """Claim a waiting request; None: somebody else has it, or it is answered now."""
        claim = self.tools.spool.resume(waiting)
        if claim is None:
            return None
        with self._held(claim):
            case = self.read(claim)
            if case is not None and case.error is not None:
                self.settle(case, case.error)
                return None
            return case

    def end(self, waiting: Waiting, error: StagerError) -> bool:
        """Claim a waiting request and answer it with an error; False: it is not answered yet."""
        claim = self.tools.spool.resume(waiting)
        return claim is not None and self.end_claim(claim, error)

    def end_claim(self, claim: Claim, error: StagerError) -> bool:
        """Answer a claim of ours with an error; False: it is gone, or not answered yet."""
        with self._held(claim):
            case = self.read(claim)
            if case is None:
                return False
            self.settle(case, case.error or error)
            return case.is_answered

    def settle(self, case: Case, error: StagerError) -> None:
        """Answer a claimed request with an error, here and now."""
        case.started_at = case.started_at or self.tools.heart.server_now()
        self._answer(case, lambda: job.settle(self.tools, case, error))

    def _answered_at_once(self, case: Case) -> bool:
        """Answer where all images are staged, without a worker, the network or a token.

        Where the static tree fails the request just waits: a worker will meet the same fault.
        """
        try:
            with durable.storage():
                if not is_staged(self.tools, case):
                    return False
        except MachineFault:
            return False
        if self._answers is None:
            self._answer_all([case])
            return True
        self._answers.append(case)
        if len(self._answers) >= ANSWERED_AT_ONCE:
            answers, self._answers = self._answers, []
            self._answer_all(answers)
        return True

    def _answer_all(self, cases: list[Case]) -> None:
        if not cases:
            return
        try:
            job.answer_all(self.tools, cases)
        finally:
            for case in cases:
                self.tools.spool.drop(case.claim)
                if case.is_answered:
                    self.tally.answered(case)

    def _answer(self, case: Case, call: Callable[[], None]) -> None:
        try:
            call()
        except StagerError as e:
            self.tools.spool.drop(case.claim)
            if e.then is not Then.DROP:
                raise
            return
        if isinstance(case.error, MachineFault):
            raise case.error
        self.tally.answered(case)
