"""Housekeeping: only what nobody owned for a whole lease goes, and nothing of the living."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import BUILD, Lab, Peer, until

from stager.instance import Heart
from stager.layout import Claim, parse_build
from stager.sweep import ANSWER_SECONDS, DROPPED_TMP_SECONDS, Sweeper

KEY = parse_build(BUILD, frozenset()).key
LEASE = 0.3


@pytest.fixture
def quick(lab: Lab) -> Lab:
    """Return a lab in which a lease is over soon."""
    lab.write_config(heartbeat="0.05s", lease=f"{LEASE}s")
    return lab


class LaterHeart(Heart):
    """A heart whose file server's clock is ahead of its files."""

    ahead_seconds = 0.0

    def server_now(self) -> float:
        return super().server_now() + self.ahead_seconds


class LookingSweeper(Sweeper):
    """A sweeper whose instance looks at the others right before, as its heartbeat would."""

    def sweep(self) -> list[Path]:
        self.heart.observe()
        return super().sweep()


def sweeper(peer: Peer, ahead_seconds: float = 0) -> Sweeper:
    peer.heart.__class__ = LaterHeart
    peer.heart.ahead_seconds = ahead_seconds  # type: ignore[attr-defined]
    return LookingSweeper(peer.heart.paths, peer.heart)


def file(path: Path) -> Path:
    path.write_text("left")
    return path


def tree(path: Path) -> Path:
    (path / "room").mkdir(parents=True)
    file(path / "room/file")
    return path


def claim(peer: Peer, lab: Lab, room: str) -> str:
    """Have a request in a room of the spool; return its claim's name."""
    taken = peer.spool.take(f"{lab.drop('a')}.yaml")
    assert taken is not None
    active = lab.root / "spool/active" / str(taken)
    active.rename(lab.root / "spool" / room / str(taken))
    return str(taken)


# -- what is left over --------------------------------------------------------------------------

LEFT: dict[str, Callable[[Lab, Peer], Path]] = {
    "a file of the dead in the spool's tmp": lambda lab, dead: file(
        lab.root / f"spool/tmp/{dead.inst}.abcdefgh"
    ),
    "a file of nobody there": lambda lab, _: file(lab.root / "spool/tmp/.probe.abcdefgh"),
    "a directory of the dead in the tree's tmp": lambda lab, dead: tree(
        lab.root / f"static/.stager/tmp/{dead.inst}.abcdefgh.d"
    ),
    "a work directory of the dead": lambda _, dead: dead.locks.take(KEY).dir,
    "a work directory without a token": lambda lab, dead: tree(
        lab.root / f"static/.stager/work/{KEY}.7.{dead.inst}.abcdefgh"
    ),
    "a work directory that is none": lambda lab, _: tree(lab.root / "static/.stager/work/x"),
    "an answer nobody committed": lambda lab, dead: file(
        lab.root / "spool/private" / str(Claim("a.yaml", "1-a", 1, 0, dead.inst, "abcdefgh"))
    ),
    "a status of the dead": lambda lab, dead: file(
        lab.root / f"spool/instances/{dead.inst}.status"
    ),
}


@pytest.mark.parametrize("make", LEFT.values(), ids=LEFT)
def test_what_the_dead_left_goes_after_a_lease_and_not_before(
    quick: Lab, make: Callable[[Lab, Peer], Path]
) -> None:
    left = make(quick, quick.peer(dead=True))
    sweep = sweeper(quick.peer()).sweep
    start = time.monotonic()
    until(lambda: left in sweep(), f"{left} is swept")
    assert time.monotonic() - start >= LEASE
    assert not left.exists()
    assert quick.is_clean()
    assert sweep() == []


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("requests/.a.yaml.tmp", DROPPED_TMP_SECONDS),
        ("requests/a.tmp", DROPPED_TMP_SECONDS),
        ("control/abcdefgh.answer", ANSWER_SECONDS),
        ("control/.abcdefgh.tmp", ANSWER_SECONDS),
    ],
)
def test_what_clients_left_goes_when_it_is_old_by_the_file_servers_clock(
    quick: Lab, name: str, seconds: float
) -> None:
    left = file(quick.root / "spool" / name)
    os.utime(left, (1, 1))
    young, old = (sweeper(quick.peer(), seconds + more) for more in (-60, 60))
    end = time.monotonic() + 2 * LEASE
    until(lambda: young.sweep() or time.monotonic() > end)
    assert left.exists()
    until(lambda: left in old.sweep(), f"{left} is swept")
    assert not left.exists()


# -- what is somebody's -------------------------------------------------------------------------


def lock_directory(lab: Lab, peer: Peer) -> Path:
    with peer.locks.take(KEY):
        return lab.root / "static/.stager/locks" / KEY


MAKING: dict[str, Callable[[Lab, Peer], Path]] = {
    "a living instance's file": lambda lab, alive: file(
        lab.root / f"spool/tmp/{alive.inst}.abcdefgh"
    ),
    "a living instance's directory": lambda lab, alive: tree(
        lab.root / f"static/.stager/tmp/{alive.inst}.abcdefgh.d"
    ),
}
"""What only a neighbour can still be at: nothing of our own takes a lease to make."""

OWNED: dict[str, Callable[[Lab, Peer], Path]] = {
    "a living worker's directory": lambda _, alive: alive.locks.take(KEY).dir,
    "a status of the living": lambda lab, alive: file(
        lab.root / f"spool/instances/{alive.inst}.status"
    ),
    "the answer to a claim": lambda lab, alive: file(
        lab.root / "spool/private" / claim(alive, lab, "active")
    ),
    "an answer committed to done": lambda lab, alive: file(
        lab.root / "spool/private" / claim(alive, lab, "done")
    ),
    "an answer committed to failed": lambda lab, alive: file(
        lab.root / "spool/private" / claim(alive, lab, "failed")
    ),
    "an answer committed to cancelled": lambda lab, alive: file(
        lab.root / "spool/private" / claim(alive, lab, "cancelled")
    ),
    "a file somebody keeps in the drop box": lambda lab, _: file(lab.requests / "README"),
    "a request": lambda lab, _: file(lab.requests / "b.yaml"),
    "a lock directory": lock_directory,
    "a heartbeat": lambda lab, alive: lab.root / f"spool/instances/{alive.inst}.0",
}


CASES = [(make, False) for make in {**MAKING, **OWNED}] + [(make, True) for make in OWNED]


@pytest.mark.parametrize(
    ("what", "ours"), CASES, ids=[f"{what}-{'ours' if own else 'theirs'}" for what, own in CASES]
)
def test_what_belongs_to_somebody_stays(quick: Lab, what: str, ours: bool) -> None:
    me = quick.peer()
    owner = me if ours else quick.peer()
    kept = {**MAKING, **OWNED}[what](quick, owner)
    me.heart.observe()
    sweep, swept = sweeper(me, 1e6).sweep, []
    end = time.monotonic() + 2 * LEASE
    while time.monotonic() < end:
        if owner.spool is not me.spool:
            owner.heart.beat()
            kept = kept.with_name(owner_file(kept, owner))
        me.heart.observe()
        swept += sweep()
    assert swept == []
    assert kept.exists()


def owner_file(path: Path, owner: Peer) -> str:
    """Return the name a path has now: a heartbeat's grows with every beat."""
    is_beat = path.name.startswith(f"{owner.inst}.") and path.suffix[1:].isdigit()
    return f"{owner.inst}.{owner.heart.count}" if is_beat else path.name


def test_what_was_owned_in_between_gets_another_lease(quick: Lab) -> None:
    other, me = quick.peer(), quick.peer()
    work = other.locks.take(KEY)
    token = quick.root / "static/.stager/locks" / KEY / str(work.token)
    sweep = sweeper(me).sweep
    away = token.rename(token.with_name("0.away"))
    half = time.monotonic() + LEASE / 2
    while time.monotonic() < half:
        assert sweep() == []
    away.rename(token)
    assert sweep() == []
    token.rename(away)
    start = time.monotonic()
    until(lambda: work.dir in sweep())
    assert time.monotonic() - start >= LEASE


def test_one_look_long_after_the_first_is_enough(quick: Lab) -> None:
    dead, me = quick.peer(dead=True), quick.peer()
    left = file(quick.root / f"spool/tmp/{dead.inst}.abcdefgh")
    sweep = sweeper(me).sweep
    assert sweep() == []
    end = time.monotonic() + LEASE
    until(lambda: time.monotonic() > end)
    assert sweep() == [left]


def test_an_order_that_was_taken_is_the_clerks_and_is_never_swept(lab: Lab) -> None:
    peer = lab.peer()
    taken = lab.root / "spool/tmp" / f"{peer.inst}.abcdefgh.abcdefghijklmnop.order"
    taken.touch()
    look = sweeper(peer)
    assert taken not in set(look._leftovers())


def test_nothing_is_swept_by_who_does_not_look_who_lives(quick: Lab) -> None:
    blind, newcomer = quick.peer(), quick.peer()
    left = newcomer.locks.take(KEY).dir
    sweep, end = Sweeper(blind.heart.paths, blind.heart).sweep, time.monotonic() + 3 * LEASE
    until(lambda: sweep() or time.monotonic() > end)
    assert left.exists()
