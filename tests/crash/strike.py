"""Kills a daemon at a chosen call, starts it again, and says what each run did.

`killer.c` counts the calls and kills; `nest.py` forks the daemons. Both are real: a kill ends a
process in the middle of what it does, with nothing cleaned up.
"""

import itertools
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import ROOT, Lab, until

HERE = Path(__file__).parent
RUN_SECONDS = 60.0
DONE_SECONDS = 60.0
KILLED = "killed"
_numbers = itertools.count()
CALLS = {
    "open": "open for writing",
    "pwrite64": "write",
    "linkat": "link",
    "unlinkat": "unlink",
    "ftruncate64": "truncate",
    "utimensat": "utime",
    "fchmod": "chmod",
}
"""What a call is named in tables, where that is not the C library's name."""
_RANDOM = (
    (re.compile(r"\d{19}-[a-z2-7]{6}"), "?" * 19 + "-??????"),
    (re.compile(r"[A-Za-z0-9-]+-[a-z2-7]{6}(?=[./]|$)"), "*-??????"),
    (re.compile(r"(?<=/p\d\.)\d{10}(?=\.u\d)"), "?" * 10),
    (re.compile(r"(?<=[./])[a-z2-7]{16}(?=\.)"), "?" * 16),
    (re.compile(r"(?<=[./~])[a-z2-7]{8}(?=[./~]|--|$)"), "????????"),
)
"""Ids, instances, due times and nonces, and the pattern that stands for each."""


@dataclass(frozen=True, slots=True, order=True)
class Step:
    """A step of the work, the same in every run: the nth call whose path fits a pattern."""

    function: str
    pattern: str
    nth: int

    @property
    def kind(self) -> str:
        return CALLS.get(self.function, self.function)

    def __str__(self) -> str:
        return f"{self.kind} {self.pattern}, the {self.nth}."


def read_trace(trace: Path, root: Path) -> list[Step]:
    """Return the calls that were made, as steps."""
    seen = Counter[tuple[str, str]]()
    steps = []
    for line in trace.read_text().splitlines():
        if line == KILLED:
            continue
        _, function, path = line.split(" ", 2)
        pattern = path.removeprefix(f"{root}/")
        for random, stand_in in _RANDOM:
            pattern = random.sub(stand_in, pattern)
        seen[function, pattern] += 1
        steps.append(Step(function, pattern, seen[function, pattern]))
    return steps


@dataclass(frozen=True, slots=True)
class Run:
    """What became of one daemon; `struck`: it was killed where it should be."""

    status: int
    steps: list[Step]
    struck: bool
    log: str
    seconds: float = 0.0
    """From its start until all was done, where that was waited for."""


def build_killer(directory: Path) -> str:
    """Compile what is preloaded."""
    libraries = []
    for name in ("killer", "journal"):
        library = directory / f"{name}.so"
        command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"]
        subprocess.run([*command, str(library), str(HERE / f"{name}.c"), "-ldl"], check=True)
        libraries.append(str(library))
    return ":".join(libraries)


def environment(lab: Lab, at: Step | None = None, term: int = 0) -> dict[str, str]:
    """Return what has a daemon's calls counted, and it killed before a step, or told to stop."""
    below = ":".join(str(lab.root / name) for name in ("spool", "static", "results"))
    env = {"CRASH_BELOW": below, "CRASH_TRACE": str(lab.root / "trace"), "CRASH_TERM": str(term)}
    if at is not None:
        env["CRASH_ON"] = f"{at.function} {lab.root}/{at.pattern}"
        env["CRASH_NTH"] = str(at.nth)
    return env


@dataclass
class Nest:
    """The process that forks daemons."""

    library: str
    process: subprocess.Popen[bytes] = field(init=False)
    _unread: bytes = b""

    def __post_init__(self) -> None:
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("STAGER_", "COV_CORE"))}
        keep.pop("COVERAGE_PROCESS_CONFIG", None)
        path = f"{ROOT}:{HERE}"
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "nest.py")], bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=keep | {"LD_PRELOAD": self.library, "PYTHONPATH": path},
        )  # fmt: skip

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait(RUN_SECONDS)
        self.process.stdout.close()

    def run(
        self, lab: Lab, *options: str, env: dict[str, str] | None = None, machine: str = "",
        until_done: Callable[[], bool] | None = None,
    ) -> Run:  # fmt: skip
        """Run a daemon to its end; where `until_done` is given, SIGTERM ends it when that is so."""
        assert self.process.stdin
        log = lab.root / f"daemon-{next(_numbers)}.log"
        order: dict[str, Any] = {
            "argv": ["--config", str(lab.config), *options],
            "env": lab.env | (env or {}), "log": str(log), "machine": machine,
        }  # fmt: skip
        trace = Path((env or {}).get("CRASH_TRACE", lab.root / "no trace"))
        trace.unlink(missing_ok=True)
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        pid = int(self._line(RUN_SECONDS))
        began = seconds = time.monotonic()
        try:
            if until_done:
                until(
                    lambda: log.exists() and "watching the drop box" in log.read_text(), "a start"
                )
                until(until_done, f"the end: {lab.listing()}", DONE_SECONDS)
                seconds = time.monotonic()
                os.kill(pid, signal.SIGTERM)
            status = int(self._line(RUN_SECONDS))
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            self._line(RUN_SECONDS)
            raise
        steps = read_trace(trace, lab.root) if trace.is_file() else []
        struck = trace.is_file() and KILLED in trace.read_text().splitlines()
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert struck == killed, f"wait status {status}"
        return Run(status, steps, struck, log.read_text(), seconds - began)

    def _line(self, seconds: float) -> str:
        assert self.process.stdout
        end = time.monotonic() + seconds
        while b"\n" not in self._unread:
            left = max(0.0, end - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                raise AssertionError(f"the daemon did not end within {seconds} s")
            self._unread += os.read(self.process.stdout.fileno(), 4096)
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()


@contextmanager
def nests(library: str, number: int) -> Iterator[list[Nest]]:
    """Have processes that fork daemons for the length of a block."""
    made = [Nest(library) for _ in range(number)]
    try:
        yield made
    finally:
        for nest in made:
            nest.close()
