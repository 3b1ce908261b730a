"""What one job's outcome means for the other requests of its build, and for the whole queue."""

import time
from collections import deque
from dataclasses import dataclass, field

import structlog

from stager.backlog import Backlog
from stager.case import Case
from stager.errors import (
    ArchiveMissing,
    ArchivesAway,
    BuildBusy,
    CredentialsRefused,
    MachineFault,
    StagerError,
    Then,
)
from stager.instance import Heart
from stager.tally import Tally

log = structlog.get_logger()

BUSY_POLL_SECONDS = 1.0
MOST_MISSED = 1_000
SHARED_CODES = {"archive_corrupt", "archive_changed", "target_conflict", "archive_unavailable"}
"""Errors that are true for every request of the build, once they are final."""


@dataclass(slots=True)
class Outcomes:
    """Teaches the backlog what the jobs met; each fault is said once."""

    backlog: Backlog
    tally: Tally
    heart: Heart
    spool_is_faulty: bool = False
    """Whether it was said already that the spool does not work."""
    _missed: deque[str] = field(default_factory=lambda: deque(maxlen=MOST_MISSED))
    """The requests of which it was said that they wait for their archives."""
    _own: set[str] = field(default_factory=set)
    """The builds of which it was said that they wait for a fault of their own."""

    def ended(self, case: Case) -> None:
        """See what an outcome means for the others."""
        assert case.request is not None
        build, error = case.request.build, case.error
        self.tally.worked(case)
        if isinstance(error, MachineFault):
            self._met_fault(build.key, error, case)
            return
        for key in (build.key, build.archive_url):
            self.backlog.lulls.pop(key, None)
        self._judge_hold(case)
        self.backlog.judge(build.archive_url, _verdict(case), case.learnt_at)
        if isinstance(error, ArchiveMissing):
            self._say_missing(case, error)
            looked_at = case.started_at
            self.backlog.set_lull(build.archive_url, error, case.look_seconds, looked_at)
        elif isinstance(error, BuildBusy):
            self.backlog.set_lull(build.key, error, BUSY_POLL_SECONDS)
        elif error is not None and error.then is Then.DEFER and case.due is not None:
            seconds = max(0.0, case.due - self.heart.server_now())
            self.backlog.set_lull(build.archive_url, error, seconds)
            log.warning(
                f"deferred for {seconds:.0f} s: {error.message}",
                request_id=case.claim.request_id,
                code=error.code,
            )
        self.tally.answered(case)

    def _say_missing(self, case: Case, error: ArchiveMissing) -> None:
        """Say once of a request that its archive is looked for."""
        rid = case.claim.request_id
        if not case.is_answered and rid not in self._missed:
            log.info(f"waits for its archive: {error.message}", request_id=rid, code=error.code)
            self._missed.append(rid)

    def _met_fault(self, key: str, error: MachineFault, case: Case) -> None:
        """Hold the queue, or just a build whose faults are its own; each is said once."""
        if key not in self.backlog.lulls:
            self._own.discard(key)
        news = self.backlog.met_fault(key, error, is_probe=case.is_probe)
        hold = self.backlog.hold
        if hold and (news or not hold.said) and key not in self.backlog.suspects:
            # One fault is said once, though the loop and the jobs both meet it.
            if isinstance(error, CredentialsRefused) or not self.spool_is_faulty:
                log.error(f"the queue waits: {error.message}", code=error.code, hint=error.hint)
                hold.said = True
        elif key in self.backlog.suspects and key not in self._own:
            # It may have been among those that held the queue, which goes on now.
            self._own.add(key)
            rid = case.claim.request_id
            log.error(f"a build waits: {error.message}", request_id=rid, build=key, code=error.code)

    def _judge_hold(self, case: Case) -> None:
        """Let the queue go on, if this outcome proves that the fault is gone."""
        assert case.request is not None
        hold = self.backlog.hold
        if hold is None or not case.is_probe:
            if _staged_something(case):
                self.backlog.suspects.discard(case.request.build.key)
            return
        proved = _staged_something(case)
        if isinstance(hold.error, (CredentialsRefused, ArchivesAway)):
            proved = case.archive is not None or isinstance(case.error, ArchiveMissing)
        if not proved:
            # What could be answered all the same need not keep the others waiting.
            self.backlog.put_off_probe(at_once=case.is_answered)
            return
        self.backlog.went_well(case.request.build.key, is_sure=_staged_something(case))
        seconds = round(time.monotonic() - hold.since)
        if hold.said:
            log.info(f"work goes on after {seconds} s", code=hold.error.code)


def _staged_something(case: Case) -> bool:
    """Whether a job wrote to the static tree and was content with it."""
    return case.is_answered and case.archive is not None and bool(case.staged)


def _verdict(case: Case) -> dict[str, StagerError]:
    """Return what is now known for good about the build's images."""
    assert case.request is not None
    if not case.is_answered:
        return {}
    if case.error is None:
        return dict(case.failures)
    if case.error.code in SHARED_CODES:
        return dict.fromkeys(case.request.images, case.error) | case.failures
    return {}
