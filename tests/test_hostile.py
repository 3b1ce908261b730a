"""Whatever is put into the drop box: a clear answer, no crash, no hang, nothing touched or told."""

import itertools
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from crowd import Crowd, Make, content, fifo, hard_link, link_to
from lab import BUCKET, Daemon, Lab, until
from yard import GOOD, SECRET, meanwhile, never_settling, snapshot, start, written_by_daemon

DAEMON = 65531
UIDS = pytest.mark.parametrize("user", [None, DAEMON], ids=["root", "unprivileged"])
BUILDS = [f"gs://{BUCKET}/x86-alex-release/R23-{n}.0.0" for n in range(5)]
MOST_GROWTH_KIB = 48 * 1024


def resident_kib(daemon: Daemon) -> int:
    """Return how much memory a daemon has."""
    lines = Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def open_files(daemon: Daemon) -> int:
    """Return how many descriptors a daemon has open."""
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


@UIDS
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


def test_a_name_that_changes_its_kind_all_the_time_is_answered_each_time(public_dir: Path) -> None:
    lab, yard = start(public_dir, DAEMON)
    lab.archive()
    kinds: Iterator[Make] = itertools.cycle([
        partial(content, GOOD),
        partial(link_to, "{yard}/target.yaml"),
        fifo,
        partial(hard_link, "daemons.yaml"),
        partial(link_to, "{yard}/secret-target.yaml"),
    ])  # fmt: skip
    flips = itertools.count()

    def flip() -> None:
        new = lab.requests / f".{next(flips)}"
        next(kinds)(new, yard)
        os.rename(new, lab.requests / "x.yaml")
        new.unlink(missing_ok=True)  # two names of one file do not replace each other

    with lab.running():
        before = snapshot(yard.root)
        yard.forget_reads()
        with meanwhile(flip, 0.002):
            until(lambda: len(lab.ended("x")) > 100, "a hundred answers")
        until(lambda: not os.listdir(lab.requests) and lab.is_clean(), "the last answer")
    ends = [lab.root / "spool/done" / name for name in lab.spool("done")]
    assert ends
    assert all(path.is_file() and not path.is_symlink() for path in ends)
    assert {path.stat().st_nlink for path in ends} == {1}
    assert yard.reads() == []
    assert snapshot(yard.root) == before


@pytest.mark.parametrize("watch", ["inotify", "poll"])
def test_a_crowd_that_does_not_settle_keeps_nobody_out(lab: Lab, watch: str) -> None:
    lab.archive()
    lab.write_config(watch=watch)
    for number in range(20):
        (lab.requests / f"good-{number}.yaml").write_bytes(GOOD)
    for number in range(4_500):  # no end of line: they may be written to for a while
        (lab.requests / f"slow-{number}.yaml").write_bytes(b"-")
    with lab.running():
        answers = [lab.result(f"good-{number}", 10) for number in range(20)]
        assert len(os.listdir(lab.requests)) == 4_500
    assert {answer["state"] for answer in answers} <= {"staged", "already_staged"}
