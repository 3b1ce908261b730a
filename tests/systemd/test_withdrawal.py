"""What `make uninstall` takes away, and what it leaves; the last of these tests."""

import os

import pytest
from lab.machine import Machine

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
