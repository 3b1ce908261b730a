"""What `stager status --json` and results/status.json say: the spool at a glance, bounded in size.

Lists hold the first so many, `counts` tells how many there are. Ages and times are by the file
server's clock where a daemon writes them. Names are printable: what is not is escaped.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

TOO_LONG_SECONDS = 3600.0


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")


class WaitingPart(_Part):
    """A request that waits: in the drop box, or claimed and put back."""

    request: str
    """The name it was dropped with."""
    request_id: str
    """Empty until it is claimed."""
    priority: int | None = None
    """0 (first) to 9; not known before it is claimed."""
    submitter: int
    """The uid of who dropped it."""
    age: float
    """Seconds since it was dropped."""
    reason: str
    """Why it waits."""
    hint: str = ""
    """What to do about it, if anything."""
    due: str | None = None
    """When it is looked at again, where that is later; UTC."""
    build: str = ""
    """The build's URL, where a daemon has read the request."""
    images: list[str] = Field(default_factory=list)
    """What is asked for."""


class ActivePart(_Part):
    """A request that a machine works on."""

    request: str
    """The name it was dropped with."""
    request_id: str
    """Its id."""
    host: str
    """The machine."""
    age: float
    """Seconds since it was dropped."""
    attempt: int
    """Starts so far."""
    build: str = ""
    """The build's URL."""
    images: list[str] = Field(default_factory=list)
    """What is asked for."""
    phase: str = ""
    """What is being done."""
    image: str = ""
    """The image it is done for."""
    bytes: int = 0
    """Compressed bytes fetched of the images to stage."""
    total_bytes: int = 0
    """All of those; 0: not known yet."""
    bytes_per_second: int = 0
    """The average so far."""
    seconds_left: int | None = None
    """At that rate."""


class AnsweredPart(_Part):
    """A request that has its answer."""

    request: str
    """The name it was dropped with."""
    request_id: str
    """Its id."""
    room: str
    """`done`, `failed` or `cancelled`."""
    age: float
    """Seconds since it was dropped."""
    state: str = ""
    """The answer's state; empty where the answer was not read."""
    finished: str | None = None
    """When it was answered; UTC."""
    build: str = ""
    """The build's URL."""
    images: list[str] = Field(default_factory=list)
    """What was asked for."""
    code: str = ""
    """The error's code."""
    message: str = ""
    """What went wrong."""
    hint: str = ""
    """What to do next."""
    host: str = ""
    """The machine that answered."""
    seconds: float | None = None
    """From the drop to the answer."""


class InstancePart(_Part):
    """One run of the daemon."""

    name: str
    """Its name in the spool."""
    host: str
    """The machine."""
    alive: bool
    """Whether it was seen to live, by this look."""
    beat_age: float | None = None
    """Seconds since its last heartbeat."""
    mode: str = ""
    """How it watches the drop box."""
    scanned: float | None = None
    """Its last scan, in seconds since 1970."""
    paused: bool = False
    """Whether it is told to start nothing."""
    workers: int = 0
    """How many builds it stages at the same time."""
    version: str = ""
    """Of watcherd."""


class FaultPart(_Part):
    """A fault of a machine or a service; requests wait until it is over."""

    host: str
    """The machine that met it."""
    code: str
    """An error code."""
    message: str
    """What is wrong."""
    hint: str = ""
    """What to do."""


class DiskPart(_Part):
    """A filesystem."""

    tree: str
    """`spool`, `static`, or `spool and static` where they are one filesystem."""
    free_bytes: int
    """What the daemon may still use."""
    total_bytes: int
    """Its size."""


class SamplePart(_Part):
    """What happened in one slice of the last day."""

    time: int
    """The slice's start, in seconds since 1970."""
    waiting: int = 0
    """The most that waited at one time."""
    active: int = 0
    """The most that were worked on at one time."""
    fetched_bytes: int = 0
    """Bytes read from archives, on all machines."""
    good: int = 0
    """Requests answered with staged or already_staged."""
    bad: int = 0
    """Requests answered otherwise."""


class Counts(_Part):
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


class Snapshot(_Part):
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
        if not any(instance.alive for instance in self.instances):
            found.append("no live watcherd")
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
