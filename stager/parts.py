"""What a snapshot of the spool is made of: requests, daemons, faults, filesystems."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from stager.words import in_seconds


class Part(BaseModel):
    """What all of them share: keys of a later version do no harm."""

    model_config = ConfigDict(extra="ignore")


class WaitingPart(Part):
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


class ActivePart(Part):
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


class AnsweredPart(Part):
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


class InstanceState(StrEnum):
    """What a look at a daemon showed."""

    ALIVE = "alive"
    ENDED = "ended"
    """Its process is gone, and it did not sign off."""
    SILENT = "silent"
    """It was not heard of for a whole lease, or while it was watched."""
    UNSEEN = "unseen"
    """The look was too short to tell."""


class InstancePart(Part):
    """One run of the daemon."""

    name: str
    """Its name in the spool."""
    host: str
    """The machine."""
    alive: bool
    """Whether it was seen to live, by this look."""
    state: InstanceState = InstanceState.UNSEEN
    """`alive`; `ended`: its process is gone; `silent`: not heard of for a lease; else `unseen`."""
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

    @property
    def words(self) -> str:
        """How it is, for a person."""
        if self.alive:
            return "paused" if self.paused else "alive"
        if self.state is InstanceState.ENDED:
            return "ended without signing off"
        return "silent" if self.state is InstanceState.SILENT else "not seen to live"

    @property
    def last_heard(self) -> str:
        """How one is that this look did not see alive, and when it was last heard of."""
        ago = f"heartbeat {in_seconds(self.beat_age)} ago"
        return ago if self.state is InstanceState.UNSEEN else f"{self.words}, last {ago}"


class FaultPart(Part):
    """A fault of a machine or a service; requests wait until it is over."""

    host: str
    """The machine that met it."""
    code: str
    """An error code."""
    message: str
    """What is wrong."""
    hint: str = ""
    """What to do."""


class DiskPart(Part):
    """A filesystem."""

    tree: str
    """`spool`, `static`, or `spool and static` where they are one filesystem."""
    free_bytes: int
    """What the daemon may still use."""
    total_bytes: int
    """Its size."""


class SamplePart(Part):
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
