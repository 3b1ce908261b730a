"""One claimed request on its way, and the tools that every job of an instance works with."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from stager.archive import Archive, Source
from stager.config import Config
from stager.dropped import Dropped
from stager.errors import StagerError
from stager.fetch import Room
from stager.hook import Hook
from stager.instance import Heart
from stager.layout import Claim
from stager.lock import Locks
from stager.marker import Marker, Sidecar
from stager.progress import Progress
from stager.request import Request
from stager.spool import Spool


@dataclass(frozen=True, slots=True)
class Tools:
    """What every job of this instance works with."""

    config: Config
    heart: Heart
    spool: Spool
    locks: Locks
    marker: Marker
    source: Source
    room: Room
    hook: Hook


@dataclass(slots=True)
class Case:
    """One claimed request on its way: what is known, and what came of it."""

    claim: Claim
    dropped: Dropped
    request: Request | None = None
    progress: Progress = field(default_factory=Progress)
    look_seconds: float = 0.0
    """How long to wait before the archive is looked for again."""
    verdict: Mapping[str, StagerError] = field(default_factory=dict)
    """What an earlier request of the same build learnt about its images, while this one waited."""
    started_at: float = 0.0
    starts_before: int = 0
    staged: dict[str, Sidecar] = field(default_factory=dict)
    looked_at: float = 0.0
    """When it was looked what is staged, which touches it; seconds of CLOCK_BOOTTIME."""
    failures: dict[str, StagerError] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    archive: Archive | None = None
    error: StagerError | None = None
    due: float | None = None
    """When it waits: the time it is due, by the file server's clock."""
    is_probe: bool = False
    """Whether it was started to see if a fault of the machine is over."""
    is_answered: bool = False
    state: str = ""
    """The answer's state."""
    code: str = ""
    """The answer's error code; empty where it is good."""
    learnt_at: float = 0.0
    """When the archive was last looked at, by the file server's clock: what is learnt from it holds
    for those who had asked by then."""

    def interrupt(self) -> None:
        """Have its worker look at once whether it should go on."""
        if self.archive is not None:
            self.archive.interrupt()
