"""What `stager status --json` and results/status.json say: the spool at a glance, bounded in size.

Lists hold the first so many, `counts` tells how many there are. Ages and times are by the file
server's clock where a daemon writes them. Names are printable: what is not is escaped.
"""

from typing import Any

from pydantic import Field

from stager.parts import (
    ActivePart,
    AnsweredPart,
    DiskPart,
    FaultPart,
    InstancePart,
    InstanceState,
    Part,
    SamplePart,
    WaitingPart,
)

__all__ = [
    "START",
    "ActivePart",
    "AnsweredPart",
    "Board",
    "Counts",
    "DiskPart",
    "FaultPart",
    "InstancePart",
    "InstanceState",
    "SamplePart",
    "Snapshot",
    "WaitingPart",
    "printable",
]

TOO_LONG_SECONDS = 3600.0
MOST_NAMED = 5
START = "start it: systemctl start watcherd"


class Counts(Part):
    """How many there are of each; `waiting` includes `deferred`."""

    waiting: int = 0
    """Waiting, the drop box included."""
    deferred: int = 0
    """Those of them that are tried again later, after an attempt that failed."""
    active: int = 0
    """Being worked on."""
    done: int = 0
    """Answered well; as many as retention left."""
    failed: int = 0
    """Failed or rejected; as many as retention left."""
    cancelled: int = 0
    """Cancelled; as many as retention left."""

    @property
    def answered(self) -> int:
        return self.done + self.failed + self.cancelled


class Snapshot(Part):
    """The spool at a glance."""

    time: str
    """When it was looked at; UTC."""
    version: str
    """Of watcherd."""
    counts: Counts = Field(default_factory=Counts)
    """How many there are."""
    oldest_seconds: float = 0.0
    """How long the oldest has waited."""
    active: list[ActivePart] = Field(default_factory=list)
    """What is worked on, on all machines."""
    waiting: list[WaitingPart] = Field(default_factory=list)
    """What waits, the oldest first."""
    answered: list[AnsweredPart] = Field(default_factory=list)
    """What was answered lately, the last one at the end."""
    instances: list[InstancePart] = Field(default_factory=list)
    """The daemons."""
    faults: list[FaultPart] = Field(default_factory=list)
    """What is wrong now."""
    paused: list[str] = Field(default_factory=list)
    """Which machines are told to start nothing."""
    pinned: list[str] = Field(default_factory=list)
    """Builds that retention leaves; the first of them."""
    pinned_builds: int = 0
    """How many those are."""
    orders: int = 0
    """Orders of commands that no daemon has obeyed yet."""
    unclaimable: dict[str, str] = Field(default_factory=dict)
    """Entries of the drop box that can't be claimed: why, and what to do."""
    other_files: int = 0
    """Files in the drop box whose names are not taken."""
    others: list[str] = Field(default_factory=list)
    """Some of those names, without hidden ones."""
    disks: list[DiskPart] = Field(default_factory=list)
    """The filesystems."""
    troubles: list[str] = Field(default_factory=list)
    """Why somebody should look after it."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        data: dict[str, Any] = self.model_dump(mode="json")
        return data

    @property
    def nobody(self) -> str:
        """Say that no daemon runs, as far as that is known; empty: one may."""
        states = {instance.state for instance in self.instances}
        if states <= {InstanceState.ENDED}:
            return "no watcherd runs"
        known = {InstanceState.ENDED, InstanceState.SILENT}
        return "no watcherd seems to run" if states <= known else ""

    def obituary(self) -> str:
        """Say that no daemon runs, and what became of those that did; empty: one may."""
        ends = [f"{i.host} {i.last_heard}" for i in self.instances[:MOST_NAMED]]
        return f"{self.nobody} ({'; '.join(ends)})" if self.nobody and ends else self.nobody

    def left_alone(self) -> str:
        """Say which files in the drop box are not taken, and why; empty: none."""
        if not self.other_files:
            return ""
        names = f" ({', '.join(self.others)})" if self.others else ""
        files = f"{self.other_files} other file{'s' if self.other_files > 1 else ''}"
        return f"{files} in the drop box{names}: only *.yaml, *.yml and *.json are taken"

    def find_troubles(self) -> list[str]:
        """Return what keeps `status --check` from being content."""
        found = [f"{fault.host}: {fault.message}" for fault in self.faults]
        if obituary := self.obituary():
            found.append(obituary)
        if self.oldest_seconds > TOO_LONG_SECONDS:
            minutes = self.oldest_seconds / 60
            found.append(f"the oldest request has waited for {minutes:.0f} minutes")
        return found


class Board(Snapshot):
    """What results/status.json says: the spool at a glance, and its last day."""

    slice_seconds: int
    """The length of a slice of `history`."""
    history: list[SamplePart] = Field(default_factory=list)
    """The last day, oldest first; a slice in which nothing happened may be missing."""
    counted: dict[str, tuple[int, int, int]] = Field(default_factory=dict)
    """By instance: bytes fetched, good and other answers that `history` has taken in."""


def printable(name: str) -> str:
    """Return a name as it may be shown: what could play tricks on a screen is escaped."""
    return name if name.isprintable() else ascii(name)[1:-1]
