"""`watcherd --once`: it ends when nothing is left that it could answer, and says what it left."""

import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cloud import Cloud
from lab import BUILD, DEADLINE, NOBODY, Lab, Peer, until

from stager import orders
from stager.config import load_config
from stager.orders import Order


def claim(lab: Lab, peer: Peer, name: str) -> str:
    """Have a peer hold a request; return its id."""
    taken = peer.spool.take(f"{lab.drop(name)}.yaml")
    assert taken is not None
    return taken.request_id


@contextmanager
def beating(peer: Peer) -> Iterator[None]:
    """Have a peer's heart beat for the length of a block."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(peer.heart.heartbeat / 2):
            peer.heart.beat()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(DEADLINE)


def ended_well(done: subprocess.CompletedProcess[str], code: int = 0) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


# -- what it does -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "build", "code"),
    [
        pytest.param([], BUILD, 0, id="nothing to do"),
        pytest.param([["test"]], BUILD, 0, id="one staged"),
        pytest.param([["test"], ["test"], ["base"]], BUILD, 0, id="staged already"),
        pytest.param([["test"], ["factory"]], BUILD, 1, id="one rejected"),
        pytest.param([["test"]], f"{BUILD}-none", 1, id="one failed"),
    ],
)
def test_it_ends_when_all_is_answered_and_tells_whether_all_went_well(
    lab: Lab, images: list[list[str]], build: str, code: int
) -> None:
    lab.archive()
    lab.write_config(wait_for_archive="0")
    names = [lab.drop(f"n{n}", build, wanted) for n, wanted in enumerate(images)]
    ended_well(lab.once(), code)
    for name in names:
        assert lab.result(name, seconds=0)["state"]
    assert lab.spool("requests") == lab.spool("instances") == []
    assert lab.is_clean()


def test_a_cancelled_request_is_no_failure(lab: Lab) -> None:
    lab.drop("a")
    orders.send(load_config(lab.config, {}).paths, Order("cancel", ("a",)))
    ended_well(lab.once())
    assert lab.result("a", seconds=0)["state"] == "cancelled"


def test_a_failure_counts_even_if_it_was_taken_for_dead_meanwhile(
    cloud_lab: tuple[Lab, Cloud],
) -> None:
    lab, cloud = cloud_lab
    lab.upload(cloud)
    cloud.fail("any", 503, times=1, retry_after=60)
    lab.drop("bad", images=["factory"])
    lab.drop("good")
    daemon = lab.start("--once")
    assert lab.result("bad")["state"] == "rejected"
    until(lambda: cloud.hits("metadata"))
    lab.bury(*lab.instances())
    daemon.await_log("it begins anew")
    assert daemon.process.wait(DEADLINE) == 1, daemon.log
    assert lab.result("good", seconds=0)["state"] == "staged"


def test_more_than_one_turns_worth_is_done(lab: Lab) -> None:
    lab.archive()
    names = [lab.drop(f"n{n}", images=["factory"]) for n in range(150)]
    ended_well(lab.once(), 1)
    assert all((lab.root / f"results/{name}.yaml").exists() for name in names)


def test_what_waits_is_done_too(cloud_lab: tuple[Lab, Cloud]) -> None:
    lab, cloud = cloud_lab
    lab.upload(cloud)
    cloud.fail("any", 503, times=None, retry_after=1)
    daemon = lab.start()
    lab.drop("a")
    until(lambda: lab.spool("active"))
    assert daemon.stop() == 0
    assert len(lab.spool("waiting")) == 1
    cloud.clear_faults()
    ended_well(lab.once())
    assert lab.result("a", seconds=0)["state"] == "staged"


def test_what_the_dead_held_is_done_too_even_another_machines(lab: Lab) -> None:
    lab.archive()
    claim(lab, lab.peer(dead=True), "here")
    claim(lab, lab.peer(machine="b"), "there")
    ended_well(lab.once())
    for name in ("here", "there"):
        assert lab.result(name, seconds=0)["state"].endswith("staged")


def test_a_deferred_request_is_waited_for(lab: Lab) -> None:
    path = lab.archive_path()
    path.parent.mkdir(parents=True)
    path.symlink_to(path)  # ELOOP: the archive can't be opened for now
    lab.drop("a")
    daemon = lab.start("--once")
    until(lambda: lab.spool("waiting"), daemon.log)
    daemon.await_log("deferred for")
    path.unlink()
    lab.archive()
    assert daemon.process.wait(DEADLINE) == 0, daemon.log
    result = lab.result("a", seconds=0)
    assert (result["state"], result["attempts"]) == ("staged", "2")


# -- what it leaves, and names ------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["", "another"], ids=["of this machine", "of another"])
def test_claims_of_other_living_instances_are_left_to_them(lab: Lab, machine: str) -> None:
    lab.archive()
    peer = lab.peer(machine=machine)
    theirs = claim(lab, peer, "theirs")
    lab.drop("mine")
    with beating(peer):
        start = time.monotonic()
        done = lab.once()
        assert time.monotonic() - start < 10
    ended_well(done)
    assert theirs in done.stderr
    assert peer.inst in done.stderr
    assert lab.result("mine", seconds=0)["state"] == "staged"
    assert not lab.ended("theirs")


def test_an_entry_that_can_not_be_claimed_is_left_and_named(public_dir: Path) -> None:
    lab = Lab(public_dir, user=NOBODY).init()
    lab.archive()
    (lab.requests / "stuck.yaml").mkdir(mode=0o755)  # of root: its parent can't be changed
    lab.drop("a")
    done = lab.once()
    ended_well(done)
    assert "stuck.yaml" in done.stderr
    assert os.strerror(errno.EACCES) in done.stderr
    assert lab.result("a", seconds=0)["state"] == "staged"


def test_a_file_that_keeps_changing_is_left_and_named(lab: Lab) -> None:
    lab.archive()
    lab.write_config(settle="0.5s")
    lab.drop("a")
    over = threading.Event()

    def write() -> None:
        with (lab.requests / "log.yaml").open("ab", 0) as f:
            while not over.wait(0.02):
                f.write(b"another line\n")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        done = lab.once()
    finally:
        over.set()
        writer.join(DEADLINE)
    ended_well(done)
    assert "log.yaml" in done.stderr
    assert lab.result("a", seconds=0)["state"] == "staged"
    assert lab.spool("requests") == ["log.yaml"]


def test_a_file_that_still_settles_is_waited_for(lab: Lab) -> None:
    lab.archive()
    lab.write_config(settle="1s")
    (lab.requests / "a.yaml").write_text(f"build: {BUILD}\nimages: test\n")
    ended_well(lab.once())
    assert lab.result("a", seconds=0)["state"] == "staged"


def test_names_that_are_not_taken_are_no_work(lab: Lab) -> None:
    for name in (".a.yaml", "a.yaml~", "README", "a.yaml.tmp"):
        (lab.requests / name).touch()
    ended_well(lab.once())
    assert len(lab.spool("requests")) == 4
