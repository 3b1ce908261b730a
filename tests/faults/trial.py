"""One fault of the matrix, what was seen of it, and what must hold."""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

DWELL_SECONDS = 1.5
CPU_SHARE = 0.4
MOST_LINES = 40


@dataclass
class Trial:
    """One fault, and what was seen of it."""

    call: str
    area: str
    error: str
    struck: int = 0
    requests: int = 0
    waited: int = 0
    said: int = 0
    ended: int = 0
    lines: int = 0
    told: bool = False
    cpu_seconds: float = 0.0
    back_seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    log: str = ""

    HEAD: ClassVar = (
        "room        call      error      struck  requests  waited  said  ended  lines  status  "
        "CPU s  back s"
    )

    def __str__(self) -> str:
        return (
            f"{self.area:<11} {self.call:<9} {self.error:<10} {self.struck:>6} {self.requests:>9} "
            f"{self.waited:>7} {self.said:>5} {self.ended:>6} {self.lines:>6}  "
            f"{'said' if self.told else '-':<6} {self.cpu_seconds:>6.2f} {self.back_seconds:>7.1f}"
            f"  {'; '.join(self.wrong)}"
        )

    @contextmanager
    def noting(self, what: str = "") -> Iterator[None]:
        """Go on where something is not as it should be."""
        try:
            yield
        except (AssertionError, OSError) as e:
            self.wrong.append(f"{what} {str(e).partition(chr(10))[0]}".strip())

    def judge(self) -> None:
        """See that the fault struck and was said as promised."""
        news = int(self.waited > 0)
        rules = {
            "not struck": self.struck > 0,
            "said more than once": self.said <= 1,
            "waited in silence": self.said >= news,
            "its end not said, or too often": self.ended == self.said,
            "the log was flooded": self.lines <= MOST_LINES,
            "spins": self.cpu_seconds < CPU_SHARE * DWELL_SECONDS,
            "status is silent": self.told or not news,
        }
        self.wrong += [what for what, holds in rules.items() if not holds]


def summary(cells: int, trials: list[Trial]) -> Iterator[str]:
    """Say how much was tried, and how soon all was well again."""
    struck, asked = sum(t.struck for t in trials), sum(t.requests for t in trials)
    yield f"{cells} calls in rooms, {len(trials)} faults, {struck} calls struck, {asked} requests"
    waited = [trial.back_seconds for trial in trials if trial.waited]
    median, longest = statistics.median(waited), max(waited)
    yield (
        f"{len(waited)} made requests wait; after it all were answered within {longest:.1f} s, "
        f"half of the times within {median:.1f} s"
    )
