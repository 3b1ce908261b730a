"""What a service manager does with the daemon: start, reload, stop, and what it is told."""

import os
import random
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from cloud import Cloud
from lab import BUCKET, BUILD, Daemon, Lab, until

from stager import service
from stager.gcs import TIMEOUT
from stager.layout import Claim, Waiting

SOON = 3.0
"""Within so many seconds a running download must have ended when the daemon is told to stop."""


@contextmanager
def notify_socket(address: str) -> Iterator[socket.socket]:
    """Listen as systemd does; every receive has a deadline."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as s:
        s.bind(address.replace("@", "\0", 1))
        s.settimeout(30)
        yield s


def told(manager: socket.socket, wanted: str) -> list[str]:
    """Return the lines of the next message that has one beginning with `wanted`."""
    while True:
        lines = manager.recv(4096).decode().splitlines()
        if any(line.startswith(wanted) for line in lines):
            return lines


# -- the notify socket --------------------------------------------------------------------------


def test_the_service_manager_is_told_of_every_stage(lab: Lab) -> None:
    with notify_socket(str(lab.root / "notify")) as manager:
        lab.env["NOTIFY_SOCKET"] = str(lab.root / "notify")
        daemon = lab.start()
        first = told(manager, "READY=1")
        assert any(line.startswith("STATUS=0 active, 0 waiting") for line in first)
        assert "WATCHDOG=1" in told(manager, "WATCHDOG=1")
        for text in (lab.config.read_text(), "nonsense: true\n"):
            lab.config.write_text(text)
            before = time.monotonic_ns() // 1000
            daemon.process.send_signal(signal.SIGHUP)
            reloading = told(manager, "RELOADING=1")
            usec = next(x for x in reloading if x.startswith("MONOTONIC_USEC="))
            assert before <= int(usec.partition("=")[2]) <= time.monotonic_ns() // 1000
            assert "READY=1" in told(manager, "READY=1")
        daemon.process.send_signal(signal.SIGTERM)
        assert told(manager, "STOPPING=1")
    assert daemon.stop() == 0


def test_its_status_says_what_keeps_the_queue_waiting(lab: Lab) -> None:
    lab.write_config(min_free="1000T")
    lab.archive()
    with notify_socket(str(lab.root / "notify")) as manager:
        lab.env["NOTIFY_SOCKET"] = str(lab.root / "notify")
        with lab.running():
            lab.drop("a")
            until(lambda: "min_free" in told(manager, "STATUS=")[-1])


@pytest.mark.parametrize("place", ["PATH", "@watcherd-test-PID"], ids=["a path", "abstract"])
def test_a_message_is_one_datagram(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    address = place.replace("PATH", str(tmp_path / "notify")).replace("PID", str(os.getpid()))
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with notify_socket(address) as manager:
        assert service.notify("READY=1", "STATUS=fine")
        assert manager.recv(4096) == b"READY=1\nSTATUS=fine"


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "relative"])
def test_where_nobody_listens_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not service.notify("READY=1")


def test_a_manager_that_does_not_listen_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SEND_SECONDS", 0.1)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with notify_socket(str(tmp_path / "notify")):
        assert not all(service.notify("WATCHDOG=1") for _ in range(5000)), "its queue never fills"


def test_without_a_descriptor_left_nobody_is_told_and_nothing_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with notify_socket(str(tmp_path / "notify")):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            told = service.notify("WATCHDOG=1")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert not told
        assert service.notify("WATCHDOG=1")


# -- SIGTERM ------------------------------------------------------------------------------------


def crawl(cloud: Cloud) -> None:
    cloud.slow(10_000)


def hang(cloud: Cloud) -> None:
    cloud.stall(1000, 60, times=None)


def fail(cloud: Cloud) -> None:
    cloud.fail("any", 503, times=None, retry_after=30)


def waiting(lab: Lab) -> list[Waiting]:
    return [w for w in map(Waiting.parse, lab.spool("waiting")) if w]


def active_ids(lab: Lab) -> set[str]:
    return {claim.id for claim in map(Claim.parse, lab.spool("active")) if claim}


@pytest.mark.parametrize(
    ("trouble", "number"),
    [
        pytest.param(crawl, signal.SIGTERM, id="a slow download"),
        pytest.param(hang, signal.SIGTERM, id="one that hangs"),
        pytest.param(fail, signal.SIGTERM, id="one between two tries"),
        pytest.param(fail, signal.SIGINT, id="the same from a terminal"),
    ],
)
def test_a_daemon_that_is_told_to_stop_gives_back_what_it_was_at(
    cloud_lab: tuple[Lab, Cloud], trouble: Callable[[Cloud], None], number: int
) -> None:
    lab, cloud = cloud_lab
    for n in range(3):
        lab.upload(cloud, f"{BUILD}-{n}")
    trouble(cloud)
    daemon = lab.start()
    for n in range(3):
        lab.drop(f"n{n}", f"{BUILD}-{n}", ["test", "base"])
    until(lambda: (len(lab.spool("active")), len(lab.spool("waiting"))) == (2, 1), lab.listing())
    until(lambda: cloud.hits("media") or trouble is fail)
    start = time.monotonic()
    daemon.process.send_signal(number)
    assert daemon.process.wait(60) == 0
    seconds = time.monotonic() - start
    assert [(w.file, w.a) for w in sorted(waiting(lab), key=lambda w: w.file)] == [
        (f"n{n}.yaml", 0) for n in range(3)
    ]
    assert lab.spool("active") == lab.spool("requests") == lab.spool("instances") == []
    assert os.listdir(lab.root / "static/.stager/work") == []
    assert "Traceback" not in daemon.log
    assert daemon.log.count("given back: this instance ends") == 2
    # An answer that has not begun can only be waited for: until its read times out.
    assert seconds < (TIMEOUT[1] + SOON if trouble is hang else SOON)


def test_what_was_given_back_is_done_by_the_next_daemon(cloud_lab: tuple[Lab, Cloud]) -> None:
    lab, cloud = cloud_lab
    lab.upload(cloud)
    crawl(cloud)
    daemon = lab.start()
    lab.drop("a", images=["test", "base"])
    until(lambda: cloud.hits("media"))
    daemon.process.send_signal(signal.SIGTERM)
    cloud.clear_faults()
    assert daemon.stop() == 0
    with lab.running():
        result = lab.result("a")
    assert (result["state"], result["attempts"]) == ("staged", "1")
    assert lab.is_clean()


# -- SIGHUP -------------------------------------------------------------------------------------


def reload(daemon: Daemon, expected: str) -> None:
    """Send SIGHUP and wait until the daemon has said what came of it, anew."""
    before = daemon.log.count(expected)
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: daemon.log.count(expected) > before, expected)


def test_a_good_configuration_takes_effect_without_a_restart(lab: Lab) -> None:
    build = "gs://other-bucket/a/b"
    lab.archive(build)
    with lab.running() as daemon:
        assert lab.result(lab.drop("a", build))["error"]["code"] == "bucket_not_allowed"
        lab.settings["archive"]["buckets"] = [BUCKET, "other-bucket"]
        lab.write_config(static_url="http://lab-7/static")
        reload(daemon, "the configuration was read again")
        result = lab.result(lab.drop("b", build))
    assert result["state"] == "staged"
    assert result["images"]["test"]["url"].startswith("http://lab-7/static/images/a/b/")


def test_more_workers_take_up_what_waits_and_running_jobs_go_on(
    cloud_lab: tuple[Lab, Cloud],
) -> None:
    lab, cloud = cloud_lab
    lab.write_config(workers=1)
    for n in range(3):
        lab.upload(cloud, f"{BUILD}-{n}")
    crawl(cloud)
    with lab.running() as daemon:
        for n in range(3):
            lab.drop(f"n{n}", f"{BUILD}-{n}")
        until(lambda: (len(lab.spool("active")), len(lab.spool("waiting"))) == (1, 2))
        running = active_ids(lab)
        lab.write_config(workers=2)
        reload(daemon, "the configuration was read again")
        until(lambda: len(active_ids(lab)) == 2)
        assert running < active_ids(lab)
        lab.write_config(workers=1)
        reload(daemon, "the configuration was read again")
        cloud.clear_faults()
        assert {lab.result(f"n{n}")["state"] for n in range(3)} == {"staged"}
    assert lab.is_clean()


def test_jobs_begun_before_a_reload_are_given_back_too(cloud_lab: tuple[Lab, Cloud]) -> None:
    lab, cloud = cloud_lab
    lab.upload(cloud)
    crawl(cloud)
    daemon = lab.start()
    lab.drop("a")
    until(lambda: cloud.hits("media"))
    reload(daemon, "the configuration was read again")
    daemon.process.send_signal(signal.SIGTERM)
    until(lambda: "stopped" in daemon.log or not lab.spool("instances"))
    assert [(w.file, w.a) for w in waiting(lab)] == [("a.yaml", 0)], "it signed off too early"
    assert daemon.process.wait(30) == 0


def test_signals_at_any_moment_never_hang_it(lab: Lab) -> None:
    lab.archive()
    chance = random.Random(0)
    with lab.running() as daemon:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            daemon.process.send_signal(signal.SIGHUP)
            next_one = time.monotonic() + chance.uniform(0, 0.0006)
            while time.monotonic() < next_one:
                os.sched_yield()
        assert lab.result(lab.drop("a"), 10)["state"] == "staged"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param("worker: 3", "{config}:1:1: `worker`: unknown key", id="an unknown key"),
        pytest.param("spool: [", "{config}:", id="no YAML"),
        pytest.param("settle: 1s\nworkers: 0", "{config}:2:1: `workers`", id="a bad value"),
        pytest.param("spool: {root}/other\nstatic: {root}/static\nresults: {root}/results",
                     "can't change while the daemon runs", id="another spool"),
        pytest.param("SETTINGS lease: 77s", "set lease: 2", id="another lease"),
        pytest.param(None, "can't read the configuration", id="no file"),
    ],
)  # fmt: skip
def test_a_bad_configuration_changes_nothing_and_is_told(
    lab: Lab, change: str | None, said: str
) -> None:
    lab.archive()
    with lab.running() as daemon:
        if change is None:
            lab.config.unlink()
        elif change.startswith("SETTINGS"):
            lab.write_config(**dict([change.removeprefix("SETTINGS ").split(": ")]))
        else:
            lab.config.write_text(change.format(root=lab.root) + "\n")
        reload(daemon, "the configuration stays as it was")
        assert said.format(config=lab.config) in daemon.log
        assert lab.result(lab.drop("a"))["state"] == "staged"
