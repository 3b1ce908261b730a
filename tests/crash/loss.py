"""Takes back what a killed daemon had not synced, as a power loss does.

journal.c wrote down what was done. A change of names is on disk when one of its directories was
synced later, or when a later change of the same file is; all others are taken back, the last one
first. A file that was written to since its last sync has the size that it had then. That is more
than a power loss takes on the filesystems there are: they keep changes in their order.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab import Lab

ROOMS = ("spool", "static", "results")


@dataclass(frozen=True, slots=True)
class Change:
    """A call that succeeded."""

    function: str
    inode: int
    """0 where its name was removed."""
    size: int
    path: Path
    other: Path
    """Of two paths, the old one."""
    kept: Path
    """Where the file is whose name was removed or replaced."""

    @property
    def directories(self) -> set[Path]:
        return {self.path.parent} | ({self.other.parent} if self.function == "rename" else set())


def journal_environment(lab: Lab) -> dict[str, str]:
    """Return what has a daemon's changes written down."""
    keep = lab.root / "kept"
    keep.mkdir()
    journal = str(lab.root / "journal")
    return {"JOURNAL_BELOW": f"{lab.root}/", "JOURNAL_FILE": journal, "JOURNAL_KEEP": str(keep)}


def read_journal(lab: Lab) -> list[Change]:
    """Return what was done to the three trees, in its order."""
    changes = []
    for line in (lab.root / "journal").read_text().splitlines():
        function, inode, size, *paths = line.split("\t")
        change = Change(function, int(inode), int(size), *map(Path, paths))
        if change.path.relative_to(lab.root).parts[0] in ROOMS:
            changes.append(change)
    return changes


def lose_power(lab: Lab) -> int:
    """Take back what is not on disk; return how many changes that were."""
    changes = read_journal(lab)
    lost = [change for change in unsynced(changes) if take_back(change)]
    torn = [path for path, size in unwritten(changes).items() if tear(lab, path, size)]
    return len(lost) + len(torn)


def unsynced(changes: list[Change]) -> Iterator[Change]:
    """Yield the changes of names that are not on disk, the last one first."""
    synced, durable = set[Path](), set[int]()
    for change in reversed(changes):
        if change.function == "fsync":
            synced.add(change.path)
        elif change.function != "write":
            if change.directories & synced or change.inode in durable - {0}:
                durable.add(change.inode)
            else:
                yield change


def take_back(change: Change) -> bool:
    """Undo a change of names; False: what it made, or where it was, is not there any more."""
    path = change.path
    if not all(directory.is_dir() for directory in change.directories):
        return False
    if change.function in {"create", "link", "mkdir", "rename"}:
        try:
            if os.lstat(path).st_ino != change.inode:
                return False
        except FileNotFoundError:
            return False
    if change.function == "rename":
        path.rename(change.other)
    elif change.function == "mkdir":
        shutil.rmtree(path)
    elif change.function == "rmdir":
        path.mkdir()
    elif change.function in {"create", "link"}:
        path.unlink()
    if change.function in {"rename", "unlink"} and change.kept.is_absolute():
        change.kept.rename(path)
    return True


def unwritten(changes: list[Change]) -> dict[int, int]:
    """Return the files that were written to since their last sync, with their size on disk."""
    sizes, dirty = dict[int, int](), set[int]()
    for change in changes:
        if change.function == "write":
            dirty.add(change.inode)
        elif change.function == "fsync":
            sizes[change.inode] = change.size
            dirty.discard(change.inode)
    return {inode: sizes.get(inode, 0) for inode in dirty}


def tear(lab: Lab, inode: int, size: int) -> bool:
    """Give a file the size that it has on disk; False: it is gone."""
    for room in ROOMS:
        for path in (lab.root / room).rglob("*"):
            if path.lstat().st_ino == inode and path.is_file():
                os.truncate(path, size)
                return True
    return False
