"""Requests rather than bytes: how soon one is taken, how many are answered, what idling costs."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import measure, peers
from benchmarks.daemon import Site
from benchmarks.material import Archive
from benchmarks.measure import percentile
from benchmarks.names import IN_MOVED_FROM, IN_MOVED_TO, Names, names
from benchmarks.report import Report, at_least, at_most
from benchmarks.served import BUCKET
from stager.dropbox import DropBox

STAGED = "board-release/R1-1.0.0"
SAMPLES = 300
BACKLOGS = (100, 10_000, 100_000)


def await_names(watched: Names, count: int) -> dict[str, float]:
    """Wait until so many answers have come; return when each did."""
    found: dict[str, float] = {}
    for name, now in watched:
        if name.endswith(".yaml"):
            found.setdefault(name.removesuffix(".yaml"), now)
        if len(found) == count:
            return found
    raise AssertionError


def small_site(root: Path, archive: Archive, **settings: str) -> Site:
    """Return a site whose archives are in a directory, with one build that can be staged."""
    object_path = root / "archive" / BUCKET / STAGED / "image.zip"
    object_path.parent.mkdir(parents=True)
    object_path.symlink_to(archive.path.resolve())
    where = f"{{source: directory, directory: {root}/archive}}"
    return Site(root / "site", archive=where, **settings)


def stage_first(site: Site) -> None:
    """Have the build staged, so that it is staged already from now on."""
    site.drop("first", STAGED, "test")
    site.await_state("first", "staged", 120)


def latency(report: Report, archive: Archive, root: Path, _: int) -> None:
    """Measure from mv to claim and to the answer, one request at a time."""
    site = small_site(root, archive)
    with site.daemon():
        stage_first(site)
        claims, answers = [], []
        with names(site.requests, IN_MOVED_FROM) as left, names(site.results, IN_MOVED_TO) as came:
            # The status page comes into the same directory.
            leaving, coming = iter(left), (told for told in came if told[0].endswith(".yaml"))
            for number in range(SAMPLES):
                began = time.monotonic()
                site.drop(f"one-{number}", STAGED, "test")
                claims.append((next(leaving)[1] - began) * 1000)
                answers.append((next(coming)[1] - began) * 1000)
                time.sleep(0.01)
    report.goals += [
        at_most("latency", "mv to claim, median", 3, percentile(claims, 50), "ms"),
        at_most("latency", "mv to claim, 99th percentile", 20, percentile(claims, 99), "ms"),
        at_most("latency", "already staged, to result, median", 10, percentile(answers, 50), "ms"),
    ]


def fsyncs_alone(directory: Path, count: int) -> float:
    """Return what the syncs of so many answers take one by one: a file's and three directories'."""
    directory.mkdir()
    began = time.monotonic()
    for number in range(count):
        fd = os.open(directory / f"{number}.new", os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"x" * 900)
        os.fsync(fd)
        os.close(fd)
        for step in ("private", "done", "result"):
            old, new = next(directory.glob(f"{number}.*")), directory / f"{number}.{step}"
            os.rename(old, new)
            fd = os.open(directory, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
            if step == "result":
                new.unlink()
    return time.monotonic() - began


def throughput(report: Report, archive: Archive, root: Path, _: int) -> None:
    """Measure how many requests for what is staged already are answered a second."""
    count = report.settings["requests"]
    site = small_site(root, archive)
    with site.daemon() as process:
        stage_first(site)
        with names(site.results, IN_MOVED_TO) as came:
            cpu, began = measure.cpu_seconds(process.pid), time.monotonic()
            for number in range(count):
                site.drop(f"many-{number}", STAGED, "test")
            last = max(await_names(came, count).values())
            cpu = measure.cpu_seconds(process.pid) - cpu
    rate, alone = count / (last - began), fsyncs_alone(root / "fsyncs", min(count, 300))
    per_sync = alone / min(count, 300)
    report.goals += [
        at_least("throughput", "already staged", 300, rate, "a second"),
        at_most("throughput", "time / the syncs alone, one by one", 2, 1 / rate / per_sync),
    ]
    report.notes["already staged, CPU"] = f"{cpu / count * 1000:.2f} ms a request"


def backlog(report: Report, archive: Archive, root: Path, _: int) -> None:
    """Measure the cost of one request while many others wait in the drop box, all answerable."""
    costs, scans = dict[int, float](), dict[int, float]()
    for waiting in report.settings["backlogs"]:
        place = root / str(waiting)
        place.mkdir()
        site = small_site(place, archive)
        with site.daemon() as process:
            stage_first(site)
        fill(site, waiting)
        scans[waiting] = scan_seconds(site)
        with site.daemon("second") as process, names(site.results, IN_MOVED_TO) as came:
            cpu = measure.cpu_seconds(process.pid)
            count = min(waiting, 2000)
            await_names(came, count)
            costs[waiting] = (measure.cpu_seconds(process.pid) - cpu) / count * 1000
            peak = measure.memory(process.pid)
            report.notes[f"backlog of {waiting}"] = (
                f"{costs[waiting]:.2f} ms of CPU a request, {peak:.0f} MiB"
            )
    fewest, most = min(costs), max(costs)
    flat = costs[most] / costs[fewest]
    report.goals += [
        at_most("backlog", f"cost of one at {most} / at {fewest}", 1.25, flat),
        at_most("backlog", f"CPU of a scan of {most} names", 0.2, scans[most], "s"),
    ]


def scan_seconds(site: Site) -> float:
    """Return the CPU seconds of one look at the drop box as it is: the second, warm one."""
    box = DropBox(site.requests, 2.0)
    box.settled(64)
    cpu = time.process_time()
    box.settled(64)
    return time.process_time() - cpu


def fill(site: Site, count: int) -> None:
    """Put so many requests into the drop box, at once."""
    text = f"build: gs://{BUCKET}/{STAGED}\nimages: [test]\n".encode()
    for number in range(count):
        fd = os.open(site.requests / f"old-{number}.yaml", os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(fd, text)
        os.close(fd)


def idle(report: Report, archive: Archive, root: Path, _: int) -> None:
    """Measure what a daemon with nothing to do costs, told of events and polling."""
    seconds = report.settings["idle_seconds"]
    peers.settle()
    for mode, limit in (("inotify", 0.1), ("poll", 0.2)):
        place = root / mode
        place.mkdir()
        settings = {"watch": mode} if mode == "inotify" else {"watch": mode, "rescan": "3s"}
        site = small_site(place, archive, **settings)
        with site.daemon() as process:
            # Not its start, nor what an earlier case left to the kernel.
            time.sleep(min(10, seconds))
            cpu = measure.cpu_seconds(process.pid)
            time.sleep(seconds)
            share = (measure.cpu_seconds(process.pid) - cpu) / seconds * 100
            report.goals.append(at_most("idle", f"CPU, {mode}", limit, share, "% of a core"))


def start(report: Report, archive: Archive, root: Path, rounds: int) -> None:
    """Watcherd --once on an empty spool."""
    site = small_site(root, archive)
    runs = measure.Runs(
        [measure.run(site.command("--once"), {}, root / "log") for _ in range(max(3, rounds))]
    )
    report.goals.append(at_most("start", "watcherd --once, CPU", 0.5, runs.median("cpu"), "s"))
    report.notes["start, wall"] = f"{runs.median('wall'):.2f} s"


CASES: dict[str, Callable[[Report, Archive, Path, int], None]] = {
    "latency": latency,
    "throughput": throughput,
    "backlog": backlog,
    "idle": idle,
    "start": start,
}
