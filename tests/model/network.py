"""The way between the clients and the server, where requests and replies get lost."""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from model.fileserver import Disk, Handles
from model.turns import Scheduler
from stager.layout import Claim

SOFT_SECONDS = 20.0
"""So long after an error what failed may still be done (a soft mount); less than the lease."""


@dataclass(slots=True)
class Odds:
    """How likely each fault is, per call."""

    again: float = 0.0
    duplicate: float = 0.0
    lost: float = 0.0
    lost_late: float = 0.0
    refused: float = 0.0
    stale_listing: float = 0.0
    split_listing: float = 0.0
    stale_name: float = 0.0
    slow: float = 0.0
    busy: float = 0.0


@dataclass(frozen=True, slots=True)
class Sent:
    """A request for a change, as it was sent."""

    who: str
    call: Callable[..., None]
    paths: tuple[str, ...]

    def execute(self, *paths: str, late: bool = False) -> None:
        """Have the server do it, at where the names are now."""
        self.call(self.who, *paths, late=late)


@dataclass(slots=True)
class Late:
    """A request still on its way."""

    due: float
    handles: Handles
    sent: Sent
    is_duplicate: bool
    """Whether it was executed before."""


@dataclass
class Network:
    """Everything between the clients and the server."""

    world: Scheduler
    disk: Disk
    odds: Odds
    late: list[Late] = field(default_factory=list)
    cached_seconds: float = 30.0
    late_seconds: tuple[float, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    trace: Callable[..., None] = lambda *_: None
    ghosts: set[int] = field(default_factory=set)
    """Inodes that a late duplicate made, or put where they are."""

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def send(self, sent: Sent) -> None:
        """Carry a request to the server, and its reply back; or not."""
        odds, draw = self.odds, self.world.rng.random()
        verb, outcome = sent.call.__name__.strip("_"), "ok"
        try:
            for likely, what, times, error in (
                (odds.again, "executed twice", 2, False),
                (odds.duplicate, "duplicate under way", 1, False),
                (odds.lost, "done, error returned", 1, True),
                (odds.lost_late, "error returned, done later", 0, True),
                (odds.refused, "error returned, not done", 0, True),
                (1.0, "", 1, False),
            ):
                if draw < likely:
                    self._carry(sent, what, times, error=error)
                    break
                draw -= likely
        except OSError as e:
            outcome = errno.errorcode[e.errno or 0]
            raise
        finally:
            self.trace(sent.who, verb, *sent.paths, outcome)

    def _carry(self, sent: Sent, what: str, times: int, *, error: bool) -> None:
        if what:
            self.count(what)
        if what == "duplicate under way":
            self.hold(sent, is_duplicate=True)
        elif what == "error returned, done later":
            self.hold(sent, SOFT_SECONDS)
        for _ in range(times):
            sent.execute(*sent.paths)
        if error:
            raise OSError(errno.EIO, what, sent.paths[0])

    def hold(self, sent: Sent, most: float = 1e9, *, is_duplicate: bool = False) -> None:
        """Have a request executed later."""
        rng = self.world.rng
        due = self.world.now + min(most, rng.expovariate(1 / rng.choice(self.late_seconds)))
        self.late.append(Late(due, Handles(*sent.paths), sent, is_duplicate))

    def deliver(self, *, everything: bool = False) -> None:
        """Execute the requests that were on their way until now."""
        for late in [late for late in self.late if everything or late.due <= self.world.now]:
            self.late.remove(late)
            self._execute(late)

    def _execute(self, late: Late) -> None:
        sent, outcome = late.sent, "done"
        try:
            paths = late.handles.paths()
            if late.is_duplicate and self._is_out_of_reach(paths):
                outcome = "left out"
            else:
                sent.execute(*paths, late=True)
                if late.is_duplicate:
                    self.ghosts.add(_inode(paths[-1]))
        except OSError as e:
            outcome = errno.errorcode[e.errno or 0]
        finally:
            late.handles.close()
        self.count("late, left out" if outcome == "left out" else "executed late")
        self.trace("late", sent.who, sent.call.__name__.strip("_"), *sent.paths, outcome)

    def _is_out_of_reach(self, paths: list[str]) -> bool:
        """Whether no protocol of renames can guard against a late duplicate.

        The take is the one rename whose source is the user's, who may use the NAME again at once.
        Its duplicate can find the first request where it put it, not accepted yet; or put the
        second one there, for a late duplicate of the accept, too, to find. And what is renamed
        over (flag, record, an image by force) can be emptied by two late duplicates in a row, of a
        file's making and of its renaming, as long as the work directory is there.
        """
        if "/.stager/work/" in paths[0] and len(paths) > 1:
            return _inode(paths[0]) in self.ghosts
        source, target = (Claim.parse(os.path.basename(path)) for path in (paths[0], paths[-1]))
        if len(paths) < 2:
            return False
        if source is None:
            return target is not None and target.g == 0 and os.path.lexists(paths[-1])
        return source.g == 0 and _inode(paths[0]) in self.ghosts


def _inode(path: str) -> int:
    try:
        return os.lstat(path).st_ino
    except FileNotFoundError:
        return 0
