"""Entries of the drop box that the filesystem does not let us move: what to do about each."""

import errno
import os
import stat
from pathlib import Path


def remedy(path: Path, number: int) -> str:
    """Return what a person can do about an entry whose rename failed with an error number."""
    try:
        info = os.lstat(path)
    except OSError:
        return "look at it again"
    if number == errno.EBUSY:
        return f"something is mounted on it; as root: umount {path}"
    if stat.S_ISDIR(info.st_mode):
        return f"it is a folder; its owner (uid {info.st_uid}) or root removes it: rm -r {path}"
    if number == errno.EPERM:
        return f"it is protected; as root: chattr -i -a {path}"
    return f"the drop box must be the daemon's; as root: chown {os.geteuid()} {path.parent}"


def is_others_folder(path: Path) -> bool:
    """Whether a directory of another user has a name, and we are not root.

    Where it could be moved even so, its owner could keep us from moving or removing it afterwards.
    """
    try:
        there = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(there.st_mode) and os.geteuid() not in {0, there.st_uid}
