"""One question put to a filesystem by `stager probe`, and what came out."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """Worst last: a merged trial has the worst of its parts."""

    TOLD = "told"
    YES = "yes"
    WARNING = "warning"
    NO = "no"

    @property
    def rank(self) -> int:
        return list(Outcome).index(self)


@dataclass(frozen=True, slots=True)
class Trial:
    """What one machine found: in a person's words, with what to do, and in figures."""

    name: str
    outcome: Outcome
    said: str
    hint: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as the other machines are told it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Trial":
        return cls(**(data | {"outcome": Outcome(data["outcome"])}))


def yes(name: str, said: str, **figures: Any) -> Trial:
    """Return a trial that went as the protocol needs it."""
    return Trial(name, Outcome.YES, said, "", figures)


def told(name: str, said: str, **figures: Any) -> Trial:
    """Return what is worth knowing and decides nothing."""
    return Trial(name, Outcome.TOLD, said, "", figures)


def warning(name: str, said: str, hint: str, **figures: Any) -> Trial:
    """Return a trial that somebody should look at."""
    return Trial(name, Outcome.WARNING, said, hint, figures)


def no(name: str, said: str, hint: str, **figures: Any) -> Trial:
    """Return a trial without which watcherd can't work."""
    return Trial(name, Outcome.NO, said, hint, figures)


def attempt(call: Callable[[], object]) -> str:
    """Return "" if a call went well, else what the filesystem said: for calls that may fail."""
    try:
        call()
    except OSError as e:
        return e.strerror or os.strerror(e.errno or 0)
    return ""
