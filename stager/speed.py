"""How fast a filesystem does what a request costs: figures for a person to compare."""

import os
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stager import durable
from stager.meeting import open_dir

BUDGET_SECONDS = 1.0
LINKING_SECONDS = 3.0
MOST, LISTED, LOOKS = 200, 1000, 20
DATA = b"x" * 512


@dataclass(frozen=True, slots=True)
class Pace:
    """How often in a second, and how long one takes in the middle."""

    times: int
    per_second: float
    median_ms: float


def measure(room: Path) -> dict[str, dict[str, Any]]:
    """Measure in a directory of one's own; each verb for about a second at most."""
    for name in ("from", "to", "many"):
        open_dir(room / name)
    source, target, many, file = room / "from", room / "to", room / "many", room / "file"
    durable.write_new(file, DATA, sync=False)
    paces = {"create + sync": _pace(MOST, lambda n: durable.write_new(source / str(n), DATA))}
    made = paces["create + sync"].times
    paces["rename"] = _pace(made, lambda n: os.rename(source / str(n), target / str(n)))
    with suppress(OSError):
        # Where there are no links, solo.py says so.
        paces["link"] = _pace(LISTED, lambda n: os.link(file, many / str(n)), LINKING_SECONDS)
    names = len(os.listdir(many))
    paces[f"list {names} names"] = _pace(LOOKS, lambda _: os.listdir(many))
    paces["touch + list"] = _pace(LOOKS, lambda _: durable.listing(many))
    return {what: asdict(pace) for what, pace in paces.items()}


def _pace(most: int, call: Callable[[int], object], budget: float = BUDGET_SECONDS) -> Pace:
    times: list[float] = []
    end = time.perf_counter() + budget
    for number in range(most):
        start = time.perf_counter()
        if start > end:
            break
        call(number)
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    return Pace(len(times), _rounded(len(times) / sum(times)), _rounded(1000 * median))


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
