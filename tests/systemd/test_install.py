"""`make install` on a clean machine, to a staged image over `systemctl`; upgrade; refusals."""

import pytest
from lab.machine import Machine

pytestmark = [pytest.mark.xdist_group("systemd"), pytest.mark.timeout(600)]


def test_a_clean_machine_stages_an_image_after_the_documented_lines(machine: Machine) -> None:
    machine.archive()
    config = machine.root / "etc/stager/config.yaml"
    text = config.read_text().replace("source: gcs ", "source: directory ")
    config.write_text(text.replace('directory: ""', "directory: /srv/archive"))
    machine.run("runuser", "-u", "stager", "--", "stager", "init")
    machine.systemctl("enable", "--now", "watcherd")
    build = "gs://chromeos-image-archive/x86-alex-release/R23-2811.0.0"
    done = machine.run("runuser", "-u", "nobody", "--", "stager", "submit", build, "test", "--wait")
    assert "state: staged" in done.stdout
    image = "x86-alex-release/R23-2811.0.0/chromiumos_test_image.bin"
    assert (machine.root / "srv/watcherd/static/images" / image).stat().st_size == 300_000
    status = machine.systemctl("status", "watcherd")
    assert 'Status: "0 active, 0 waiting; last scan ' in status
    assert "; inotify" in status
