"""Sees every change on the server's disk and holds it against the promises and I1 to I6."""

import hashlib
import os
from collections.abc import Callable
from itertools import pairwise

from model.fileserver import Change
from model.staged import Staged
from stager.layout import Build

ROOMS_TO_LEAVE = (
    *(f"spool/{room}" for room in ("requests", "active", "waiting", "private", "tmp", "control")),
    "static/.stager/tmp", "static/.stager/work",
)  # fmt: skip
"""Empty when all is quiet."""


class Witness(Staged):
    """Knows what people did, and what may therefore be on the disk."""

    def __init__(self, root: str, files: dict[str, str], now: Callable[[], float]) -> None:
        super().__init__(root, files, now)
        self.lease = 0.0
        self.outages: list[tuple[float, float]] = []
        """When nobody could reach the server."""
        self.lives: Callable[[str], bool] = lambda _: False
        """Whether an instance's process runs (or is only paused)."""
        self.sound: Callable[[str], bool] = lambda _: False
        """Whether, besides, nothing has ailed it for more than a lease."""
        self.clones = False
        """Whether all machines have one machine id."""
        self.slack_seconds = 1.0
        """How long after a beat the others are looked at, at most."""
        self._beats: dict[str, list[float]] = {}

    def see(self, change: Change) -> None:
        """Judge one change."""
        self._request(change)
        self._robbed(change)
        if os.path.dirname(change.path) == f"{self.root}/results":
            self._answer(change)
        self._tree(change)

    # -- the living ------------------------------------------------------------------------------

    def _robbed(self, change: Change) -> None:
        """Promise 4: nothing is taken from an instance whose heart beats, or should."""
        if change.verb != "rename" or change.late:
            return
        name, place = os.path.basename(change.source), os.path.dirname(change.source)
        beating, _, count = os.path.basename(change.path).rpartition(".")
        if os.path.dirname(change.path) == f"{self.spool}/instances" and count.isdigit():
            self._beats.setdefault(beating, []).append(self.now())
        for inst in [inst for inst in self._beats if f"{inst}." in name]:
            # Answers may be finished by anybody, and a counter that stands still is buried.
            finished = place in {f"{self.spool}/instances", f"{self.spool}/private"}
            if change.who == inst.rpartition("-")[0] or finished or self._is_left(place, name):
                continue
            if self.clones and not self._knew(change.who, inst):
                continue
            if self._is_blind(change, place) or self._is_ghost(change):
                continue
            beats = self.lives(inst) and self._silence(inst) < 0.9 * self.lease
            if beats or self.sound(inst):
                self.accuse(f"promise 4: {change.source} was taken from the living by {change.who}")

    def _is_blind(self, change: Change, place: str) -> bool:
        """Whether a sweeper's own heartbeat stood still, which is what looks at the others.

        It then knew of no newcomer; its mistake costs somebody's work, never a request.
        """
        sweeper = os.path.basename(change.path).rpartition(".")[0]
        since = self.now() - 2 * self.lease
        beats = [since, *(b for b in self._beats.get(sweeper, []) if b > since), self.now()]
        blind = max(b - a for a, b in pairwise(beats)) > self.lease / 2
        return place.endswith(("/tmp", "/work")) and blind

    def _knew(self, host: str, inst: str) -> bool:
        """Whether a machine has seen an instance's counter move: two machines with one id then."""
        looks = max(b for other, b in self._beats.items() if other.rpartition("-")[0] == host)
        first, *beats = self._beats[inst]
        spans = [(a, b) for a, b in pairwise(looks) if a > first]
        return any(a + self.slack_seconds < beat < b for a, b in spans for beat in beats)

    def _is_left(self, place: str, name: str) -> bool:
        """Whether this is a work directory whose token was given back."""
        if place != f"{self.static}/.stager/work":
            return False
        key, _, rest = name.partition(".")
        token = ".".join(rest.split(".")[:3])
        return not os.path.exists(f"{self.static}/.stager/locks/{key}/{token}")

    def _is_ghost(self, change: Change) -> bool:
        """Whether this is a token that a late duplicate brought back, below the one that counts."""
        room = os.path.dirname(change.source)
        is_token = room.startswith(f"{self.static}/.stager/locks/")
        if not is_token or change.source not in self._ghosts:
            return False
        # Whoever takes a token makes a higher one of it: that is no excuse.
        others = [name for name in os.listdir(room) if f"{room}/{name}" != change.path]
        numbers = [int(name.partition(".")[0]) for name in others]
        return max(numbers, default=-1) > int(os.path.basename(change.source).partition(".")[0])

    def _silence(self, inst: str) -> float:
        """Return an instance's longest silence of late, but for outages of the server."""
        beats = [*self._beats[inst][-20:], self.now()]
        gaps = [(a, b) for a, b in pairwise(beats) if b > self.now() - self.lease - 30]
        return max(
            b - a - sum(max(0.0, min(b, d) - max(a, c)) for c, d in self.outages) for a, b in gaps
        )

    # -- the end ---------------------------------------------------------------------------------

    def leftovers(self, living: set[str]) -> list[str]:
        """Return what should not be there once all is quiet."""
        found = []
        for room in ROOMS_TO_LEAVE:
            found += [f"{room}/{name}" for name in sorted(os.listdir(f"{self.root}/{room}"))]
        for name in sorted(os.listdir(f"{self.spool}/instances")):
            if name.rpartition(".")[0] not in living:
                found.append(f"spool/instances/{name}")
        for build in self.builds.values():
            if self._untrue(build) is not None:
                found.append(f"the flag of {build.target}")
        locks = f"{self.static}/.stager/locks"
        for key in sorted(os.listdir(locks)):
            tokens = os.listdir(f"{locks}/{key}")
            # A lower one is a ghost: the next taker removes it.
            ghosts = {token for token in tokens if f"{locks}/{key}/{token}" in self._ghosts}
            if not all(token.endswith(".free") for token in tokens if token not in ghosts):
                found.append(f"locks/{key}: {tokens}")
        return found

    def finally_true(self) -> None:
        """Judge what is left when all is quiet."""
        for asked in self.unanswered():
            self.accuse(f"promise 1: request {asked.number} ({asked.name}) was never answered")
        for path, (inode, sha) in self.visible.items():
            with open(path, "rb") as f:
                data = f.read()
            if os.stat(path).st_ino != inode or hashlib.sha256(data).hexdigest() != sha:
                self.accuse(f"I3: {path} changed")
        for build in self.builds.values():
            self.flag(build)
            if (there := self._untrue(build)) is not None:
                self.accuse(f"I4: in the end {there} are staged in {build.target}, "
                            f"and the flag lists {self.flag_lines(build)}")  # fmt: skip

    def _untrue(self, build: Build) -> list[str] | None:
        """Return what a flag should list; None: it does."""
        there = {i for i in self.files if not self._record_problem(build, i)}
        return None if there == set(self.flag_lines(build)) else sorted(there)
