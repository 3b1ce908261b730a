"""Mixes of faults that make likely what a rule of the protocol is for.

Half of all histories have one, drawn from their seed; each planted fault names the one that it is
looked for in.
"""

import random
from collections.abc import Mapping
from typing import Any

from model.plan import Plan

UNHURT: dict[str, Any] = dict.fromkeys(
    ("kill", "cut_power", "stall", "stall_heart", "stop", "cut", "server_away"), 0.0
)

MOODS: dict[str, dict[str, Any]] = {
    # Paused at a step that others see, taken over, and awake again in the midst of that.
    "zombies": UNHURT
    | {
        "pause": 0.5, "ambush": 0.4, "ambushes": ("static",), "zombies": 1.0, "builds": 1,
        "force": True, "drops": 30, "chaos_seconds": 200.0,
    },
    # Ended between the steps of an answer.
    "last words": {
        "ambush": 0.7, "ambushes": ("spool/done", "spool/failed", "spool/private"),
        "kill": 2.0, "cut_power": 2.0, "pause": 0.0, "drops": 8,
    },
    # Ended between the steps of a swap, or of staging.
    "half done": {
        "ambush": 0.3, "ambushes": ("static/.stager/sidecars", "static/images"), "kill": 3.0,
        "cut_power": 1.0, "pause": 0.2, "force": True, "archive": 4.0, "builds": 1, "drops": 10,
    },
    # Whatever was sent is executed again, some time.
    "duplicates": {"duplicate": 0.3, "again": 0.0, "drops": 10, "redrop": 0.2},
    "duplicate swaps": {
        "duplicate": 0.5, "again": 0.0, "force": True, "archive": 6.0, "builds": 1, "drops": 24,
        "stall": 4.0, "chaos_seconds": 150.0,
    },
    "lost replies": {"again": 0.04, "lost": 0.02, "drops": 8},
    "lost and late": {"lost": 0.06, "lost_late": 0.06, "refused": 0.06},
    "failures": UNHURT
    | {"pause": 0.0, "ambush": 0.0, "refused": 0.1, "lost_late": 0.03, "drops": 8},
    # A directory looks as it did: changes are many in a tick, and names are cached.
    "old listings": {
        "stale_listing": 1.0, "again": 0.3, "slow": 0.0, "tick": 5.0, "drops": 12, "drop": 20.0,
    },
    "old names": {
        "stale_name": 1.0, "drops": 30, "drop": 20.0, "machines": 3, "redrop": 1.0, "slow": 0.1,
    },
    "split listings": {"split_listing": 0.6, "drops": 12, "kill": 2.0, "stop": 2.0},
    "split duplicates": {"split_listing": 0.6, "duplicate": 0.5, "again": 0.0, "drops": 10},
    "retention": {"retention": True, "chaos_seconds": 400.0, "drops": 16, "drop": 4.0},
    # Requests keep asking for what retention is about to remove.
    "last uses": {
        "retention": True, "chaos_seconds": 400.0, "drops": 5, "drop": 20.0, "watched": 10.0,
    },
    # Who is silent is not dead.
    "silence": {
        "stall_heart": 6.0, "server_away": 3.0, "stall": 0.0, "pause": 3.0, "zombies": 0.2,
        "drops": 14, "chaos_seconds": 150.0,
    },
    "clones": {
        "clones": True, "stall_heart": 4.0, "pause": 4.0, "zombies": 0.2,
        "machines": 3,
    },
    "power cuts": {"cut_power": 6.0, "drops": 10},
    "crowd": UNHURT
    | {"machines": 3, "drops": 14, "drop": 30.0, "builds": 2, "pause": 0.0, "chaos_seconds": 60.0},
}  # fmt: skip


def shape(plan: Plan, likely: Mapping[str, Any]) -> None:
    """Have a history go by a mix: fields of the plan, odds, or kinds of events."""
    for name, value in likely.items():
        if (event := name.replace("_", " ")) in plan.events:
            plan.events[event] = value
        else:
            setattr(plan.odds if hasattr(plan.odds, name) else plan, name, value)


def draw(rng: random.Random) -> Mapping[str, Any]:
    """Return a mix, or none."""
    return rng.choice(list(MOODS.values())) if rng.random() < 0.5 else {}
