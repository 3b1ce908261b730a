"""One machine's sign of life in a directory that is probed, and what it sees of the others'.

Each has one file, `.stager-probe.<state>.<member>.<machines>.<count>`; a thread raises its counter
by rename: who moves, lives. What earlier probes left is swept by that too.
"""

import os
import re
import threading
import time
from contextlib import suppress
from pathlib import Path

from stager import durable

PREFIX = ".stager-probe."
HELLO = re.compile(
    re.escape(PREFIX)
    + r"(?P<state>free|busy)\.(?P<member>[A-Za-z0-9-]+)\.(?P<machines>\d+)\.(?P<count>\d+)"
)
ROOM = re.compile(re.escape(PREFIX) + r"(?P<kind>room|alone)\.(?P<member>[A-Za-z0-9-]+)")
BEAT_SECONDS = 0.25
JOIN_SECONDS = 15.0


class Presence:
    """The sign of life of `me`; `seen` has the others' counters, and since when they stand."""

    def __init__(self, directory: Path, me: str, machines: int) -> None:
        self.directory, self.me, self.machines = directory, me, machines
        self.state = "free"
        self.seen: dict[str, tuple[int, float]] = {}
        self.moved: set[str] = set()
        self._count = 0
        self._file = self._name()
        self._ended = threading.Event()
        self._pulse = threading.Thread(target=self._beat, name="probe", daemon=True)

    def begin(self) -> None:
        """Appear."""
        durable.write_new(self._file, b"", sync=False)
        self._pulse.start()

    def end(self) -> None:
        """Disappear."""
        self._ended.set()
        self._pulse.join(JOIN_SECONDS)
        durable.discard(self._file)

    def observe(self, members: list[str]) -> None:
        """Note whose counter moves."""
        now, seen = time.monotonic(), {}
        for name in durable.listing(self.directory):
            m = HELLO.fullmatch(name)
            if not m or m["member"] == self.me:
                continue
            member, count = m["member"], int(m["count"])
            before = self.seen.get(member)
            if before and before[0] != count:
                self.moved.add(member)
            if m["state"] == "free" or member in members:
                seen[member] = before if before and before[0] == count else (count, now)
        self.seen = seen

    def bury(self, member: str) -> None:
        """Remove what a member left that has died."""
        for name in durable.listing(self.directory):
            m = HELLO.fullmatch(name) or ROOM.fullmatch(name)
            if m and m["member"] == member:
                remove(self.directory / name)

    def sweep(self, seconds: float) -> list[str]:
        """Remove what earlier probes left: whose counter has not moved for `seconds`.

        Ages are by the file server's own clock; a living one that is hit by mistake comes again.
        """
        now, swept = self._server_time(), []
        for name in durable.listing(self.directory):
            m = HELLO.fullmatch(name)
            path = self.directory / name
            if m and m["member"] != self.me and now - _changed(path, now) > seconds:
                remove(path)
                swept.append(name)
        left = self._ownerless()
        if left:
            # Twice, as a listing that a rename splits may show neither of an owner's names.
            time.sleep(BEAT_SECONDS)
            left &= self._ownerless()
        for name in left:
            remove(self.directory / name)
        return [*swept, *left]

    def _ownerless(self) -> set[str]:
        names = durable.listing(self.directory)
        owners = {self.me, *(m["member"] for m in map(HELLO.fullmatch, names) if m)}
        rooms = [m for m in map(ROOM.fullmatch, names) if m]
        return {m.group() for m in rooms if m["member"] not in owners}

    def _server_time(self) -> float:
        tmp = self.directory / f"{PREFIX}{durable.nonce()}.tmp"
        durable.write_new(tmp, b"", sync=False)
        try:
            return os.stat(tmp).st_ctime
        finally:
            durable.discard(tmp)

    def _name(self) -> Path:
        name = f"{PREFIX}{self.state}.{self.me}.{self.machines}.{self._count}"
        return self.directory / name

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self._count += 1
            target = self._name()
            try:
                os.rename(self._file, target)
            except OSError:
                with suppress(OSError):
                    durable.write_new(target, b"", sync=False)
            self._file = target


def remove(path: Path) -> None:
    """Remove a file or a directory of a probe's, as far as that goes."""
    with suppress(OSError):
        if path.is_dir():
            durable.remove_tree(path)
        else:
            path.unlink()


def _changed(path: Path, unknown: float) -> float:
    try:
        return os.lstat(path).st_ctime
    except OSError:
        return unknown
