"""Which request comes next: what waits, in which order, and what keeps it waiting.

Order is priority, then round-robin over submitters, then arrival. A build that is busy, whose
archive is not there yet or whose service failed has a `Lull`: one look serves all its requests. A
fault of the machine or the service is a `Hold` on everything, with one probe at a time.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from stager.errors import NOT_THERE_YET, REASONS, ArchiveMissing, StagerError, Then
from stager.layout import Build, Waiting
from stager.request import Request

FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 2.0, 10.0
FIRST_PROBE_SECONDS, LONGEST_PROBE_SECONDS = 2.0, 60.0
KEPT_SECONDS = 30.0
"""So long after its end a lull whose requests are all at work is remembered."""


@dataclass(slots=True)
class Entry:
    """A waiting request as we know it; what its file says is a hint until it is claimed."""

    waiting: Waiting
    request: Request | None
    verdict: dict[str, StagerError] = field(default_factory=dict)
    key: str = field(init=False)
    """What is staged by one at a time: the target."""
    archive_url: str = field(init=False)
    """What is looked for: two buckets may have a build of one path."""
    arrived: float = field(init=False)
    """By the file server's clock."""

    def __post_init__(self) -> None:
        # Worked out once: a turn looks at every entry, and there may be a hundred thousand.
        build, nobody = self.request and self.request.build, f"?{self.waiting.id}"
        self.key, self.archive_url = (build.key, build.archive_url) if build else (nobody, nobody)
        self.arrived = self.waiting.arrived_ns / 1e9

    def patience_over(self, server_now: float, default: float) -> bool:
        """Whether it has waited for its archive as long as it wanted to."""
        wait = self.request.wait if self.request else None
        patience = default if wait is None else wait
        return server_now >= self.arrived + patience

    def expired(self, server_now: float) -> bool:
        """Whether its `expires` is over."""
        if self.request is None or self.request.expires is None:
            return False
        return server_now >= self.arrived + self.request.expires


@dataclass(slots=True)
class Lull:
    """Why a build's requests wait for now; `until` by the monotonic clock."""

    reason: str
    until: float
    seconds: float = FIRST_LOOK_SECONDS
    error: StagerError | None = None
    looked_at: float = 0.0
    """When that was found, by the file server's clock."""

    @property
    def hint(self) -> str:
        """What a person can do; empty: nothing, it is tried again by itself."""
        return self.error.hint if self.error and self.error.then is not Then.DEFER else ""


@dataclass(slots=True)
class Hold:
    """A standing fault that makes the whole queue wait."""

    error: StagerError
    since: float
    next_probe: float
    seconds: float = FIRST_PROBE_SECONDS
    probing: bool = False
    keys: set[str] = field(default_factory=set)
    """The builds that met it."""
    said: bool = False


class Backlog:
    """What waits in this spool, and why."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.entries: dict[str, Entry] = {}
        self.lulls: dict[str, Lull] = {}
        self.hold: Hold | None = None
        self._clock = clock
        self.suspects: set[str] = set()
        """Builds whose faults are their own: others went well while these met one."""
        self._served: dict[int, int] = {}
        self._turn = 0
        self.patience = 0.0
        """How long archives are waited for where a request does not say."""
        self.looked_at, self._looked = 0.0, 0.0

    def update(self, listed: list[Waiting], read: Callable[[Waiting], Request | None]) -> None:
        """Take in a fresh listing of waiting/; `read` is asked once for each request."""
        self._looked = self._clock()
        old, self.entries = self.entries, {}
        for waiting in listed:
            entry = old.get(waiting.id)
            if entry is None:
                entry = Entry(waiting, read(waiting))
            entry.waiting = waiting
            self.entries[waiting.id] = entry
        now = self._clock()
        if any(lull.until <= now for lull in self.lulls.values()):
            keys = {key for e in self.entries.values() for key in (e.key, e.archive_url)}
            kept = now - KEPT_SECONDS
            self.lulls = {k: v for k, v in self.lulls.items() if k in keys or v.until > kept}

    def in_order(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Yield the next to serve, one by one, as `served` tells whose turn it was."""
        lines: dict[tuple[int, int], deque[Entry]] = defaultdict(deque)
        for entry in sorted(entries, key=lambda e: e.arrived):
            lines[entry.waiting.priority, entry.waiting.uid].append(entry)
        while lines:
            first = min(lines, key=self._turn_of(lines))
            yield lines[first].popleft()
            if not lines[first]:
                del lines[first]

    def _turn_of(
        self, lines: dict[tuple[int, int], deque[Entry]]
    ) -> Callable[[tuple[int, int]], tuple[int, int, int]]:
        def turn(line: tuple[int, int]) -> tuple[int, int, int]:
            priority, uid = line
            return priority, self._served.get(uid, 0), lines[line][0].waiting.arrived_ns

        return turn

    def served(self, uid: int) -> None:
        """Remember whose turn it was."""
        self._turn += 1
        self._served[uid] = self._turn

    # -- lulls ---------------------------------------------------------------------------------

    def lull(self, entry: Entry) -> Lull | None:
        """Return what keeps a request waiting now: its target or its archive."""
        now = self._clock()
        for key in (entry.key, entry.archive_url):
            lull = self.lulls.get(key)
            if lull and lull.until > now:
                return lull
        return None

    def look_seconds(self, archive_url: str) -> float:
        """Return how long to wait until the archive is looked for again, if it is missing now."""
        lull = self.lulls.get(archive_url)
        if lull is None or not isinstance(lull.error, ArchiveMissing):
            return FIRST_LOOK_SECONDS
        return min(lull.seconds * 1.5, LONGEST_LOOK_SECONDS)

    def missed(self, build: Build) -> Lull | None:
        """Return what the last look at a build's archive found, if that was none; for people."""
        lull = self.lulls.get(build.archive_url)
        return lull if lull and isinstance(lull.error, ArchiveMissing) else None

    def set_lull(
        self, key: str, error: StagerError, seconds: float, looked_at: float = 0.0
    ) -> None:
        """Make the requests of a target or an archive wait."""
        until = self._clock() + seconds
        self.lulls[key] = Lull(_reason(error, seconds), until, seconds, error, looked_at)

    def judge(self, archive_url: str, verdict: dict[str, StagerError], learnt_at: float) -> None:
        """Tell the requests that waited for this archive what was learnt about its images.

        Who came later, by the file server's clock, is served afresh.
        """
        for entry in self.entries.values():
            came_before = entry.arrived <= learnt_at
            is_for_it = entry.archive_url == archive_url
            if came_before and is_for_it and entry.request and not entry.request.force:
                entry.verdict |= verdict

    # -- holds ---------------------------------------------------------------------------------

    def met_fault(self, key: str, error: StagerError, *, is_probe: bool) -> bool:
        """Make everything wait, and this build longest, so that the next probe is another's.

        A build whose faults proved to be its own makes only itself wait. True: this is news.
        """
        lull, now = self.lulls.get(key), self._clock()
        again = lull is not None and lull.error is not None and lull.error.code == error.code
        seconds = min(lull.seconds * 2, LONGEST_PROBE_SECONDS) if lull and again else None
        self.set_lull(key, error, seconds or FIRST_PROBE_SECONDS)
        if key in self.suspects:
            if is_probe:
                self.put_off_probe(at_once=True)
            return False
        if self.hold is None:
            self.hold = Hold(error, now, now + FIRST_PROBE_SECONDS, keys={key})
            return True
        hold, news = self.hold, self.hold.error.code != error.code
        hold.error = error
        hold.keys.add(key)
        if is_probe:
            hold.seconds = min(hold.seconds * 2, LONGEST_PROBE_SECONDS)
            self.put_off_probe()
        return news

    def went_well(self, key: str, *, is_sure: bool = True) -> Hold | None:
        """End the hold (and return it): a probe proved that the fault is gone, or is another's.

        Only what was staged makes sure that those who meet it again have one of their own.
        """
        hold, self.hold = self.hold, None
        if hold and is_sure:
            self.suspects |= hold.keys
        self.suspects.discard(key)
        return hold

    def may_start(self) -> bool:
        """Whether a job may start: always, or as the one probe while there is a hold."""
        hold = self.hold
        return hold is None or (not hold.probing and self._clock() >= hold.next_probe)

    def put_off_probe(self, *, at_once: bool = False) -> None:
        """Try again later: the last probe said nothing good about the fault.

        `at_once`: nor anything bad.
        """
        if self.hold:
            seconds = 0.0 if at_once else self.hold.seconds
            self.hold.probing, self.hold.next_probe = False, self._clock() + seconds

    def next_wake(self, server_now: float) -> float:
        """Return the seconds until something here may be due, since the last look."""
        now = self._clock()
        times = [t for entry in self.entries.values() for t in self._times(entry)]
        waits = [t - server_now for t in times if t > self.looked_at]
        marks = [lull.until for lull in self.lulls.values()]
        marks += [self.hold.next_probe] if self.hold and not self.hold.probing else []
        waits += [mark - now for mark in marks if mark > self._looked]
        return max(0.0, min(waits, default=float("inf")))

    def _times(self, entry: Entry) -> Iterator[float]:
        """Yield when something about an entry is due, by the file server's clock."""
        yield entry.waiting.due
        if entry.request and entry.request.expires is not None:
            yield entry.arrived + entry.request.expires
        lull = self.lulls.get(entry.archive_url)
        if lull and isinstance(lull.error, ArchiveMissing):
            wait = entry.request.wait if entry.request else None
            yield entry.arrived + (self.patience if wait is None else wait)


def _reason(error: StagerError, seconds: float) -> str:
    """Say in status's words why requests wait."""
    if isinstance(error, ArchiveMissing):
        return NOT_THERE_YET
    if error.then is Then.DEFER:
        return f"retry at {time.strftime('%H:%M:%S', time.localtime(time.time() + seconds))}"
    return REASONS.get(error.code, error.message)
