"""Another directory's content through FUSE, but for one oddity: oddfs.py BACKING MOUNT ODDITY.

Several of these over one BACKING are several machines with a shared filesystem. It runs until it is
unmounted.
"""

import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mfusepy import FUSE, FuseOSError, Operations

ODDITIES = ("none", "copies", "no links", "links replace", "torn", "old listings", "attic", "stick")


class Odd(Operations):  # type: ignore[misc]
    """All calls go to BACKING."""

    use_ns = True

    def __init__(self, backing: str, oddity: str) -> None:
        self.backing, self.oddity = Path(backing), oddity
        self.listed: dict[str, list[str]] = {}

    def at(self, path: str) -> Path:
        if self.oddity == "stick":
            path = path.lower()
        return self.backing / path.lstrip("/")

    def getattr(self, path: str, fh: Any = None) -> dict[str, int]:
        info = os.lstat(self.at(path))
        keys = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_ino", "st_blocks")
        times = {f"st_{t}time": getattr(info, f"st_{t}time_ns") for t in "acm"}
        return {key: getattr(info, key) for key in keys} | times

    def readdir(self, path: str, fh: Any) -> Iterator[str]:
        names = os.listdir(self.at(path))
        if self.oddity == "old listings" and "/fresh-listings/" in path:
            # As if nothing changed after the first look, whatever is touched.
            names = self.listed.setdefault(path, names)
        yield from (".", "..", *names)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        fd = os.open(self.at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        if self.oddity == "attic" and "/fences/" in path:
            os.link(self.at(path), self.attic(path))
        return fd

    def attic(self, path: str) -> Path:
        return self.backing.with_name("attic") / path.replace("/", "!")

    def open(self, path: str, flags: int) -> int:
        return os.open(self.at(path), flags & ~os.O_CREAT)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        os.fsync(fh)
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def truncate(self, path: str, length: int, fh: Any = None) -> int:
        os.truncate(self.at(path), length)
        return 0

    def rename(self, old: str, new: str) -> int:
        if self.oddity == "copies" and self.at(old).is_file():
            # As object stores do it: whoever has read it makes a copy, then removes what is there.
            data = self.at(old).read_bytes()
            time.sleep(0.002)
            self.at(new).write_bytes(data)
            self.at(old).unlink(missing_ok=True)
        elif self.oddity == "torn" and new.endswith(".flag"):
            half = self.at(old).read_bytes()
            with self.at(new).open("wb") as f:
                f.write(half[: len(half) // 2])
                f.flush()
                time.sleep(0.002)
                f.write(half[len(half) // 2 :])
            self.at(old).unlink()
        else:
            os.rename(self.at(old), self.at(new))
        return 0

    def link(self, target: str, source: str) -> int:
        if self.oddity in {"no links", "stick"}:
            raise FuseOSError(errno.EPERM)
        origin = self.at(source)
        if self.oddity == "attic" and not origin.exists():
            origin = self.attic(source)
        if self.oddity == "links replace":
            time.sleep(0.002)
            self.at(target).unlink(missing_ok=True)
        os.link(origin, self.at(target))
        return 0

    def unlink(self, path: str) -> int:
        self.at(path).unlink()
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        self.at(path).mkdir(mode)
        return 0

    def rmdir(self, path: str) -> int:
        self.at(path).rmdir()
        return 0

    def chmod(self, path: str, mode: int) -> int:
        if self.oddity != "stick":
            self.at(path).chmod(mode & 0o7777)
        return 0

    def utimens(self, path: str, times: Any = None) -> int:
        os.utime(self.at(path), ns=times)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        info = os.statvfs(self.at(path))
        return {key: getattr(info, key) for key in ("f_bavail", "f_bfree", "f_blocks", "f_bsize")}


if __name__ == "__main__":
    backing, mount, oddity = sys.argv[1:]
    if oddity not in ODDITIES:
        raise SystemExit(f"no such oddity: {oddity}")
    # A machine trusts for a while what it has seen ("attic" needs that), or asks every time.
    trust = 30 if oddity == "attic" else 0
    FUSE(
        Odd(backing, oddity), mount, foreground=True, nothreads=False,
        entry_timeout=trust, attr_timeout=0, negative_timeout=0,
    )  # fmt: skip
