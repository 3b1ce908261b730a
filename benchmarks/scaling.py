"""Many lab servers on one spool: what gives out first.

    python -m benchmarks.scaling [--measure]

A simulation of the busiest hour, event by event, on costs in file-server calls (`--measure` counts
them anew, with strace). The file server is one queue; every scan, claim and answer is calls in it.
"""

import heapq
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks import material, measure, queueing
from benchmarks.daemon import Site

HOUR = 3600.0
CALLS = "trace=%file,fsync,getdents64,fdatasync"
SCAN_CALLS, ANSWER_CALLS, STAGE_CALLS, LOST_CALLS = 83, 60, 200, 4
"""Per turn of an idle daemon, per request for what is staged, per image staged, per lost race."""


@dataclass(frozen=True, slots=True)
class World:
    """What is simulated."""

    servers: int
    requests_a_day: int = 100_000
    rescan: float = 3.0
    calls_a_second: float = 30_000
    """What the file server bears: a small filer's metadata calls."""
    round_trip: float = 0.0004
    peak: float = 4.0
    """How much busier than the day's mean its busiest hour is."""
    staged_already: float = 0.97
    """Most servers of a lab ask for the same few thousand builds a day."""
    stage_seconds: float = 12.0
    """An image of 300 MB compressed at 25 MB/s a connection."""
    workers: int = 2


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    load: float
    scans: float
    """Of the load, that of scans alone."""
    median: float
    worst: float
    lost: float
    backlog: int
    busy: float


def simulate(world: World, seed: int = 1, seconds: float = HOUR) -> Outcome:
    """Run the busiest hour."""
    chance, call = random.Random(seed), 1 / world.calls_a_second
    scans = [(chance.uniform(0, world.rescan), n) for n in range(world.servers)]
    heapq.heapify(scans)
    free = [[0.0] * world.workers for _ in range(world.servers)]
    rate = world.requests_a_day / 86_400 * world.peak
    arrival, waiting, fresh = chance.expovariate(rate), deque[float](), deque[float]()
    waits: list[float] = []
    lost, calls, most, staging, free_at = 0, 0, 0, 0.0, 0.0
    while scans[0][0] < seconds:
        now, server = heapq.heappop(scans)
        while arrival <= now:
            waiting.append(arrival)
            arrival += chance.expovariate(rate)
        while fresh and fresh[0] <= now:
            fresh.popleft()
        # Names that are being claimed this moment are seen, and lost, by who scans now.
        lost, cost = lost + len(fresh), SCAN_CALLS + LOST_CALLS * len(fresh)
        begins = max(now, free_at)
        ready, keep = begins + SCAN_CALLS * world.round_trip, deque[float]()
        while waiting:
            asked = waiting.popleft()
            if chance.random() < world.staged_already:
                cost += ANSWER_CALLS
                ready += ANSWER_CALLS * world.round_trip
            elif (worker := min(range(world.workers), key=free[server].__getitem__)) is not None:
                if free[server][worker] > now:
                    keep.append(asked)
                    continue
                cost += STAGE_CALLS
                free[server][worker] = ready + world.stage_seconds
                staging += world.stage_seconds
            waits.append(begins + SCAN_CALLS * world.round_trip / 2 - asked)
            fresh.append(begins + 6 * world.round_trip)
        waiting = keep
        most, calls = max(most, len(waiting)), calls + cost
        free_at = begins + cost * call
        again = max(ready, now + world.rescan * chance.uniform(0.8, 1.2))
        heapq.heappush(scans, (again, server))
    scanning = world.servers / world.rescan * SCAN_CALLS
    return Outcome(
        calls / seconds / world.calls_a_second,
        scanning / world.calls_a_second,
        measure.percentile(waits, 50),
        measure.percentile(waits, 99),
        lost / max(1, len(waits)),
        most,
        staging / seconds / (world.servers * world.workers),
    )


def count_calls() -> dict[str, float]:
    """Count the file-server calls of a scan, of an answer and of a staging, as strace sees them."""
    root = Path(tempfile.mkdtemp(prefix="watcherd-scaling-"))
    try:
        cache = Path(__file__).parent / ".archives/16M.zip"
        archive = material.make_archive(cache, material.parse_size("16M"))
        site = queueing.small_site(root, archive, watch="poll", rescan="3s")
        with site.daemon() as process:
            queueing.stage_first(site)
            time.sleep(5)
            idle = _calls(process.pid, root / "idle", 60, lambda: None)
            answers = _calls(process.pid, root / "answers", 20, lambda: _ask(site, 20))
            staged = _calls(process.pid, root / "staged", 20, lambda: _ask_other(site))
    finally:
        shutil.rmtree(root)
    return {
        "a scan": idle * 3,
        "an answer": (answers - idle) * 20 / 20,
        "an image staged": (staged - idle) * 20,
    }


def _ask(site: Site, count: int) -> None:
    for number in range(count):
        site.drop(f"again-{number}", queueing.STAGED, "test")
        site.await_state(f"again-{number}", "already_staged", 60)


def _ask_other(site: Site) -> None:
    site.drop("other", queueing.STAGED, "base")
    site.await_state("other", "staged", 60)


def _calls(pid: int, log: Path, seconds: float, act: Callable[[], None]) -> float:
    """Return the calls a second of a process while something is done."""
    command = ["strace", "-f", "-c", "-e", CALLS, "-o", str(log), "-p", str(pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    time.sleep(1)
    began = time.monotonic()
    act()
    time.sleep(max(0.0, seconds - (time.monotonic() - began)))
    took = time.monotonic() - began
    tracer.send_signal(signal.SIGINT)
    tracer.wait(30)
    # % time, seconds, usecs/call, calls, and errors where there were some.
    total = next(line for line in log.read_text().splitlines() if line.endswith(" total"))
    return int(total.split()[3]) / took


@click.command()
@click.option("--measure", "measured", is_flag=True, help="Count the calls anew.")
def main(measured: bool) -> None:
    """Print how load and waiting grow."""
    if measured:
        for what, calls in count_calls().items():
            click.echo(f"{what}: {calls:.0f} calls")
    click.echo(
        "servers rescan | load  of it scans | wait median  99 % | lost races  backlog  workers"
    )
    for servers, rescan in (
        (10, 3.0), (100, 3.0), (300, 3.0), (1000, 3.0), (1000, 10.0), (1000, 30.0)
    ):  # fmt: skip
        o = simulate(World(servers, rescan=rescan))
        click.echo(
            f"{servers:7} {rescan:4.0f} s | {o.load:5.0%} {o.scans:8.0%}     | "
            f"{o.median:7.2f} s {o.worst:6.2f} s | {o.lost:9.2f} {o.backlog:9} {o.busy:8.1%}"
        )


if __name__ == "__main__":
    main()
