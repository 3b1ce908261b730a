"""`stager probe`: whether a shared filesystem keeps what the protocol needs, in plain words.

Needs no spool and no configuration. Each machine asks alone (solo.py), then all ask together
(duet.py, view.py); what they found is exchanged, so that every machine gives the same verdict.
"""

import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stager import duet, solo, speed, view
from stager.identity import Identity
from stager.meeting import Absent, Meeting, open_dir
from stager.trial import Outcome, Trial, no, warning

JOINT = {**duet.QUESTIONS, **view.QUESTIONS}
CODES = {"yes": 0, "no": 1, "unknown": 2}
Say = Callable[[str], None]


@dataclass(slots=True)
class Report:
    """What one machine found."""

    host: str
    machine: dict[str, Any]
    trials: list[Trial] = field(default_factory=list)
    pace: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as the other machines are told it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Report":
        trials = [Trial.from_json(trial) for trial in data["trials"]]
        return cls(data["host"], data["machine"], trials, data["pace"])


@dataclass(frozen=True, slots=True)
class Row:
    """One question, with what all machines that asked it found."""

    name: str
    outcome: Outcome
    said: str
    hint: str


@dataclass(slots=True)
class Survey:
    """All reports, and what follows from them."""

    directory: Path
    reports: list[Report]
    absent: str = ""

    @property
    def rows(self) -> list[Row]:
        """Return the questions in order; where the machines found different things, with names."""
        rows = []
        for name in dict.fromkeys(t.name for r in self.reports for t in r.trials):
            found = [(r.host, t) for r in self.reports for t in r.trials if t.name == name]
            worst = max((t.outcome for _, t in found), key=lambda outcome: outcome.rank)
            shown = [(host, t) for host, t in found if t.outcome is worst]
            said: dict[tuple[str, str], list[str]] = {}
            for host, trial in shown:
                said.setdefault((trial.said, trial.hint), []).append(host)
            everywhere = len(said) == 1 and len(shown) == len(found)
            for (what, hint), hosts in said.items():
                named = what if everywhere or name in JOINT else f"{', '.join(hosts)}: {what}"
                rows.append(Row(name, worst, named, hint))
        return rows

    @property
    def verdict(self) -> str:
        """Return yes, no or unknown: a "no" of one machine alone needs no others."""
        if any(row.outcome is Outcome.NO for row in self.rows):
            return "no"
        return "unknown" if self.absent else "yes"

    @property
    def words(self) -> str:
        """Return the verdict in a sentence."""
        rows, where = self.rows, self.directory
        if self.verdict == "no":
            wrong = "; ".join(row.said for row in rows if row.outcome is Outcome.NO)
            return f"no: {where} must not hold a spool or static tree: {wrong}"
        if self.absent:
            return f"can't tell: {self.absent}"
        doubts = sum(row.outcome is Outcome.WARNING for row in rows)
        but = f", but see the {doubts} warnings" if doubts > 1 else ", but see the warning"
        hosts = [report.host for report in self.reports]
        if len(hosts) == 1:
            kept = f"yes{but if doubts else ''}: one machine alone may keep a spool on {where}"
            return f"{kept}; whether several may: run this on two at once, without --machines 1"
        told = f"{where} keeps what watcherd needs, as seen from {' and '.join(hosts)} at once"
        return f"yes{but if doubts else ''}: {told}"

    def as_json(self) -> dict[str, Any]:
        """Return all of it, figures included."""
        return {
            "verdict": self.verdict,
            "words": self.words,
            "directory": str(self.directory),
            "results": [asdict(row) for row in self.rows],
            "machines": [report.as_json() for report in self.reports],
        }


def survey(directory: Path, machines: int, seconds: float, timeout: float, say: Say) -> Survey:
    """Ask all questions, alone and with `machines - 1` others that come within `timeout`."""
    with Meeting(directory, machines) as meeting:
        report = Report(meeting.host, _machine())
        say(f"{meeting.host}: asking {directory} what one machine alone can ask")
        report.trials += solo.ask(meeting.alone)
        report.pace = speed.measure(meeting.alone)
        if machines == 1:
            return Survey(directory, [report])
        try:
            say(f"waiting up to {timeout:g} s for `stager probe {directory}` on "
                f"{machines - 1} more machine{'s' * (machines > 2)}")  # fmt: skip
            meeting.gather({"seconds": seconds}, timeout)
            report.host = meeting.label(meeting.me)
            met = ", ".join(map(meeting.label, meeting.members))
            say(f"met: {met}; about {meeting.plan['seconds']:g} s")
            report.trials += _together(meeting, say)
            words = meeting.together("the verdict", report.as_json())
        except Absent as e:
            meeting.members = [meeting.me]
            return Survey(directory, [report], str(e))
        reports = [Report.from_json(words[member]) for member in meeting.members]
        reports[0].trials += _identities(reports)
        return Survey(directory, reports)


def _together(meeting: Meeting, say: Say) -> Iterator[Trial]:
    for name, question in JOINT.items():
        say(f"together: {name}")
        place = meeting.room / name.replace(" ", "-")
        if meeting.leads:
            open_dir(place)
        meeting.together(f"{name}: begin")
        try:
            yield from question(name, meeting, place, float(meeting.plan["seconds"]))
        except OSError as e:
            yield no(name, e.strerror or str(e), duet.NOT_SHARED)
            raise Absent(f"the filesystem failed in {name}") from None


def _machine() -> dict[str, Any]:
    mine = Identity.mine()
    return {"kernel": platform.release(), "machine": mine.machine, "boot": mine.boot}


def _identities(reports: list[Report]) -> Iterator[Trial]:
    """Say where what called itself two machines was one, or has one id."""
    boots = [report.machine["boot"] for report in reports]
    ids = [report.machine["machine"] for report in reports]
    if len(set(boots)) < len(boots):
        said = "probes ran on one machine (one kernel): this is not yet a test of several"
        yield warning("machines", said, "run it on different machines at the same time")
    elif len(set(ids)) < len(ids):
        said = "two machines have one machine id: each could take the other for a restart of itself"
        hint = "on one of them: rm /etc/machine-id && systemd-machine-id-setup, then reboot"
        yield warning("machines", said, hint)
