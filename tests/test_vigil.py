"""What the vigil takes for a fault of ours, and what for storage that hangs."""

import ctypes
import fcntl
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab import DEADLINE, FILES, Lab, until
from structlog.testing import capture_logs
from test_archive import Memory, in_memory

from stager import fetch, vigil
from stager.ahead import Check
from stager.config import load_config
from stager.fetch import Fetching, Room
from stager.progress import Progress, Sign
from stager.vigil import Vigil

libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Listen as systemd does, with a watchdog of 1 s: a look each 0.1 s."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(str(tmp_path / "notify"))
        s.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "1000000")
        yield s


def told(manager: socket.socket) -> list[str]:
    """Return the lines that came since; the socket holds but a few."""
    lines: list[str] = []
    while True:
        try:
            lines += manager.recv(4096).decode().splitlines()
        except BlockingIOError:
            return lines


def looks(keeper: Vigil, count: int, manager: socket.socket) -> list[str]:
    """Have it look so often; return what the manager is told."""
    lines: list[str] = []
    for _ in range(count):
        keeper.look()
        lines += told(manager)
    return lines


def standing_still() -> Sign:
    sign = Sign("a worker")
    sign.step()
    return sign


def test_a_thread_that_stands_still_while_storage_answers_is_told_of_once(
    manager: socket.socket,
) -> None:
    sign = standing_still()
    keeper = Vigil(dict, lambda: [sign], lambda: "fine")
    assert set(looks(keeper, 11, manager)) == {"WATCHDOG=1", "STATUS=fine"}
    lines = looks(keeper, 5, manager)
    assert lines.count("WATCHDOG=trigger") == 1
    assert "WATCHDOG=1" not in lines
    sign.step()
    keeper.look()
    assert "WATCHDOG=1" in told(manager)


@pytest.mark.parametrize("move", [Sign.step, lambda sign: sign.rest(60)], ids=["steps", "rests"])
def test_a_thread_that_gets_on_or_rests_is_left_alone(manager: socket.socket, move: object) -> None:
    assert callable(move)
    sign = standing_still()
    keeper = Vigil(dict, lambda: [sign], lambda: "fine")
    lines = []
    for _ in range(40):
        move(sign)
        lines += looks(keeper, 1, manager)
    assert "WATCHDOG=trigger" not in lines
    assert lines.count("STATUS=fine") == 1, "told again without news"


def test_while_storage_hangs_nobody_is_to_blame(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vigil, "OUTAGE_SECONDS", 0.2)
    sign, answers = standing_still(), threading.Event()
    keeper = Vigil(lambda: {"spool": answers.wait}, lambda: [sign], lambda: "fine")
    with keeper:
        until(lambda: "STATUS=spool does not answer since" in "".join(told(manager)))
        for _ in range(3):
            until(lambda: "WATCHDOG=1" in told(manager))
        assert "WATCHDOG=trigger" not in looks(keeper, 30, manager)
        answers.set()
        until(lambda: "STATUS=fine" in told(manager))
        # It still stands still: now it is to blame, but only from now on.
        until(lambda: "WATCHDOG=trigger" in told(manager))


def test_an_error_is_an_answer(manager: socket.socket) -> None:
    sign = standing_still()
    keeper = Vigil(lambda: {"spool": lambda: os.stat("/nowhere")}, lambda: [sign], lambda: "fine")
    with keeper:
        until(lambda: "WATCHDOG=trigger" in told(manager))


def test_a_look_that_fails_is_said_and_not_the_last(manager: socket.socket) -> None:
    looked: list[int] = []

    def signs() -> list[Sign]:
        looked.append(1)
        if len(looked) < 3:
            raise RuntimeError("can't start new thread")
        return []

    with capture_logs() as said, Vigil(dict, signs, lambda: "fine"):
        until(lambda: "WATCHDOG=1" in told(manager))
    assert [entry["log_level"] for entry in said] == ["error", "error"]


# -- threads that work for another ----------------------------------------------------------------


@contextmanager
def sleeping_for_a_disk(sign: Sign, program: Path) -> Iterator[None]:
    """Have a thread work for the one of `sign`, in an uninterruptible sleep.

    It waits for a child's exec, and that for a lease on the program's file.
    """
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    pid, words = ctypes.c_int(), (ctypes.c_char_p * 2)(bytes(program), None)

    def spawn() -> None:
        with sign.helped():
            libc.posix_spawn(ctypes.byref(pid), bytes(program), None, None, words, None)

    before = signal.signal(signal.SIGIO, lambda *_: None)  # says that the lease is in the way
    thread, file = threading.Thread(target=spawn), os.open(program, os.O_RDONLY)
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        thread.start()
        until(lambda: thread.native_id and vigil._waits_for_storage(thread.native_id), "asleep")
        yield
    finally:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(file)
        thread.join()
        os.waitpid(pid.value, 0)
        signal.signal(signal.SIGIO, before)


def test_a_thread_whose_helper_waits_for_a_disk_is_not_to_blame(
    manager: socket.socket, tmp_path: Path
) -> None:
    sign = standing_still()
    keeper = Vigil(dict, lambda: [sign], lambda: "fine")
    with sleeping_for_a_disk(sign, tmp_path / "program"):
        assert "WATCHDOG=trigger" not in looks(keeper, 30, manager)
    assert "WATCHDOG=trigger" in looks(keeper, 15, manager)


class Hanging(Memory):
    """A reader with a fault: it never comes back while it is told to hang."""

    goes_on = threading.Event()

    def read(self, start: int, end: int, check: Check, most: int) -> Iterator[bytes]:
        assert self.goes_on.wait(DEADLINE)
        return super().read(start, end, check, most)


def test_where_a_member_stands_still_is_what_is_told(
    manager: socket.socket, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "SIDE_BY_SIDE", 2)
    lab.archive()
    config, progress = load_config(lab.config, {}), Progress()
    data = lab.archive_path().read_bytes()
    directory, archive = in_memory(Memory(data)).directory(), in_memory(Hanging(data))
    members = {image: directory.member(FILES[image]) for image in ("test", "base")}
    outcomes: list[tuple[str, object]] = []

    def work() -> None:
        progress.sign.step()
        with lab.peer().locks.take("key") as token:
            fetching = Fetching(token, archive, Room(config.static, config), progress, members)
            outcomes.extend(fetching.fetched())

    worker = threading.Thread(target=work)
    worker.start()
    until(lambda: len(progress.sign.helpers) == 2, "members under way")
    with capture_logs() as said:
        assert "WATCHDOG=trigger" in looks(Vigil(dict, lambda: [progress.sign], str), 15, manager)
    Hanging.goes_on.set()
    worker.join(DEADLINE)
    assert re.search(r"test_vigil\.py:\d+ read > ", said[0]["traceback"])
    assert [image for image, file in outcomes if isinstance(file, tuple)] == [*members]
