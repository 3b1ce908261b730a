"""The queue of a running daemon: workers at once, priorities, turns, expiry, and a full house."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from cloud import Cloud
from lab import BUCKET, BUILD, Daemon, Lab, until

from stager.dispatch import MOST_WAITING
from stager.layout import Waiting, parse_build


def build(name: str) -> str:
    return f"{BUILD}-{name}"


def object_name(name: str) -> str:
    return parse_build(build(name), frozenset()).object_name


def drop_as(lab: Lab, uid: int, name: str, text: str) -> None:
    """Drop a request that belongs to another user."""
    tmp = lab.requests / f".{name}.tmp"
    tmp.write_text(text)
    os.chown(tmp, uid, -1)
    tmp.rename(lab.requests / f"{name}.yaml")


def waiting(lab: Lab) -> list[Waiting]:
    return [w for w in map(Waiting.parse, lab.spool("waiting")) if w]


@contextmanager
def busy(lab: Lab, cloud: Cloud, workers: int = 1) -> Iterator[Daemon]:
    """Have a daemon whose workers are all at downloads that hang; they go on at the end."""
    lab.write_config(workers=workers)
    for n in range(workers):
        lab.upload(cloud, build(f"busy{n}"))
    cloud.stall(1000, 100, times=workers)
    with lab.running() as daemon:
        for n in range(workers):
            lab.drop(f"busy{n}", build(f"busy{n}"))
        until(lambda: len(cloud.hits("media")) >= workers and len(lab.spool("active")) == workers)
        try:
            yield daemon
        finally:
            cloud.clear_faults()


def test_different_builds_are_staged_at_once_as_many_as_there_are_workers(
    cloud_lab: tuple[Lab, Cloud],
) -> None:
    lab, cloud = cloud_lab
    lab.upload(cloud, build("more"))
    with busy(lab, cloud, workers=3):
        lab.drop("more", build("more"))
        until(lambda: waiting(lab), lab.listing())
        works = os.listdir(lab.root / "static/.stager/work")
        assert len({name.partition(".")[0] for name in works}) == 3
        assert len(lab.spool("active")) == 3
        cloud.clear_faults()
        for name in ("busy0", "busy1", "busy2", "more"):
            assert lab.result(name)["state"] == "staged"
    assert lab.is_clean()


def test_what_needs_no_worker_is_answered_while_all_are_busy(
    cloud_lab: tuple[Lab, Cloud],
) -> None:
    lab, cloud = cloud_lab
    lab.upload(cloud, build("done"))
    with lab.running():
        assert lab.result(lab.drop("before", build("done")))["state"] == "staged"
    with busy(lab, cloud):
        assert lab.result(lab.drop("again", build("done")))["state"] == "already_staged"
        assert lab.result(lab.drop("bad", images=["factory"]))["state"] == "rejected"
        assert not lab.ended("busy0")


def test_requests_are_served_by_priority_then_in_turns_then_as_they_came(
    cloud_lab: tuple[Lab, Cloud],
) -> None:
    lab, cloud = cloud_lab
    arriving = [
        ("a1", 1001, "low"), ("a2", 1001, "normal"), ("a3", 1001, "normal"), ("a4", 1001, "high"),
        ("b1", 1002, "normal"), ("b2", 1002, "low"), ("b3", 1002, "9"), ("a5", 1001, "0"),
    ]  # fmt: skip
    for name, _, _ in arriving:
        lab.upload(cloud, build(name))
    with busy(lab, cloud):
        for n, (name, uid, priority) in enumerate(arriving, 1):
            text = f"build: {build(name)}\nimages: test\npriority: {priority}\n"
            drop_as(lab, uid, name, text)
            until(lambda n=n: len(lab.spool("waiting")) == n)  # type: ignore[misc]
        cloud.clear_faults()
        for name, _, _ in arriving:
            assert lab.result(name)["state"] == "staged"
    answers = {name: lab.root / "results" / f"{name}.yaml" for name, _, _ in arriving}
    order = sorted(answers, key=lambda name: answers[name].stat().st_mtime_ns)
    # a5 and a4 by priority; then b, who was not served yet; a2, b1 and a3 take turns.
    assert order == ["a5", "a4", "b1", "a2", "a3", "b2", "a1", "b3"]


def test_no_more_than_a_thousand_requests_are_taken_in_and_a_full_house_costs_nothing(
    cloud_lab: tuple[Lab, Cloud],
) -> None:
    lab, cloud = cloud_lab
    lab.write_config(rescan="15s")
    extra = 20
    text = f"build: {build('busy0')}\nimages: [base]\n"
    with busy(lab, cloud) as daemon:
        daemon.process.send_signal(signal.SIGSTOP)  # so that it finds them all at once
        for n in range(MOST_WAITING + extra):
            lab.drop_text(f"n{n}", text)
        daemon.process.send_signal(signal.SIGCONT)
        until(lambda: len(lab.spool("waiting")) >= MOST_WAITING)
        before, start = cpu_seconds(daemon), time.monotonic()
        until(lambda: time.monotonic() - start > 2)
        assert len(lab.spool("waiting")) == MOST_WAITING
        assert len(lab.spool("requests")) == extra
        assert (cpu_seconds(daemon) - before) / (time.monotonic() - start) < 0.3
        cloud.clear_faults()
        until(lambda: not lab.spool("requests"), "there is room again")


def cpu_seconds(daemon: Daemon) -> float:
    """Return how much processor time a daemon has used."""
    with open(f"/proc/{daemon.process.pid}/stat") as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- expiry -------------------------------------------------------------------------------------


def not_there_yet(lab: Lab, cloud: Cloud) -> None:
    lab.write_config(wait_for_archive="1h")
    cloud.delete(BUCKET, object_name("a"))


STATES: dict[str, Callable[[Lab, Cloud], None]] = {
    "hanging": lambda _, cloud: cloud.stall(1000, 100, times=None),
    "crawling": lambda _, cloud: cloud.slow(10_000),
    "not there yet": not_there_yet,
    "between two tries": lambda _, cloud: cloud.fail("any", 503, times=None, retry_after=30),
    "deferred": lambda _, cloud: cloud.fail("metadata", 400, times=None),
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_a_request_that_is_not_done_in_time_expires_at_its_time(
    cloud_lab: tuple[Lab, Cloud], state: Callable[[Lab, Cloud], None]
) -> None:
    lab, cloud = cloud_lab
    lab.write_config(rescan="60s")
    lab.upload(cloud, build("a"))
    state(lab, cloud)
    with lab.running():
        start = time.monotonic()
        result = lab.result(lab.drop("a", build("a"), expires="1s"))
        seconds = time.monotonic() - start
        cloud.clear_faults()
    assert (result["state"], result["error"]["code"]) == ("failed", "expired")
    assert lab.is_clean()
    assert not lab.image("test", build("a")).exists()
    assert 1 <= seconds < 3


def test_one_that_waits_for_a_worker_expires_too(cloud_lab: tuple[Lab, Cloud]) -> None:
    lab, cloud = cloud_lab
    with busy(lab, cloud):
        result = lab.result(lab.drop("a", build("a"), expires="1s"), 5)
        assert (result["state"], result["error"]["code"]) == ("failed", "expired")
        assert not lab.ended("busy0")


# -- deferral -----------------------------------------------------------------------------------


@pytest.mark.parametrize("attempts", [1, 2])
def test_an_archive_that_can_not_be_read_for_now_is_tried_so_often(lab: Lab, attempts: int) -> None:
    lab.write_config(attempts=attempts)
    path = lab.archive_path()
    path.parent.mkdir(parents=True)
    path.symlink_to(path)  # ELOOP: the archive can't be opened for now
    with lab.running():
        start = time.monotonic()
        lab.drop("a")
        if attempts > 1:
            until(lambda: waiting(lab))
            [deferred] = waiting(lab)
            assert deferred.a == 1
            assert deferred.due > time.time() + 2
        result = lab.result("a")
    assert (result["state"], result["error"]["code"]) == ("failed", "archive_unavailable")
    assert result["attempts"] == str(attempts)
    assert (time.monotonic() - start > 3) == (attempts > 1)
    assert lab.is_clean()


def test_while_one_request_is_deferred_its_build_is_left_alone_and_others_are_not(
    cloud_lab: tuple[Lab, Cloud],
) -> None:
    lab, cloud = cloud_lab
    lab.upload(cloud, build("a"))
    lab.upload(cloud, build("b"))
    name = object_name("a")
    cloud.fail("metadata", 503, times=None, name=name)
    with lab.running() as daemon:
        lab.drop("a", build("a"))
        daemon.await_log("deferred for")
        looks = len(cloud.hits("metadata", name))
        lab.drop("same", build("a"), ["base"])
        assert lab.result(lab.drop("b", build("b")))["state"] == "staged"
        assert len(cloud.hits("metadata", name)) == looks
        cloud.clear_faults()
        assert lab.result("a")["attempts"] == "2"
        assert lab.result("same")["attempts"] == "1"
    assert lab.is_clean()
