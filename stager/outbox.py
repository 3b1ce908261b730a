"""Answers on their way out: written privately, and made visible once their claims are committed.

What others read is touched once more a little later: who listed a directory within the tick of the
file server's clock in which it changed would not be told of the change else (NFSv3).
"""

import os
import time
from pathlib import Path

from stager import durable, result
from stager.errors import StorageError
from stager.instance import Heart
from stager.layout import Claim, Paths
from stager.result import Result

TICK_SECONDS = 0.02


class Outbox:
    """Writes and publishes answers in the name of one instance."""

    def __init__(self, paths: Paths, heart: Heart, nfs: bool) -> None:
        self.paths, self.heart, self.nfs = paths, heart, nfs
        self._changed: dict[Path, float] = {}
        """Directories that others read, and when they changed."""

    def write(self, answers: list[tuple[Claim, Result]]) -> None:
        """Write answers privately and synced.

        They are made in a directory that is gone before they count, and linked, which replaces
        nothing, until then: so duplicates of their making that are executed late (NFSv3) can't put
        an empty one in its place, in private/ or results/. Only a torn one (finish.py) is replaced.
        """
        desk = self.paths.tmp / f"{self.heart.inst}.{durable.nonce()}"
        durable.make_dir(desk)
        new = [desk / str(number) for number in range(len(answers))]
        texts = [result.to_yaml(answer, claim) for claim, answer in answers]
        durable.write_all_new(zip(new, texts, strict=True))
        for file, (claim, _) in zip(new, answers, strict=True):
            private = self.paths.private / str(claim)
            if not (durable.link(file, private) or durable.move(file, private)):
                raise StorageError("an answer that was just written is gone")
        if not durable.remove_known(desk, new):
            raise StorageError("a directory that an answer was written in can't be removed")
        self.sync(self.paths.private)

    def publish(self, claims: list[Claim]) -> None:
        """Make committed claims' answers visible; whoever does it, it happens once."""
        for claim in claims:
            private = self.paths.private / str(claim)
            try:
                os.rename(private, self.paths.results / claim.result_file)
            except OSError:
                if private.name in durable.listing(self.paths.private):
                    raise
        if claims:
            self.sync(self.paths.results)
            self.note(self.paths.results)

    def sync(self, directory: Path) -> None:
        """Make names durable; on NFS they are."""
        if not self.nfs:
            durable.sync_dir(directory)

    def note(self, directory: Path) -> None:
        """Remember that others should see a change of a directory they read."""
        self._changed[directory] = time.monotonic()

    def touch_again(self) -> None:
        """Touch those directories once more, later than a tick of the server's clock."""
        for directory, since in list(self._changed.items()):
            if time.monotonic() - since > TICK_SECONDS:
                # Forgotten before: what a worker publishes meanwhile is noted anew.
                self._changed.pop(directory, None)
                try:
                    durable.set_time(directory)
                except OSError:
                    self._changed.setdefault(directory, since)
                    raise

    def touch_last(self) -> None:
        """Touch what is left to touch, before the end."""
        if self.nfs and self._changed:
            time.sleep(TICK_SECONDS * 1.5)
            self.touch_again()
