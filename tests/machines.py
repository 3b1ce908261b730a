"""Probes as processes: several machines, as far as one can have several."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

SECONDS = 110.0


class Machine:
    """One `stager probe` that runs; `json` and `code` are there when it has ended."""

    def __init__(
        self, directory: Path, *options: str, boot: str = "", prefix: tuple[str, ...] = ()
    ):
        command = [*prefix, sys.executable, "-m", "stager.cli", "probe", str(directory)]
        self.process = subprocess.Popen(
            [*command, "--json", *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | ({"WATCHERD_BOOT_ID": boot} if boot else {}),
        )  # fmt: skip
        self.said = ""
        self.verdict: dict[str, Any] = {}

    @property
    def found(self) -> dict[str, Any]:
        """Return all it found, once it has ended."""
        out, self.said = self.process.communicate(timeout=SECONDS)
        document: dict[str, Any] = json.loads(out) if out else {}
        return document

    @property
    def code(self) -> int:
        return self.process.returncode

    def until_it_says(self, word: str) -> None:
        """Wait for a line on its stderr."""
        assert self.process.stderr
        for line in self.process.stderr:
            self.said += line
            if word in line:
                return
        raise AssertionError(f"it ended before it said {word!r}: {self.said}")

    def end(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.communicate(timeout=SECONDS)


def outcome(found: dict[str, Any], name: str) -> str:
    """Return how a question was answered."""
    return next((row["outcome"] for row in found["results"] if row["name"] == name), "not asked")


def said(found: dict[str, Any], name: str) -> str:
    """Return the words of an answer."""
    return " ".join(row["said"] for row in found["results"] if row["name"] == name)
