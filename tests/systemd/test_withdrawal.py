"""What `make uninstall` takes away, what it leaves, and back again; the last of these tests."""

import os

import pytest
from lab.machine import Machine
from lab.service import Service

pytestmark = [pytest.mark.xdist_group("systemd"), pytest.mark.timeout(600)]


def test_uninstall_leaves_configuration_and_data_and_nothing_else(machine: Machine) -> None:
    machine.service("leaves").start()
    before = set(os.listdir(machine.root / "etc/stager"))
    machine.make("uninstall")
    left = machine.run(
        "find", "/opt", "/usr/local", "/etc", "/run/systemd/generator", "-name", "*watcherd*"
    ).stdout.split()
    left += machine.run("find", "/usr/local", "-name", "*stager*").stdout.split()
    assert left == []
    assert machine.run("pgrep", "-u", "stager", check=False).stdout == ""
    assert set(os.listdir(machine.root / "etc/stager")) == before
    assert (machine.root / "srv/watcherd/leaves/spool/LAYOUT").exists()
    assert machine.run("id", "-u", "stager").returncode == 0


def test_installed_again_it_runs_as_the_user_that_the_spool_belongs_to(machine: Machine) -> None:
    machine.archive()
    machine.run("userdel", "stager")
    base = "/srv/watcherd/leaves"
    marks = [f"{base}/{mark}" for mark in ("spool/LAYOUT", "static/.stager/LAYOUT",
                                           "results/.layout")]  # fmt: skip
    machine.run("chown", "-R", "4711:4711", base)
    machine.run("sed", "-i", "s/^uid: .*/uid: 4711/", *marks)
    assert "is uid 4711 " in machine.make("install", INSTANCE="leaves").stdout
    assert machine.run("id", "-u", "stager").stdout == "4711\n"
    service = Service(machine, "leaves")
    service.start()
    assert service.result(service.drop())["state"] == "staged"
    service.stop()
    machine.make("uninstall")
