"""Who has a request."""

from model.planted import WORLD, leaves_out
from stager import durable
from stager.durable import nonce
from stager.layout import Claim, Waiting, can_name_result, request_name
from stager.spool import Spool
from stager.watch import Watch


@leaves_out(
    "take and accept are two renames",
    "stager.spool.Spool.take",
    mood="duplicates",
    duplicate=0.5,
    redrop=0.9,
    drops=20,
)
def no_accept(self: Spool, name: str) -> Claim | None:
    file = name if can_name_result(request_name(name)) else ""
    source = self.paths.requests / name
    try:
        fresh = f"{WORLD.os.lstat(source).st_ctime_ns}-{nonce()[:6]}"
    except FileNotFoundError:
        return None
    claim = Claim(file, fresh, 1, 0, self.heart.inst, nonce())
    return claim if self._move(source, self.paths.active, claim) else None


@leaves_out("a claim's name is its taker's alone", "stager.spool.Spool.resume", mood="crowd")
def fixed_claim_name(self: Spool, waiting: Waiting) -> Claim | None:
    claim = waiting.claimed("whoever", "fixed")
    source, target = self.paths.waiting / str(waiting), self.paths.active / str(claim)
    self._held.add(str(claim))
    try:
        WORLD.os.rename(source, target)
    except OSError:
        # "The old one is gone, and the new one is there."
        old, new = (durable.listing(path.parent) for path in (source, target))
        if source.name in old or target.name not in new:
            self.drop(claim)
            return None
    return claim


def _unknown(_self: Spool) -> None:
    return


# To ask for the inodes touches the directory, so that names are asked for anew: a second defence.
@leaves_out("the inode opened is the one that is listed", "stager.spool.Spool._check_inode",
            mood="old names", woken=1.0, slow=0.0, drops=40, drop=60.0,
            also={"stager.spool.Spool.inodes": _unknown})  # fmt: skip
def no_inode_check(
    _self: Spool, _claim: Claim, _inode: int, _seen: dict[str, int] | None = None
) -> None:
    return


@leaves_out("what a lost reply left is taken over, not just gone on with",
            "stager.spool.Spool.take_over", mood="lost and late")  # fmt: skip
def adopted_in_place(self: Spool, claim: Claim) -> Claim | None:
    if claim.g == 0:
        return self.accept(claim)
    if claim.inst == self.heart.inst:
        self._held.add(str(claim))
        return claim
    mine = claim.next(self.heart.inst, nonce())
    return mine if self._move(self._active(claim), self.paths.active, mine) else None


@leaves_out("nothing goes back to the drop box", "stager.spool.Spool.put_back")
def back_to_requests(
    self: Spool, claim: Claim, priority: int, due: float, uid: int, starts: int
) -> None:
    del priority, due, uid, starts
    durable.move(self._active(claim), self.paths.requests / claim.file)
    self.drop(claim)


@leaves_out("events are hints: the timer runs as well", "stager.watch.Watch.wait")
def events_only(self: Watch, seconds: float) -> bool:  # noqa: ARG001
    return self.wake.wait(1e9)
