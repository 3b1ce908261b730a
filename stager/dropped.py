"""What somebody dropped, read from under its accepted name: bytes and owner, or what it is instead.

Nothing is followed and nothing is waited for: a link, a pipe or a device is no request.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stager.errors import Problem, RequestError, UnreadableRequest
from stager.request import MAX_BYTES


class StaleOpen(Exception):
    """A cached name opened another file than the one that has the name now (NFS)."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A request's bytes and its submitter's uid."""

    data: bytes
    uid: int


def read_file(path: Path, check: Callable[[int], None]) -> Dropped:
    """Read a dropped file; raise RequestError for what can't be a request file.

    `check` is told which inode was opened, before it is read.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        hint = "drop a regular file; this one was put aside in failed/, unread"
        raise RequestError([Problem("not a regular file")], hint)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except PermissionError:
        raise UnreadableRequest([Problem("the file can't be read: chmod a+r")]) from None
    with os.fdopen(fd, "rb") as f:
        opened = os.fstat(f.fileno())
        check(opened.st_ino)
        if opened.st_nlink > 1 and not opened.st_mode & 0o004:
            hint = "copy it, don't link it: the file has a second name, and is not public"
            raise RequestError([Problem("a hard link to a file that is not public")], hint)
        try:
            return Dropped(f.read(MAX_BYTES + 1), opened.st_uid)
        except PermissionError:
            raise UnreadableRequest([Problem("the file can't be read: chmod a+r")]) from None
