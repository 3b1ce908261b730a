"""The protocol's rules, each left out in turn: what the model must find.

A planted fault replaces some functions of the product by ones that lack the rule; it is looked for
in histories of a mood (moods.py) that makes the circumstances likely which the rule is for. Where
the product has two defences against the same thing, the fault takes both away, and says so.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any
from unittest import mock

from model import moods
from model.plan import Plan
from model.seeds import SEEDS
from stager import durable

WORLD: Any = durable
"""Where `os`, `time` and `shutil` are what the running history put in their place."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One rule left out."""

    rule: str
    changes: dict[str, Any]
    """By target: what takes its place."""
    mood: str = ""
    likely: dict[str, Any] = field(default_factory=dict)
    """What differs from the mood."""
    seed: int = 1
    """One that shows it."""

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Leave the rule out for the length of a block."""
        with ExitStack() as stack:
            for target, change in self.changes.items():
                stack.enter_context(mock.patch(target, change))
            yield

    def shape(self, plan: Plan) -> None:
        """Make likely what the rule is for."""
        mood = moods.MOODS[self.mood] if self.mood else {}
        moods.shape(plan, {"clones": False} | mood | self.likely)


FAULTS: dict[str, Fault] = {}


def leaves_out(
    rule: str, *targets: str, mood: str = "", also: dict[str, Any] | None = None,
    **likely: Any,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:  # fmt: skip
    """Register a function that lacks a rule; `also`: what else must change with it."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__.replace("_", "-")
        changes = dict.fromkeys(targets, function) | (also or {})
        FAULTS[name] = Fault(rule, changes, mood, likely, SEEDS.get(name, 1))
        return function

    return register


for _room in (
    "listings",
    "claims",
    "answers",
    "tokens",
    "chains",
    "visible",
    "retention",
    "living",
):
    import_module(f"model.planted.{_room}")
