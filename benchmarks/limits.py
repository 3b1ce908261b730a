"""What a network does to a stream, what memory it takes, and what more daemons bring."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks import material, measure, peers
from benchmarks.daemon import Site
from benchmarks.material import Archive
from benchmarks.measure import Runs, ratio
from benchmarks.peers import watcherd
from benchmarks.report import Report, at_least, at_most
from benchmarks.served import serve
from benchmarks.staging import race
from benchmarks.wire import relay

MB = 1_000_000
BUILDS = 8


def broken(report: Report, archive: Archive, root: Path, rounds: int) -> None:
    """Measure twenty connections reset inside one member, against none."""
    members = [archive.images[0].name]
    cut_after = archive.images[0].compressed // 25
    with ExitStack() as stack:
        served = stack.enter_context(serve(archive.path, root / "nginx"))
        runs = {"unbroken": Runs(), "20 broken": Runs()}
        for number in range(rounds):
            for name, cuts in (("unbroken", 0), ("20 broken", 20)):
                # A relay of its own each time: it counts its connections.
                with relay(served.url, cut_after=cut_after, cuts=cuts) as url:
                    site = Site(root / f"{cuts}-{number}", url, archive="{connections: 1}")
                    with watcherd(site, name) as daemon:
                        done = race([daemon], served, archive, members, root, 1)
                runs[name].costs += done[name].costs
    report.add("20 connections broken", runs)
    share = ratio(runs["20 broken"], runs["unbroken"], "cpu")
    report.goals.append(at_most("20 connections broken", "CPU, broken / unbroken", 1.1, share))


def limited(report: Report, archive: Archive, root: Path, rounds: int) -> None:
    """Measure eight connections against one, with so many bytes a second on each."""
    members = [archive.images[0].name]
    rate = report.settings["rate"] * MB
    with ExitStack() as stack:
        served = stack.enter_context(serve(archive.path, root / "nginx"))
        url = stack.enter_context(relay(served.url, rate=int(rate)))
        field = [
            stack.enter_context(
                watcherd(
                    Site(root / f"site-{n}", url, archive=f"{{connections: {n}}}"),
                    f"{n} connection{'s' if n > 1 else ''}",
                )
            )
            for n in (1, 4, 8)
        ]
        runs = race(field, served, archive, members, root, rounds)
    case = f"{rate / MB:g} MB/s a connection"
    report.add(case, runs)
    speed = ratio(runs["1 connection"], runs["8 connections"], "wall")
    report.goals.append(at_least(case, "speed, 8 connections / 1", 7, speed))


def memory(report: Report, archive: Archive, root: Path, _: int) -> None:
    """Measure memory idle, and with one worker on one image, on three, and on a larger one."""
    del archive
    sizes = report.settings["memory_sizes"]
    peaks: dict[str, float] = {}
    for size in sizes:
        images = 3 if size == sizes[0] else 1
        path = Path(__file__).parent / f".archives/{size}-{images}.zip"
        large = material.make_archive(path, material.parse_size(size), images)
        place = root / size
        place.mkdir()
        with serve(large.path, place / "nginx") as served:
            site = Site(place / "site", served.url)
            with site.daemon() as process:
                idle = measure.memory(process.pid, "VmRSS")
                for members in {("test",), ("test", "base", "recovery")[:images]}:
                    asked = f"{len(members)}-of-{size}"
                    measure.forget_peak(process.pid)
                    site.drop(asked, f"board-release/{asked}", ", ".join(members))
                    site.await_state(asked, "staged", 900)
                    peaks[asked] = measure.memory(process.pid)
    report.notes["memory, MiB"] = {"idle": round(idle), **{k: round(v) for k, v in peaks.items()}}
    report.goals.append(at_most("memory", "idle daemon", 100, idle, "MiB"))
    report.goals += [
        at_most("memory", f"a worker on {name}", 64, peak - idle, "MiB more")
        for name, peak in peaks.items()
    ]


def daemons(report: Report, archive: Archive, root: Path, _: int) -> None:
    """Measure eight builds by one daemon, two, four; connections are slow, so that CPU is free."""
    rate = report.settings["slow_rate"] * MB
    walls: dict[int, float] = {}
    with ExitStack() as stack:
        served = stack.enter_context(serve(archive.path, root / "nginx"))
        url = stack.enter_context(relay(served.url, rate=int(rate)))
        for count in (1, 2, 4):
            site = Site(root / f"site-{count}", url, workers=1, archive="{connections: 2}")
            with ExitStack() as running:
                for number in range(count):
                    running.enter_context(site.daemon(f"daemon-{number}"))
                peers.settle()
                began = time.monotonic()
                for number in range(BUILDS):
                    site.drop(f"build-{number}", f"board-release/R{number}-0.0.0", "test")
                for number in range(BUILDS):
                    site.await_state(f"build-{number}", "staged", 900)
                walls[count] = time.monotonic() - began
            report.notes[f"{count} daemon{'s' if count > 1 else ''}"] = (
                f"{walls[count]:.1f} s for {BUILDS} builds"
            )
    for count, least in ((2, 1.9), (4, 3.6)):
        report.goals.append(
            at_least("daemons", f"throughput, {count} / 1", least, walls[1] / walls[count])
        )


CASES: dict[str, Callable[[Report, Archive, Path, int], None]] = {
    "limited": limited,
    "broken": broken,
    "memory": memory,
    "daemons": daemons,
}
