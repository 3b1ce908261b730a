"""Listings that are hints: what follows from them is decided by a rename."""

import time
from pathlib import Path

from stager import durable

SELDOM_SECONDS = 15.0
"""From touch to touch of a directory that is scanned on NFSv4."""


class Scans:
    """Lists the directories of one filesystem.

    NFSv4's servers count the changes of a directory, so that one opened anew shows them all without
    a touch. Where the disk's filesystem can't count they are as NFSv3: for those, one now and then.
    """

    def __init__(self, kind: str) -> None:
        self._pause = SELDOM_SECONDS if kind == "nfs4" else 0.0
        self._touched: dict[Path, float] = {}

    def scan(self, directory: Path) -> list[str]:
        """List a directory anew."""
        now = time.monotonic()
        touch = now - self._touched.get(directory, float("-inf")) >= self._pause
        names = durable.listing(directory, touch=touch)
        if touch:
            self._touched[directory] = now
        return names
