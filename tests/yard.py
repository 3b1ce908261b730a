"""The surroundings of a spool, watched: what daemons must neither touch nor read nor tell."""

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab import BUILD, NOBODY, Lab

SECRET = "hunter2-kqxjz"
"""Stands in what people drop; nothing that a daemon writes may show it."""
STRANGER = 65533
OLD_NS = 1_000_000_000 * 10**9
HEAD = f"build: {BUILD}\nimages: [test]\n"
GOOD = f"{HEAD}note: {SECRET}\n".encode()


@dataclass(frozen=True)
class Yard:
    """The surroundings of a spool: files that are nobody's business."""

    root: Path
    owner: int
    """The daemon's uid."""

    def lay_out(self) -> "Yard":
        """Make the files; return self."""
        self.root.mkdir()
        for name, mode, uid in (
            ("target.yaml", 0o644, 0),
            ("secret-target.yaml", 0o600, self.owner),
            ("public.yaml", 0o644, 0),
            ("daemons.yaml", 0o600, self.owner),
            ("group.yaml", 0o640, self.owner),
            ("private.yaml", 0o600, NOBODY),
        ):
            path = self.root / name
            path.write_bytes(GOOD)
            path.chmod(mode)
            os.chown(path, uid, -1)
        (self.root / "folder").mkdir()
        (self.root / "folder/target.yaml").write_bytes(GOOD)
        return self

    def forget_reads(self) -> None:
        """Set the access times back, so that the next read shows (relatime or not)."""
        for path in self.root.rglob("*target.yaml"):
            os.utime(path, ns=(OLD_NS, path.stat().st_mtime_ns))

    def reads(self) -> list[str]:
        """Return the targets of symbolic links that were read since."""
        targets = self.root.rglob("*target.yaml")
        return [path.name for path in targets if path.stat().st_atime_ns != OLD_NS]


def snapshot(root: Path) -> dict[str, tuple[int, int, int, str]]:
    """Return mode, owner, time of change and content of everything below a directory."""
    found = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        regular = stat.S_ISREG(info.st_mode)
        content = hashlib.sha256(path.read_bytes()).hexdigest() if regular else ""
        found[str(path)] = (info.st_mode, info.st_uid, info.st_mtime_ns, content)
    return found


def start(root: Path, user: int | None) -> tuple[Lab, Yard]:
    """Set up a lab for a daemon of this uid, beside a yard."""
    return Lab(root, user=user).init(), Yard(root / "yard", user or 0).lay_out()


def written_by_daemon(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield what daemons wrote for others to read: answers, states and their logs."""
    for path in [*root.glob("results/*"), *root.glob("spool/instances/*"), *root.glob("*.log")]:
        yield path, path.read_text(errors="replace")


@contextmanager
def meanwhile(act: Callable[[], None], seconds: float) -> Iterator[None]:
    """Do something again and again, in a thread, for the length of a block."""
    end = threading.Event()

    def work() -> None:
        while not end.wait(seconds):
            act()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@contextmanager
def never_settling(box: Path, names: list[str]) -> Iterator[None]:
    """Have files that grow all the time, each written to without an end."""
    files = [(box / f"{name}.yaml").open("ab", buffering=0) for name in names]

    def grow() -> None:
        for file in files:
            file.write(f"# {SECRET}".encode())

    with meanwhile(grow, 0.02):
        yield
    for file in files:
        file.close()
