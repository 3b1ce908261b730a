"""Orders that meet something else at just that moment: a death, a rename, a long turn, a lease."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
from hand import by_hand
from lab import NOBODY, Lab, until

from stager import durable, orders
from stager.orders import Answer, Order
from stager.server import Server

SOMEBODY, ELSE = NOBODY, NOBODY - 1
LATE_NS = 500_000_000


class Killed(BaseException):
    """A death in the middle of a call."""


def answer_to(server: Server, name: str) -> Answer | None:
    return orders.read_answer(server.paths, name, os.geteuid())


def send(server: Server, order: Order, uid: int = 0) -> str:
    name = orders.send(server.paths, order)
    os.chown(server.paths.control / f"{name}.order", uid, -1)
    return name


def let_a_lease_pass(server: Server) -> None:
    """Have all other instances looked at until they are dead: nobody else beats here."""

    def dead() -> bool:
        server.heart.observe()
        return server.heart.living() == [server.heart.inst]

    until(dead, "a lease")


@pytest.mark.parametrize("answers", [True, False], ids=["after its answer", "before its answer"])
def test_a_pause_that_its_taker_died_on_is_not_carried_out_after_a_resume(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(by_hand(lab)) for _ in range(2))
        first.heart.identity = second.heart.identity
        name = send(first, Order("pause"))
        with monkeypatch.context() as death:

            def die(*_: object) -> None:
                raise Killed

            death.setattr(durable, "discard", die) if answers else death.setattr(
                orders, "read_taken", die
            )
            with pytest.raises(Killed):
                first.clerk.obey()
        assert (answer_to(first, name) is not None) == answers
        send(second, Order("resume"))
        assert second.clerk.obey()
        let_a_lease_pass(second)
        second.clerk.look_for_leftovers()
        second.clerk.obey()
        assert not orders.paused(second.paths, set())
        assert not orders.taken(second.paths)


def test_cancel_means_what_was_dropped_before_it_however_late_it_is_taken(lab: Lab) -> None:
    with by_hand(lab) as server:
        lab.drop("old")
        name = send(server, Order("cancel", ("old", "new")))
        until(lambda: time.time_ns() > order_time(server, name) + 2 * LATE_NS, "a long turn")
        lab.drop("new")
        for dropped in ("old.yaml", "new.yaml"):
            claim = server.spool.take(dropped)
            assert claim
            server.spool.put_back(claim, 5, 0, 0, 0)
        assert server.clerk.obey()
        reply = answer_to(server, name)
    assert reply
    assert reply.outcome == {"old": "cancelled", "new": "not found"}


def order_time(server: Server, name: str) -> int:
    return os.lstat(server.paths.control / f"{name}.order").st_ctime_ns


def test_cancel_says_so_only_of_what_it_ended(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with by_hand(lab) as server, by_hand(lab) as other:
        lab.drop("one")
        claim = server.spool.take("one.yaml")
        assert claim
        server.spool.put_back(claim, 5, 0, 0, 0)
        name = send(server, Order("cancel", ("one",)))
        let_a_lease_pass(other)

        def taken_over() -> None:
            for orphan in other.spool.orphans(other.spool.active()):
                mine = other.spool.take_over(orphan)
                assert mine
                other.spool.put_back(mine, 5, 0, 0, 0)

        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(server.heart, "confirm", taken_over)
            server.clerk.obey()
        assert answer_to(server, name) is None
        assert server.clerk.obey()
        reply = answer_to(server, name)
    assert reply
    assert reply.outcome == {"one": "cancelled"}
    assert lab.result("one")["state"] == "cancelled"


def test_who_may_cancel_is_not_asked_of_a_name_that_has_moved_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    with by_hand(lab) as server:
        lab.drop("one")
        os.chown(lab.requests / "one.yaml", SOMEBODY, -1)
        claim = server.spool.take("one.yaml")
        assert claim
        name = send(server, Order("cancel", ("one",)), SOMEBODY)
        listed = server.spool.active

        def then_it_starts() -> object:
            found = listed()
            monkeypatch.undo()
            server.spool.drop(server.spool.start(claim))
            return found

        monkeypatch.setattr(server.spool, "active", then_it_starts)
        server.clerk.obey()
        server.dispatcher.adopt()
        assert until(server.clerk.obey)
        reply = answer_to(server, name)
    assert reply
    assert reply.outcome == {"one": "cancelled"}


def test_cancel_does_not_touch_what_another_user_drops_under_the_name_just_then(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    with by_hand(lab) as server:
        lab.drop("one")
        os.chown(lab.requests / "one.yaml", SOMEBODY, -1)
        name = send(server, Order("cancel", ("one",)), SOMEBODY)
        take = server.spool.take

        def swapped(dropped: str) -> object:
            lab.drop("one", wait="1h")
            os.chown(lab.requests / dropped, ELSE, -1)
            return take(dropped)

        monkeypatch.setattr(server.spool, "take", swapped)
        assert server.clerk.obey()
        reply = answer_to(server, name)
        assert reply
        assert reply.outcome == {"one": "not yours"}
        assert not lab.spool("cancelled")


HOLDER = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
held = []
for a, b in ((a, b) for a in "abcd" for b in "abcdefghijklmno"):
    path = os.path.join(sys.argv[1], f"aaaaaa{a}{b}.order")
    held.append(os.open(path, os.O_RDWR | os.O_CREAT, 0o644))
    fcntl.fcntl(held[-1], fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("held", flush=True)
sys.stdin.read()
"""


def test_files_that_somebody_holds_keep_no_order_waiting_and_are_no_fault(lab: Lab) -> None:
    holder = [sys.executable, "-c", HOLDER, str(lab.root / "spool/control")]
    with (
        by_hand(lab) as server,
        subprocess.Popen(
            holder, user=SOMEBODY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process,
    ):
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        name = send(server, Order("pause"))
        until(lambda: server.clerk.obey() or orders.paused(server.paths, set()), "the pause")
        assert answer_to(server, name)
        assert not server.clerk.trouble()
        process.send_signal(signal.SIGKILL)


def test_an_order_that_its_owner_spoils_once_it_is_taken_is_let_go(lab: Lab) -> None:
    with by_hand(lab) as server:
        name = send(server, Order("retry", ("one",)), SOMEBODY)
        (item,), _, _ = orders.received(server.paths, set())
        taken = orders.take(server.paths, server.heart.inst, item)
        assert taken
        os.truncate(taken, 0)
        server.clerk.look_for_leftovers()
        server.clerk.obey()
        assert not lab.spool("tmp")
        assert answer_to(server, name) is None


def test_what_an_order_made_of_is_remembered_only_while_it_is_there(lab: Lab) -> None:
    with by_hand(lab) as server:
        lab.drop("one")
        assert server.spool.take("one.yaml")
        name = send(server, Order("cancel", ("one",)))
        assert not server.clerk.obey()
        (server.paths.control / f"{name}.order").unlink()
        server.clerk.obey()
        assert json.dumps(server.clerk._cancelling._outcomes) == "{}"
