"""A spool that does not work when the daemon starts, or when it begins anew."""

import threading

import pytest
from lab import Lab, until
from lab.faults import Sickness

from stager.config import load_config
from stager.server import Server
from stager.watch import Wake


@pytest.mark.parametrize(
    ("call", "area", "error", "code"),
    [
        pytest.param("open", "spool", "EIO", 1, id="layout-EIO"),
        pytest.param("read", "spool", "ESTALE", 1, id="layout-ESTALE"),
        pytest.param("open", "spool", "EACCES", 2, id="layout-EACCES"),
        pytest.param("create", "tmp", "ENOSPC", 1, id="tmp-ENOSPC"),
        pytest.param("create", "static-tmp", "EROFS", 1, id="static-EROFS"),
        pytest.param("link", "tmp", "EPERM", 2, id="no-hard-links"),
        pytest.param("rename", "results", "EXDEV", 2, id="two-filesystems"),
        pytest.param("rename", "instances", "EIO", 1, id="instances-EIO"),
        pytest.param("utime", "instances", "ETIMEDOUT", 1, id="instances-ETIMEDOUT"),
        pytest.param("opendir", "instances", "ESTALE", 1, id="instances-ESTALE"),
        pytest.param("stat", "requests", "EIO", 1, id="requests-EIO"),
    ],
)
def test_a_fault_at_the_start_is_said_with_the_exit_code_that_fits(
    lab: Lab, call: str, area: str, error: str, code: int
) -> None:
    sickness = Sickness(lab)
    sickness.on(call, area, error)
    daemon = lab.start(wait=False)
    assert daemon.process.wait(30) == code, daemon.log
    assert sickness.struck()
    assert "Traceback" not in daemon.log
    assert 1 <= daemon.log.count("\n") <= 3, daemon.log
    sickness.off()
    lab.archive()
    with lab.running():
        assert lab.ask()["state"] == "staged"


def test_a_buried_instance_waits_until_it_can_begin_anew(lab: Lab) -> None:
    sickness = Sickness(lab)
    lab.archive()
    with lab.running() as daemon:
        sickness.on("create", "tmp", "ENOSPC")
        lab.bury(lab.instances()[0])
        daemon.await_log("it begins anew")
        daemon.await_log("the spool does not work: ")
        lab.drop("one")
        sickness.off()
        assert lab.result("one")["state"] == "staged"
        until(lambda: len(lab.instances()) == 1, "one instance")
    assert daemon.log.count("the spool does not work: ") == 1


def test_an_instance_that_is_given_up_leaves_no_thread(lab: Lab) -> None:
    def running() -> set[str]:
        return {thread.name for thread in threading.enumerate()} & {"heartbeat", "board", "worker"}

    server = Server(load_config(lab.config, {}), Wake())
    server.start()
    assert running() == {"heartbeat", "board"}
    server.abandon()
    until(lambda: not running(), "else it would go on writing the status page")
