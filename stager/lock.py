"""The build token: one build is staged by one worker at a time, among all machines.

`locks/<key>/` holds exactly one file, `<n>.free` or `<n>.<inst>.<nonce>`; to take it, take it over
or release it is a rename to n+1. Whoever gets it fences the owners before: their work directories
are emptied and removed, and everything that becomes visible is linked or renamed out of a work
directory, so a worker that was paused and wakes up later can publish nothing.
"""

import errno
import re
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from stager import durable
from stager.durable import nonce
from stager.errors import BuildBusy, TakenOver
from stager.instance import Heart
from stager.layout import Paths

_TOKEN = re.compile(r"(?P<n>\d+)\.(?:free|(?P<inst>[A-Za-z0-9-]+)\.(?P<nonce>[a-z2-7]+))")


@dataclass(frozen=True, slots=True, order=True)
class Token:
    """The state of a build's token: free, or owned by an instance."""

    n: int
    inst: str = ""
    nonce: str = ""

    def __str__(self) -> str:
        return f"{self.n}.{self.inst}.{self.nonce}" if self.inst else f"{self.n}.free"

    @classmethod
    def parse(cls, name: str) -> "Token | None":
        m = _TOKEN.fullmatch(name)
        return m and cls(int(m["n"]), m["inst"] or "", m["nonce"] or "")


class Locks:
    """Takes and releases build tokens in the name of one instance."""

    def __init__(self, paths: Paths, heart: Heart) -> None:
        self.paths, self.heart = paths, heart
        self._held: set[str] = set()
        self._left: dict[str, float] = {}
        """Builds whose token a call that failed may have left in our name; until when to look."""
        self._lock = threading.Lock()

    def busy(self, key: str) -> str:
        """Return the host that has the build's token now; empty: it can be taken."""
        tokens = self.tokens(key)
        return self._owner(max(tokens)) if tokens else ""

    def take(self, key: str) -> "Work":
        """Take a build's token, fence its owners before, make a work directory.

        Raises BuildBusy where another worker has it, TakenOver where we were too slow.
        """
        tokens = self.tokens(key) or self._first(key)
        if owner := self._owner(max(tokens)):
            raise BuildBusy(owner)
        room = self.paths.locks / key
        for lower in sorted(tokens)[:-1]:
            self._away(room / str(lower))
        mine = Token(max(tokens).n + 1, self.heart.inst, nonce())
        with self._lock:
            self._held.add(str(mine))
        work = Work(self, key, mine)
        try:
            if not durable.move(room / str(max(tokens)), room / str(mine)):
                raise BuildBusy("another machine")
            work.open()
        except BaseException as e:
            if isinstance(e, OSError):
                self.leave(key)
            work.release()
            raise
        return work

    def tokens(self, key: str) -> list[Token]:
        """Return what a fresh listing of the build's lock directory shows (normally one)."""
        try:
            # A listing that is split by a rename may show neither name: look again.
            for _ in range(3):
                found = [t for t in map(Token.parse, durable.listing(self.paths.locks / key)) if t]
                if found:
                    return found
        except FileNotFoundError:
            pass
        return []

    def free_the_dead(self, keys: Iterable[str]) -> list[str]:
        """Free the tokens that the dead still own, fencing them.

        Return the builds to look at again: their owner is not listed, but not judged dead yet.
        """
        undecided, living = [], {"", *self.heart.living()}
        for key in keys:
            token = max(self.tokens(key), default=None)
            if token is None or token.inst in living:
                continue
            if not self.heart.dead(token.inst):
                undecided.append(key)
                continue
            with suppress(BuildBusy, TakenOver):
                self.take(key).release()
        return undecided

    def leave(self, key: str) -> None:
        """Take note that the token may stay in our name, or come back to it late."""
        self._left[key] = time.monotonic() + self.heart.lease

    def free_left(self) -> bool:
        """Free what failed calls left in our name; False: that failed again.

        Else everybody would wait for an owner who lives, and has forgotten it.
        """
        all_free = True
        for key, until in list(self._left.items()):
            try:
                token = max(self.tokens(key), default=None)
                if token is not None and token.inst == self.heart.inst and not self._owner(token):
                    all_free &= self.take(key).release()
                elif time.monotonic() > until and self._left.get(key) == until:
                    # Not if a worker has left it once more meanwhile.
                    self._left.pop(key, None)
            except (BuildBusy, TakenOver, OSError):
                all_free = False
        return all_free

    def forget(self, token: Token) -> None:
        """Stop holding a token."""
        with self._lock:
            self._held.discard(str(token))

    def _owner(self, token: Token) -> str:
        """Return who keeps us from taking a token: a live owner's host."""
        if token.inst == self.heart.inst:
            # Ours, but no worker holds it: the reply to our rename was lost. We may take it.
            with self._lock:
                return self.heart.identity.host if str(token) in self._held else ""
        if not token.inst or self.heart.dead(token.inst):
            return ""
        return token.inst.rpartition("-")[0]

    def _first(self, key: str) -> list[Token]:
        """Make the first token: a directory with the token inside is renamed into place.

        A rename never replaces a directory that is not empty, so one maker wins. The token is
        made elsewhere and renamed in: a late duplicate of its creation can't make a second one.
        """
        stem = f"{self.heart.inst}.{nonce()}"
        directory, file = (self.paths.static_tmp / f"{stem}.{kind}" for kind in "dt")
        durable.make_dir(directory)
        try:
            durable.write_new(file, b"")
            durable.move(file, directory / str(Token(0)))
            directory.rename(self.paths.locks / key)
        except OSError as e:
            # Renamed away before it is emptied: it may be put in place late.
            grave = self.paths.static_tmp / f"{self.heart.inst}.{nonce()}"
            with suppress(OSError):  # else it is swept
                if durable.move(directory, grave):
                    durable.remove_tree(grave)
            if e.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT}:
                raise
        tokens = self.tokens(key)
        if not tokens:
            raise BuildBusy("another machine")
        return tokens

    def _away(self, path: Path) -> None:
        grave = self.paths.static_tmp / f"{self.heart.inst}.{nonce()}"
        if durable.move(path, grave):
            durable.discard(grave)


class Work:
    """A token that is ours, with a work directory: the only place publications start from."""

    def __init__(self, locks: Locks, key: str, token: Token) -> None:
        self.locks, self.key, self.token = locks, key, token
        self.paths = locks.paths
        self.dir = Path()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def open(self) -> None:
        """Fence the owners before us, then make our directory, then see that we still own it."""
        prefix = f"{self.key}."
        for name in durable.listing(self.paths.work):
            # A newer owner's is not ours to remove: then we were overtaken, and check() says so.
            older = name.startswith(prefix) and _number(name.removeprefix(prefix)) < self.token.n
            if older and not durable.remove_tree(self.paths.work / name):
                raise BuildBusy("a process that still has files of an earlier attempt open")
        self.dir = self._make(self.paths.work / f"{prefix}{self.token}")
        self.check()

    def renew(self) -> None:
        """Remove the work directory and make another one.

        Nothing that was sent out of the old one, and is executed late, can have an effect then.
        """
        self.close()
        self.dir = self._make(self.paths.work / f"{self.key}.{self.token}.{nonce()}")
        self.check()

    def check(self) -> None:
        """Raise TakenOver if the token is no longer ours."""
        if self.token not in self.locks.tokens(self.key):
            raise TakenOver(f"the token of {self.key} is no longer ours")

    def file(self) -> Path:
        """Return a new, used-once path in the work directory."""
        return self.dir / nonce()

    def away(self, path: Path) -> None:
        """Take a visible name away, by renaming it into the work directory: the fence covers it.

        The name will be used again; so its grave is a directory that is gone before that, and a
        late duplicate of the rename finds nowhere to put the new file.
        """
        trash = self._make(self.dir / f"trash.{nonce()}")
        durable.move(path, trash / "gone")
        if not durable.remove_tree(trash):
            raise BuildBusy("a process that still has a replaced file open")

    def close(self) -> None:
        """Remove the work directory."""
        if self.dir != Path():
            durable.remove_tree(self.dir)

    def release(self) -> bool:
        """Remove the work directory and free the token; False: a scan will try again."""
        room = self.paths.locks / self.key
        try:
            self.close()
            durable.move(room / str(self.token), room / str(Token(self.token.n + 1)))
        except OSError:
            self.locks.leave(self.key)
            return False
        else:
            return True
        finally:
            self.locks.forget(self.token)

    def _make(self, path: Path) -> Path:
        # Made under a used-once name: a late duplicate of the mkdir makes only an empty leftover.
        tmp = self.paths.static_tmp / f"{self.locks.heart.inst}.{nonce()}"
        durable.make_dir(tmp)
        if not durable.move(tmp, path):
            raise TakenOver(f"the work directory of {self.key} was removed")
        return path


def _number(rest: str) -> int:
    head = rest.partition(".")[0]
    return int(head) if head.isdigit() else -1
