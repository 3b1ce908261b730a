"""What coordination costs: calls to the file server for each request.

The server's own counters say how many; its clients' (mountstats) say which. The daemons have the
default pace. What idle daemons cost in the same time is taken off, and as that comes in bursts (a
scan, a beat), it goes on until one more stretch of time does not change the average.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fleet import Fleet, fleet, until
from network import Machines
from scenarios import end
from traffic import BUILDS, Ask, make_asks
from verdict import Verdict

PACE = {"heartbeat": "10s", "lease": "90s", "settle": "2s"}
APART_SECONDS = 10.0
"""From one request to the next that is alone: what follows an answer has happened by then."""
STRETCH = 10
STABLE_CALLS, LEAST, MOST = 1.0, 2, 3
AT_ONCE = 50


@dataclass
class Span:
    """Some time, the calls in it, and the requests that were answered in it."""

    calls: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    requests: int = 0

    @contextmanager
    def measured(self, run: Fleet, requests: int = 0) -> Iterator[None]:
        """Add the length of a block."""
        before, start = counters(run), time.monotonic()
        yield
        self.calls += counters(run) - before
        self.seconds += time.monotonic() - start
        self.requests += requests

    def cost(self, idle: "Span", name: str = "calls") -> float:
        """Return the calls of one request, without what idling costs."""
        idling = idle.calls[name] / idle.seconds * self.seconds
        return (self.calls[name] - idling) / self.requests

    def told(self, idle: "Span") -> str:
        """Return which calls those are, of the clients' kinds."""
        costs = {name: self.cost(idle, name) for name in self.calls if name != "calls"}
        parts = (f"{name} {n:.1f}" for name, n in sorted(costs.items(), key=lambda c: -c[1]))
        return ", ".join(part for part in parts if not part.endswith(" 0.0"))


def counters(run: Fleet) -> Counter[str]:
    """Return the calls that the server has had, and by kind those that the daemons' mounts sent."""
    text = run.run("srv", "grep ^rpc /proc/net/rpc/nfsd")
    found = Counter({"calls": int(text.split()[1])})
    for host in run.hosts:
        mounts = run.run(host, "cat /proc/self/mountstats").split("\ndevice ")
        mine = next(mount for mount in mounts if f" mounted on /mnt/{host} with" in mount)
        for name, count in re.findall(r"^\s+([A-Z_0-9]+): (\d+) ", mine, re.MULTILINE):
            found[name.lower()] += int(count)
    return found


def measure(machines: Machines) -> Verdict:
    """Measure two machines with nothing to do, fresh requests, and requests already staged."""
    with fleet(machines, "cost", settings=PACE) as run:
        run.run("r", f"kill {run.watchers['read'][1]}")
        for host in run.hosts:
            run.start(host)
        idle, fresh, at_once, alone = Span(), Span(), Span(), Span()
        time.sleep(APART_SECONDS)
        ask(run, fresh, "fresh", range(BUILDS))
        for turn in range(LEAST):
            ask(run, at_once, f"staged-{turn}", range(AT_ONCE))
        for turn in range(MOST):
            before = alone.cost(idle) if turn else 0.0
            with idle.measured(run):
                time.sleep(APART_SECONDS * STRETCH)
            for number in range(STRETCH):
                ask(run, alone, f"alone-{turn}-{number}", [number])
            if turn + 1 >= LEAST and abs(alone.cost(idle) - before) < STABLE_CALLS:
                break
        said = [f"idle {idle.calls['calls'] / idle.seconds / 2:.1f} calls/s for each machine"]
        spans = {"fresh": fresh, f"staged, {AT_ONCE} at once": at_once, "staged, alone": alone}
        for name, span in spans.items():
            said.append(f"{name}: {span.cost(idle):.1f} calls ({span.requests} requests)")
            print(f"    {name}: {span.told(idle)}")
        run.read("r")
        run.drop(make_asks("more", 20, run.hosts))
        verdict = end(run, 60)
        verdict.struck = "; ".join(said)
        return verdict


def ask(run: Fleet, span: Span, name: str, builds: range | list[int]) -> None:
    """Ask for a build's image each, all at once; the server drops them: no call of a client's."""
    asks = [Ask(f"{name}-{b}", b % BUILDS, ("test",), "srv", False) for b in builds]
    with span.measured(run, len(asks)):
        start = time.monotonic()
        run.drop(asks)
        run.await_answers(120)
        until(lambda: time.monotonic() - start > APART_SECONDS, "the end of its time", 120)
