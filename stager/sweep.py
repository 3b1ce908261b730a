"""Housekeeping: what the dead left behind, once nobody can need it any more.

Nothing is removed unless it was without an owner in two listings at least a lease apart; a mistake
then costs a paused writer its work, never a request or an image.
"""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from stager import durable, stuck
from stager.instance import Heart
from stager.layout import Paths
from stager.lock import Token

DROPPED_TMP_SECONDS = 36 * 3600
ANSWER_SECONDS = 3600
_OWN = re.compile(r"(?P<inst>[A-Za-z0-9-]+)\.[a-z2-7]+(\.[dt])?")


class Sweeper:
    """Remembers what looked left over, and removes it when it still does a lease later."""

    def __init__(self, paths: Paths, heart: Heart) -> None:
        self.paths, self.heart = paths, heart
        self._suspects: dict[Path, float] = {}

    def sweep(self) -> list[Path]:
        """Take one look; remove what was left over in this one and in one a lease ago."""
        now, removed = time.monotonic(), list[Path]()
        if not self.heart.looks:
            return removed  # who lives now is not known
        suspects = dict.fromkeys(self._leftovers(), now)
        for path, since in self._suspects.items():
            if path in suspects:
                suspects[path] = since
        for path, since in list(suspects.items()):
            if now - since > self.heart.lease:
                if not stuck.is_others_folder(path) and self._remove(path):
                    removed.append(path)
                    del suspects[path]
                else:
                    # Not to be moved by us: asked again a lease later.
                    suspects[path] = now
        self._suspects = suspects
        return removed

    def _leftovers(self) -> Iterator[Path]:
        living = set(self.heart.living())
        yield from self._tmp(self.paths.tmp, living)
        yield from self._tmp(self.paths.static_tmp, living)
        yield from self._work(living)
        yield from self._private()
        yield from self._old(self.paths.requests, re.compile(r".*\.tmp"), DROPPED_TMP_SECONDS)
        control = re.compile(r".*\.answer|\..*\.tmp")
        yield from self._old(self.paths.control, control, ANSWER_SECONDS)
        for name in durable.listing(self.paths.instances):
            inst, _, kind = name.rpartition(".")
            if kind == "status" and inst not in living:
                yield self.paths.instances / name

    def _tmp(self, directory: Path, living: set[str]) -> Iterator[Path]:
        for name in durable.listing(directory):
            if name.endswith(".order"):
                continue  # taken, and to be answered yet: the clerk's
            m = _OWN.fullmatch(name)
            # Nothing of ours stays here for a lease but what a lost reply left.
            if not m or m["inst"] not in living or m["inst"] == self.heart.inst:
                yield directory / name

    def _work(self, living: set[str]) -> Iterator[Path]:
        """Work directories whose token is not there (any more) or belongs to the dead."""
        for name in durable.listing(self.paths.work):
            key, _, rest = name.partition(".")
            token = Token.parse(".".join(rest.split(".")[:3]))
            if token is None or token.inst not in living:
                yield self.paths.work / name
                continue
            try:
                held = str(token) in durable.listing(self.paths.locks / key)
            except FileNotFoundError:
                held = False
            if not held:
                yield self.paths.work / name

    def _private(self) -> Iterator[Path]:
        names = durable.listing(self.paths.private)
        if names:
            rooms = ("active", "done", "failed", "cancelled")
            used = {n for room in rooms for n in durable.listing(self.paths.spool / room)}
            yield from (self.paths.private / name for name in names if name not in used)

    def _old(self, directory: Path, names: re.Pattern[str], seconds: float) -> Iterator[Path]:
        for name in durable.listing(directory):
            if names.fullmatch(name):
                try:
                    age = self.heart.server_now() - os.lstat(directory / name).st_ctime
                except OSError:
                    continue
                if age > seconds:
                    yield directory / name

    def _remove(self, path: Path) -> bool:
        """Rename away, then remove: what comes back late under the old name stays nobody's."""
        home = self.paths.static_tmp if self.paths.stager in path.parents else self.paths.tmp
        grave = home / f"{self.heart.inst}.{durable.nonce()}"
        try:
            if not durable.move(path, grave):
                return True
            if grave.is_dir() and not grave.is_symlink():
                return durable.remove_tree(grave)
        except OSError:
            return False
        durable.discard(grave)
        return True
