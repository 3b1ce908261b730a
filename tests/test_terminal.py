"""What a person at a terminal sees while waiting."""

import os
import pty
import re
import subprocess
import sys
import threading

from archives import TEST, make_image
from cloud import Cloud
from lab import BUILD, DEADLINE, Lab


def read_all(fd: int, into: list[bytes]) -> None:
    """Read what a program writes to its terminal, until it has ended."""
    while True:
        try:
            data = os.read(fd, 65536)
        except OSError:
            return
        if not data:
            return
        into.append(data)


def test_waiting_on_a_terminal_shows_progress_with_rate_and_time_left(
    cloud_lab: tuple[Lab, Cloud],
) -> None:
    lab, cloud = cloud_lab
    path = lab.archive_path()
    path.parent.mkdir(parents=True)
    lab.archive(images={TEST: make_image(5, 1_500_000)})
    cloud.put("chromeos-image-archive", "x86-alex-release/R23-2811.0.0/image.zip", path)
    cloud.slow(150_000)
    command = [sys.executable, "-m", "stager.cli", "submit", "--config", str(lab.config)]
    master, slave = pty.openpty()
    seen: list[bytes] = []
    with lab.running():
        reader = threading.Thread(target=read_all, args=(master, seen))
        reader.start()
        done = subprocess.run(
            [*command, BUILD, "test", "--wait"], stdout=subprocess.PIPE, stderr=slave, check=False,
            timeout=DEADLINE, env=lab.environment() | {"TERM": "xterm", "COLUMNS": "160"},
        )  # fmt: skip
        os.close(slave)
        reader.join(DEADLINE)
    os.close(master)
    screen = b"".join(seen).decode()
    assert done.returncode == 0, screen
    assert done.stdout.startswith(b"state: staged\n")
    assert "fetching" in screen
    assert re.search(r"[\d.]+ [kM]?B/s", screen), screen
    assert re.search(r"\d:\d\d:\d\d", screen), screen
