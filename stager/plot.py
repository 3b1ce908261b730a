"""The last day in slices: how it is kept, and how it is drawn. Lost history is no fault."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stager.snapshot import Board, SamplePart, Snapshot

DAY_SECONDS = 86400
SLICE_SECONDS = 300
WIDTH, HEIGHT = 288, 60


@dataclass(slots=True)
class History:
    """Slices of the last day, the current one at the end."""

    samples: list[SamplePart] = field(default_factory=list)
    counted: dict[str, tuple[int, int, int]] | None = None
    """What each instance had counted when it was last looked at; None: that is not known."""

    def load(self, data: Any, newborn: str = "") -> None:
        """Go on from what a status.json says; one that is odd is as good as none.

        `newborn`: an instance that has counted nothing before now.
        """
        try:
            board = Board.model_validate(data)
        except (ValueError, RecursionError):
            self.counted = {newborn: (0, 0, 0)} if newborn else None
            return
        self.counted = board.counted
        self.samples = sorted(board.history, key=lambda sample: sample.time)[-WIDTH:]

    def note(self, snapshot: Snapshot, counted: dict[str, dict[str, Any]], now: float) -> None:
        """Take in a look at the spool, and what the instances have counted since their start."""
        start = int(now) // SLICE_SECONDS * SLICE_SECONDS
        if not self.samples or self.samples[-1].time < start:
            self.samples.append(SamplePart(time=start))
        while self.samples[0].time <= start - DAY_SECONDS:
            del self.samples[0]
        current = self.samples[-1]
        current.waiting = max(current.waiting, snapshot.counts.waiting)
        current.active = max(current.active, snapshot.counts.active)
        totals = {inst: _totals(data) for inst, data in counted.items()}
        for inst, total in totals.items():
            # Who began after the last look began with nothing.
            before = total if self.counted is None else self.counted.get(inst, (0, 0, 0))
            grown = [max(0, new - old) for new, old in zip(total, before, strict=True)]
            current.fetched_bytes += grown[0]
            current.good += grown[1]
            current.bad += grown[2]
        self.counted = totals


def _totals(data: dict[str, Any]) -> tuple[int, int, int]:
    answered = data.get("answered", {})
    return data.get("fetched_bytes", 0), answered.get("good", 0), answered.get("bad", 0)


@dataclass(frozen=True, slots=True)
class Plot:
    """A line over the last day, in the coordinates of a box WIDTH by HEIGHT."""

    line: str
    area: str
    peak: float
    peak_time: int
    total: float


def draw(samples: list[SamplePart], now: float, value: Callable[[SamplePart], float]) -> Plot:
    """Draw `value` of each slice as a stepped line; the day ends at `now`."""
    end = int(now) // SLICE_SECONDS * SLICE_SECONDS + SLICE_SECONDS
    slots = [0.0] * WIDTH
    peak_time = 0
    for sample in samples:
        slot = WIDTH - (end - sample.time) // SLICE_SECONDS
        if 0 <= slot < WIDTH:
            slots[slot] = max(0.0, value(sample))
            peak_time = sample.time if slots[slot] >= max(slots) else peak_time
    peak = max(slots)
    points: list[str] = []
    for slot, height in enumerate(slots):
        y = f"{HEIGHT - 2 - (HEIGHT - 4) * height / peak:.1f}" if peak else f"{HEIGHT - 2}"
        if not points or points[-1].split(",")[1] != y:
            points += [f"{slot},{points[-1].split(',')[1]}"] if points else []
            points.append(f"{slot},{y}")
    points.append(f"{WIDTH},{points[-1].split(',')[1]}")
    line = "M" + " L".join(points)
    return Plot(line, f"{line} L{WIDTH},{HEIGHT} L0,{HEIGHT} Z", peak, peak_time, sum(slots))
