"""What a program or a running daemon cost: CPU, wall, memory, disk."""

import os
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20
LOOK_SECONDS = 0.1


@dataclass(slots=True)
class Cost:
    """One run. Seconds and MiB; memory is the largest process's peak."""

    wall: float = 0.0
    cpu: float = 0.0
    memory: float = 0.0
    sent: float = 0.0
    disk: float = 0.0


@dataclass(slots=True)
class Runs:
    """All rounds of one contestant."""

    costs: list[Cost] = field(default_factory=list)

    def median(self, what: str) -> float:
        """Return the median of a measure over the rounds."""
        return float(statistics.median(getattr(cost, what) for cost in self.costs))

    def view(self) -> dict[str, float]:
        """Return all medians."""
        names = ("wall", "cpu", "memory", "sent", "disk")
        return {name: round(self.median(name), 3) for name in names}


def ratio(one: Runs, other: Runs, what: str) -> float:
    """Return the median of the rounds' own ratios: one round's load hits both alike."""
    pairs = zip(one.costs, other.costs, strict=True)
    ratios = (getattr(a, what) / max(getattr(b, what), 1e-9) for a, b in pairs)
    return float(statistics.median(ratios))


def blocks(directory: Path) -> int:
    """Return the bytes on disk that the files below a directory take; each inode once."""
    seen: dict[int, int] = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                info = os.lstat(os.path.join(folder, name))
            except FileNotFoundError:
                continue
            seen[info.st_ino] = info.st_blocks * 512
    return sum(seen.values())


@contextmanager
def disk_peak(directory: Path, cost: Cost) -> Iterator[None]:
    """Find how much more than in the end the files below a directory took meanwhile."""
    ended, most = threading.Event(), [0]

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            most[0] = max(most[0], blocks(directory))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    cost.disk = max(0, most[0] - blocks(directory)) / MIB


def run(command: Sequence[str | Path], env: dict[str, str], log: Path) -> Cost:
    """Run a program to its end, its children included; raise where it fails."""
    began = time.monotonic()
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **env})
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - began
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed ({process.returncode}): {log.read_text()[-2000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def cpu_seconds(pid: int) -> float:
    """Return what a process has used so far, all its threads, ended ones too."""
    # The kernel's name of another process's CPU clock (clock_getcpuclockid).
    return time.clock_gettime((~pid << 3) | 2)


def memory(pid: int, field: str = "VmHWM") -> float:
    """Return a process's peak (VmHWM) or present (VmRSS) memory in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise LookupError(field)


def forget_peak(pid: int) -> None:
    """Let the peak begin at what is used now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that so many per cent are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def until(true: Callable[[], bool], seconds: float, step: float = 0.005) -> None:
    """Wait until something is so; raise TimeoutError where it is not in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"not so after {seconds:.0f} s")
        time.sleep(step)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours."""
    process.send_signal(signal.SIGTERM)
    process.wait(30)
