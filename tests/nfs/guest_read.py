"""Runs on a machine of its own: reads flags and images all the time, as an HTTP server does.

usage: guest_read.py STATIC KNOWN OUT. KNOWN is JSON, {directory: {image: [file, size, crc32]}}.
Ends at SIGTERM and writes to OUT what it counted, and whatever was not as it must be.
"""

import errno
import json
import os
import signal
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from types import FrameType

TRIES = 3
PAUSE_SECONDS = 0.02
PASSING = {errno.ESTALE, errno.ENOENT}


class Reader:
    """What was seen up to now."""

    def __init__(self, static: Path, known: dict[str, dict[str, list[str | int]]]) -> None:
        self.static, self.known = static, known
        self.counts: Counter[str] = Counter()
        self.bad: list[str] = []
        self.seen: set[str] = set()

    def look(self, target: str) -> None:
        """Read one build's flag, and every image of it."""
        directory = self.static / target
        self.list(directory)
        flag = self.read(directory / "staged", f"{target}/staged")
        listed = flag.decode().split("\n")[:-1] if flag is not None else []
        self.counts["flags"] += flag is not None
        if flag and not flag.endswith(b"\n"):
            self.bad.append(f"{target}: a torn flag: {flag!r}")
        for image, (file, size, crc32) in self.known[target].items():
            name = f"{target}/{file}"
            data = self.read(directory / str(file), name, must=image in listed)
            if data is None:
                if image in listed or name in self.seen:
                    self.bad.append(f"{name}: listed or seen before, and not there")
                continue
            self.seen.add(name)
            self.counts["images"] += 1
            if (len(data), zlib.crc32(data)) != (size, crc32):
                self.bad.append(f"{name}: {len(data)} bytes, {zlib.crc32(data):08x}")
        strange = set(listed) - set(self.known[target])
        if strange or len(listed) != len(set(listed)):
            self.bad.append(f"{target}: the flag says {listed}")

    def read(self, path: Path, name: str, *, must: bool = False) -> bytes | None:
        """Read a file; what a cache of NFS may say wrongly is asked again of a fresh listing."""
        for _ in range(TRIES):
            try:
                return path.read_bytes()
            except OSError as e:
                if e.errno not in PASSING:
                    self.bad.append(f"{name}: {e.strerror}")
                    return None
                stale = e.errno == errno.ESTALE
                self.counts["stale" if stale else "absent"] += 1
                if not stale and not must and name not in self.seen:
                    return None
                self.counts["asked again"] += 1
                if path.name not in self.list(path.parent):
                    return None
        return None

    def targets(self) -> list[str]:
        """Return the builds that are there.

        By listings: a name that was missed once stays missing for half a minute else.
        """
        boards = [f"images/{board}" for board in self.list(self.static / "images")]
        found = [f"{board}/{name}" for board in boards for name in self.list(self.static / board)]
        return [target for target in found if target in self.known]

    def list(self, directory: Path) -> list[str]:
        """List a directory anew."""
        try:
            return os.listdir(directory)
        except OSError:
            return []


def main() -> None:
    """Read until told to end."""
    static, known, out = map(Path, sys.argv[1:4])
    ended: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        ended.append(number)

    signal.signal(signal.SIGTERM, end)
    reader = Reader(static, json.loads(known.read_text()))
    while not ended:
        for target in reader.targets():
            if ended:
                break
            reader.look(target)
            time.sleep(PAUSE_SECONDS)
        time.sleep(PAUSE_SECONDS)
        reader.counts["rounds"] += 1
    out.write_text(json.dumps({"counts": reader.counts, "bad": reader.bad}))


if __name__ == "__main__":
    main()
