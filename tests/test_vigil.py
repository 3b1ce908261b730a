"""What the vigil takes for a fault of ours, and what for storage that hangs."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import until

from stager import vigil
from stager.progress import Sign
from stager.vigil import Vigil


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
