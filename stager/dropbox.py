"""The drop box: which files in requests/ may be claimed now.

A file is claimed only when it is settled: an event said that it was moved or linked in, or it
stayed the same for `settle`, by our own clock; 30 s where it lacks a final newline and no event
said that its writer closed it. Events only ever shorten that; the scan is the truth.
"""

import os
import stat
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from stager import durable, mounts
from stager.hints import Hints
from stager.layout import is_request_name
from stager.scans import Scans

NO_NEWLINE_SECONDS = 30.0
WINDOW = 2048
WINDOW_SECONDS = 0.2
RELIST_SECONDS = 2.0
"""So long what a listing showed is worked on before the next: a crowd is costly to list."""
RETRY_SECONDS = 60.0

Signature = tuple[int, int, int, int]


@dataclass(slots=True)
class _File:
    signature: Signature
    uid: int
    since: float
    newline: bool | None = None
    """Whether it ends in one."""
    changes: int = 0
    looked: float = 0.0


@dataclass(slots=True)
class _Skipped:
    signature: Signature
    reason: str
    since: float


class DropBox:
    """Watches over the settling of files."""

    def __init__(
        self, directory: Path, settle: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.directory, self.settle, self._clock = directory, settle, clock
        self._is_nfs = mounts.is_nfs(directory)
        self._scans = Scans(mounts.filesystem_kind(directory))
        self._files: dict[str, _File] = {}
        self._skipped: dict[str, _Skipped] = {}
        self._said: set[str] = set()
        self._round: set[str] = set()
        self._next_window = 0.0
        self._full = False
        self._ready: deque[str] = deque()
        self._unseen: dict[str, OSError] = {}
        self._listed, self._list_anew = 0.0, False
        self.hints = Hints(clock)
        self.seen: list[str] = []
        """The request names of the last scan."""
        self.left = 0
        """How many of those are still there."""
        self.others = 0
        """Entries that are not taken by their names."""

    def settled(self, limit: int) -> list[str]:
        """Scan; return up to `limit` names that may be claimed, in the order they arrived."""
        now = self._clock()
        if limit and self._ready and now - self._listed < RELIST_SECONDS:
            return self._rest(limit, now)
        self._listed, self._list_anew = now, False
        listed = self._list()
        names = [name for name in listed if is_request_name(name)]
        self.others, self.seen, self.left = len(listed) - len(names), names, len(names)
        self._forget(set(names), now)
        self._full = not limit
        ready: dict[int, list[tuple[int, str]]] = defaultdict(list)
        self._unseen = {}
        for name in self._window(names, now) if limit else ():
            file = self._look(name, now)
            if file and now - file.since >= self._patience(name, file):
                ready[file.uid].append((file.signature[2], name))
        self._judge_unseen()
        # Round-robin over submitters, so that one who drops thousands does not keep others out.
        turns = [
            (turn, at, n) for own in ready.values() for turn, (at, n) in enumerate(sorted(own))
        ]
        ordered = [name for _, _, name in sorted(turns)]
        self._ready = deque(ordered[limit:])
        return ordered[:limit]

    def _list(self) -> list[str]:
        if self._is_nfs:
            return self._scans.scan(self.directory)
        return durable.listing(self.directory, touch=False)

    def _judge_unseen(self) -> None:
        """Leave alone what can't be looked at; where nothing can, it is the filesystem."""
        if len(self._unseen) > 1 and not self._files:
            raise next(iter(self._unseen.values()))
        for name, error in self._unseen.items():
            self.skip(name, error.strerror or str(error))

    def _rest(self, limit: int, now: float) -> list[str]:
        """Return more of what the last listing showed, each looked at again."""
        names = [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]
        # What came since that listing rang its bell, and nobody has looked.
        self._list_anew = not self._ready
        files = ((name, self._look(name, now)) for name in names)
        return [n for n, f in files if f and now - f.since >= self._patience(n, f)]

    def _window(self, names: list[str], now: float) -> Iterator[str]:
        """Yield the names to look at in this scan; of many, others each time.

        Hinted ones come first, then those whose time has come, then all in turn: a crowd that
        does not settle keeps nobody out.
        """
        if len(names) > WINDOW:
            names = self._some(names, now)
        for name in names:
            if name not in self._skipped or self._changed_since(name):
                yield name

    def _some(self, names: list[str], now: float) -> list[str]:
        due = (n for n, f in self._files.items() if now - f.since >= self._patience(n, f))
        first = list(islice(chain(self.hints.moved(), due), WINDOW // 2))
        left = [name for name in names if name not in self._round]
        if len(left) < WINDOW // 2:
            self._round.clear()
        some = list(dict.fromkeys(first + left))[:WINDOW]
        self._round.update(some)
        self._next_window = now + WINDOW_SECONDS
        return some

    def claimed(self, name: str) -> None:
        """Forget a name: its file is out of the drop box."""
        self.left -= 1
        self._files.pop(name, None)
        self.hints.forget(name)

    def skip(self, name: str, reason: str) -> bool:
        """Leave alone what can't be claimed, until it changes; True: not said before."""
        file = self._files.pop(name, None)
        signature = file.signature if file else (0, 0, 0, 0)
        self._skipped[name] = _Skipped(signature, reason, self._clock())
        fresh = name not in self._said
        self._said.add(name)
        return fresh

    def unclaimable(self) -> dict[str, str]:
        """Return what can't be claimed, and why."""
        return {name: skipped.reason for name, skipped in self._skipped.items()}

    @property
    def stuck(self) -> int:
        """How many entries can't be claimed; may be asked by any thread."""
        return len(self._skipped)

    def arrived(self) -> list[int]:
        """Return when files not claimed yet were dropped (ctime); may be asked by any thread."""
        return [file.signature[2] for file in list(self._files.values())]

    def settling(self) -> tuple[list[str], list[str]]:
        """Return the names that are still settling, and those that keep changing."""
        quiet = [name for name, file in self._files.items() if file.changes < 2]
        return quiet, [name for name, file in self._files.items() if file.changes >= 2]

    def next_due(self) -> float:
        """Return the seconds until a file may be settled; infinite where none is settling."""
        if self._full:
            return float("inf")
        now = self._clock()
        if self._ready or self._list_anew:
            return 0.0
        if len(self.seen) > WINDOW:
            return max(0.0, self._next_window - now)
        dues = [f.since + self._patience(n, f) - now for n, f in self._files.items()]
        return max(0.0, min(dues, default=float("inf")))

    def _forget(self, there: set[str], now: float) -> None:
        self._files = {n: file for n, file in self._files.items() if n in there}
        self._skipped = {n: skipped for n, skipped in self._skipped.items() if n in there}
        for name, skipped in list(self._skipped.items()):
            if now - skipped.since > RETRY_SECONDS:
                del self._skipped[name]
        self._said &= there
        self.hints.keep(there, now)

    def _changed_since(self, name: str) -> bool:
        try:
            same = _signature(os.lstat(self.directory / name)) == self._skipped[name].signature
        except OSError:
            return False
        if same:
            return False
        del self._skipped[name]
        return True

    def _look(self, name: str, now: float) -> _File | None:
        try:
            info = os.lstat(self.directory / name)
        except OSError as e:
            self._files.pop(name, None)
            if not isinstance(e, FileNotFoundError):
                self._unseen[name] = e
            return None
        signature, file = _signature(info), self._files.get(name)
        if file is None:
            file = self._files[name] = _File(signature, info.st_uid, now)
        elif file.signature != signature:
            self.hints.changed(name, file.looked)
            file.signature, file.since, file.changes = signature, now, file.changes + 1
            file.newline = None
        file.looked = now
        return file

    def _patience(self, name: str, file: _File) -> float:
        patience = self.hints.patience(name, file.since, is_empty=file.signature[0] == 0)
        if patience is not None:
            return min(patience, self.settle)
        if self._clock() - file.since < self.settle:
            # Not asked before it matters: the asking is an event, too.
            return self.settle
        closed = self.hints.is_closed(name)
        if not closed and file.newline is None:
            file.newline = _ends_in_newline(self.directory / name)
        return self.settle if closed or file.newline else max(self.settle, NO_NEWLINE_SECONDS)


def _signature(info: os.stat_result) -> Signature:
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino


def _ends_in_newline(path: Path) -> bool:
    """Whether a file's last byte ends a line; True where that can't be asked."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return True
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        size = os.fstat(fd).st_size
        return size > 0 and os.pread(fd, 1, size - 1) == b"\n"
    except OSError:
        return True
    finally:
        os.close(fd)
