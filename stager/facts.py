"""What an instance knows of itself right now, from memory alone: for its metrics."""

import os
import time
from dataclasses import dataclass, field

from stager import __version__
from stager.bulletin import Bulletin
from stager.layout import Paths
from stager.tally import Tally


@dataclass(frozen=True, slots=True)
class Facts:
    """One look."""

    version: str
    tally: Tally
    fetched_bytes: int
    waiting: int
    oldest_seconds: float
    unclaimable: int
    active: int
    workers: int
    scan_age: float
    heartbeat_age: float
    living: int
    paused: bool
    fault: str
    disks: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By tree: free and all bytes."""


class Observer:
    """Knows where the numbers are; `look` is for the daemon's loop, as it may block."""

    def __init__(self, paths: Paths, bulletin: Bulletin) -> None:
        self.paths, self.bulletin = paths, bulletin
        self._disks: dict[str, tuple[int, int]] = {}
        self._living = 1

    def look(self) -> None:
        """Ask the filesystems how full they are, and who lives."""
        self._living = len(self.bulletin.heart.living())
        for tree, path in (("spool", self.paths.spool), ("static", self.paths.static)):
            fs = os.statvfs(path)
            self._disks[tree] = (fs.f_bavail * fs.f_frsize, fs.f_blocks * fs.f_frsize)

    def facts(self) -> Facts:
        """Return all numbers; may be called by any thread, and touches no file."""
        told = self.bulletin
        dispatcher, dropbox, heart = told.dispatcher, told.dropbox, told.heart
        tally, cases = dispatcher.intake.tally, dispatcher.cases()
        entries = list(dispatcher.backlog.entries.values())
        arrived = [entry.waiting.arrived_ns for entry in entries]
        arrived += dropbox.arrived()
        oldest = heart.server_now() - min(arrived) / 1e9 if arrived else 0.0
        fault = told.standing_fault()
        return Facts(
            version=__version__,
            tally=tally,
            fetched_bytes=tally.bytes_fetched(cases),
            waiting=len(entries) + dropbox.left,
            oldest_seconds=max(0.0, oldest),
            unclaimable=dropbox.stuck,
            active=len(cases),
            workers=told.config.workers,
            scan_age=time.monotonic() - told.scanned_at,
            heartbeat_age=heart.age(),
            living=self._living,
            paused=told.paused,
            fault=fault["code"] if fault else "",
            disks=dict(self._disks),
        )
