"""Runs many histories, or the planted faults, and prints what they went through.

`python -m model.soak histories FIRST COUNT` lives through COUNT seeds; `python -m model.soak rules
BUDGET` leaves each rule out in turn until a history shows it. Exit code 1: something was violated,
or a rule was not missed.
"""

import sys
import time
from collections import Counter

from model.history import Outcome, live
from model.planted import FAULTS, Fault

SHOWN = 60


def main() -> int:
    """Do what the command line says."""
    what, *numbers = sys.argv[1:]
    if what == "histories":
        first, count = map(int, numbers)
        return histories(first, count)
    return rules(int(numbers[0]), numbers[1:])


def histories(first: int, count: int) -> int:
    """Live through `count` seeds; print violations with their last calls, then the figures."""
    total: Counter[str] = Counter()
    bad, requests, calls, began = 0, 0, 0, time.process_time()
    for seed in range(first, first + count):
        outcome = live(seed)
        total.update(outcome.counts)
        requests += outcome.requests
        calls += outcome.steps
        if outcome.violations:
            bad += 1
            if bad <= 3:
                print(told(outcome), flush=True)
    seconds = time.process_time() - began
    print(f"schedules {count} (seeds {first} to {first + count - 1}), {seconds:.0f} s of CPU")
    print(f"calls {calls}, requests {requests}, schedules with violations {bad}")
    for kind, number in sorted(total.items()):
        print(f"  {kind}: {number}")
    return int(bad > 0)


def told(outcome: Outcome) -> str:
    """Tell a violation: the last calls, the seed, and what was violated."""
    lines = [*outcome.trace[-SHOWN:], f"seed {outcome.seed}, step {outcome.steps}:"]
    return "\n".join([*lines, *(f"  {violation}" for violation in outcome.violations)])


def rules(budget: int, names: list[str]) -> int:
    """Leave each rule out, in up to `budget` histories, until it is missed."""
    silent = 0
    for name in names or list(FAULTS):
        fault, began = FAULTS[name], time.process_time()
        tried, violation = hunt(fault, budget)
        seconds = time.process_time() - began
        silent += not violation
        print(f"{name:24} {tried:3} schedules {seconds:5.1f} s  {violation or 'NOT FOUND'}"[:160])
    return int(silent > 0)


def hunt(fault: Fault, budget: int) -> tuple[int, str]:
    """Return how many histories a planted fault took, and what it violated (empty: nothing).

    The same history without the fault must be a good one.
    """
    seeds = [fault.seed, *(seed for seed in range(1, budget + 1) if seed != fault.seed)]
    for tried, seed in enumerate(seeds[:budget], 1):
        with fault.planted():
            # An exception in a planted function is no sign of the rule.
            violations = [v for v in live(seed, fault.shape).violations if "of ours" not in v]
        if violations and not live(seed, fault.shape).violations:
            return tried, f"seed {seed}: {violations[0]}"
    return budget, ""


if __name__ == "__main__":
    sys.exit(main())
