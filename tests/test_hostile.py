"""Whatever is put into the drop box: a clear answer, no crash, no hang, nothing touched or told."""

import itertools
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import yaml
from crowd import CONTENTS, SECRET, STRANGER, Bad, Crowd, Yard, entries, folder, hard_link
from crowd import snapshot, unreadable, written_by_daemon
from lab import BUCKET, Daemon, Lab, until

DAEMON = 65531
BUILDS = [f"gs://{BUCKET}/x86-alex-release/R23-{n}.0.0" for n in range(5)]
MOST_GROWTH_KIB = 48 * 1024


def resident_kib(daemon: Daemon) -> int:
    """Return how much memory a daemon has."""
    lines = Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def open_files(daemon: Daemon) -> int:
    """Return how many descriptors a daemon has open."""
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


@contextmanager
def never_settling(box: Path, names: list[str]) -> Iterator[None]:
    """Have files that grow all the time, each written to without an end."""
    with_end = threading.Event()
    files = [(box / f"{name}.yaml").open("ab", buffering=0) for name in names]

    def grow() -> None:
        while not with_end.wait(0.02):
            for file in files:
                file.write(f"# {SECRET}".encode())

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        yield
    finally:
        with_end.set()
        thread.join()
        for file in files:
            file.close()


def start(root: Path, user: int | None) -> tuple[Lab, Yard]:
    """Set up a lab for a daemon of this uid, beside a yard."""
    return Lab(root, user=user).init(), Yard(root / "yard", user or 0).lay_out()


@pytest.mark.parametrize("user", [None, DAEMON], ids=["root", "unprivileged"])
def test_twenty_good_requests_are_staged_among_two_hundred_bad_entries(
    public_dir: Path, user: int | None
) -> None:
    lab, yard = start(public_dir, user)
    for build in BUILDS:
        lab.archive(build)
    crowd, changing = Crowd(yard), [f"changing-{n}" for n in range(5)]
    with lab.running() as daemon:
        assert lab.result(lab.drop("first", BUILDS[0]))["state"] == "staged"
        memory, files = resident_kib(daemon), open_files(daemon)
        with never_settling(lab.requests, changing):
            crowd.fill(lab.requests, 195)
            before = snapshot(yard.root), snapshot(lab.root / "archive")
            yard.forget_reads()
            for number, build in zip(range(20), itertools.cycle(BUILDS), strict=False):
                lab.drop(f"good-{number}", build)
            good = [lab.result(f"good-{number}") for number in range(20)]
            answers = {name: lab.result(name) for name, bad in crowd.bad.items() if bad.codes}
            unsafe = until(partial(unsafe_answers, lab, crowd.unsafe), "answers to unsafe names")
            assert {f"{name}.yaml" for name in changing} <= set(os.listdir(lab.requests))
        last = [lab.result(name) for name in changing]
        stays = [name for name, bad in crowd.bad.items() if not bad.codes]
        status = lab.stager("status")
        assert all(name in daemon.log and name in status.stdout for name in stays), status
        assert resident_kib(daemon) - memory < MOST_GROWTH_KIB
        assert open_files(daemon) <= files + 3
    left = {Path(name).stem for name in os.listdir(lab.requests)}
    assert left == set(stays)
    assert {answer["state"] for answer in good} <= {"staged", "already_staged"}
    wrong = {
        name: answer.get("error", answer)
        for name, answer in answers.items()
        if answer["state"] != "rejected" or answer["error"]["code"] not in crowd.bad[name].codes
    }
    assert not wrong
    assert {answer["state"] for answer in [*last, *unsafe]} == {"rejected"}
    assert all(answer["error"]["message"] for answer in [*answers.values(), *last, *unsafe])
    assert yard.reads() == []
    assert (snapshot(yard.root), snapshot(lab.root / "archive")) == before
    assert {p for p in lab.target(BUILDS[0]).parent.parent.rglob("*") if p.is_dir()} == {
        lab.target(BUILDS[0]).parent, *map(lab.target, BUILDS)
    }  # fmt: skip
    assert lab.is_clean()
    assert [path for path, text in written_by_daemon(lab.root) if SECRET in text] == []


def unsafe_answers(lab: Lab, count: int) -> list[dict[str, str]]:
    """Return the answers to requests whose names can't name one, once all are there."""
    ids = [name[1:].partition(".g")[0] for name in lab.spool("failed") if name.startswith("~")]
    paths = [lab.root / "results" / f"{i}.yaml" for i in ids]
    if len(ids) < count or not all(path.exists() for path in paths):
        return []
    return [yaml.load(path.read_bytes(), yaml.BaseLoader) for path in paths]
