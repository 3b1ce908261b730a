"""The only mover of requests: every state is a directory, every step is one rename.

A request is in exactly one of requests, active, waiting, done, failed, cancelled. A rename's
source name is used once and its destination can be made by one caller only, so a lost reply or a
late duplicate is resolved by looking for one's own name. Names in `held` are those that a worker of
this instance is at; any other claim in our name is the fruit of a lost reply, and is adopted.
"""

import errno
import os
import stat
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from stager import durable, mounts, stuck
from stager.dropped import Dropped, StaleOpen, read_file
from stager.durable import nonce
from stager.errors import TakenOver
from stager.instance import Heart
from stager.layout import RETRY, Claim, Paths, Waiting, can_name_result, request_name
from stager.outbox import Outbox
from stager.result import Result, State
from stager.scans import Scans

STALE_OPEN_SECONDS = 60


class NotClaimable(Exception):
    """An entry of the drop box that the filesystem does not let us move."""


class Spool:
    """Claims, moves and answers requests in the name of one instance."""

    def __init__(self, paths: Paths, heart: Heart) -> None:
        self.paths, self.heart = paths, heart
        self.nfs = mounts.is_nfs(paths.active)
        self.outbox = Outbox(paths, heart, self.nfs)
        self.scan = Scans(mounts.filesystem_kind(paths.active)).scan
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._starts: dict[str, int] = {}
        """The starts that count of claims which a fault kept from being put back."""
        self.put: deque[str] = deque(maxlen=256)
        """The last names that we put into waiting/."""
        self._parsed: dict[str, Waiting | None] = {}
        """What the names of the last listing of waiting/ say."""

    # -- claiming ------------------------------------------------------------------------------

    def take(self, name: str) -> Claim | None:
        """Claim a dropped file; None if somebody else was faster or it was withdrawn."""
        file = name if can_name_result(request_name(name)) else ""
        claim = Claim(file, nonce(), 0, 0, self.heart.inst, nonce())
        if stuck.is_others_folder(self.paths.requests / name):
            why = stuck.remedy(self.paths.requests / name, errno.EACCES)
            raise NotClaimable(f"{os.strerror(errno.EACCES)}; {why}")
        try:
            taken = self._move(self.paths.requests / name, self.paths.active, claim)
        except OSError as e:
            odd = {errno.EACCES, errno.EPERM, errno.EBUSY, errno.ENAMETOOLONG}
            if e.errno in odd and self._may_move():
                remedy = stuck.remedy(self.paths.requests / name, e.errno)
                raise NotClaimable(f"{e.strerror}; {remedy}") from None
            raise
        return self.accept(claim) if taken else None

    def _may_move(self) -> bool:
        """Whether the directories let us claim, so that it is the entry that does not."""
        rooms = (self.paths.requests, self.paths.active)
        return all(os.access(room, os.W_OK | os.X_OK, effective_ids=True) for room in rooms)

    def accept(self, claim: Claim) -> Claim | None:
        """Give a fresh claim its id and final name. Content is read from accepted names only.

        Until then a late duplicate of the take can still put another file under the claim's name;
        so the inode is looked at again afterwards, and gets an id of its own if it is another.
        """
        try:
            while True:
                before = os.lstat(self._active(claim))
                fresh = f"{before.st_ctime_ns}-{nonce()[:6]}"
                if claim.retry_of:
                    fresh += f"{RETRY}{claim.retry_of}"
                accepted = replace(
                    claim, id=fresh, g=max(1, claim.g), inst=self.heart.inst, nonce=nonce()
                )
                moved = self._move(self._active(claim), self.paths.active, accepted)
                self.drop(claim)
                if not moved:
                    return None
                claim = accepted
                if os.lstat(self._active(claim)).st_ino == before.st_ino:
                    return claim
        except FileNotFoundError:
            self.drop(claim)
            return None
        except BaseException:
            self.drop(claim)
            raise

    def take_again(self, room: str, old: Claim) -> Claim | None:
        """Claim an answered request once more, as a new request of the same bytes and owner."""
        claim = Claim(old.file, f"{nonce()}{RETRY}{old.request_id}", 0, 0, self.heart.inst, nonce())
        source = self.paths.spool / room / str(old)
        return self.accept(claim) if self._move(source, self.paths.active, claim) else None

    def resume(self, waiting: Waiting) -> Claim | None:
        """Claim a waiting request; None if somebody else was faster."""
        claim = waiting.claimed(self.heart.inst, nonce())
        source = self.paths.waiting / str(waiting)
        return claim if self._move(source, self.paths.active, claim) else None

    def take_over(self, claim: Claim) -> Claim | None:
        """Claim what a dead instance (or a lost reply of ours) left in active/."""
        if claim.g == 0:
            return self.accept(claim)
        # What another machine took over meanwhile counts as it says.
        ours = claim.inst == self.heart.inst
        starts = self._starts.get(claim.id, claim.a) if ours else claim.a
        mine = replace(claim.next(self.heart.inst, nonce()), a=starts)
        if not self._move(self._active(claim), self.paths.active, mine):
            return None
        self._starts.pop(claim.id, None)
        return mine

    def is_folder(self, claim: Claim) -> bool:
        """Whether a claim of ours is a folder: its owner can keep it where it is (chmod)."""
        try:
            return stat.S_ISDIR(os.lstat(self._active(claim)).st_mode)
        except OSError:
            return False

    def uncount(self, claim: Claim, starts: int) -> None:
        """Have a claim of ours count so many starts when it is adopted: a fault ended its work."""
        self._starts[claim.id] = starts

    def read(self, claim: Claim, seen: dict[str, int] | None = None) -> Dropped:
        """Read an accepted claim; raise RequestError for what can't be a request file.

        `seen`: what `inodes` told after the claim was accepted, where that is known.
        """
        return read_file(self._active(claim), lambda inode: self._check_inode(claim, inode, seen))

    def submitter(self, claim: Claim) -> int:
        """Return the uid that dropped a claimed request: the file's owner."""
        return os.lstat(self._active(claim)).st_uid

    def inodes(self) -> dict[str, int] | None:
        """Return which inode each name in active/ has, from a fresh listing; asked on NFS only."""
        if not self.nfs:
            return None
        durable.set_time(self.paths.active)
        with os.scandir(self.paths.active) as entries:
            return {entry.name: entry.inode() for entry in entries}

    def _check_inode(self, claim: Claim, inode: int, seen: dict[str, int] | None) -> None:
        """On NFS a cached name can open the file that was there before: ask a fresh listing.

        A listing from before the open will do: nobody else renames to an accepted name.
        """
        seen = seen or self.inodes()
        if seen is not None and seen.get(str(claim)) != inode:
            raise StaleOpen(str(claim))

    # -- moving on -----------------------------------------------------------------------------

    def start(self, claim: Claim) -> Claim:
        """Count a start, just before the archive is opened."""
        started = claim.next(self.heart.inst, nonce(), starts=1)
        if not self._move(self._active(claim), self.paths.active, started):
            raise TakenOver(f"{claim} is no longer ours")
        self.drop(claim)
        return started

    def put_back(
        self, claim: Claim, priority: int, due: float, uid: int, starts: int
    ) -> Waiting | None:
        """Move a claim to waiting/, due at a time of the file server's clock, with `a` = starts.

        None: it was taken over meanwhile.
        """
        waiting = Waiting(
            priority, max(0, int(due)), uid, claim.file, claim.id, claim.g, starts, nonce()
        )
        self.put.append(str(waiting))
        moved = durable.move(self._active(claim), self.paths.waiting / str(waiting))
        self.drop(claim)
        return waiting if moved else None

    def answer(self, claim: Claim, answer: Result) -> None:
        """Answer one claim; TakenOver: somebody else will answer."""
        if not self.answer_all([(claim, answer)]):
            raise TakenOver(f"{claim} is no longer ours")

    def answer_all(
        self,
        answers: list[tuple[Claim, Result]],
        is_true: Callable[[Claim], bool] = lambda _: True,
    ) -> set[Claim]:
        """Write the results privately, commit the claims, publish the results: in this order.

        Each step is on disk for all of them before any takes the next: a directory is synced once.
        The commit is the one rename that decides; returned are the claims that were still ours.
        `is_true` is asked right before it; a claim whose answer is not true any more is adopted.
        """
        self.outbox.write(answers)
        self.heart.confirm()
        committed = [c for c, answer in answers if self._commit(c, answer.state, is_true)]
        # Both ends: a power loss must not leave a claim in two places, or in none.
        for room in {self._room(answer.state) for claim, answer in answers if claim in committed}:
            self.outbox.sync(room)
        if committed:
            self.outbox.sync(self.paths.active)
        self.outbox.publish(committed)
        return set(committed)

    def _commit(self, claim: Claim, state: State, is_true: Callable[[Claim], bool]) -> bool:
        source, target = self._active(claim), self._room(state) / str(claim)
        committed = is_true(claim) and durable.move(source, target)
        self.drop(claim)
        if not committed:
            durable.discard(self.paths.private / str(claim))
        return committed

    # -- looking -------------------------------------------------------------------------------

    def waiting(self, look: durable.Look | None = None) -> list[Waiting]:
        """Return all waiting requests, from a fresh listing."""
        old, self._parsed = self._parsed, {}
        for name in (look or durable.listing)(self.paths.waiting):
            self._parsed[name] = old[name] if name in old else Waiting.parse(name)
        return [waiting for waiting in self._parsed.values() if waiting]

    def active(self, look: durable.Look | None = None) -> list[Claim]:
        """Return all claims, from a fresh listing."""
        names = (look or durable.listing)(self.paths.active)
        return [c for c in map(Claim.parse, names) if c]

    def orphans(self, claims: list[Claim]) -> list[Claim]:
        """Return the claims nobody works on: ours that no worker holds, and those of the dead."""
        with self._lock:
            held = set(self._held)
        mine = self.heart.inst
        return [
            claim
            for claim in claims
            if (str(claim) not in held if claim.inst == mine else self.heart.dead(claim.inst))
        ]

    def drop(self, claim: Claim) -> None:
        """Stop holding a claim, whatever became of it: what is still ours is adopted later."""
        with self._lock:
            self._held.discard(str(claim))

    def _move(self, source: Path, room: Path, claim: Claim) -> bool:
        # Held before it exists, so that no scan takes it for an orphan.
        with self._lock:
            self._held.add(str(claim))
        moved = False
        try:
            moved = durable.move(source, room / str(claim))
        finally:
            if not moved:
                self.drop(claim)
        return moved

    def _active(self, claim: Claim) -> Path:
        return self.paths.active / str(claim)

    def _room(self, state: State) -> Path:
        if state is State.CANCELLED:
            return self.paths.cancelled
        return self.paths.done if state.value.endswith("staged") else self.paths.failed
