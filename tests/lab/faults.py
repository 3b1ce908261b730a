"""Daemons on a filesystem that can be made sick: chosen calls fail, and every one is on record.

The calls fail inside the real daemon, at the boundary to the C library (faults.c), so what is
tested is everything above it. Nothing else of the machine is changed.
"""

import errno
import os
import subprocess
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from lab import Lab

HERE = Path(__file__).resolve().parent
AREAS = {
    "spool": "spool",
    **{
        room: f"spool/{room}"
        for room in (
            "requests", "control", "active", "waiting", "private", "tmp", "instances",
            "done", "failed", "cancelled",
        )
    },
    "results": "results",
    **{room: f"static/.stager/{room}*" for room in ("locks", "work", "sidecars")},
    "static-tmp": "static/.stager/tmp*",
    "images": "static/images*",
    "static": "static",
}  # fmt: skip
"""The rooms a daemon works in; a star: with everything below."""


@cache
def shim() -> Path:
    """Compile the shim, once a process; return its path."""
    made = Path(tempfile.mkdtemp(prefix="watcherd-shim-"))
    made.chmod(0o755)
    library = made / "faults.so"
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(library)]
    subprocess.run([*command, "-D_LARGEFILE64_SOURCE", str(HERE / "faults.c")], check=True)
    return library


@dataclass
class Sickness:
    """The faults of a lab's daemons: what fails now, and what has been struck."""

    lab: Lab
    rules: Path = field(init=False)
    record: Path = field(init=False)

    def __post_init__(self) -> None:
        self.rules, self.record = self.lab.root / "faults.rules", self.lab.root / "faults.log"
        self.off()
        self.record.write_text("")
        self.record.chmod(0o666)
        self.lab.env |= {
            "LD_PRELOAD": str(shim()),
            "FAULT_RULES": str(self.rules),
            "FAULT_LOG": str(self.record),
        }

    def on(self, call: str, area: str, error: str = "EIO", every: int = 1) -> None:
        """Make calls in an area fail from now on; an error of "" only records them."""
        number = getattr(errno, error) if error else 0
        self._write(f"{call} {self.lab.root / AREAS[area]} {number} {every}\n")

    def watch(self) -> None:
        """Record all calls in all areas, and let them pass."""
        self._write("".join(f"* {self.lab.root / area} 0 1\n" for area in AREAS.values()))

    def off(self) -> None:
        """Be well again."""
        self._write("")

    def _write(self, text: str) -> None:
        new = self.rules.with_suffix(".new")
        new.write_text(text)
        new.chmod(0o644)
        new.rename(self.rules)

    def struck(self) -> list[tuple[str, Path]]:
        """Return the calls on record: call and path."""
        lines = (line.split(" ", 2) for line in self.record.read_text().splitlines())
        return [(line[0], Path(line[2])) for line in lines if len(line) == 3]

    def forget(self) -> None:
        """Begin a new record."""
        os.truncate(self.record, 0)
