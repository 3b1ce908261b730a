"""Several daemons on one spool: they share the work, and none disturbs another's."""

import os
import random
import signal
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from archives import make_image
from cloud import Cloud
from lab import BUCKET, BUILD, FILES, Daemon, Lab, until

from stager.lock import Token

IMAGES = {name: make_image(seed, 400_000) for seed, name in enumerate(FILES.values())}


@dataclass
class Witness:
    """Looks at locks/ and work/ all the time, and remembers what must not be."""

    lab: Lab
    faults: set[str] = field(default_factory=set)
    looks: int = 0
    most_at_once: int = 0

    def look(self) -> None:
        stager = self.lab.root / "static/.stager"
        work = Counter(name.partition(".")[0] for name in os.listdir(stager / "work"))
        self.faults |= {f"{n} work directories of {key}" for key, n in work.items() if n > 1}
        self.most_at_once = max(self.most_at_once, len(work))
        for key in os.listdir(stager / "locks"):
            tokens = [t for t in map(Token.parse, os.listdir(stager / "locks" / key)) if t]
            if len(tokens) != 1:
                self.faults.add(f"{len(tokens)} tokens of {key}")
        self.looks += 1


@contextmanager
def witness(lab: Lab) -> Iterator[Witness]:
    """Have a witness look for the length of a block."""
    seen, over = Witness(lab), threading.Event()

    def look_on() -> None:
        while not over.is_set():
            seen.look()

    thread = threading.Thread(target=look_on)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join(30)
    assert seen.looks > 10
    assert seen.faults == set()


def fetches(cloud: Cloud, archive: Path, build: str) -> dict[str, int]:
    """Count how often the middle byte of each image was asked for."""
    path = f"{build.removeprefix(f'gs://{BUCKET}/')}/image.zip"
    hits = [h for h in cloud.hits("media", path) if h.start is not None and h.end is not None]
    with zipfile.ZipFile(archive) as z:
        middles = {
            image: z.getinfo(name).header_offset + z.getinfo(name).compress_size // 2
            for image, name in FILES.items()
        }
    return {
        image: sum((h.start or 0) <= middle < (h.end or 0) for h in hits)
        for image, middle in middles.items()
    }


def start_all(lab: Lab, count: int) -> list[Daemon]:
    daemons = [lab.start(wait=False) for _ in range(count)]
    for daemon in daemons:
        daemon.await_log("watching the drop box")
    return daemons


@pytest.mark.parametrize("count", [2, 3])
def test_daemons_share_the_work_and_no_byte_is_fetched_twice(
    cloud_lab: tuple[Lab, Cloud], count: int
) -> None:
    lab, cloud = cloud_lab
    chance = random.Random(count)
    lab.write_config(workers=3)
    builds = [f"{BUILD}-{n}" for n in range(10)]
    for build in builds:
        lab.upload(cloud, build, images=IMAGES)
    cloud.slow(4_000_000)
    wanted = {
        f"n{n}": (builds[n % 10], chance.sample(list(FILES), chance.randint(1, 3)))
        for n in range(40)
    }
    with witness(lab) as seen:
        daemons = start_all(lab, count)
        for name, (build, images) in wanted.items():
            lab.drop(name, build, images)
        results = {name: lab.result(name) for name in wanted}
        until(lab.is_clean, lab.listing())
    assert [daemon.stop() for daemon in daemons] == [0] * count
    assert {result["state"] for result in results.values()} == {"staged", "already_staged"}
    for name, (build, images) in wanted.items():
        assert len(lab.ended(name)) == 1
        assert set(results[name]["images"]) == set(images)
        assert set(images) <= set(lab.flag(build))
    for build in builds:
        asked = {image for b, images in wanted.values() if b == build for image in images}
        once = {image: int(image in asked) for image in FILES}
        assert fetches(cloud, lab.archive_path(build), build) == once
        for image in asked:
            assert lab.image(image, build).read_bytes() == IMAGES[FILES[image]]
    assert all("Downloading image archive" in d.log for d in daemons), "one of them did nothing"
    assert seen.most_at_once > 1
    assert all("Traceback" not in daemon.log for daemon in daemons)


def test_a_build_that_another_daemon_stages_is_waited_for_without_a_worker(
    cloud_lab: tuple[Lab, Cloud],
) -> None:
    lab, cloud = cloud_lab
    lab.write_config(workers=1)
    for build in (BUILD, f"{BUILD}-2"):
        lab.upload(cloud, build, images=IMAGES)
    cloud.stall(50_000, 60, times=1)
    first = lab.start()
    lab.drop("a")
    until(lambda: cloud.hits("media"))
    second = lab.start()
    lab.drop("same", images=["test", "base"])
    until(lambda: any("same.yaml" in entry for entry in lab.spool("waiting")), lab.listing())
    assert lab.result(lab.drop("other", f"{BUILD}-2"))["state"] == "staged"
    assert lab.ended("same") == lab.ended("a") == []
    cloud.clear_faults()
    assert lab.result("a")["state"] == "staged"
    assert lab.result("same")["state"] == "staged"
    assert fetches(cloud, lab.archive_path(), BUILD) == {"test": 1, "base": 1, "recovery": 0}
    assert [first.stop(), second.stop()] == [0, 0]
    assert lab.is_clean()


def test_what_one_daemon_took_in_and_can_not_begin_is_begun_by_an_idle_one_at_once(
    cloud_lab: tuple[Lab, Cloud],
) -> None:
    lab, cloud = cloud_lab
    # No scan will tell them.
    lab.write_config(workers=1, rescan="1h")
    builds = [f"{BUILD}-{n}" for n in range(4)]
    for build in builds:
        lab.upload(cloud, build, images=IMAGES)
    cloud.slow(20_000)
    daemons = start_all(lab, 4)
    for number, build in enumerate(builds):
        lab.drop(f"n{number}", build)
    work = lab.root / "static/.stager/work"
    until(lambda: len(os.listdir(work)) == len(builds), "all four at work")
    cloud.slow(None)
    assert {lab.result(f"n{n}")["state"] for n in range(4)} == {"staged"}
    assert [daemon.stop() for daemon in daemons] == [0] * 4


# -- taking over --------------------------------------------------------------------------------


def fetching(lab: Lab, cloud: Cloud) -> Daemon:
    """Start a daemon that is in the middle of a download when this returns."""
    lab.upload(cloud, images=IMAGES)
    cloud.stall(50_000, 60, times=1)
    daemon = lab.start()
    lab.drop("a")
    until(lambda: os.listdir(lab.root / "static/.stager/work") and cloud.sent() > 50_000)
    return daemon


def assert_taken_over(lab: Lab, *daemons: Daemon) -> None:
    """Assert that the request was answered once, by the second start, and all is clean."""
    result = lab.result("a")
    assert (result["state"], result["attempts"]) == ("staged", "2")
    assert lab.image("test").read_bytes() == IMAGES[FILES["test"]]
    until(lab.is_clean, lab.listing())
    assert len(lab.ended("a")) == 1
    assert [daemon.stop() for daemon in daemons] == [0] * len(daemons)
    assert lab.instances() == []


def test_another_machine_takes_over_when_the_lease_is_over(
    cloud_lab: tuple[Lab, Cloud],
) -> None:
    lab, cloud = cloud_lab
    first = fetching(lab, cloud)
    lab.env["WATCHERD_BOOT_ID"] = "another-machine"
    second = lab.start()
    [old] = set(lab.instances()) - {instance(second)}
    beats = heartbeat(lab, old)
    until(lambda: heartbeat(lab, old) > beats + 2)
    first.kill()
    killed = time.monotonic()
    assert_taken_over(lab, second)
    assert time.monotonic() - killed > 1, "it did not wait for the lease"


def test_a_machine_that_was_started_again_need_not_wait_for_the_lease(public_dir: Path) -> None:
    with Cloud() as cloud:
        lab = Lab(public_dir, {"archive": {"source": "gcs"}, "lease": "60s"})
        lab.env["STORAGE_EMULATOR_HOST"] = cloud.url
        first = fetching(lab.init(), cloud)
        first.kill()
        lab.env["WATCHERD_BOOT_ID"] = "the-next-boot"
        assert_taken_over(lab, lab.start())


def test_two_machines_with_one_machine_id_are_told_apart_and_warned_of(lab: Lab) -> None:
    one = lab.start()
    lab.env["WATCHERD_BOOT_ID"] = "another-machine"
    two = lab.start()
    for daemon in (one, two):
        daemon.await_log("machine id", 10)
        assert "warning" in next(x for x in daemon.log.splitlines() if "machine id" in x)
    assert len(lab.instances()) == 2


def test_a_daemon_that_was_paused_finds_its_work_done_and_changes_nothing(
    cloud_lab: tuple[Lab, Cloud],
) -> None:
    lab, cloud = cloud_lab
    paused = fetching(lab, cloud)
    paused.process.send_signal(signal.SIGSTOP)
    try:
        other = lab.start()
        assert lab.result("a")["attempts"] == "2"
        before = picture(lab)
    finally:
        cloud.clear_faults()
        paused.process.send_signal(signal.SIGCONT)
    paused.await_log("it begins anew")
    until(lambda: len(lab.instances()) == 2)
    assert picture(lab) == before
    assert lab.result(lab.drop("b"))["state"] == "already_staged"
    assert_taken_over(lab, paused, other)
    assert "Traceback" not in paused.log


def picture(lab: Lab) -> dict[str, tuple[int, int]]:
    """Return which files are visible to others, as they are now."""
    paths = [lab.root / "results/a.yaml", *lab.target().iterdir()]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def instance(daemon: Daemon) -> str:
    """Return the name that a daemon said it has."""
    return daemon.log.partition(" instance=")[2].split()[0]


def heartbeat(lab: Lab, inst: str) -> int:
    """Return the count of an instance's heartbeat file."""
    beats = [name.rpartition(".") for name in lab.spool("instances")]
    return max(int(count) for name, _, count in beats if name == inst and count.isdigit())
