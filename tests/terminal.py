"""A terminal for the client commands, and what they draw there."""

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from lab import DEADLINE, Lab

COLUMNS = 118


def drawn(
    lab: Lab,
    *words: str,
    seconds: float = DEADLINE,
    enough: Callable[[str], bool] = lambda _: False,
) -> str:
    """Run a client command on a terminal of its own; return what it drew there.

    It is ended after `seconds`, or when that is `enough`.
    """
    master, slave = pty.openpty()
    pieces: list[bytes] = []
    command = [sys.executable, "-m", "stager.cli", words[0], "--config", str(lab.config)]
    env = lab.environment() | {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": "40"}
    process = subprocess.Popen(
        [*command, *words[1:]], stdin=slave, stdout=slave, stderr=slave, env=env
    )
    os.close(slave)
    end = time.monotonic() + seconds
    with suppress(OSError):  # its end
        while (left := end - time.monotonic()) > 0 and not enough(
            b"".join(pieces).decode(errors="replace")
        ):
            if select.select([master], [], [], left)[0]:
                pieces.append(os.read(master, 65536))
    process.terminate()
    process.wait(DEADLINE)
    os.close(master)
    return b"".join(pieces).decode().replace("\r\n", "\n")
