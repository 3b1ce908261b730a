"""What is looked after now and then, beside requests: the dead, their tokens, leftovers, retention.

Each look costs calls to the file server, so each has its own pace.
"""

import time
from dataclasses import dataclass, field

import structlog

from stager import durable
from stager.backlog import Hold
from stager.errors import NoSpace
from stager.keeper import Keeper
from stager.sweep import Sweeper
from stager.visit import Visit

log = structlog.get_logger()

KEYS_AT_ONCE = 100
SWEEPS_A_LEASE = 3
NAMED = 3
"""Of so many things that were swept the log tells the names."""


@dataclass(slots=True)
class Rounds:
    """One instance's share of the housekeeping of its spool."""

    sweeper: Sweeper
    keeper: Keeper = field(default_factory=Keeper)
    _next_sweep: float = 0.0
    _is_due: bool = False
    """Whether somebody was buried since the tokens were listed."""
    _keys: list[str] = field(default_factory=list)
    """The builds whose tokens are still to be looked at."""
    _failed: dict[str, int] = field(default_factory=dict)
    """How often a token could not be freed, by its build."""
    _cloned: set[str] = field(default_factory=set)

    @property
    def is_owing(self) -> bool:
        """Whether tokens of the dead are still to be freed."""
        return self._is_due or bool(self._keys)

    def go(self, visit: Visit, hold: Hold | None) -> None:
        """Make a round; `hold`: the standing fault that requests wait for."""
        self._bury(visit)
        self._free_tokens(visit)
        self._sweep(visit.heart.lease)
        # Sooner where requests wait for room.
        self.keeper.turn(visit, hurry=hold is not None and isinstance(hold.error, NoSpace))

    def finish(self, visit: Visit, seconds: float) -> None:
        """Look at the tokens that are still to be looked at, for so long at most, before the end.

        Else whoever never runs for long (`--once`) would never come to the last of them.
        """
        end = time.monotonic() + seconds
        for _ in range(0, len(self._keys), KEYS_AT_ONCE):
            if time.monotonic() < end:
                self._free_tokens(visit)

    def _bury(self, visit: Visit) -> None:
        heart = visit.heart
        for inst in heart.cloned() - self._cloned:
            self._cloned.add(inst)
            log.warning("two machines have one machine id: give each its own", instance=inst)
        if not heart.fallen():
            return
        busy = {claim.inst for claim in visit.spool.active()}
        for inst in heart.bury(busy):
            log.info("an instance is gone", instance=inst)
            self._is_due = True
            # It may have died before it touched the directory of its answers again (NFSv3).
            visit.spool.outbox.note(visit.spool.paths.results)

    def _free_tokens(self, visit: Visit) -> None:
        """Free what the dead held, some builds at a time: there may be many thousands.

        Not only what those held whom we buried: who buried others may have died of it.
        """
        visit.locks.free_left()
        if self._is_due and not self._keys:
            self._keys, self._is_due = durable.listing(visit.spool.paths.locks), False
        for _ in range(min(KEYS_AT_ONCE, len(self._keys))):
            key = self._keys.pop(0)
            try:
                self._keys += visit.locks.free_the_dead([key])
            except OSError as e:
                # One that can't be freed keeps the daemon from nothing, and comes last next time.
                self._keys.append(key)
                self._say_stuck(key, e)
                return

    def _say_stuck(self, key: str, error: OSError) -> None:
        """Say once of a token that it can't be freed; at the second time, as a fault may pass."""
        if self._failed.get(key) == 1:
            log.warning(f"the token of a dead instance can't be freed: {error}", build=key)
        self._failed[key] = self._failed.get(key, 0) + 1

    def _sweep(self, lease: float) -> None:
        """Sweep, some times in a lease: leftovers are in nobody's way."""
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + lease / SWEEPS_A_LEASE
            if swept := self.sweeper.sweep():
                some = [str(path) for path in swept[:NAMED]]
                log.info(f"swept {len(swept)} that nobody needs any more", paths=some)
