"""What was measured: as a table, as JSON, as a picture; and on which machine."""

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.measure import Runs
from stager.mounts import filesystem_kind


@dataclass(frozen=True, slots=True)
class Goal:
    """A measure and what it must be."""

    case: str
    measure: str
    sense: str
    limit: float
    value: float
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.sense == "at least" else self.value <= self.limit

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return (
            f"{'yes' if self.met else 'NO ':3}  {self.case:28} {self.measure:44} "
            f"{self.sense} {_short(self.limit)}{unit}: {_short(self.value)}{unit}"
        )


def at_least(case: str, measure: str, limit: float, value: float, unit: str = "") -> Goal:
    """Return a goal that a value should reach."""
    return Goal(case, measure, "at least", limit, value, unit)


def at_most(case: str, measure: str, limit: float, value: float, unit: str = "") -> Goal:
    """Return a goal that a value should not pass."""
    return Goal(case, measure, "at most", limit, value, unit)


def _short(value: float) -> str:
    return f"{value:.4g}"


def machine(directory: Path) -> dict[str, Any]:
    """Describe where the figures come from."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "filesystem": filesystem_kind(directory),
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


@dataclass(slots=True)
class Report:
    """All that one run of the benchmark found."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    tables: dict[str, dict[str, Runs]] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def add(self, case: str, runs: dict[str, Runs]) -> None:
        """Take in what the contestants of a case cost."""
        self.tables[case] = runs

    def text(self) -> str:
        """Return the tables."""
        lines = [", ".join(f"{key} {value}" for key, value in self.machine.items())]
        for case, runs in self.tables.items():
            head = f"{'wall s':>9}{'CPU s':>9}{'RSS MiB':>9}{'sent MiB':>9}{'disk MiB':>9}"
            lines += ["", f"{case:28}{head}"]
            for name, contestant in runs.items():
                view = contestant.view()
                cells = "".join(f"{view[k]:9.2f}" for k in ("wall", "cpu"))
                cells += "".join(f"{view[k]:9.0f}" for k in ("memory", "sent", "disk"))
                lines.append(f"  {name:26}{cells}")
        lines += ["", *map(str, self.goals)]
        lines += ["", *(f"{key}: {value}" for key, value in self.notes.items())]
        return "\n".join(lines)

    def write(self, directory: Path, name: str) -> None:
        """Write JSON, table and picture."""
        directory.mkdir(exist_ok=True)
        data = {
            "machine": self.machine,
            "settings": self.settings,
            "cases": {
                case: {name: {"medians": runs.view(), "rounds": [asdict(c) for c in runs.costs]}
                       for name, runs in field.items()}
                for case, field in self.tables.items()
            },
            "goals": [{**asdict(goal), "met": goal.met} for goal in self.goals],
            "notes": self.notes,
        }  # fmt: skip
        (directory / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
        (directory / f"{name}.txt").write_text(self.text() + "\n")
        if self.tables:
            (directory / f"{name}.svg").write_text(picture(self.tables, self.machine))


BAR, GAP, LEFT, WIDTH = 16, 6, 210, 460
_COLOURS = {"cpu": "#4878a8", "wall": "#c9a227"}


def picture(tables: dict[str, dict[str, Runs]], where: dict[str, Any]) -> str:
    """Draw wall and CPU seconds of all contestants as bars."""
    parts: list[str] = []
    y = 20
    for case, runs in tables.items():
        parts.append(_text(10, y + 4, f"{case}: CPU (blue) and wall (yellow), seconds", bold=True))
        y += 14
        most = max((r.median(what) for r in runs.values() for what in _COLOURS), default=1.0)
        for name, contestant in runs.items():
            parts.append(_text(10, y + BAR, name))
            for what, colour in _COLOURS.items():
                value = contestant.median(what)
                wide = value / most * WIDTH
                parts.append(
                    f'<rect x="{LEFT}" y="{y}" width="{wide:.1f}" height="{BAR - 2}" '
                    f'fill="{colour}"/>'
                )
                parts.append(_text(LEFT + wide + 4, y + BAR - 5, f"{value:.2f}"))
                y += BAR - 2
            y += GAP
        y += 20
    parts.append(_text(10, y, ", ".join(f"{key} {value}" for key, value in where.items())))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 60}" height="{y + 14}" '
        f'font-family="sans-serif" font-size="11">\n'
        '<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _text(x: float, y: float, words: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.0f}" y="{y:.0f}"{weight}>{escape(words)}</text>'
