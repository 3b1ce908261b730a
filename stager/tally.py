"""What this instance has done since it started, in numbers that only grow.

Counted by the daemon's loop alone; other threads may read.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from stager.case import Case
from stager.errors import Then


@dataclass(slots=True)
class Tally:
    """Answers, bytes, seconds and mishaps."""

    good: int = 0
    bad: int = 0
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Answered requests by state and error code (empty: none)."""
    archive_errors: Counter[str] = field(default_factory=Counter)
    """What attempts met at archives, by error code; also where the request went on."""
    phases: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds of work by phase."""
    fetched_bytes: int = 0
    staged_bytes: int = 0
    staged_images: int = 0
    takeovers: int = 0
    scans: int = 0
    scan_seconds: float = 0.0
    _seen_bytes: int = 0

    def answered(self, case: Case) -> None:
        """Count a case, if it was answered (and not by somebody else)."""
        if not case.is_answered:
            return
        self.answers[case.state, case.code] += 1
        error = case.error or next(iter(case.failures.values()), None)
        if error is None:
            self.good += 1
        elif error.then is not Then.CANCEL:
            self.bad += 1

    def worked(self, case: Case) -> None:
        """Count what a worker did, whatever became of the request."""
        case.progress.enter("")
        for phase, seconds in case.progress.spent.items():
            self.phases[phase.replace(" ", "_")] += seconds
        for error in {id(e): e for e in (case.error, *case.failures.values()) if e}.values():
            if _is_about_archive(error.code):
                self.archive_errors[error.code] += 1
        if case.archive:
            self.fetched_bytes += case.archive.fetched
        if case.is_answered:
            rid = case.claim.request_id
            ours = [s for i, s in case.staged.items() if s.request_id == rid and i not in case.kept]
            self.staged_bytes += sum(sidecar.size for sidecar in ours)
            self.staged_images += len(ours)

    def bytes_fetched(self, running: Iterable[Case]) -> int:
        """Return the bytes fetched until now, those of jobs that still run included.

        Never less than before, though a job may end while it is asked.
        """
        now = self.fetched_bytes + sum(c.archive.fetched for c in running if c.archive)
        self._seen_bytes = max(self._seen_bytes, now)
        return self._seen_bytes

    @contextmanager
    def scanning(self) -> Iterator[None]:
        """Measure one scan."""
        began = time.monotonic()
        yield
        self.scans += 1
        self.scan_seconds += time.monotonic() - began


def _is_about_archive(code: str) -> bool:
    return code.startswith("archive_") or code in {"image_not_in_archive", "credentials_refused"}
