"""`make soak-nfs`: every scenario on real NFS, again and again; prints a table.

usage: soak.py [--times N] [--versions 4.2,3] [--lab one|each|calm] [--only REGEX] or --rows FILE.
NFS_RESULTS in the environment names a file that every run is added to, a line of JSON (the tests
add theirs, too); --rows prints the table of such a file. --keep DIR keeps the daemons' logs.
"""

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cost
import scenarios
from network import Machines, cluster, one_kernel
from traffic import make_builds
from verdict import Verdict

COLUMNS = {
    "requests": "requests", "lost": "lost", "answered_twice": "twice", "wrong": "wrong",
    "partial_reads": "partial", "double_staging": "double", "reads": "reads",
}  # fmt: skip
Scenario = Callable[[Any], Verdict]
Make = Callable[[Path, str], AbstractContextManager[Machines]]
ONE_KERNEL: dict[str, Scenario] = {
    "two machines": scenarios.plain,
    "three machines": partial(scenarios.plain, hosts=("a", "b", "c")),
    "cut off for less than the lease": partial(scenarios.cut, seconds=scenarios.SHORT_CUT),
    "cut off for longer than the lease": partial(scenarios.cut, seconds=scenarios.LONG_CUT),
    "worker stopped past the lease, at each step": scenarios.stopped,
    "daemon killed, machine unplugged": scenarios.killed,
    "server stops and starts": scenarios.server_stops,
    "one machine id": scenarios.same_id,
}
CALM: dict[str, Scenario] = {"cost of coordination": cost.measure}
CLUSTER: dict[str, Scenario] = {
    "two machines (a kernel each)": scenarios.plain,
    "a clock an hour off, and jumping": scenarios.clocks,
    "server loses power": scenarios.server_stops,
    "cut off for longer than the lease (a kernel each)": partial(
        scenarios.cut, seconds=scenarios.LONG_CUT
    ),
    "machine loses power for good": scenarios.killed,
}


def note(scenario: str, version: str, verdict: Verdict) -> None:
    """Add a run to the results file, if one is wanted."""
    if path := os.environ.get("NFS_RESULTS"):
        with Path(path).open("a") as out:
            row = {"scenario": scenario, "version": version, **verdict.as_dict()}
            out.write(json.dumps(row) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """Return the runs as a Markdown table, those of one scenario and version in one row."""
    heads = ("scenario", "NFS", "runs", "not good", *COLUMNS.values(), "recovered within")
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    for key in dict.fromkeys((row["scenario"], row["version"]) for row in rows):
        runs = [row for row in rows if (row["scenario"], row["version"]) == key]
        sums = [sum(row[column] for row in runs) for column in COLUMNS]
        longest = max(row["recovered_seconds"] for row in runs)
        counts = (len(runs), sum(bool(row["problems"]) for row in runs), *sums)
        lines.append(" | ".join(map(str, (*key, *counts, f"{longest} s"))))
    return "\n".join(f"| {line} |" for line in lines)


@contextmanager
def laboratory() -> Iterator[Path]:
    """Have a directory for guests, with archives in it."""
    lab = Path(tempfile.mkdtemp(prefix="watcherd-nfs-"))
    lab.chmod(0o755)
    make_builds(lab)
    try:
        yield lab
    finally:
        shutil.rmtree(lab)


def run_one(name: str, scenario: Scenario, machines: Machines) -> dict[str, Any]:
    """Run a scenario once; a failure is a row, too."""
    print(f"NFS {machines.version}: {name} ...", flush=True)
    try:
        verdict = scenario(machines)
    except AssertionError as e:
        traceback.print_exc()
        verdict = Verdict(problems=[f"{e}"])
    note(name, machines.version, verdict)
    print(f"    struck: {verdict.struck}")
    print(
        f"    {verdict.recovered_seconds} s, at most {verdict.most_starts} starts: "
        f"{verdict.problems or 'good'}",
        flush=True,
    )
    return {"scenario": name, "version": machines.version, **verdict.as_dict()}


def keep(machines: Machines, place: Path) -> None:
    """Copy logs and events to where they stay."""
    place.mkdir(parents=True)
    for path in [*machines.lab.glob("*/*.log"), *machines.lab.glob("*.events")]:
        shutil.copy(path, place)


def main() -> int:
    """Run all that is wanted; exit 1 if anything was not as it must be."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--versions", default="4.2,3")
    parser.add_argument("--only", default="", help="a regular expression")
    parser.add_argument("--lab", choices=("one", "each", "calm"),
                        help="one kernel for all, or for each, or NFSv4's usual lease")  # fmt: skip
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--keep", type=Path)
    chosen = parser.parse_args()
    if chosen.rows:
        print(table([json.loads(line) for line in chosen.rows.read_text().splitlines()]))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    rows = []
    for version in chosen.versions.split(","):
        labs: dict[str, tuple[Make, dict[str, Scenario]]] = {
            "one": (one_kernel, ONE_KERNEL),
            "each": (cluster, CLUSTER),
            "calm": (partial(one_kernel, lease=90), CALM),
        }
        for make, kinds in [labs[chosen.lab]] if chosen.lab else labs.values():
            wanted = {name: s for name, s in kinds.items() if re.search(chosen.only, name)}
            for name, scenario in [*wanted.items()] * chosen.times:
                with laboratory() as lab, make(lab, version) as machines:
                    rows.append(run_one(name, scenario, machines))
                    if chosen.keep:
                        keep(machines, chosen.keep / f"{version}-{len(rows)}")
    print(table(rows))
    return int(any(row["problems"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
