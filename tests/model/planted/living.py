"""Who is alive, and what the dead left."""

from pathlib import Path

from model.planted import WORLD, leaves_out
from stager import durable
from stager.instance import Heart, _Seen
from stager.lock import Locks, Token
from stager.rounds import Rounds
from stager.sweep import Sweeper
from stager.visit import Visit


@leaves_out("dead is who was silent for a lease", "stager.instance.Heart._judge", mood="silence")
def dead_at_once(_self: Heart, seen: _Seen) -> bool:
    return seen.samples >= 1


@leaves_out("only good samples condemn", "stager.instance.Heart.forget_samples", mood="silence")
def bad_samples_count(_self: Heart, now: float | None = None) -> None:  # noqa: ARG001
    return


@leaves_out("a token of the living is not taken", "stager.lock.Locks._owner", mood="crowd")
def taken_from_the_living(_self: Locks, _token: Token) -> str:
    return ""


@leaves_out("the dead are taken over from", "stager.instance.Heart.dead", mood="zombies")
def nobody_dies(_self: Heart, _inst: str) -> bool:
    return False


@leaves_out("no clock is compared with a file's time", "stager.instance.Heart._judge",
            mood="silence")  # fmt: skip
def by_the_clock(self: Heart, seen: _Seen) -> bool:
    inst = next((inst for inst, other in self._seen.items() if other is seen), "")
    try:
        beat = WORLD.os.lstat(self.paths.instances / f"{inst}.{seen.count}").st_mtime
    except FileNotFoundError:
        return False
    return bool(WORLD.time.time() - beat > self.lease)


@leaves_out("who finds its heartbeat taken begins anew", "stager.instance.Heart.beat",
            mood="silence", pause=1.0, stall_heart=0.0, server_away=0.0, kill=0.0, cut_power=0.0,
            cut=0.0, drops=40, drop=10.0, chaos_seconds=300.0)  # fmt: skip
def goes_on_though_buried(self: Heart) -> None:
    with self._lock:
        if durable.move(self._path(self.count), self._path(self.count + 1)):
            self.count += 1
            self._confirmed()


@leaves_out(
    "two machines may have one id", "stager.instance.Heart._sample", mood="clones", slow=0.0
)
def clones_not_seen(self: Heart, inst: str, count: int, now: float) -> _Seen:
    seen = _SAMPLE(self, inst, count, now)
    seen.cloned = False
    return seen


_SAMPLE = Heart._sample


@leaves_out("what is swept was left over twice, a lease apart", "stager.sweep.Sweeper.sweep",
            mood="crowd", kill=8.0, drops=60, drop=14.0, force=True, slow=0.0,
            chaos_seconds=250.0)  # fmt: skip
def swept_at_once(self: Sweeper) -> list[Path]:
    return [path for path in self._leftovers() if self._remove(path)]


@leaves_out("what the dead may not have touched again is touched", "stager.rounds.Rounds._bury",
            mood="old listings", tick=30.0, kill=6.0,
            drops=6, chaos_seconds=150.0)  # fmt: skip
def dead_and_unseen(self: Rounds, visit: Visit) -> None:
    busy = {claim.inst for claim in visit.spool.active()}
    self._is_due |= bool(visit.heart.bury(busy))
