"""What each room does where a call fails: the small rules behind promise 8."""

import errno
import os
import time
from pathlib import Path
from typing import NoReturn

import pytest
from hand import acting_as, by_hand
from lab import NOBODY, Lab, until
from lab.faults import Sickness
from test_spool import answer_to
from yard import STRANGER

from stager import durable, orders
from stager.backlog import Backlog
from stager.dropbox import DropBox
from stager.errors import StorageError
from stager.finish import finish
from stager.layout import Claim
from stager.sweep import Sweeper


def test_a_stale_handle_is_no_proof_that_somebody_was_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(*_: object) -> NoReturn:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "rename", stale)
    source = tmp_path / "source"
    source.touch()
    with pytest.raises(OSError, match="Stale"):
        durable.move(source, tmp_path / "target")
    source.unlink()
    assert durable.move(source, tmp_path / "target") is False


def test_an_error_tells_the_path_where_the_call_had_only_a_descriptor(tmp_path: Path) -> None:
    with pytest.raises(OSError) as told:
        durable.write_new(Path("/dev/full"), b"x")
    assert told.value.errno == errno.EEXIST
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone").rmdir()
    with pytest.raises(StorageError, match="gone"), durable.storage():
        durable.listing(tmp_path / "gone")


def test_a_claim_that_a_fault_kept_from_being_put_back_counts_no_start(lab: Lab) -> None:
    spool = lab.peer().spool
    lab.drop("one")
    claim = spool.take("one.yaml")
    assert claim is not None
    started = spool.start(claim)
    assert started.a == 1
    spool.uncount(started, claim.a)
    spool.drop(started)
    adopted = spool.take_over(started)
    assert adopted is not None
    assert adopted.a == 0


def test_a_probe_that_was_answered_keeps_nobody_waiting_for_the_next() -> None:
    backlog = Backlog(lambda: 0.0)
    backlog.met_fault("build", StorageError("away"), is_probe=False)
    assert not backlog.may_start()
    backlog.put_off_probe()
    assert not backlog.may_start()
    backlog.put_off_probe(at_once=True)
    assert backlog.may_start()


def test_of_the_drop_box_one_bad_entry_is_left_alone_and_several_are_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lstat, bad = os.lstat, {"a.yaml"}

    def sick(path: Path) -> os.stat_result:
        if os.path.basename(path) in bad:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return lstat(path)

    box = DropBox(tmp_path, 0.0)
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("x\n")
    monkeypatch.setattr(os, "lstat", sick)
    assert box.settled(9) == ["b.yaml"]
    assert box.unclaimable() == {"a.yaml": "Input/output error"}
    box = DropBox(tmp_path, 0.0)
    bad.add("b.yaml")
    with pytest.raises(OSError, match="Input/output error"):
        box.settled(9)
    bad.clear()
    assert sorted(box.settled(9)) == ["a.yaml", "b.yaml"]


@pytest.mark.parametrize("way", ["cancel", "expires"])
def test_who_gives_up_need_not_wait_for_a_read_only_static_tree(lab: Lab, way: str) -> None:
    sickness = Sickness(lab)
    lab.archive()
    with lab.running():
        lab.ask()
        sickness.on("utime", "sidecars", "EROFS")
        name = lab.drop(
            "one", images=["test", "recovery"], expires="2s" if way == "expires" else "1h"
        )
        until(lambda: lab.spool("waiting"), "it to wait")
        if way == "cancel":
            assert lab.stager("cancel", name).returncode == 0
        answer = lab.result(name)
        sickness.off()
    assert answer["error"]["code"] == {"cancel": "cancelled", "expires": "expired"}[way]


def test_what_we_could_not_remove_ourselves_is_swept(lab: Lab) -> None:
    peer = lab.peer()
    left = peer.spool.paths.tmp / f"{peer.inst}.{durable.nonce()}"
    left.touch()
    sweeper = Sweeper(peer.spool.paths, peer.heart)
    began = time.monotonic()

    def swept() -> bool:
        peer.heart.observe()
        return left in sweeper.sweep()

    until(swept, "swept")
    assert time.monotonic() - began > peer.heart.lease
    assert not left.exists()


def test_a_token_that_could_not_be_given_back_is_freed_later(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks, rename = lab.peer().locks, os.rename

    def sick(*_: object) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    work = locks.take("key")
    monkeypatch.setattr(os, "rename", sick)
    work.release()
    monkeypatch.setattr(os, "rename", rename)
    assert max(locks.tokens("key")).inst
    locks.free_left()
    assert not max(locks.tokens("key")).inst
    assert os.listdir(locks.paths.work) == []


# -- what others left -----------------------------------------------------------------------------


def test_only_what_became_of_our_own_claims_counts_when_they_are_taken_over(lab: Lab) -> None:
    mine, other = lab.peer(), lab.peer(dead=True)
    lab.drop("one")
    claim = mine.spool.take("one.yaml")
    assert claim is not None
    mine.spool.uncount(claim, 0)
    mine.spool.drop(claim)
    taken = other.spool.take_over(claim)
    assert taken is not None
    adopted = mine.spool.take_over(other.spool.start(other.spool.start(taken)))
    assert adopted is not None
    assert adopted.a == 2, "else a request that kills every machine is never given up"


def test_what_is_published_for_another_is_on_disk_before(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, fsync, rename = lab.peer().spool, os.fsync, os.rename
    lab.drop("one")
    claim = spool.take("one.yaml")
    assert claim is not None
    spool.outbox.write([(claim, answer_to(claim))])
    rename(spool.paths.active / str(claim), spool.paths.done / str(claim))
    calls = []

    def noted_fsync(fd: int) -> None:
        calls.append(("fsync", Path(f"/proc/self/fd/{fd}").resolve().name))
        fsync(fd)

    def noted_rename(source: Path, target: Path) -> None:
        calls.append(("rename", target.parent.name))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    assert finish(spool) == 1
    published = calls.index(("rename", "results"))
    assert {("fsync", "done"), ("fsync", "active")} <= set(calls[:published])


def test_a_folder_that_can_not_be_moved_on_keeps_nobody_waiting(public_dir: Path) -> None:
    lab = Lab(public_dir, user=NOBODY).init()
    lab.archive()
    dead = lab.peer(dead=True)
    for name in ("folder", "good"):
        lab.drop(name)
        assert dead.spool.take(f"{name}.yaml")
    folder, good = map(Claim.parse, lab.spool("active"))
    assert folder
    assert good
    # As it is after its owner has had second thoughts: chmod.
    path = lab.root / "spool/active" / str(folder)
    path.unlink()
    path.mkdir(0o555)
    os.chown(path, STRANGER, -1)
    with acting_as(NOBODY), by_hand(lab) as server:
        assert [case.claim.id for case in server.dispatcher.intake.orphans()] == [good.id]
        server.dispatcher.adopt()
    assert any("folder.yaml" in name for name in lab.spool("active"))


def test_orders_wait_for_the_right_to_look_at_them_and_are_obeyed_then(public_dir: Path) -> None:
    lab = Lab(public_dir, user=NOBODY).init()
    control = lab.root / "spool/control"
    with acting_as(NOBODY), by_hand(lab) as server:
        name = orders.send(server.paths, orders.Order("cancel", ("nobody",)))
        control.chmod(0o600)
        assert not server.clerk.obey()
        assert "Permission denied" in server.clerk.trouble()
        control.chmod(0o1777)
        assert server.clerk.obey()
        answer = orders.read_answer(server.paths, name, NOBODY)
    assert answer
    assert answer.outcome == {"nobody": "not found"}
    assert server.clerk.trouble() == ""
