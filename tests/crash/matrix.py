"""The crash matrix: a daemon is killed at each of its calls in turn, and another does the rest."""

import shutil
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from zlib import crc32

from judge import COLUMNS, Judge, column
from lab import Lab
from loss import journal_environment, lose_power
from scenes import Scene
from strike import Nest, Run, Step, environment

SLOW = {"lease": "60s", "heartbeat": "10s", "rescan": "60s"}
"""No step of the daemon that is killed depends on the time it takes."""
QUICK = {"lease": "0.3s", "heartbeat": "0.1s", "rescan": "0.05s"}
"""Leftovers are swept after a lease."""
TRIES, MOST_FAULTS, ENOUGH = 3, 20, 10_000
"""A step that depends on the time may be missing in a run."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How the daemon that is killed runs, and what it is to the one that comes after it."""

    name: str
    options: tuple[str, ...] = ("--once",)
    machine: str = ""
    boot: str = ""
    term: int = 0
    """The call before which it is told to stop (0: not at all)."""
    since: int = 0
    """Steps before this call are not looked at."""
    most: int = ENOUGH
    """So many calls of one kind are looked at."""
    lives: bool = False
    """Whether it beats and sweeps as quickly as the one after it."""
    loses: bool = False
    """Whether what it had not synced is lost with it."""

    def __str__(self) -> str:
        return self.name


RESTARTED = Manner("restarted")
NEXT_BOOT = Manner("after the next boot", boot="the-boot-before")
POWER_LOST = Manner("after a power loss", boot="the-boot-before", loses=True)
TAKEN_OVER = Manner("taken over by another machine", machine="f" * 32, boot="of-another-machine")


def stopped(term: int) -> Manner:
    """Have the daemon told to stop in the middle of the work; it is killed while it does."""
    return Manner(f"stopping since call {term}", options=(), term=term, since=term)


BEATING = Manner("beating, idle, stopped", options=(), term=500, most=3, lives=True)


@dataclass
class Row:
    """What one scene came to, in one manner."""

    scene: str
    manner: str
    struck: set[Step] = field(default_factory=set)
    missed: set[Step] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    requests: int = 0
    back: list[float] = field(default_factory=list)
    """Seconds from each start of another daemon until all was done and nothing left over."""

    def cells(self) -> list[str]:
        """Return the row of a table: what, kills, requests, faults by column, time to recover."""
        counts = [sum(f"{column}: " in fault for fault in self.faults) for column in COLUMNS]
        other = len(self.faults) - sum(counts)
        numbers = [len(self.struck), self.requests, *counts, other]
        back = f"{statistics.median(self.back):.1f} s, {max(self.back):.1f} s" if self.back else ""
        return [f"{self.scene}, {self.manner}", *map(str, numbers), back]

    def __str__(self) -> str:
        kinds = Counter(step.kind for step in self.struck)
        text = ", ".join(f"{kind} {n}" for kind, n in kinds.most_common())
        more = f"; {len(self.missed)} calls did not come again" if self.missed else ""
        return f"{self.scene}, {self.manner}: killed before {len(self.struck)} calls ({text}){more}"


def set_lease(lab: Lab, lease: str, heartbeat: str, rescan: str) -> None:
    """Give directories that no daemon uses another lease."""
    old = lab.settings
    for mark in ("spool/LAYOUT", "static/.stager/LAYOUT", "results/.layout"):
        path = lab.root / mark
        lines = path.read_text().splitlines()
        values = {"lease": lease, "heartbeat": heartbeat}
        path.write_text(
            "".join(
                f"{key}: {values[key].removesuffix('s') if key in values else value}\n"
                for key, _, value in (line.partition(": ") for line in lines)
            )
        )
    assert old["spool"] == str(lab.root / "spool")
    lab.write_config(lease=lease, heartbeat=heartbeat, rescan=rescan)


@contextmanager
def stage_of(scene: Scene) -> Iterator[Lab]:
    """Have a copy of a scene's directories for the length of a block."""
    root = Path(tempfile.mkdtemp(prefix="watcherd-crash-"))
    try:
        lab = scene.copy(root)
        set_lease(lab, **SLOW)
        yield lab
    finally:
        shutil.rmtree(root)


def kill_at(nest: Nest, scene: Scene, manner: Manner, step: Step | None) -> Run:
    """Kill a daemon before a step (None: let it end); see that another one does the rest."""
    with stage_of(scene) as lab:
        if manner.lives:
            set_lease(lab, **QUICK)
        judge = Judge(scene, lab)
        env = environment(lab, step, manner.term)
        if manner.boot:
            env["WATCHERD_BOOT_ID"] = manner.boot
        if manner.loses:
            env |= journal_environment(lab)
        run = nest.run(lab, *manner.options, env=env, machine=manner.machine)
        assert run.struck or run.status == 0, run.log
        try:
            judge.at_the_kill()
            if manner.loses:
                lose_power(lab)
                judge.at_any_moment()
            seconds = finish(nest, scene, lab)
            judge.in_the_end()
        except AssertionError as e:
            raise AssertionError(f"killed before {step}: {e}\n{evidence(lab)}") from e
        return replace(run, seconds=seconds)


def evidence(lab: Lab) -> str:
    """Return what the daemons said and what is there, for a failure."""
    logs = (path.read_text() for path in sorted(lab.root.glob("daemon-*.log")))
    files = sorted(lab.root.glob("*/**/*"))
    return "\n".join([*logs, *(str(path.relative_to(lab.root)) for path in files)])


def finish(nest: Nest, scene: Scene, lab: Lab) -> float:
    """Have another daemon do the rest; return how long that took."""
    set_lease(lab, **QUICK)

    def done() -> bool:
        return scene.is_done(lab) and lab.is_clean() and len(lab.instances()) <= 1

    with column("lost"):
        run = nest.run(lab, until_done=done)
    assert run.status == 0, run.log
    assert "Traceback" not in run.log, run.log
    return run.seconds


def sweep(
    nests: Sequence[Nest], scene: Scene, manner: Manner = RESTARTED, share: int = 0, shares: int = 1
) -> Row:
    """Kill at each step that any run showed, those seen on the way included.

    Of several shares only one: the steps are dealt out by their names.
    """
    row, tries = Row(scene.name, manner.name), Counter[Step]()
    free = SimpleQueue[Nest]()
    for nest in nests:
        free.put(nest)

    def mine(run: Run) -> set[Step]:
        steps = (step for step in run.steps[manner.since :] if step.nth <= manner.most)
        return {step for step in steps if crc32(str(step).encode()) % shares == share}

    def strike(step: Step) -> Run | AssertionError:
        nest = free.get()
        try:
            return kill_at(nest, scene, manner, step)
        except AssertionError as e:
            return e
        finally:
            free.put(nest)

    todo = mine(kill_at(nests[0], scene, manner, None))
    with ThreadPoolExecutor(len(nests)) as pool:
        while todo and len(row.faults) < MOST_FAULTS:
            steps = sorted(todo)
            for step, run in zip(steps, pool.map(strike, steps), strict=True):
                tries[step] += 1
                row.requests += len(scene.answers)
                if isinstance(run, AssertionError):
                    row.faults.append(str(run))
                    row.struck.add(step)
                elif run.struck:
                    row.struck.add(step)
                    row.back.append(run.seconds)
                    todo |= mine(run)
                elif tries[step] == TRIES:
                    row.missed.add(step)
            todo -= row.struck | row.missed
    return row
