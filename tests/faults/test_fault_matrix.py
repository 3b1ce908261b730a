"""Every kind of call that the daemon makes, failing in every room it makes it in.

Which those are is seen from the daemon itself, not listed here. For each, a real daemon meets the
fault while requests of all kinds come in; then it is gone. FAULTS=full tries every error with each,
and prints the table; else each call and room gets one error, in turn.
"""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from lab import BUCKET, FILES, ROOT, Daemon, Lab, until
from lab.faults import AREAS, Sickness
from trial import DWELL_SECONDS, Trial, summary

from stager import orders, status
from stager.config import load_config

ERRORS = ("EIO", "ENOSPC", "ESTALE", "EROFS", "EDQUOT", "ETIMEDOUT", "EACCES")
OF_THE_FILE = {(c, room) for c in ("open", "rename") for room in ("active", "requests", "control")}
OF_THE_FILE |= {("read", "active"), ("read", "control")}
"""Where EACCES speaks of a file that somebody dropped, not of the machine."""
FULL = os.environ.get("FAULTS") == "full"
AT_ONCE = 8
TICKS = os.sysconf("SC_CLK_TCK")
SAID = re.compile(r"\[(?:error|warning) *\] (?!rejected|cancelled)")
ENDED = re.compile(r"answers again|work goes on|nobody waits any more")


class Ward:
    """A lab whose daemon meets one fault after another."""

    def __init__(self) -> None:
        root = Path(tempfile.mkdtemp(prefix="watcherd-test-"))
        root.chmod(0o755)
        # Without the status page, whose thread makes calls in these rooms now and then.
        (root / "sitecustomize.py").write_text(
            "import stager.board\nstager.board.LOOK_SECONDS = 9e6\n"
        )
        self.lab = Lab(root, env={"PYTHONPATH": f"{root}:{ROOT}"}).init()
        self.sickness = Sickness(self.lab)
        self.paths = load_config(self.lab.config, {}).paths
        self.lab.archive()
        self._numbers = count()

    def end(self) -> None:
        self.lab.end()
        shutil.rmtree(self.lab.root)

    def calls(self) -> set[tuple[str, str]]:
        """Return the calls and rooms of a daemon that is well: what it does every time."""
        rounds = []
        with self.lab.running():
            self.be_well()
            for _ in range(2):
                self.sickness.forget()
                self.sickness.watch()
                self._all_answered(self._ask())
                time.sleep(2 * float(self.lab.settings["heartbeat"].removesuffix("s")))
                self.sickness.off()
                struck = set(self.sickness.struck())
                rounds.append({(call, area) for call, path in struck for area in self._areas(path)})
        return rounds[0] & rounds[1]

    def _areas(self, path: Path) -> Iterator[str]:
        for area, below in AREAS.items():
            room = self.lab.root / below.rstrip("*")
            if room in {path, path.parent} or (below.endswith("*") and room in path.parents):
                yield area

    def be_well(self) -> None:
        """See that work is done and that no fault stands."""
        build = self._build("well")
        self.lab.archive(build)
        self.lab.result(self.lab.drop(f"well-{next(self._numbers)}", build), 90)
        self.lab.ask()
        until(lambda: not status.take(self.paths).faults, "no standing fault")

    def _build(self, board: str) -> str:
        return f"gs://{BUCKET}/{board}-release/R{next(self._numbers)}-1.0"

    def _ask(
        self, sicken: Callable[[], None] = lambda: None, *, early: bool = False
    ) -> dict[str, set[str]]:
        """Drop requests of all kinds and an order; return the NAMEs with the states they get."""
        lab, n, good = self.lab, next(self._numbers), {"staged", "already_staged"}
        self.fresh = self._build("fresh")
        self.images = lab.archive(self.fresh)
        if early:
            sicken()
        lost = lab.drop(f"lost-{n}", self._build("none"), wait="1h")
        if early:
            until(self.sickness.struck, "a look at what waits")
        else:
            until(lambda: any(lost in name for name in lab.spool("waiting")), f"{lost} to wait")
            sicken()
        expected = {
            lost: {"cancelled"},
            lab.drop(f"fresh-{n}", self.fresh): good,
            lab.drop(f"again-{n}"): good,
            lab.drop(f"force-{n}", force=True): good,
            lab.drop_text(f"bad-{n}", "- no\n"): {"rejected"},
        }
        orders.send(self.paths, orders.Order("cancel", (lost,)))
        return expected

    def _all_answered(self, expected: dict[str, set[str]]) -> None:
        for name, states in expected.items():
            assert self.lab.result(name)["state"] in states

    def meet(self, daemon: Daemon, trial: Trial) -> None:
        """Have the fault for a while, then not; see what became of the requests."""
        self.be_well()
        before = len(daemon.log)
        self.sickness.forget()
        # What waits is read once, when it begins to.
        early = trial.area == "waiting" and trial.call in {"open", "read", "stat"}
        sicken = partial(self.sickness.on, trial.call, trial.area, trial.error)
        expected = self._ask(sicken, early=early)
        try:
            with trial.noting():
                until(self.sickness.struck, "a call struck", 5)
            self._watch(daemon, trial, expected)
        finally:
            trial.struck = len(self.sickness.struck())
            self.sickness.off()
        self._recover(trial, expected)

        def log() -> str:
            return daemon.log[before:]

        with trial.noting():
            until(lambda: len(ENDED.findall(log())) >= len(SAID.findall(log())), "said to end", 15)
        trial.said, trial.ended = len(SAID.findall(log())), len(ENDED.findall(log()))
        trial.log, trial.lines = log(), log().count("\n")
        trial.judge()

    def _watch(self, daemon: Daemon, trial: Trial, expected: dict[str, set[str]]) -> None:
        began, before = time.monotonic(), cpu_seconds(daemon)
        while time.monotonic() < began + DWELL_SECONDS:
            trial.told = trial.told or bool(status.take(self.paths).faults)
            time.sleep(0.2)
        trial.cpu_seconds = cpu_seconds(daemon) - before
        trial.requests = len(expected)
        there = os.listdir(self.paths.results)
        trial.waited = sum(f"{name}.yaml" not in there for name in expected)

    def _recover(self, trial: Trial, expected: dict[str, set[str]]) -> None:
        began = time.monotonic()
        for name, states in expected.items():
            with trial.noting(name):
                result = self.lab.result(name)
                assert result["state"] in states, f"{result['state']} {result.get('error')}"
                assert int(result["attempts"]) <= 1, f"{result['attempts']} attempts"
                assert len(self.lab.ended(name)) == 1, f"answered {len(self.lab.ended(name))} times"
        trial.back_seconds = time.monotonic() - began
        with trial.noting("the image"):
            there = self.lab.image("test", self.fresh).read_bytes()
            assert there == self.images[FILES["test"]], "is another"
            assert self.lab.flag(self.fresh) == ["test"], "is not in the flag"
        with trial.noting():
            until(self.lab.is_clean, "nothing left over", 15)


def cpu_seconds(daemon: Daemon) -> float:
    """Return what a daemon used of the CPU."""
    text = Path(f"/proc/{daemon.process.pid}/stat").read_text()
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def ward() -> Iterator[Ward]:
    made = Ward()
    try:
        yield made
    finally:
        made.end()


def meet_all(trials: list[Trial]) -> None:
    """Meet one fault after another, with one daemon."""
    with ward() as place, place.lab.running() as daemon:
        for trial in trials:
            with trial.noting():
                place.meet(daemon, trial)


def trials_of(cells: list[tuple[str, str]]) -> list[Trial]:
    """Return what to try: each call in each room with every error, or with one of them in turn."""
    made = []
    for number, (area, call) in enumerate(cells):
        errors = [e for e in ERRORS if e != "EACCES" or (call, area) not in OF_THE_FILE]
        chosen = errors if FULL else [errors[number % len(errors)]]
        made += [Trial(call, area, error) for error in chosen]
    return made


@pytest.mark.timeout(7200 if FULL else 600)
def test_whatever_call_fails_wherever_is_said_once_and_loses_nothing(
    capsys: pytest.CaptureFixture[Any], said: list[object]
) -> None:
    with ward() as well:
        cells = sorted((area, call) for call, area in well.calls())
    trials = trials_of(cells)
    lanes = [trials[number::AT_ONCE] for number in range(AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(meet_all, lanes))
    if FULL:
        with capsys.disabled():
            print(f"\n{Trial.HEAD}", *trials, sep="\n")
    said += [f"each call fails: {line}" for line in summary(len(cells), trials)]
    assert len(cells) > 80
    wrong = [trial for trial in trials if trial.wrong]
    assert not wrong, "\n".join([Trial.HEAD, *map(str, wrong), *(t.log for t in wrong)])
