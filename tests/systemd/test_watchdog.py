"""What ends a daemon that stands still, and what does not: storage that hangs."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from lab import until
from lab.machine import Machine
from lab.service import Service
from lab.stopped import stopped_thread, threads

pytestmark = [pytest.mark.xdist_group("systemd"), pytest.mark.timeout(600)]
WATCHED = "WatchdogSec=4s\nTimeoutAbortSec=2s\n"


def restarted(service: Service) -> None:
    until(lambda: service.show("NRestarts") == "1", "a restart")
    until(lambda: service.show("ActiveState") == "active")


def test_a_process_that_is_stopped_is_started_again(machine: Machine) -> None:
    machine.archive()
    service = machine.service("sigstop", WATCHED)
    service.start()
    service.send(signal.SIGSTOP)
    restarted(service)
    assert "Watchdog timeout" in service.log()
    assert service.result(service.drop())["state"] == "staged"
    service.stop()


def test_a_loop_that_stands_still_ends_the_daemon(machine: Machine) -> None:
    service = machine.service("loop", WATCHED)
    service.start()
    with stopped_thread(service.host_pid):
        restarted(service)
    said = [e for e in service.journal() if "the daemon's loop has stood still" in e["MESSAGE"]]
    assert "watcherd.py:" in said[0]["MESSAGE"]
    assert said[0]["PRIORITY"] == "2"
    assert len(said) == 1, said
    service.stop()


def test_a_worker_that_stands_still_ends_the_daemon_and_its_request_goes_on(
    machine: Machine,
) -> None:
    with machine.cloud() as cloud:
        settings = machine.reading(cloud)
        settings["unit"] += WATCHED
        service = machine.service("worker", **settings)
        service.start()
        before = threads(service.host_pid)
        name = service.drop()
        until(lambda: cloud.hits("media"))
        [worker] = threads(service.host_pid) - before
        with stopped_thread(worker):
            restarted(service)
        assert "a worker has stood still for " in service.log()
        cloud.clear_faults()
        result = service.result(name)
        assert (result["state"], result["attempts"]) == ("staged", "2")
        service.stop()


@contextmanager
def frozen(machine: Machine, service: Service) -> Iterator[None]:
    """Have writes to a service's filesystem hang, as a hard NFS mount without its server does."""
    machine.run("fsfreeze", "--freeze", str(service.inside))
    try:
        yield
    finally:
        machine.run("fsfreeze", "--unfreeze", str(service.inside))


def test_storage_that_hangs_is_said_and_waited_out_with_the_download(machine: Machine) -> None:
    with machine.cloud() as cloud:
        settings = machine.reading(cloud)
        settings["unit"] += WATCHED
        service = machine.service("frozen", **settings)
        mount = machine.disk(service)
        service.start()
        pid, name = service.pid, service.drop()
        until(lambda: cloud.hits("media"))
        with frozen(machine, service):
            said = " does not answer since "
            until(lambda: said in service.show("StatusText"), "the outage is told")
            over = time.monotonic() + 3 * 4.0
            until(lambda: time.monotonic() > over or service.show("NRestarts") != "0")
            assert (service.show("ActiveState"), service.pid) == ("active", pid)
        until(lambda: said not in service.show("StatusText"), "the end is told")
        cloud.clear_faults()
        result = service.result(name)
        assert (result["state"], result["attempts"]) == ("staged", "1")
        assert (service.show("NRestarts"), service.pid) == ("0", pid)
        log = service.log()
        assert (log.count(said), log.count("storage answers again after")) == (1, 1), log
        service.stop()
        machine.systemctl("stop", mount)
