"""The build token: one owner at a time, and nothing that an owner before does has an effect."""

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from lab import BUILD, Lab, Peer

from stager.errors import BuildBusy, TakenOver
from stager.instance import GONE_SAMPLES
from stager.layout import parse_build
from stager.lock import Token, Work

ONE = parse_build(BUILD, frozenset()).key
OTHER = parse_build(f"{BUILD}-other", frozenset()).key


def tokens(lab: Lab, key: str = ONE) -> list[str]:
    return sorted(os.listdir(lab.root / "static/.stager/locks" / key))


def work_dirs(lab: Lab) -> list[str]:
    return sorted(os.listdir(lab.root / "static/.stager/work"))


def set_tokens(lab: Lab, *names: str) -> None:
    room = lab.root / "static/.stager/locks" / ONE
    room.mkdir()
    for name in names:
        (room / name).touch()


def test_a_token_is_one_file_whose_number_grows_with_every_step(lab: Lab) -> None:
    peer = lab.peer()
    for n in (1, 3, 5):
        with peer.locks.take(ONE) as work:
            assert tokens(lab) == [f"{n}.{peer.inst}.{work.token.nonce}"]
            assert work_dirs(lab) == [work.dir.name]
        assert tokens(lab) == [f"{n + 1}.free"]
        assert lab.is_clean()


def test_a_build_that_is_staged_is_busy_for_all_others_and_they_learn_where(lab: Lab) -> None:
    one, two = lab.peer(), lab.peer(machine="b")
    host = one.inst.rpartition("-")[0]
    assert two.locks.busy(ONE) == ""
    with one.locks.take(ONE):
        for peer in (one, two):
            assert peer.locks.busy(ONE)
            with pytest.raises(BuildBusy, match=host):
                peer.locks.take(ONE)
        with two.locks.take(OTHER):
            assert tokens(lab, OTHER)
    assert two.locks.busy(ONE) == ""


def test_a_fault_inside_frees_the_token(lab: Lab) -> None:
    peer = lab.peer()
    with suppress(ZeroDivisionError), peer.locks.take(ONE) as work:
        work.file().write_bytes(b"half an image")
        raise ZeroDivisionError
    assert tokens(lab) == ["2.free"]
    assert lab.is_clean()


def test_among_many_takers_only_one_is_inside_at_any_time(lab: Lab) -> None:
    peers = [lab.peer(), lab.peer(machine="b")]
    inside, takes, lock = [0], 10, threading.Lock()

    def stage(peer: Peer) -> int:
        done = busy = 0
        while done < takes:
            try:
                work = peer.locks.take(ONE)
            except BuildBusy:
                busy += 1
                continue
            with work:
                with lock:
                    inside[0] += 1
                    assert inside[0] == 1
                assert work_dirs(lab) == [work.dir.name]
                assert tokens(lab) == [str(work.token)]
                with lock:
                    inside[0] -= 1
            done += 1
        return busy

    with ThreadPoolExecutor(8) as pool:
        busy = sum(pool.map(stage, peers * 4, timeout=60))
    assert busy, "nobody ever met another"
    assert tokens(lab) == [f"{2 * 8 * takes}.free"]
    assert lab.is_clean()


def test_many_new_builds_get_their_first_tokens_at_once(lab: Lab) -> None:
    peer, together = lab.peer(), threading.Barrier(8)

    def stage(worker: int) -> None:
        for n in range(10):
            together.wait(30)
            with peer.locks.take(f"build-{worker}-{n}"):
                pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(stage, range(8), timeout=60))
    assert {
        name for w in range(8) for n in range(10) for name in tokens(lab, f"build-{w}-{n}")
    } == {"2.free"}
    assert lab.is_clean()


def test_a_first_tokens_directory_is_not_put_in_place_late_and_empty(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, late = Path.rename, list[tuple[Path, Path]]()

    def lost(self: Path, target: Path) -> Path:
        if target.parent.name == "locks":
            late.append((self, target))
            raise OSError(errno.EIO, "no reply")
        return rename(self, target)

    peer = lab.peer()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", lost)
        with pytest.raises(OSError, match="no reply"):
            peer.locks.take(ONE)
    with suppress(FileNotFoundError):
        rename(*late[0])
    assert lab.is_clean(), lab.listing()
    assert all(any(room.iterdir()) for room in (lab.root / "static/.stager/locks").iterdir())


# -- taking over --------------------------------------------------------------------------------


def held_by_the_dead(lab: Lab) -> Work:
    """Take the token in the name of an instance whose process is gone, with files inside."""
    work = lab.peer(dead=True).locks.take(ONE)
    work.file().write_bytes(b"half an image")
    (work.dir / "room").mkdir()
    (work.dir / "room/file").touch()
    return work


def test_the_token_of_a_dead_owner_is_taken_over_and_its_work_directory_removed(lab: Lab) -> None:
    old, taker = held_by_the_dead(lab), lab.peer()
    with taker.locks.take(ONE) as work:
        assert tokens(lab) == [f"{old.token.n + 1}.{taker.inst}.{work.token.nonce}"]
        assert work_dirs(lab) == [work.dir.name]
    assert tokens(lab) == ["3.free"]
    assert lab.is_clean()


def test_the_token_of_one_whose_burier_died_is_freed_by_who_is_left(lab: Lab) -> None:
    old, burier = held_by_the_dead(lab), lab.peer(dead=True)
    burier.heart.observe()
    assert old.token.inst in burier.heart.bury(set())
    left = lab.peer()
    left.heart.observe()
    for _ in range(GONE_SAMPLES):
        # Not listed any more: that must be seen a few times before it is believed.
        assert left.locks.free_the_dead([ONE]) == [ONE]
        left.heart.observe()
    assert left.locks.free_the_dead([ONE]) == []
    assert tokens(lab) == [f"{old.token.n + 2}.free"]
    assert lab.is_clean()


def take_away(work: Work, target: Path) -> None:
    target.touch()
    try:
        work.away(target)
    finally:
        target.unlink()


@pytest.mark.parametrize(
    ("step", "error"),
    [
        pytest.param(
            lambda _, file, target: os.link(file, target), FileNotFoundError, id="publish an image"
        ),
        pytest.param(
            lambda _, file, target: file.rename(target), FileNotFoundError, id="replace a flag"
        ),
        pytest.param(
            lambda work, _, target: take_away(work, target), FileNotFoundError, id="remove an image"
        ),
        pytest.param(lambda work, *_: work.file().touch(), FileNotFoundError, id="begin a file"),
        pytest.param(lambda work, *_: work.check(), TakenOver, id="check"),
        pytest.param(lambda work, *_: work.renew(), TakenOver, id="renew"),
    ],
)
@pytest.mark.parametrize("still_owned", [True, False], ids=["owned", "freed"])
def test_an_owner_that_wakes_up_after_it_was_taken_for_dead_can_not(
    lab: Lab, step: Callable[[Work, Path, Path], None], error: type[Exception], still_owned: bool
) -> None:
    zombie, target = held_by_the_dead(lab), lab.root / "static/images/name"
    file = next(path for path in zombie.dir.iterdir() if path.is_file())
    work = lab.peer().locks.take(ONE)
    if not still_owned:
        work.release()
    before = tokens(lab)
    with pytest.raises(error):
        step(zombie, file, target)
    zombie.release()
    assert not target.exists()
    assert tokens(lab) == before
    assert work_dirs(lab) == ([work.dir.name] if still_owned else [])


def test_an_owner_that_lost_its_token_before_it_had_a_directory_stops(lab: Lab) -> None:
    peer, overtaken = lab.peer(), Token(3, lab.peer().inst, "abcdefgh")
    set_tokens(lab, f"4.{peer.inst}.abcdefgh")
    work = Work(peer.locks, ONE, overtaken)
    with pytest.raises(TakenOver):
        work.open()
    work.release()
    assert tokens(lab) == [f"4.{peer.inst}.abcdefgh"]
    assert lab.is_clean()


def test_a_reply_that_was_lost_leaves_a_token_of_ours_that_we_may_take(lab: Lab) -> None:
    peer = lab.peer()
    lost = peer.locks.take(ONE)
    peer.locks.forget(lost.token)
    assert lab.peer().locks.busy(ONE)
    with peer.locks.take(ONE) as work:
        assert work.token.n == lost.token.n + 1
        assert work_dirs(lab) == [work.dir.name]


def test_a_build_that_fails_keeps_no_other_builds_token_from_being_freed(lab: Lab) -> None:
    peer = lab.peer()
    left = lab.root / "static/.stager/locks" / OTHER / f"7.{peer.inst}.abcdefgh"
    left.parent.mkdir()
    left.touch()
    (lab.root / "static/.stager/locks" / ONE).touch()  # can't be listed: no directory
    for key in (ONE, OTHER):
        peer.locks.leave(key)
    assert peer.locks.free_left() is False
    assert peer.locks.busy(OTHER) == ""
    assert [Token.parse(name) for name in tokens(lab, OTHER)] == [Token(9)]


def test_a_token_that_is_left_while_it_is_looked_for_is_freed_all_the_same(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, listdir = lab.peer(), os.listdir
    set_tokens(lab, "4.free")
    peer.heart.lease = 0
    peer.locks.leave(ONE)

    def leave_meanwhile(path: Path) -> list[str]:
        """Be a worker whose release fails right then, and is executed late by the server."""
        found = listdir(path)
        peer.heart.lease = 60
        peer.locks.leave(ONE)
        return found

    with monkeypatch.context() as busy:
        busy.setattr(os, "listdir", leave_meanwhile)
        assert peer.locks.free_left()
    room = lab.root / "static/.stager/locks" / ONE
    (room / "4.free").rename(room / f"5.{peer.inst}.abcdefgh")
    assert peer.locks.free_left()
    assert tokens(lab) == ["7.free"], "else everybody waits for an owner that has forgotten it"


def test_the_token_of_an_owner_that_was_buried_is_taken_over_at_once(lab: Lab) -> None:
    old, taker = held_by_the_dead(lab), lab.peer()
    taker.heart.bury(set())
    taker.heart.observe()
    with taker.locks.take(ONE) as work:
        assert work.token.n == old.token.n + 1


# -- what else a lock directory may show --------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "left"),
    [
        pytest.param(["0.free"], ["1.ME"], id="new"),
        pytest.param(["9.free", "10.free"], ["11.ME"], id="the highest number, not the last name"),
        pytest.param(["3.free", "5.free"], ["6.ME"], id="two free ones"),
        pytest.param(["2.free", "4.DEAD.abcdefgh"], ["5.ME"], id="a free one below a dead owner's"),
        pytest.param(["1.DEAD.abcdefgh", "4.free"], ["5.ME"], id="an old one that came back late"),
        pytest.param(["7.free", "8", "9.tmp", "notes"], ["8", "8.ME", "9.tmp", "notes"],
                     id="other files"),
    ],
)  # fmt: skip
def test_a_taker_goes_by_the_highest_token_and_removes_lower_ones(
    lab: Lab, names: list[str], left: list[str]
) -> None:
    dead, taker = lab.peer(dead=True), lab.peer()
    set_tokens(lab, *(name.replace("DEAD", dead.inst) for name in names))
    with taker.locks.take(ONE) as work:
        me = f"{taker.inst}.{work.token.nonce}"
        assert tokens(lab) == sorted(name.replace("ME", me) for name in left)


def test_a_free_token_below_a_living_owners_is_no_way_in(lab: Lab) -> None:
    owner, taker = lab.peer(), lab.peer()
    set_tokens(lab, "2.free", f"3.{owner.inst}.abcdefgh")
    with pytest.raises(BuildBusy):
        taker.locks.take(ONE)
    assert tokens(lab) == ["2.free", f"3.{owner.inst}.abcdefgh"]


@pytest.mark.parametrize("name", ["0.free", "12.free", "7.lab-3-abcdef.nopq2345"])
def test_a_token_is_its_name(name: str) -> None:
    token = Token.parse(name)
    assert token is not None
    assert str(token) == name


@pytest.mark.parametrize("name", ["", "free", "1", "x.free", "1.inst", "1.a.b.c", "-1.free"])
def test_other_names_are_no_tokens(name: str) -> None:
    assert Token.parse(name) is None
