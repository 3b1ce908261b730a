"""How fast a filesystem does what a request costs: figures for a person to compare."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stager import durable
from stager.meeting import open_dir

BUDGET_SECONDS = 1.0
MOST = 200
LISTED = 1000


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
    source, target, many = room / "from", room / "to", room / "many"
    durable.write_new(room / "file", b"x" * 512, sync=False)
    paces = {
        "create + sync": _pace(MOST, lambda n: durable.write_new(source / str(n), b"x" * 512)),
    }
    made = paces["create + sync"].times
    paces["rename"] = _pace(made, lambda n: os.rename(source / str(n), target / str(n)))
    paces["link"] = _pace(LISTED, lambda n: os.link(room / "file", many / str(n)), 3.0)
    names = paces["link"].times
    listed = _pace(20, lambda _: os.listdir(many))
    paces[f"list {names} names"] = listed
    paces["touch + list"] = _pace(20, lambda _: durable.listing(many))
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
