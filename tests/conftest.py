"""Fixtures for all tests."""

import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cloud import Cloud
from lab import Lab
from lab.machine import Machine, installed
from reach import open_the_way


@pytest.fixture(scope="session", autouse=True)
def programs_are_reachable() -> None:
    """Let other users run this checkout's programs."""
    open_the_way()


@pytest.fixture
def public_dir() -> Iterator[Path]:
    """Return a temporary directory that every user can reach (pytest's own are private)."""
    path = Path(tempfile.mkdtemp(prefix="watcherd-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def lab(public_dir: Path) -> Iterator[Lab]:
    """Return an initialised set of directories; daemons that a test leaves running are killed."""
    made = Lab(public_dir)
    yield made.init()
    made.end()


@pytest.fixture
def cloud_lab(public_dir: Path) -> Iterator[tuple[Lab, Cloud]]:
    """Return a lab whose archives come from a Cloud Storage server on loopback."""
    with Cloud() as cloud:
        made = Lab(public_dir, {"archive": {"source": "gcs"}}, {"STORAGE_EMULATOR_HOST": cloud.url})
        yield made.init(), cloud
        made.end()


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """Return a machine with a real systemd and watcherd, installed there by `make install`."""
    with installed() as made:
        yield made


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Fail a test that leaves a thread running."""
    before = set(threading.enumerate())
    yield
    left = [t for t in threading.enumerate() if t not in before and not t.daemon]
    assert not left, f"threads left running: {left}"


@pytest.fixture
def said(request: pytest.FixtureRequest) -> Iterator[list[object]]:
    """Return a list: what a test puts into it is printed when all tests have run."""
    lines: list[object] = []
    yield lines
    request.node.user_properties += [("said", str(line)) for line in lines]


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Iterator[Counter[str]]:
    """Return counts: those of all tests are added up, and printed when all have run."""
    counts = Counter[str]()
    yield counts
    request.node.user_properties += [("counted", item) for item in counts.items()]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests had to say, of all workers together."""
    told: dict[str, list[Any]] = {"said": [], "counted": []}
    # What fixtures say is told by the report of their end, which is counted as nothing.
    for report in terminalreporter.getreports(""):
        for name, value in report.user_properties:
            told.get(name, []).append(value)
    total = Counter[str]()
    for what, number in told["counted"]:
        total[what] += number
    lines = sorted(told["said"] + [f"{what}: {number}" for what, number in total.items()])
    if lines:
        terminalreporter.section("said")
    for line in lines:
        terminalreporter.write_line(line)
