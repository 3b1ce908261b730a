"""Sees every change on the server's disk and holds it against the promises and I1 to I6."""

import hashlib
import json
import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from model.answers import Answers
from model.fileserver import Change
from stager.layout import FLAG, Build
from stager.lock import Token

ROOMS_TO_LEAVE = (
    *(f"spool/{room}" for room in ("requests", "active", "waiting", "private", "tmp", "control")),
    "static/.stager/tmp", "static/.stager/work",
)  # fmt: skip
"""Empty when all is quiet."""
FOREIGN = "factory"
"""Somebody else's file in a build's directory, and the line of it in the flag."""


class Witness(Answers):
    """Knows what people did, and what may therefore be on the disk."""

    def __init__(self, root: str, files: dict[str, str], now: Callable[[], float]) -> None:
        super().__init__(root, files, now)
        self.builds: dict[str, Build] = {}
        self.lease = 0.0
        self.outages: list[tuple[float, float]] = []
        """When nobody could reach the server."""
        self.lives: Callable[[str], bool] = lambda _: False
        """Whether an instance's process runs (or is only paused)."""
        self.sound: Callable[[str], bool] = lambda _: False
        """Whether, besides, nothing has ailed it for more than a lease."""
        self.clones = False
        """Whether all machines have one machine id."""
        self._ghosts: set[str] = set()
        """Tokens that a late duplicate made."""
        self._highest: dict[str, int] = {}
        self._listed: set[int] = set()
        """Inodes of images that a flag ever listed."""
        self._beats: dict[str, list[float]] = {}

    def see(self, change: Change) -> None:
        """Judge one change."""
        self._request(change)
        self._robbed(change)
        place = os.path.dirname(change.path)
        old_place = os.path.dirname(change.source)
        if place == f"{self.root}/results":
            self._answer(change)
        for directory in {place, old_place}:
            if directory.startswith(f"{self.static}/.stager/locks/"):
                if change.late and directory == place:
                    self._ghosts.add(change.path)
                self._tokens(directory)
        if change.verb == "create" and change.path.startswith(f"{self.static}/images/"):
            self.accuse(f"I4: {change.path} was created in place")
        if os.path.basename(change.source or change.path) == FOREIGN:
            self.accuse(f"I6: {change.source or change.path}: {change.verb} by {change.who}")
        if (
            change.path.startswith(f"{self.static}/images/")
            and os.path.basename(change.path) in self.files.values()
        ):
            self._image(change)
        source_image = self.visible.get(change.source or change.path)
        if (
            source_image
            and change.verb in {"rename", "unlink"}
            and (not change.source or change.source in self.visible)
            and not os.path.lexists(change.source or change.path)
        ):
            self._removed(change.source or change.path, change)
        touched = {place, old_place}
        if any(d.startswith((f"{self.static}/images", f"{self.static}/.stager/sidecars"))
               for d in touched):  # fmt: skip
            self._published(change)
            for build in self.builds.values():
                self.flag(build)

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
            if self._is_blind(change, place):
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
        return any(a + 1.0 < beat < b for a, b in spans for beat in beats)

    def _is_left(self, place: str, name: str) -> bool:
        """Whether this is a work directory whose token was given back."""
        if place != f"{self.static}/.stager/work":
            return False
        key, _, rest = name.partition(".")
        token = ".".join(rest.split(".")[:3])
        return not os.path.exists(f"{self.static}/.stager/locks/{key}/{token}")

    def _silence(self, inst: str) -> float:
        """Return an instance's longest silence of late, but for outages of the server."""
        beats = [*self._beats[inst][-20:], self.now()]
        gaps = [(a, b) for a, b in pairwise(beats) if b > self.now() - self.lease - 30]
        return max(
            b - a - sum(max(0.0, min(b, d) - max(a, c)) for c, d in self.outages) for a, b in gaps
        )

    # -- the static tree -------------------------------------------------------------------------

    def _which(self, path: str) -> tuple[Build, str]:
        target = os.path.relpath(os.path.dirname(path), self.static)
        build = next(b for b in self.builds.values() if b.target == target)
        names = {file: image for image, file in self.files.items()}
        return build, names[os.path.basename(path)]

    def _image(self, change: Change) -> None:
        """I3: what becomes visible is whole, and replaces nothing but by force."""
        if change.verb == "unlink":
            return
        build, image = self._which(change.path)
        if change.verb == "create":
            return
        with open(change.path, "rb") as f:
            sha = hashlib.sha256(f.read()).hexdigest()
        if sha not in self.known[build.key, image]:
            self.accuse(f"I3: {change.path} is no whole image")
        old = self.visible.get(change.path)
        replaced = old is not None and old[0] != change.inode and not self._forced(build)
        # What was never listed may be replaced by what the archive holds now.
        if old is not None and replaced and (sha == old[1] or old[0] in self._listed):
            self.accuse(f"I3: {change.path} was replaced without force")
        self.visible[change.path] = (change.inode, sha)

    def _forced(self, build: Build) -> bool:
        return any(
            a.force and a.build.key == build.key and not a.ended for a in self.asked.values()
        )

    def _removed(self, path: str, change: Change) -> None:
        build, image = self._which(path)
        del self.visible[path]
        used = self.used.get((build.key, image), -1e9)
        if not self.keep_seconds:
            self.accuse(f"I3: {path} was removed by {change.who}")
        elif change.late and image in self.flag_lines(build):
            self.accuse(f"I3: {path} was removed by a late duplicate")
        elif self.now() - used < self.keep_seconds:
            self.accuse(f"I3: {path} was removed {self.now() - used:.1f} s after its use")

    def _published(self, change: Change) -> None:
        """A fence holds: nothing comes out of a work directory older than another one's."""
        work = f"{self.static}/.stager/work"
        directory = os.path.dirname(change.source)
        if os.path.dirname(directory) != work:
            return
        key, _, rest = os.path.basename(directory).partition(".")
        mine = rest.split(".")
        for name in os.listdir(work):
            other, _, rest = name.partition(".")
            its = rest.split(".")
            newer = int(its[0]) > int(mine[0])
            if other == key and (newer or (its[0] == mine[0] and its[:3] != mine[:3])):
                self.accuse(f"fence: {change.path} came out of {directory} in spite of {name}")

    def flag(self, build: Build) -> None:
        """I4: the flag lists only images that are there, with their records."""
        for image in self.flag_lines(build):
            inode = self.visible.get(self._image_path(build, image), (0, ""))[0]
            problem = self._record_problem(build, image)
            if problem == "an empty record":
                # The ghost of a late create and a late rename: it lists nothing as staged.
                self._listed.discard(inode)
                continue
            self._listed.add(inode)
            if problem:
                self.accuse(f"I4: the flag of {build.target} lists {image}: {problem}")

    def flag_lines(self, build: Build) -> list[str]:
        try:
            with open(f"{self.static}/{build.target}/{FLAG}") as f:
                return [line for line in f.read().split() if line != FOREIGN]
        except FileNotFoundError:
            return []

    def _record_problem(self, build: Build, image: str) -> str:
        known = self.visible.get(self._image_path(build, image))
        if known is None:
            return "no such image"
        try:
            with open(f"{self.static}/.stager/sidecars/{build.key}.{image}.json") as f:
                text = f.read()
            if not text:
                return "an empty record"
            record: dict[str, Any] = json.loads(text)
        except FileNotFoundError:
            return "no record"
        except ValueError:
            return "a torn record"
        return "" if record["sha256"] == known[1] else "a record of another content"

    def _tokens(self, directory: str) -> None:
        """I5: one token, whose number only grows (lower free ones don't count)."""
        if not os.path.isdir(directory):
            return
        tokens = sorted(t for t in map(Token.parse, os.listdir(directory)) if t)
        if not tokens:
            self.accuse(f"I5: no token in {directory}")
            return
        if any(token.inst and f"{directory}/{token}" not in self._ghosts for token in tokens[:-1]):
            self.accuse(f"I5: several tokens in {directory}: {[str(t) for t in tokens]}")
        if tokens[-1].n < self._highest.get(directory, 0):
            self.accuse(f"I5: the token of {directory} went back to {tokens[-1].n}")
        self._highest[directory] = tokens[-1].n

    # -- the end ---------------------------------------------------------------------------------

    def leftovers(self, living: set[str]) -> list[str]:
        """Return what should not be there once all is quiet."""
        found = []
        for room in ROOMS_TO_LEAVE:
            found += [f"{room}/{name}" for name in sorted(os.listdir(f"{self.root}/{room}"))]
        for name in sorted(os.listdir(f"{self.spool}/instances")):
            if name.rpartition(".")[0] not in living:
                found.append(f"spool/instances/{name}")
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
            there = {i for i in self.files if not self._record_problem(build, i)}
            if there != set(self.flag_lines(build)):
                self.accuse(f"I4: in the end {sorted(there)} are staged in {build.target}, "
                            f"and the flag lists {self.flag_lines(build)}")  # fmt: skip
