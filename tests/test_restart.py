"""Killed at any moment: what a dead instance was at is taken up, answered once, and cleaned up."""

import hashlib
import os
import random
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from archives import make_image, sparse_zip64
from cloud import Cloud
from lab import BUCKET, BUILD, FILES, Lab, Peer, until
from test_detail import shown

from stager.config import load_config
from stager.durable import make_dirs
from stager.layout import Claim, parse_build
from stager.marker import Marker, Sidecar
from stager.result import Result, State, to_yaml

ONE = parse_build(BUILD, frozenset())
IMAGES = {name: make_image(seed, 3_000_000) for seed, name in enumerate(FILES.values())}
LONG = {"lease": "60s", "heartbeat": "10s"}
"""A lease that no test waits for."""


def assert_answered_once(lab: Lab, name: str) -> None:
    """Assert that one request of this name was committed, and that nothing is left of it."""
    until(lambda: len(lab.ended(name)) == 1, f"one end of {name}: {lab.listing()}")
    until(lab.is_clean, f"a clean spool: {lab.listing()}", 15)
    assert lab.spool("requests") == []


# -- a real daemon, killed ----------------------------------------------------------------------


def is_fetching(lab: Lab) -> bool:
    """Whether some of an image is in a work directory."""
    try:
        return any(f.stat().st_size for f in (lab.root / "static/.stager/work").glob("*/*"))
    except FileNotFoundError:
        return False


def restarted(lab: Lab, old: str) -> None:
    """Start a daemon after a kill; see the answer long before the lease, and nothing left over."""
    start = time.monotonic()
    with lab.running() as daemon:
        result = lab.result("a")
        assert time.monotonic() - start < 15
        assert result["state"] == "staged"
        assert result["attempts"] == "2"
        assert_answered_once(lab, "a")
        assert "took over" in daemon.log
        until(lambda: old not in lab.instances(), "the dead one is buried")
        assert [len(os.listdir(p)) for p in (lab.root / "static/.stager/locks").iterdir()] == [1]
    assert lab.image("test").read_bytes() == IMAGES[FILES["test"]]
    assert lab.flag() == ["test"]


def test_a_restart_goes_on_at_once_where_the_killed_daemon_was(public_dir: Path) -> None:
    with Cloud() as cloud:
        lab = Lab(public_dir, {"archive": {"source": "gcs"}, **LONG})
        lab.env["STORAGE_EMULATOR_HOST"] = cloud.url
        lab.init().upload(cloud, images=IMAGES)
        cloud.stall(300_000, 60, times=None)
        daemon = lab.start()
        lab.drop("a")
        until(lambda: is_fetching(lab), "it is fetching")
        [old] = lab.instances()
        daemon.kill()
        cloud.clear_faults()
        assert not lab.is_clean()
        restarted(lab, old)


def test_who_waits_for_what_is_worked_on_alone_is_told(public_dir: Path) -> None:
    with Cloud() as cloud:
        lab = Lab(public_dir, {"archive": {"source": "gcs"}, "workers": 2, **LONG})
        other = f"gs://{BUCKET}/other-release/R1-2.3"
        lab.env["STORAGE_EMULATOR_HOST"] = cloud.url
        lab.init().upload(cloud, images=IMAGES)
        lab.upload(cloud, other)
        cloud.stall(300_000, 60, times=None)
        daemon = lab.start()
        lab.drop("a")
        until(lambda: is_fetching(lab), "it is fetching")
        daemon.kill()
        with lab.running() as daemon:
            daemon.await_log("took over")
            lab.drop("b", other)
            shown(lab, "b", "a.yaml, on which a daemon died, is worked on alone")
            cloud.clear_faults()
            assert {lab.result(name)["state"] for name in "ab"} == {"staged"}


def test_the_same_from_a_directory(public_dir: Path) -> None:
    lab = Lab(public_dir, LONG).init()
    lab.archive_path().parent.mkdir(parents=True)
    sparse_zip64(lab.archive_path(), gib=2)
    daemon = lab.start()
    lab.drop("a")
    until(lambda: is_fetching(lab), "it is fetching")
    [old] = lab.instances()
    daemon.kill()
    lab.archive(images=IMAGES)
    restarted(lab, old)


@pytest.mark.parametrize("seed", range(2))
def test_killed_again_and_again_it_answers_everything_once(lab: Lab, seed: int) -> None:
    chance = random.Random(seed)
    lab.write_config(attempts=1000, workers=3, rescan="0.05s")
    image = make_image(seed, 2_000_000)
    builds = [f"{BUILD}-{n}" for n in range(4)]
    for build in builds:
        lab.archive(build, images=dict.fromkeys(FILES.values(), image))
    names = [
        lab.drop(f"n{n}", chance.choice(builds), chance.sample(list(FILES), 2)) for n in range(12)
    ]
    for _ in range(8):
        daemon = lab.start()
        end = time.monotonic() + chance.uniform(0, 0.15)
        until(lambda end=end: time.monotonic() > end)  # type: ignore[misc]
        daemon.kill()
    with lab.running():
        for name in names:
            assert lab.result(name)["state"].endswith("staged")
            assert_answered_once(lab, name)
    for build in builds:
        for listed in lab.flag(build):
            assert lab.image(listed, build).read_bytes() == image


# -- every moment of a job, made by hand --------------------------------------------------------


def life(lab: Lab, dead: Peer, contents: dict[str, bytes]) -> Iterator[str]:
    """Do what a job does, step by step, in its order; say after each which it was."""
    config = load_config(lab.config, {})
    marker, paths, image = (
        Marker(config.paths, config.images),
        config.paths,
        contents[FILES["test"]],
    )
    lab.drop("a")
    taken = Claim("a.yaml", "abcdefgh", 0, 0, dead.inst, "abcdefgh")
    (lab.requests / "a.yaml").rename(paths.active / str(taken))
    yield "taken"
    claim = dead.spool.accept(taken)
    assert claim is not None
    yield "accepted"
    work = dead.locks.take(ONE.key)
    yield "token taken"
    claim = dead.spool.start(claim)
    yield "started"
    file, visible = work.file(), marker.image_path(ONE, "test")
    file.write_bytes(image[:100_000])
    yield "half fetched"
    file.write_bytes(image)
    make_dirs(visible.parent, paths.static)
    os.link(file, visible)
    yield "image published"
    sidecar = Sidecar(
        archive_url=ONE.archive_url, generation=lab.archive_path().stat().st_mtime_ns,
        size=len(image), crc32=f"{zlib.crc32(image):08x}", sha256=hashlib.sha256(image).hexdigest(),
        allocated=len(image), request_id=claim.request_id, staged_at="", host="lab-7",
    )  # fmt: skip
    marker.write_sidecar(work, ONE, "test", sidecar)
    yield "recorded"
    marker.write_flag(work, ONE)
    yield "flagged"
    work.release()
    yield "token released"
    at = "2026-11-23T15:25:15Z"
    answer = Result(state=State.STAGED, request=claim.file, request_id=claim.request_id,
                    attempts=claim.a, host="lab-7", received=at, finished=at)  # fmt: skip
    (paths.private / str(claim)).write_bytes(to_yaml(answer, claim))
    yield "answer written"
    (paths.active / str(claim)).rename(paths.done / str(claim))
    yield "committed"


STEPS = (
    "taken", "accepted", "token taken", "started", "half fetched", "image published", "recorded",
    "flagged", "token released", "answer written", "committed",
)  # fmt: skip


@pytest.mark.parametrize("died_after", STEPS)
def test_whatever_the_last_step_was_there_is_one_answer_and_nothing_left(
    lab: Lab, died_after: str
) -> None:
    contents = lab.archive()
    steps = life(lab, lab.peer(dead=True), contents)
    assert died_after in steps
    with lab.running():
        result = lab.result("a")
        assert_answered_once(lab, "a")
        until(lambda: len(lab.instances()) == 1, "the dead one is buried")
    assert result["state"].endswith("staged")
    assert lab.image("test").read_bytes() == contents[FILES["test"]]
    assert lab.flag() == ["test"]
    is_the_dead_ones = died_after == "committed"
    assert (result["host"] == "lab-7") == is_the_dead_ones
    fetched_anew = STEPS.index(died_after) < STEPS.index("image published")
    if not is_the_dead_ones:
        assert (int(result["bytes_fetched"]) > 100_000) == fetched_anew


def test_an_answer_that_was_torn_is_said_to_be_lost(lab: Lab) -> None:
    steps = life(lab, lab.peer(dead=True), lab.archive())
    assert "committed" in steps
    private = lab.root / "spool/private" / lab.spool("private")[0]
    os.truncate(private, 50)
    with lab.running():
        result = lab.result("a")
        assert_answered_once(lab, "a")
    assert (result["state"], result["error"]["code"]) == ("failed", "internal")


@pytest.mark.parametrize("starts", [1, 2, 3])
def test_a_request_that_kills_the_daemon_is_given_up_after_so_many_starts(
    lab: Lab, starts: int
) -> None:
    lab.write_config(attempts=2)
    lab.archive()
    dead = lab.peer(dead=True)
    claim = dead.spool.take(f"{lab.drop('a')}.yaml")
    assert claim is not None
    for _ in range(starts):
        claim = dead.spool.start(claim)
    with lab.running():
        result = lab.result("a")
        assert_answered_once(lab, "a")
    if starts > 2:
        assert (result["state"], result["error"]["code"]) == ("failed", "too_many_attempts")
        assert not lab.image("test").exists()
    else:
        assert (result["state"], result["attempts"]) == ("staged", str(starts + 1))


# -- a living daemon ----------------------------------------------------------------------------


@pytest.mark.parametrize("g", [0, 1, 7])
def test_a_claim_in_its_own_name_that_no_worker_holds_is_adopted(lab: Lab, g: int) -> None:
    """The reply to its rename was lost, or the rename was done late."""
    lab.archive()
    with lab.running():
        [inst] = lab.instances()
        file = lab.requests / ".a"
        file.write_text(f"build: {BUILD}\nimages: test\n")
        now = file.stat().st_ctime_ns
        claim = Claim("a.yaml", f"{now}-abcdef" if g else "abcdefgh", g, 0, inst, "abcdefgh")
        file.rename(lab.root / "spool/active" / str(claim))
        assert lab.result("a")["state"] == "staged"
        assert_answered_once(lab, "a")
        [ended] = lab.ended("a")
        assert ended.g > g
        assert (ended.id == claim.id) == bool(g)


def test_a_buried_instance_begins_anew_and_finishes_its_work(
    cloud_lab: tuple[Lab, Cloud],
) -> None:
    lab, cloud = cloud_lab
    lab.upload(cloud, images=IMAGES)
    cloud.stall(300_000, 60, times=1)
    with lab.running() as daemon:
        lab.drop("a")
        until(lambda: cloud.hits("media"))
        [old] = lab.instances()
        lab.bury(old)
        daemon.await_log("it begins anew")
        result = lab.result("a")
        assert_answered_once(lab, "a")
        [new] = lab.instances()
        assert new != old
        assert lab.result(lab.drop("b"))["state"] == "already_staged"
    assert result["state"] == "staged"
    assert lab.image("test").read_bytes() == IMAGES[FILES["test"]]


def test_an_instance_that_is_buried_while_idle_begins_anew(lab: Lab) -> None:
    lab.archive()
    with lab.running() as daemon:
        lab.bury(*lab.instances())
        daemon.await_log("it begins anew")
        assert lab.result(lab.drop("a"))["state"] == "staged"
        assert_answered_once(lab, "a")


LATE_BEAT = """\
import glob, threading, time
wait = threading.Event.wait

def late(event, timeout=None):
    told = wait(event, timeout)
    while threading.current_thread().name == "heartbeat" and glob.glob("{beat}"):
        time.sleep(0.01)
    return told

threading.Event.wait = late
"""


def test_a_beat_that_comes_late_at_the_end_is_no_burial(public_dir: Path) -> None:
    lab = Lab(public_dir, {"heartbeat": "0.1s", "lease": "60s"}).init()
    beat = lab.root / "spool/instances/*-??????.[0-9]*"
    (lab.root / "sitecustomize.py").write_text(LATE_BEAT.format(beat=beat))
    lab.env["PYTHONPATH"] = f"{lab.root}:{lab.environment()['PYTHONPATH']}"
    with lab.running() as daemon:
        until(lab.instances, "its heartbeat")
    assert "stopped" in daemon.log, "and its exit code was 0"
