"""Runs on the file server: tells every change of a spool and a static tree, in its order.

usage: guest_watch.py ROOT OUT. The server's own kernel sees what all machines do (inotify on the
exported disk); each event is a line of JSON in OUT: time, directory, kind, name. Ends at SIGTERM.
"""

import ctypes
import json
import os
import select
import signal
import struct
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TextIO

MODIFY, MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x2, 0x40, 0x80, 0x100, 0x200
OVERFLOW = 0x4000
KINDS = {MODIFY: "write", MOVED_FROM: "from", MOVED_TO: "to", CREATE: "new", DELETE: "gone"}
HEAD = struct.Struct("iIII")
ROOMS = (
    "spool/requests", "spool/active", "spool/waiting", "spool/done", "spool/failed",
    "spool/cancelled", "spool/instances", "results", "static/.stager/work",
    "static/.stager/sidecars",
)  # fmt: skip
TREES = ("static/.stager/locks", "static/images")
SYNC_SECONDS = 0.2


class Watcher:
    """One inotify instance and where its watches are."""

    def __init__(self, root: Path, out: TextIO) -> None:
        self.root, self.out = root, out
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self.libc.inotify_init1(os.O_NONBLOCK)
        self.places: dict[int, str] = {}

    def watch(self, place: str) -> None:
        """Watch a directory."""
        mask = MOVED_FROM | MOVED_TO | CREATE | DELETE
        mask |= MODIFY if place.startswith("static/images") else 0
        watch = self.libc.inotify_add_watch(self.fd, os.fsencode(self.root / place), mask)
        if watch >= 0:
            self.places[watch] = place

    def watch_tree(self, place: str, kind: str = "there") -> None:
        """Watch a directory and those below; what is in them already is told as `kind`."""
        self.watch(place)
        try:
            entries = list(os.scandir(self.root / place))
        except FileNotFoundError:
            return
        for entry in entries:
            self.tell(place, kind, entry.name)
            if entry.is_dir(follow_symlinks=False):
                self.watch_tree(f"{place}/{entry.name}", kind)

    def tell(self, place: str, kind: str, name: str) -> None:
        """Write one event."""
        print(json.dumps([round(time.monotonic(), 4), place, kind, name]), file=self.out)

    def take(self) -> None:
        """Tell all events that there are."""
        try:
            data = os.read(self.fd, 1 << 18)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            watch, mask, _, length = HEAD.unpack_from(data, at)
            name = os.fsdecode(data[at + HEAD.size : at + HEAD.size + length].rstrip(b"\0"))
            at += HEAD.size + length
            if mask & OVERFLOW:
                self.tell("", "overflow", "")
            place = self.places.get(watch, "")
            for bit, kind in KINDS.items():
                if mask & bit:
                    self.tell(place, kind, name)
                    if kind in {"new", "to"} and place.startswith(TREES):
                        self.follow(f"{place}/{name}")

    def follow(self, place: str) -> None:
        """Watch a directory that has just come."""
        if (self.root / place).is_dir():
            self.watch_tree(place)


def main() -> None:
    """Watch until told to end."""
    root, out_path = Path(sys.argv[1]), Path(sys.argv[2])
    ended: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        ended.append(number)

    signal.signal(signal.SIGTERM, end)
    with out_path.open("a") as out:
        watcher = Watcher(root, out)
        for place in ROOMS:
            watcher.watch(place)
        for place in TREES:
            watcher.watch_tree(place)
        watcher.tell("", "watching", "")
        synced = 0.0
        while True:
            select.select([watcher.fd], [], [], SYNC_SECONDS)
            watcher.take()
            if ended or time.monotonic() - synced > SYNC_SECONDS:
                synced = time.monotonic()
                out.flush()
                os.fsync(out.fileno())
            if ended:
                return


if __name__ == "__main__":
    main()
