"""Claims and answers: every step one rename, whose loser learns that it lost."""

import os
import re
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from lab import BUILD, Lab, Peer, until

from stager.errors import TakenOver
from stager.finish import finish
from stager.layout import Claim, Waiting
from stager.result import Result, State, to_yaml
from stager.spool import Spool

NONCE = "[a-z2-7]{8}"


def take(lab: Lab, peer: Peer, name: str = "a") -> Claim:
    claim = peer.spool.take(f"{lab.drop(name)}.yaml")
    assert claim is not None
    return claim


def answer_to(claim: Claim, state: State = State.STAGED, **more: object) -> Result:
    at = "2026-11-23T15:25:15Z"
    return Result(state=state, request=claim.file, request_id=claim.request_id, attempts=claim.a,
                  host="lab-7", received=at, finished=at).model_copy(update=more)  # fmt: skip


def put_back(spool: Spool, claim: Claim, due: float = 0, starts: int = 0) -> Waiting | None:
    return spool.put_back(claim, 5, due, 1004, starts)


def answered(lab: Lab, name: str = "a") -> str:
    return (lab.root / "results" / f"{name}.yaml").read_text()


# -- claiming -----------------------------------------------------------------------------------


def test_a_claims_name_says_which_request_it_is_who_has_it_and_when_it_came(lab: Lab) -> None:
    peer = lab.peer()
    dropped_at = os.lstat(lab.requests / f"{lab.drop('nightly~1')}.yaml").st_ctime_ns
    claim = peer.spool.take("nightly~1.yaml")
    pattern = rf"nightly~1\.yaml~(\d+)-[a-z2-7]+\.g1\.a0\.{peer.inst}\.{NONCE}"
    match = re.fullmatch(pattern, str(claim))
    assert match
    assert dropped_at <= int(match[1]) <= os.lstat(lab.requests).st_ctime_ns
    assert lab.spool("active") == [str(claim)]
    assert lab.spool("requests") == []


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(b"caf\xe9.yaml", id="not UTF-8"),
        pytest.param(b"two\nlines.yaml", id="control characters"),
        pytest.param(b"\xe2\x80\xaegnp.yaml", id="direction marks"),
        pytest.param(b"n" * 151 + b".yaml", id="over 150 bytes"),
        pytest.param(b"n" * 250 + b".yaml", id="as long as names can be"),
    ],
)
def test_a_name_that_can_name_no_result_is_answered_under_its_id(lab: Lab, name: bytes) -> None:
    peer, file = lab.peer(), os.fsdecode(name)
    (lab.requests / lab.drop("plain")).with_suffix(".yaml").rename(lab.requests / file)
    claim = peer.spool.take(file)
    assert claim is not None
    assert claim.file == ""
    peer.spool.answer(claim, answer_to(claim))
    assert answered(lab, claim.request_id).startswith("state: staged\n")
    assert lab.is_clean()


def test_of_many_takers_one_gets_each_request(lab: Lab) -> None:
    peers = [lab.peer(), lab.peer(machine="b")] * 4
    names = [f"{lab.drop(f'n{n}')}.yaml" for n in range(50)]
    together = threading.Barrier(len(peers))

    def take_all(peer: Peer) -> list[Claim | None]:
        together.wait(30)
        return [peer.spool.take(name) for name in names]

    with ThreadPoolExecutor(len(peers)) as pool:
        claims = [c for taken in pool.map(take_all, peers, timeout=60) for c in taken if c]
    assert sorted(c.file for c in claims) == sorted(names)
    assert lab.spool("active") == sorted(map(str, claims))


def test_what_was_withdrawn_before_it_was_claimed_is_nobodys(lab: Lab) -> None:
    assert lab.peer().spool.take("gone.yaml") is None
    assert lab.is_clean()


def test_a_take_that_the_server_does_twice_is_two_requests(lab: Lab) -> None:
    """The name is used again at once, and the late duplicate of the first rename takes the new."""
    peer = lab.peer()
    first = take(lab, peer)
    taken = Claim("a.yaml", "abcdefgh", 0, 0, peer.inst, "ijklmnop")
    (lab.requests / f"{lab.drop('a')}.yaml").rename(lab.root / "spool/active" / str(taken))
    assert peer.spool.orphans(peer.spool.active()) == [taken]
    second = peer.spool.take_over(taken)
    assert second is not None
    assert (second.file, second.g, second.a) == ("a.yaml", 1, 0)
    assert second.id != first.id
    for claim in (first, second):
        peer.spool.answer(claim, answer_to(claim))
    assert len({claim.id for claim in lab.ended("a")}) == 2
    assert lab.is_clean()


class LateSpool(Spool):
    """Has another, later file land on a claim's name just before the rename that accepts it."""

    looks = came = 0

    def _active(self, claim: Claim) -> Path:
        path, self.looks = super()._active(claim), self.looks + 1
        if self.looks == 2:
            first, late = path.stat().st_ctime_ns, self.paths.requests / ".late"
            until(lambda: late.write_text("the second") and late.stat().st_ctime_ns > first)
            self.came = late.stat().st_ctime_ns
            late.rename(path)
        return path


def test_another_file_that_lands_on_a_name_being_accepted_gets_an_id_of_its_own(lab: Lab) -> None:
    peer = lab.peer()
    spool = LateSpool(peer.heart.paths, peer.heart)
    claim = spool.take(f"{lab.drop_text('a', 'the first')}.yaml")
    assert claim is not None
    assert spool.read(claim).data == b"the second"
    assert claim.arrived_ns >= spool.came > 0
    assert lab.spool("active") == [str(claim)]


# -- moving on ----------------------------------------------------------------------------------


def test_every_step_keeps_the_request_and_has_a_name_of_its_own(lab: Lab) -> None:
    peer, names = lab.peer(), []
    claim = take(lab, peer)
    names.append(str(claim))
    started = peer.spool.start(claim)
    assert (started.id, started.g, started.a) == (claim.id, 1, 1)
    names.append(str(started))
    waiting = put_back(peer.spool, started, due=1_800_000_000.9, starts=1)
    assert waiting is not None
    names.append(str(waiting))
    pattern = rf"p5\.1800000000\.u1004\.a\.yaml~{claim.id}\.g1\.a1\.{NONCE}"
    assert re.fullmatch(pattern, str(waiting))
    assert lab.spool("waiting") == [str(waiting)]
    resumed = lab.peer().spool.resume(waiting)
    assert resumed is not None
    assert (resumed.id, resumed.g, resumed.a) == (claim.id, 2, 1)
    names.append(str(resumed))
    assert lab.spool("active") == [str(resumed)]
    assert len({name.rpartition(".")[2] for name in names}) == len(names)


def test_a_takeover_is_a_claim_but_no_start(lab: Lab) -> None:
    dead, heir = lab.peer(dead=True), lab.peer()
    old = dead.spool.start(take(lab, dead))
    new = heir.spool.take_over(old)
    assert new is not None
    assert (new.id, new.g, new.a, new.inst) == (old.id, old.g + 1, old.a, heir.inst)
    assert heir.spool.take_over(old) is None


def try_start(spool: Spool, claim: Claim) -> None:
    spool.start(claim)


def try_answer(spool: Spool, claim: Claim) -> None:
    spool.answer(claim, answer_to(claim, State.FAILED))


def try_put_back(spool: Spool, claim: Claim) -> None:
    if put_back(spool, claim) is None:
        raise TakenOver("as the caller learns it")


@pytest.mark.parametrize("step", [try_start, try_answer, try_put_back])
def test_who_was_taken_for_dead_can_do_nothing_with_its_claim(
    lab: Lab, step: Callable[[Spool, Claim], None]
) -> None:
    zombie, heir = lab.peer(dead=True), lab.peer()
    old = take(lab, zombie)
    new = heir.spool.take_over(old)
    assert new is not None
    with pytest.raises(TakenOver):
        step(zombie.spool, old)
    assert lab.spool("active") == [str(new)]
    assert os.listdir(lab.root / "results") == [".layout"]
    heir.spool.answer(new, answer_to(new))
    assert answered(lab).startswith("state: staged\n")
    assert lab.is_clean()


def test_orphans_are_ours_that_no_worker_holds_and_those_of_the_dead(lab: Lab) -> None:
    me, alive, dead = lab.peer(), lab.peer(), lab.peer(dead=True)
    held, lost = take(lab, me, "held"), take(lab, me, "lost")
    theirs, left = take(lab, alive, "theirs"), take(lab, dead, "left")
    me.spool.drop(lost)
    me.heart.observe()
    active = me.spool.active()
    assert sorted(map(str, active)) == sorted(map(str, [held, lost, theirs, left]))
    assert {c.file for c in me.spool.orphans(active)} == {"lost.yaml", "left.yaml"}


# -- answering ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "room"),
    [
        (State.STAGED, "done"),
        (State.ALREADY_STAGED, "done"),
        (State.REJECTED, "failed"),
        (State.FAILED, "failed"),
        (State.CANCELLED, "cancelled"),
    ],
)
def test_an_answered_request_is_put_away_as_it_ended(lab: Lab, state: State, room: str) -> None:
    peer = lab.peer()
    claim = take(lab, peer)
    peer.spool.answer(claim, answer_to(claim, state))
    assert lab.spool(room) == [str(claim)]
    assert answered(lab).splitlines()[0] == f"state: {state}"
    assert yaml.safe_load((lab.root / "spool" / room / str(claim)).read_text())["build"] == BUILD
    assert lab.is_clean()


def test_an_answer_that_is_no_longer_true_is_not_committed(lab: Lab) -> None:
    peer = lab.peer()
    claim = take(lab, peer)

    def is_true(asked: Claim) -> bool:
        assert lab.spool("private") == [str(asked)]
        return False

    assert peer.spool.answer_all([(claim, answer_to(claim))], is_true) == set()
    assert lab.spool("active") == [str(claim)]
    assert lab.spool("private") == []
    assert not (lab.root / "results/a.yaml").exists()


def test_answers_are_readable_by_all_and_keep_nothing_back_whatever_the_umask(lab: Lab) -> None:
    peer, before = lab.peer(), os.umask(0o077)
    try:
        claim = take(lab, peer)
        peer.spool.answer(claim, answer_to(claim))
    finally:
        os.umask(before)
    assert stat.S_IMODE((lab.root / "results/a.yaml").stat().st_mode) == 0o644


def whole(claim: Claim) -> bytes:
    return to_yaml(answer_to(claim), claim)


def after_another_claim(claim: Claim) -> bytes:
    return to_yaml(answer_to(claim), replace(claim, g=claim.g + 1))


def of_another_request(claim: Claim) -> bytes:
    return to_yaml(answer_to(claim, request_id="17-other"), claim)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        pytest.param(whole, None, id="whole"),
        pytest.param(lambda _: b"", "internal", id="empty"),
        pytest.param(lambda c: whole(c)[:-1], "internal", id="its last byte is missing"),
        pytest.param(lambda c: whole(c)[:40], "internal", id="torn"),
        pytest.param(lambda c: bytes(len(whole(c))), "internal", id="never written to the disk"),
        pytest.param(after_another_claim, "internal", id="for another claim"),
        pytest.param(of_another_request, "internal", id="for another request"),
    ],
)
@pytest.mark.parametrize("room", ["done", "failed", "cancelled"])
def test_a_committed_request_gets_its_answer_from_whoever_finds_it(
    lab: Lab, room: str, content: Callable[[Claim], bytes], code: str | None
) -> None:
    dead, other = lab.peer(dead=True), lab.peer()
    claim = dead.spool.start(take(lab, dead))
    (lab.root / "spool/private" / str(claim)).write_bytes(content(claim))
    assert finish(other.spool) == 0
    assert not (lab.root / "results/a.yaml").exists()
    (lab.root / "spool/active" / str(claim)).rename(lab.root / "spool" / room / str(claim))
    assert finish(other.spool) == 1
    data = yaml.safe_load(answered(lab))
    assert data.get("error", {}).get("code") == code
    assert data["state"] == ("failed" if code else "staged")
    assert (data["request"], data["request_id"]) == ("a.yaml", claim.request_id)
    assert data["attempts"] == 1
    assert {"host", "received", "finished"} <= data.keys()
    assert finish(other.spool) == 0
    assert lab.is_clean()


def test_two_that_finish_at_once_publish_one_answer(lab: Lab) -> None:
    dead, peers = lab.peer(dead=True), [lab.peer() for _ in range(4)]
    private, together = lab.root / "spool/private", threading.Barrier(4)
    for n in range(20):
        claim = take(lab, dead, f"n{n}")
        (private / str(claim)).write_bytes(whole(claim))
        (lab.root / "spool/active" / str(claim)).rename(lab.root / "spool/done" / str(claim))

    def finish_all(peer: Peer) -> None:
        together.wait(30)
        finish(peer.spool)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(finish_all, peers, timeout=60))
    for n in range(20):
        assert answered(lab, f"n{n}").startswith("state: staged\n")
    assert lab.is_clean()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
def test_private_rooms_are_private_and_the_others_public(public_dir: Path, umask: int) -> None:
    lab = Lab(public_dir)
    assert lab.stager("init", umask=umask).returncode == 0
    rooms = {
        "spool": 0o755, "spool/requests": 0o1777, "spool/control": 0o1777, "spool/active": 0o755,
        "spool/waiting": 0o755, "spool/done": 0o755, "spool/failed": 0o755,
        "spool/cancelled": 0o755, "spool/instances": 0o755, "spool/private": 0o700,
        "spool/tmp": 0o700, "results": 0o755, "static": 0o755, "static/images": 0o755,
        "static/.stager/locks": 0o755, "static/.stager/work": 0o755,
        "static/.stager/sidecars": 0o755,
    }  # fmt: skip
    found = {room: stat.S_IMODE(Path(lab.root, room).stat().st_mode) for room in rooms}
    assert found == rooms
