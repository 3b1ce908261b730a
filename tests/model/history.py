"""One history: several machines, people who drop requests, and a fate that spares nobody.

First comes chaos; then all requests that are still on their way arrive, everybody who was paused
goes on, nothing fails any more, and all must be answered and clean within a set time.
"""

import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from unittest import mock

import structlog

from model.fate import Fate
from model.network import Odds
from model.nfsclient import Client
from model.plan import BUILDS, Plan
from model.reader import Reader
from model.standins import installed
from stager import site

QUIET_SECONDS = 900.0
SCALE = {
    "stager.server.STATUS_SECONDS": 20.0,
    "stager.bulletin.STATUS_SECONDS": 20.0,
    "stager.gc.LATELY_SECONDS": 240.0,
    "stager.keeper.PERIOD_SECONDS": 15.0,
    "stager.marker.TOUCH_SECONDS": 15.0,
    "stager.fetch.SIDE_BY_SIDE": 1,
}
"""Hours of the product that are minutes here; and one thread does what several would."""


@contextmanager
def scaled(tick_seconds: float) -> Iterator[None]:
    """Set those constants for the length of a block, and the tick of a server's clock."""
    with ExitStack() as stack:
        for name, value in (SCALE | {"stager.outbox.TICK_SECONDS": tick_seconds}).items():
            stack.enter_context(mock.patch(name, value))
        yield


@dataclass
class Outcome:
    """What became of a history."""

    seed: int
    violations: list[str]
    counts: dict[str, int]
    steps: int
    seconds: float
    requests: int
    trace: list[str] = field(default_factory=list)


class History(Fate):
    """A life from the first request to the last answer."""

    def __init__(self, seed: int, root: Path, shape: Callable[[Plan], None] | None) -> None:
        super().__init__(seed, root, shape)
        desk = Client(self.network, "desk")
        self.reader = Reader(self.world, self.config, self.witness, desk)

    def log(self, _logger: Any, method: str, event: dict[str, Any]) -> Any:
        """Take what the product logs; a fault of ours is a violation."""
        self.note("log", method, event)
        if "a fault of ours" in str(event["event"]) and method == "error":
            self.witness.accuse(f"{event['event']}: {traceback.format_exc()}")
        raise structlog.DropEvent

    def run(self) -> Outcome:
        """Live through it all."""
        site.init(self.config)
        for build in BUILDS:
            self.witness.builds[build.key] = build
            self._archive(build)
        if self.plan.foreign:
            self._settle(BUILDS[0])
        log: Any = self.log
        structlog.configure(processors=[log], cache_logger_on_first_use=False)
        with installed(self.world, self.root, self._lives), scaled(self.plan.tick):
            for number in range(self.plan.machines):
                self._boot(Client(self.network, f"lab{number}"))
            self.world.spawn(self.reader, "reader", self.reader.read)
            self._chaos()
            if not self.witness.violations:
                self._quiet()
            for instance in self.instances:
                self.world.kill(instance)
            self.world.kill(self.reader)
        for late in self.network.late:
            late.handles.close()
        for client in {self.reader.client, *(i.client for i in self.instances)}:
            client.shut()
        structlog.reset_defaults()
        return Outcome(
            self.seed, self.witness.violations, self.network.counts, self.world.steps,
            self.world.now, len(self.witness.asked), self._told(),
        )  # fmt: skip

    def _told(self) -> list[str]:
        return [_line(f"{self.root}/", *entry) for entry in self.trace]

    def _step(self, until: float) -> None:
        """Let everybody go on until a time, or a violation."""
        while self.world.now < until and not self.witness.violations:
            times = [time for time, _ in self._later] + [late.due for late in self.network.late]
            due = min(until, *times) if times else until
            if not self.world.step(due):
                self.world.now = max(self.world.now, due)
            for item in [item for item in self._later if item[0] <= self.world.now]:
                self._later.remove(item)
                item[1]()
            self.network.deliver()

    def _chaos(self) -> None:
        kinds, weights = list(self.plan.events), list(self.plan.events.values())
        rng, end = self.world.rng, self.plan.chaos_seconds
        while self.world.now < end and not self.witness.violations:
            self._step(self.world.now + rng.expovariate(1 / 4.0))
            self.sharing.look(self._running())
            kind = rng.choices(kinds, weights)[0]
            getattr(self, f"_do_{kind.replace(' ', '_')}")()

    def _quiet(self) -> None:
        for odd in fields(Odds):
            # NFSv3 stays what it is.
            if odd.name != "stale_listing":
                setattr(self.network.odds, odd.name, 0.0)
        self.note("fate", "quiet")
        now = self.world.now
        self.witness.outages = [(min(a, now), min(b, now)) for a, b in self.witness.outages]
        self.chaotic = False
        for instance in self._running():
            if instance not in self._overtaken:
                self._resume(instance)
            instance.client.cut_until = 0.0
        end = self.world.now + QUIET_SECONDS
        calm = 0
        while self.world.now < end and calm < 3 and not self.witness.violations:
            self._step(self.world.now + 5.0)
            living = {inst for i in self._running() for inst in i.insts}
            left = self.witness.leftovers(living)
            calm = 0 if left or self.witness.unanswered() or self.network.late else calm + 1
        if calm < 3 and not self.witness.violations:
            self.witness.finally_true()
            self.witness.accuse(f"not clean after {QUIET_SECONDS:g} s: {left}")
        else:
            self.witness.finally_true()
            self._read()

    def _read(self) -> None:
        """See that all answers are there for who only reads."""
        # What was published last is touched again a tick later.
        self._step(self.world.now + max(0.0, 2 * self.plan.tick - 10.0))
        self.world.spawn(self.reader, "last look", self.reader.look_at_all)
        self._step(self.world.now + 30.0)
        for name in ["any"] if self.reader.missing is None else self.reader.missing:
            self.witness.accuse(f"promise 1: who waits for {name} does not see its answer")


def _line(root: str, time: float, *what: Any) -> str:
    return f"{time:9.3f} " + " ".join(str(part).replace(root, "") for part in what)


def live(seed: int, shape: Callable[[Plan], None] | None = None) -> Outcome:
    """Run the history of a seed, in a directory of its own in memory; in a mood of its own."""
    base = Path("/dev/shm")
    parent = base if base.is_dir() and os.access(base, os.W_OK) else None
    top = Path(tempfile.mkdtemp(prefix="watcherd-model-", dir=parent))
    try:
        return History(seed, top / "m", shape).run()
    finally:
        shutil.rmtree(top)
