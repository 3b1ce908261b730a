"""A lock by a chain of links, in its two simpler variants.

Generation n+1 of a build is taken by linking a file with the owner's name to `chain-<n+1>.free`,
which fails where that is there. Whoever took it looks whether it is the last one; a marker beside
it says that it was released. Leaving out the look, or releasing by taking the generation away, so
that its number comes again, gives a build two owners. Our own token stays as it was made: free.
"""

from pathlib import Path
from typing import Any

from model.planted import leaves_out
from stager import durable
from stager.durable import nonce
from stager.errors import BuildBusy
from stager.lock import Locks, Token, Work


class Chain(Locks):
    """Takes a build's lock by links."""

    looks_whether_last = True
    leaves_a_marker = True

    def take(self, key: str) -> Work:
        """Link the next generation; BuildBusy: somebody was faster, or has it."""
        if not Locks.tokens(self, key):
            self._first(key)
        last = next(iter(self.tokens(key)), Token(0))
        if not self._is_over(key, last.n) and (owner := self._owner(last)):
            raise BuildBusy(owner)
        mine = Token(last.n + 1, self.heart.inst, nonce())
        self._held.add(str(mine))
        try:
            self._link(key, mine)
        except BaseException:
            self.forget(mine)
            self.leave(key)
            raise
        work = Links(self, key, mine)
        try:
            work.open()
        except BaseException:
            self.leave(key)
            work.release()
            raise
        return work

    def _link(self, key: str, mine: Token) -> None:
        new = self.paths.static_tmp / f"{self.heart.inst}.{nonce()}"
        durable.write_new(new, f"{mine.inst}.{mine.nonce}".encode())
        taken = durable.link(new, self._path(key, mine.n))
        durable.discard(new)
        if not taken or (
            self.looks_whether_last and max(self._generations(key), default=0) > mine.n
        ):
            raise BuildBusy("another machine")
        for lower in range(max(1, mine.n - 9), mine.n):
            durable.discard(self._path(key, lower))
            durable.discard(self._marker(key, lower))

    def tokens(self, key: str) -> list[Token]:
        """Return the last generation as a token."""
        last = max(self._generations(key), default=0)
        inst, _, mark = self._name(key, last).partition(".") if last else ("", "", "")
        return [Token(last, inst, mark)] if last else []

    def let_go(self, key: str, token: Token) -> None:
        """Leave a marker beside our generation, or take it away."""
        if self.leaves_a_marker:
            durable.write_new(self._marker(key, token.n), b"")
        else:
            grave = self.paths.static_tmp / f"{self.heart.inst}.{nonce()}"
            durable.move(self._path(key, token.n), grave)
            durable.discard(grave)

    def _path(self, key: str, number: int) -> Path:
        return self.paths.locks / key / f"chain-{number}.free"

    def _marker(self, key: str, number: int) -> Path:
        return self.paths.locks / key / f"over-{number}.free"

    def _generations(self, key: str) -> list[int]:
        try:
            names = durable.listing(self.paths.locks / key)
        except FileNotFoundError:
            return []
        return [int(n[6:-5]) for n in names if n.startswith("chain-")]

    def _name(self, key: str, number: int) -> str:
        try:
            return durable.read_file(self._path(key, number)).decode()
        except FileNotFoundError:
            return ""

    def _is_over(self, key: str, number: int) -> bool:
        marker = self._marker(key, number)
        return marker.name in durable.listing(marker.parent)


class Links(Work):
    """A work directory under such a lock."""

    def check(self) -> None:
        """Look whether the lock is still ours."""
        if getattr(self.locks, "looks_whether_last", True):
            super().check()

    def release(self) -> bool:
        """Remove the work directory and release."""
        chain: Any = self.locks
        try:
            self.close()
            chain.let_go(self.key, self.token)
        except OSError:
            chain.leave(self.key)
            return False
        finally:
            chain.forget(self.token)
        return True


class Unverified(Chain):
    """Who could link is the owner."""

    looks_whether_last = False


class Renamed(Chain):
    """What was released is gone."""

    leaves_a_marker = False


CROWDED: dict[str, Any] = {
    "builds": 1, "force": True, "drops": 40, "chaos_seconds": 100.0, "archive": 10.0,
}  # fmt: skip


@leaves_out("who linked a generation looks whether it is the last", mood="crowd",
            held_up=0.4, held_up_at="create static/.stager/tmp/", hung_seconds=7.0,
            **CROWDED, also={"stager.server.Locks": Unverified})  # fmt: skip
def chain_unverified() -> None: ...


@leaves_out("a generation that was is never there again", mood="crowd", duplicate=0.4,
            **CROWDED, also={"stager.server.Locks": Renamed})  # fmt: skip
def chain_renamed() -> None: ...
