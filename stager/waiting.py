"""Waiting for answers, as clients do: by looking, however long the spool can't be read."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from stager import client, durable, roster
from stager.layout import Claim, Paths, arrival_ns, request_name
from stager.result import Result
from stager.site import Layout

MISSES = 5
ANSWERED_SECONDS = 3600.0


@dataclass(slots=True)
class Outcome:
    """How waiting for one request ended."""

    name: str
    code: int
    result: Result | None = None


def wait(
    paths: Paths,
    names: list[str],
    timeout: float | None,
    shown: Callable[[str, client.Pending | None], None],
    warn: Callable[[str], None],
    data: bytes | None = None,
) -> list[Outcome]:
    """Wait for the answers to `names`; `data`: only an answer to these very bytes counts."""
    end = time.monotonic() + timeout if timeout is not None else float("inf")
    outcomes: dict[str, Outcome] = {}
    misses: Counter[str] = Counter()
    pulse, interval = Pulse(paths, warn), 0.02
    while True:
        for name in names:
            try:
                outcome = None if name in outcomes else _look(paths, name, shown, data)
            except OSError as e:
                # The request goes on all the same; so does whoever waits for it.
                pulse.say_blocked(e)
                continue
            if outcome is None:
                continue
            # A look may miss what is just being moved, or an answer that is on its way.
            misses[name] += outcome.code == client.NOT_FOUND
            if outcome.code != client.NOT_FOUND or misses[name] >= MISSES:
                outcomes[name] = outcome
        if len(outcomes) == len(names):
            break
        if time.monotonic() >= end:
            break
        pulse.look()
        time.sleep(min(interval, max(0.0, end - time.monotonic())))
        interval = min(interval * 1.5, 0.5)
    return [outcomes.get(name) or Outcome(name, client.TIMED_OUT) for name in names]


def _look(
    paths: Paths, name: str, shown: Callable[[str, client.Pending | None], None], data: bytes | None
) -> Outcome | None:
    found = client.pending(paths, name)
    shown(name, found)
    if found and data is None:
        return None
    result = client.read_result(paths, name)
    if result is not None:
        if data is None:
            # Its NAME may have been used again: between the commit and the new answer.
            mine = not _is_being_answered(paths, name, arrival_ns(result.request_id))
        else:
            mine = result.request_sha256 == hashlib.sha256(data).hexdigest()
        if mine:
            return Outcome(name, client.EXIT[result.state], result)
    return None if found or _is_being_answered(paths, name) else Outcome(name, client.NOT_FOUND)


def _is_being_answered(paths: Paths, name: str, after_ns: int = 0) -> bool:
    """Whether a request of this NAME that came after a time was committed lately.

    Its answer is then on its way.
    """
    for room in ("done", "failed", "cancelled"):
        for entry in durable.listing(paths.spool / room, touch=False):
            claim = Claim.parse(entry)
            names = {claim.file, request_name(claim.file), claim.request_id} if claim else set()
            if claim and name in names and claim.arrived_ns > after_ns:
                try:
                    age = time.time() - (paths.spool / room / entry).lstat().st_ctime
                except OSError:
                    return True
                return age < ANSWERED_SECONDS
    return False


class Pulse:
    """Whether any instance's heartbeat moves, as a waiting client sees it; warns once."""

    def __init__(self, paths: Paths, warn: Callable[[str], None]) -> None:
        self.paths = paths
        self.lease = Layout.read(paths.marks[0]).lease
        self.counts: frozenset[str] = frozenset()
        self.since, self.next_look = time.monotonic(), 0.0
        self.warned = self.is_blocked = False
        self.warn: Callable[[str], None] = warn

    def look(self) -> None:
        """Take a look, at most one a second."""
        now = time.monotonic()
        if now < self.next_look:
            return
        self.next_look = now + 1.0
        try:
            names = durable.listing(self.paths.instances, touch=False)
        except OSError as e:
            self.say_blocked(e)
            return
        counts = frozenset(n for n in names if n.rpartition(".")[2].isdigit())
        was_empty = not self.counts
        if was_empty and (not counts or roster.all_ended(self.paths)) and not self.warned:
            self.warned = True
            self.warn("no watcherd runs: what was asked for waits until one does")
        if counts != self.counts:
            self.counts, self.since = counts, now
        elif now - self.since > self.lease and not self.warned:
            self.warned = True
            self.warn(f"no live watcherd for {self.lease:g} s: is the service running?")

    def say_blocked(self, error: OSError) -> None:
        """Say once that nothing can be seen for now."""
        if not self.is_blocked:
            self.is_blocked = True
            self.warn(f"the spool can't be read, the wait goes on: {error}")
