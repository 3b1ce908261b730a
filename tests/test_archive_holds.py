"""Faults of the machine or the service hold the queue: said once, nothing counted, nothing lost."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cloud import Cloud
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import rsa
from lab import BUCKET, BUILD, FILES, NOBODY, Daemon, Lab, until

OTHER_BUCKET = "chromiumos-image-archive"
OTHER_BUILD = f"gs://{BUCKET}/other-release/R1-2.3"
Labs = tuple[Lab, Cloud]
SAID, GOES_ON = "the queue waits", "work goes on"


@pytest.fixture
def private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    kind, none = form.PrivateFormat.PKCS8, form.NoEncryption()
    return key.private_bytes(form.Encoding.PEM, kind, none).decode()


@pytest.fixture
def key_file(public_dir: Path, private_key: str, cloud_lab: Labs) -> Path:
    """Configure a service account whose tokens come from the cloud, and are asked for by it."""
    lab, cloud = cloud_lab
    path = public_dir / "key.json"
    info = {"client_email": "a@b.invalid", "token_uri": f"{cloud.url}/token"}
    path.write_text(json.dumps({"type": "service_account", "private_key": private_key, **info}))
    lab.write_config(archive={"source": "gcs", "credentials": str(path)})
    cloud.require_token = True
    return path


@pytest.fixture
def nobodys_lab(public_dir: Path) -> Iterator[Lab]:
    made = Lab(public_dir, user=NOBODY)
    yield made.init()
    made.end()


def all_wait(lab: Lab, daemon: Daemon, count: int, why: str) -> None:
    daemon.await_log(SAID)
    until(
        lambda: len(lab.spool("waiting")) == count and not lab.spool("active"),
        f"{count} requests waiting",
    )
    assert f"code={why}" in daemon.log
    assert GOES_ON not in daemon.log


def goes_on(lab: Lab, daemon: Daemon, *names: str) -> None:
    """See that all are staged, that no attempt was counted, and that the log says it all once."""
    results = [lab.result(name) for name in names]
    assert {r["state"] for r in results} <= {"staged", "already_staged"}, results
    assert {r["attempts"] for r in results} <= {"0", "1"}
    daemon.await_log(GOES_ON)
    assert daemon.log.count(SAID) == daemon.log.count(GOES_ON) == 1, daemon.log
    until(lab.is_clean, "nothing left over")


def reconfigure(lab: Lab, daemon: Daemon, **changes: Any) -> None:
    lab.write_config(**changes)
    daemon.process.send_signal(signal.SIGHUP)
    daemon.await_log("read again")


# -- credentials -----------------------------------------------------------------------------------


@dataclass
class Trouble:
    """How credentials come to be refused, and how it ends."""

    begin: Callable[[Cloud], None]
    end: Callable[[Cloud], None] = Cloud.clear_faults


REFUSALS: list[Any] = [
    pytest.param(Trouble(lambda cloud: cloud.fail("metadata", 401, None)), id="401-for-a-look"),
    pytest.param(Trouble(lambda cloud: cloud.fail("media", 401, None)), id="401-for-a-read"),
    pytest.param(Trouble(lambda cloud: cloud.refuse_tokens()), id="refused-token"),
]


@pytest.mark.parametrize("trouble", REFUSALS)
@pytest.mark.usefixtures("key_file")
def test_refused_credentials_hold_the_queue_until_they_are_taken(
    cloud_lab: Labs, private_key: str, trouble: Trouble
) -> None:
    lab, cloud = cloud_lab
    lab.upload(cloud)
    lab.upload(cloud, OTHER_BUILD)
    trouble.begin(cloud)
    with lab.running() as daemon:
        names = [lab.drop("one"), lab.drop("two", OTHER_BUILD), lab.drop("three", images=["base"])]
        all_wait(lab, daemon, 3, "credentials_refused")
        trouble.end(cloud)
        goes_on(lab, daemon, *names)
    assert not any(line in daemon.log for line in private_key.splitlines()[1:-1])


def test_a_401_without_an_account_holds_the_queue_too(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    lab.upload(cloud)
    cloud.require_token = True
    with lab.running() as daemon:
        lab.drop("one")
        all_wait(lab, daemon, 1, "credentials_refused")
        cloud.require_token = False
        goes_on(lab, daemon, "one")


def test_a_key_file_that_is_missing_is_read_when_it_is_there(
    cloud_lab: Labs, key_file: Path
) -> None:
    lab, cloud = cloud_lab
    lab.upload(cloud)
    away = key_file.rename(key_file.with_suffix(".away"))
    with lab.running() as daemon:
        lab.drop("one")
        all_wait(lab, daemon, 1, "credentials_refused")
        away.rename(key_file)
        goes_on(lab, daemon, "one")
    assert len(cloud.hits("token")) == 1


def test_what_is_asked_anonymously_and_not_public_is_waited_for_alone(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    lab.write_config(archive={"source": "gcs", "credentials": "anonymous"})
    lab.upload(cloud, OTHER_BUILD)
    cloud.fail("metadata", 401, None, name=f"{BUILD.partition(f'{BUCKET}/')[2]}/image.zip")
    with lab.running() as daemon:
        private = lab.drop("private", wait=0)
        assert lab.result(lab.drop("public", OTHER_BUILD))["state"] == "staged"
        assert lab.result(private)["error"]["code"] == "archive_denied"
    assert SAID not in daemon.log


def test_while_the_queue_is_held_one_request_at_a_time_is_tried(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    lab.write_config(workers=4)
    builds = [f"gs://{BUCKET}/board-release/R{n}-1.0" for n in range(6)]
    for build in builds:
        lab.upload(cloud, build)
    cloud.fail("metadata", 401, None)
    with lab.running() as daemon:
        names = [lab.drop("first", builds[0])]
        all_wait(lab, daemon, 1, "credentials_refused")
        cloud.reset_log()
        names += [lab.drop(f"n{n}", build) for n, build in enumerate(builds[1:])]
        all_wait(lab, daemon, 6, "credentials_refused")
        until(lambda: cloud.hits("metadata"), "a probe")
        all_wait(lab, daemon, 6, "credentials_refused")
        assert len(cloud.hits("metadata")) == 1
        cloud.clear_faults()
        goes_on(lab, daemon, *names)


def test_an_answer_that_tells_nothing_of_the_fault_does_not_end_it(cloud_lab: Labs) -> None:
    """A conflict is found without Cloud Storage: that it is answered does not mean all is well."""
    lab, cloud = cloud_lab
    lab.upload(cloud)
    with lab.running() as daemon:
        assert lab.result(lab.drop("before"))["state"] == "staged"
        cloud.fail("metadata", 401, None)
        lab.drop("held", images=["base"])
        all_wait(lab, daemon, 1, "credentials_refused")
        probes = len(cloud.hits("metadata"))
        conflict = lab.drop("conflict", BUILD.replace(BUCKET, OTHER_BUCKET), priority="high")
        until(lambda: len(cloud.hits("metadata")) > probes, "another probe")
        until(lambda: not lab.spool("active"), "the probe's end")
        assert GOES_ON not in daemon.log
        cloud.clear_faults()
        goes_on(lab, daemon, "held")
        assert lab.result(conflict)["error"]["code"] == "target_conflict"


def test_only_expires_ends_a_request_that_is_held(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    lab.upload(cloud)
    lab.upload(cloud, OTHER_BUILD)
    lab.write_config(attempts=1, wait_for_archive="1s")
    with lab.running() as daemon:
        assert lab.result(lab.drop("there", OTHER_BUILD))["state"] == "staged"
        cloud.fail("metadata", 401, None)
        names = [lab.drop("patient"), lab.drop("hurried", expires="2s", images=["base"])]
        result = lab.result(names[1])
        assert (result["state"], result["error"]["code"]) == ("failed", "expired")
        all_wait(lab, daemon, 1, "credentials_refused")
        # What is staged already needs no cloud, and is answered meanwhile.
        assert lab.result(lab.drop("again", OTHER_BUILD), seconds=2)["state"] == "already_staged"
        cloud.clear_faults()
        assert lab.result(names[0])["state"] == "staged"


# -- space and disks -------------------------------------------------------------------------------


def test_no_space_holds_the_queue_until_there_is_some(lab: Lab) -> None:
    lab.archive()
    lab.archive(OTHER_BUILD)
    lab.write_config(min_free="900000T")
    with lab.running() as daemon:
        names = [lab.drop("one"), lab.drop("two", OTHER_BUILD)]
        all_wait(lab, daemon, 2, "no_space")
        assert not any(path.is_file() for path in lab.root.glob("static/images/**/*"))
        reconfigure(lab, daemon, min_free="0")
        goes_on(lab, daemon, *names)


def test_room_is_asked_for_what_the_images_hold_not_what_they_are_compressed_to(lab: Lab) -> None:
    lab.archive(images={FILES["test"]: bytes(3_000_000), FILES["base"]: bytes(4_000_000)})
    fs = os.statvfs(lab.root)
    free = fs.f_bavail * fs.f_frsize
    lab.write_config(min_free=str(free * 2))
    with lab.running() as daemon:
        lab.drop("one", images=["test", "base"])
        all_wait(lab, daemon, 1, "no_space")
        assert "7 MB are needed, " in daemon.log
        assert f"`min_free: {free * 2}` keeps " in daemon.log
        assert re.search(r"hint='free \S+ [kMGT]?B on the filesystem of ", daemon.log), daemon.log
        reconfigure(lab, daemon, min_free=str(free // 2))
        goes_on(lab, daemon, "one")


def test_a_build_too_large_for_the_disk_waits_alone_and_it_is_said(lab: Lab) -> None:
    lab.archive(images={FILES["test"]: bytes(300 << 20)})
    lab.archive(OTHER_BUILD)
    fs = os.statvfs(lab.root)
    lab.write_config(min_free=str(fs.f_bavail * fs.f_frsize - (150 << 20)))
    with lab.running() as daemon:
        lab.drop("large")
        all_wait(lab, daemon, 1, "no_space")
        assert lab.result(lab.drop("small", OTHER_BUILD))["state"] == "staged"
        daemon.await_log("a build waits: ")
        assert daemon.log.index(GOES_ON) < daemon.log.index("a build waits: 315 MB are needed")
        reconfigure(lab, daemon, min_free="0")
        assert lab.result("large")["state"] == "staged"
        assert daemon.log.count("a build waits") == 1


def test_an_archive_directory_that_is_away_holds_the_queue(lab: Lab) -> None:
    lab.archive()
    away = (lab.root / "archive").rename(lab.root / "unmounted")
    with lab.running() as daemon:
        names = [lab.drop("one", wait=0), lab.drop("two", images=["base"], wait=0)]
        all_wait(lab, daemon, 2, "storage_error")
        assert "set `archive.directory`" in daemon.log
        away.rename(lab.root / "archive")
        goes_on(lab, daemon, *names)


def test_a_look_at_an_archive_that_is_not_there_shows_that_its_directory_is(lab: Lab) -> None:
    away = lab.root / "unmounted"
    lab.archive(OTHER_BUILD)
    (lab.root / "archive").rename(away)
    with lab.running() as daemon:
        lab.drop("one")
        all_wait(lab, daemon, 1, "storage_error")
        away.rename(lab.root / "archive")
        daemon.await_log(GOES_ON)
        until(lambda: lab.stager("status", "--check").returncode == 0, "no fault to be told")
        assert not (lab.root / "results/one.yaml").exists()


def test_a_static_tree_that_takes_nothing_holds_the_queue(nobodys_lab: Lab) -> None:
    lab = nobodys_lab
    lab.archive()
    lab.archive(OTHER_BUILD)
    images = lab.root / "static/images"
    with lab.running() as daemon:
        images.chmod(0o555)
        names = [lab.drop("one"), lab.drop("two", OTHER_BUILD)]
        all_wait(lab, daemon, 2, "storage_error")
        images.chmod(0o755)
        goes_on(lab, daemon, *names)


def test_an_archive_the_daemon_may_not_read_is_denied_and_waited_for_alone(
    nobodys_lab: Lab,
) -> None:
    lab = nobodys_lab
    lab.archive()
    lab.archive(OTHER_BUILD)
    lab.archive_path().chmod(0o600)
    with lab.running() as daemon:
        lab.drop("one")
        error = lab.result(lab.drop("hurried", wait=0))["error"]
        assert error["code"] == "archive_denied"
        assert f"let uid {NOBODY} read {lab.archive_path()}" in error["hint"]
        assert lab.result(lab.drop("two", OTHER_BUILD))["state"] == "staged"
        lab.archive_path().chmod(0o644)
        assert lab.result("one")["state"] == "staged"
    assert SAID not in daemon.log
