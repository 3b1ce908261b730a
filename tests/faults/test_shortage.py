"""A machine that is short of threads, of memory, or of room for one build: nothing is lost."""

import os
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
from hand import by_hand
from lab import BUILD, Lab, until

from stager import fetch, job
from stager.backlog import FIRST_PROBE_SECONDS
from stager.errors import StorageError
from stager.layout import parse_build
from stager.server import Server

FIRST, SECOND = BUILD, f"{BUILD}-2"
FIRST_KEY, SECOND_KEY = (parse_build(build, frozenset()).key for build in (FIRST, SECOND))


@pytest.fixture
def server(lab: Lab) -> Iterator[Server]:
    """Return an instance whose turns are the test's."""
    with by_hand(lab) as made:
        yield made


def no_thread(_: threading.Thread) -> NoReturn:
    """Say what Python says where the kernel has no thread left (EAGAIN)."""
    raise RuntimeError("can't start new thread")


def no_memory(*_: object) -> NoReturn:
    raise MemoryError


def put_to_wait(server: Server, lab: Lab, name: str, build: str) -> None:
    claim = server.spool.take(f"{lab.drop(name, build)}.yaml")
    assert claim is not None
    assert server.spool.put_back(claim, 5, 0, 0, 0)


def turns(server: Server, done: Callable[[], bool]) -> None:
    """Take as many turns as it takes."""

    def turn() -> bool:
        server.dispatcher.turn()
        return done()

    until(turn)


def answered(server: Server, lab: Lab, name: str) -> dict[str, str]:
    """Return the answer to NAME, with as many turns as it takes."""
    turns(server, (lab.root / f"results/{name}.yaml").exists)
    return lab.result(name)


def test_the_probe_is_of_another_build_than_those_that_met_the_fault(
    lab: Lab, server: Server
) -> None:
    now, backlog = [0.0], server.dispatcher.backlog
    backlog._clock = lambda: now[0]
    for name, build in (("one", FIRST), ("two", SECOND)):
        lab.archive(build)
        put_to_wait(server, lab, name, build)
    backlog.met_fault(FIRST_KEY, StorageError("too large for it"), is_probe=False)
    server.dispatcher.turn()
    assert not server.dispatcher.cases()
    now[0] += FIRST_PROBE_SECONDS
    server.dispatcher.turn()
    probed = [c.request.build.key for c in server.dispatcher.cases() if c.request]
    assert probed == [SECOND_KEY], "else a build that can't be staged keeps all others waiting"
    assert answered(server, lab, "two")["state"] == "staged"
    turns(server, lambda: backlog.hold is None)


def test_without_a_thread_for_a_worker_the_queue_waits_and_nothing_is_lost(
    lab: Lab, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, backlog = [0.0], server.dispatcher.backlog
    backlog._clock = lambda: now[0]
    lab.archive()
    put_to_wait(server, lab, "one", BUILD)
    backlog.met_fault(SECOND_KEY, StorageError("away"), is_probe=False)
    server.dispatcher.turn()
    now[0] += FIRST_PROBE_SECONDS
    with monkeypatch.context() as sick:
        sick.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(StorageError, match="no thread for a worker"):
            server.dispatcher.turn()
    assert len(lab.spool("active")) == 1
    now[0] += FIRST_PROBE_SECONDS
    assert backlog.may_start(), "else nothing would ever be started again"
    server.dispatcher.adopt()
    answer = answered(server, lab, "one")
    assert (answer["state"], answer["attempts"]) == ("staged", "1")
    turns(server, lambda: not server.dispatcher.running)
    assert len(lab.ended("one")) == 1
    assert lab.is_clean()


@pytest.mark.parametrize(
    ("owner", "call", "fails"),
    [
        pytest.param(threading.Thread, "start", no_thread, id="no thread"),
        pytest.param(os, "pread", no_memory, id="no memory"),
    ],
)
def test_a_job_without_thread_or_memory_waits_and_counts_no_start(
    lab: Lab,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    call: str,
    fails: Callable[..., NoReturn],
) -> None:
    monkeypatch.setattr(fetch, "SIDE_BY_SIDE", 2)
    lab.archive()
    claim = server.spool.take(f"{lab.drop('one', images=['test', 'base'])}.yaml")
    assert claim is not None
    case = server.dispatcher.intake.admit(claim)
    assert case is not None
    with monkeypatch.context() as sick:
        sick.setattr(owner, call, fails)
        job.run(server.dispatcher.tools, case)
    assert isinstance(case.error, StorageError)
    assert len(lab.spool("waiting")) == 1
    answer = answered(server, lab, "one")
    assert (answer["state"], answer["attempts"]) == ("staged", "1")
