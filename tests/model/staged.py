"""Holds every change of the static tree against promises 2 and 3, and I3 to I6."""

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

from model.answers import Answers
from model.fileserver import Change
from stager.layout import FLAG, Build
from stager.lock import Token

FOREIGN = "factory"
"""Somebody else's file in a build's directory, and the line of it in the flag."""


class Staged(Answers):
    """Knows what is staged, and who may stage."""

    def __init__(self, root: str, files: dict[str, str], now: Callable[[], float]) -> None:
        super().__init__(root, files, now)
        self.builds: dict[str, Build] = {}
        self._ghosts: set[str] = set()
        """Names that were made late."""
        self._highest: dict[str, int] = {}
        self._listed: set[int] = set()
        """Inodes of images that a flag ever listed."""

    def _tree(self, change: Change) -> None:
        """Judge a change of names."""
        place, old_place = os.path.dirname(change.path), os.path.dirname(change.source)
        if change.late:
            self._ghosts.add(change.path)
        for directory in {place, old_place}:
            if directory.startswith(f"{self.static}/.stager/locks/"):
                self._tokens(directory)
        if place.startswith(f"{self.static}/images/"):
            self._image(change)
        old = change.source or change.path
        if old in self.visible and change.verb in {"rename", "unlink"} and not os.path.lexists(old):
            self._removed(old, change)
        elif os.path.basename(old) == FOREIGN:
            self.accuse(f"I6: {old}: {change.verb} by {change.who}")
        marked = (f"{self.static}/images", f"{self.static}/.stager/sidecars")
        if place.startswith(marked) or old_place.startswith(marked):
            self._published(change)
            for build in self.builds.values():
                self.flag(build)

    def _which(self, path: str) -> tuple[Build, str]:
        target = os.path.relpath(os.path.dirname(path), self.static)
        build = next(b for b in self.builds.values() if b.target == target)
        names = {file: image for image, file in self.files.items()}
        return build, names[os.path.basename(path)]

    def _image(self, change: Change) -> None:
        """I3: what becomes visible is whole, and replaces nothing but by force."""
        if change.verb == "create":
            self.accuse(f"I4: {change.path} was created in place")
        is_image = os.path.basename(change.path) in self.files.values()
        if not is_image or change.verb in {"unlink", "create"}:
            return
        build, image = self._which(change.path)
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
