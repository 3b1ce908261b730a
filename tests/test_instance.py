"""Heartbeats, and who counts as dead: by the observer's own clock, over good samples only."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from lab import ROOT, Lab, Peer, until

from stager.identity import Identity
from stager.instance import GONE_SAMPLES, Buried

HEARTBEAT, LEASE = 0.05, 0.8


@pytest.fixture
def quick(lab: Lab) -> Lab:
    """Return a lab whose instances are judged within a second."""
    lab.write_config(heartbeat=f"{HEARTBEAT}s", lease=f"{LEASE}s")
    return lab


def seconds_until_dead(observer: Peer, inst: str, start: float) -> float:
    """Observe as a daemon does until `inst` counts as dead; return the seconds since `start`."""

    def dead() -> bool:
        observer.heart.observe()
        return observer.heart.dead(inst)

    until(dead, f"{inst} is called dead")
    return time.monotonic() - start


def wait_for(seconds: float) -> None:
    """Let time pass by the clock that the verdicts are made by."""
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() >= end)


@contextmanager
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as running:
        yield running
        running.kill()


def identity_of(pid: int) -> Identity:
    """Return the identity that a process would give of itself."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return replace(Identity.mine(), pid=pid, started=int(fields[19]))


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# -- who is dead, and after how long ------------------------------------------------------------


def ended_here(lab: Lab) -> Peer:
    return lab.peer(dead=True)


def hung_here(lab: Lab) -> Peer:
    return lab.peer()


def before_a_restart(lab: Lab) -> Peer:
    return lab.peer(boot="the boot before")


def elsewhere(lab: Lab) -> Peer:
    return lab.peer(machine="another machine")


def in_another_container(lab: Lab) -> Peer:
    peer = lab.peer(dead=True)
    identify(lab, peer, replace(peer.heart.identity, pid_namespace="pid:[1]"))
    return peer


def without_a_machine_id(lab: Lab) -> Peer:
    peer = lab.peer(boot="another boot")
    identify(lab, peer, replace(peer.heart.identity, machine=""))
    return peer


def unreadable(lab: Lab) -> Peer:
    peer = lab.peer()
    identify(lab, peer, None)
    return peer


def identify(lab: Lab, peer: Peer, identity: Identity | None) -> None:
    """Write into a heartbeat file what its instance says of itself."""
    text = json.dumps(asdict(identity)) if identity else "{torn"
    (lab.root / "spool/instances" / f"{peer.inst}.{peer.heart.count}").write_text(text)


@pytest.mark.parametrize(
    ("make", "least", "most"),
    [
        pytest.param(ended_here, 0, LEASE, id="its process is gone"),
        pytest.param(before_a_restart, 3 * HEARTBEAT, LEASE, id="its machine was started again"),
        pytest.param(hung_here, LEASE, None, id="its process is there and hangs"),
        pytest.param(elsewhere, LEASE, None, id="another machine"),
        pytest.param(in_another_container, LEASE, None, id="another pid namespace"),
        pytest.param(without_a_machine_id, LEASE, None, id="no machine id"),
        pytest.param(unreadable, LEASE, None, id="nobody knows who it is"),
    ],
)
def test_a_silent_instance_is_dead_after(
    quick: Lab, make: Callable[[Lab], Peer], least: float, most: float | None
) -> None:
    observer, other = quick.peer(), make(quick)
    seconds = seconds_until_dead(observer, other.inst, time.monotonic())
    assert least <= seconds < (most or 30)
    assert other.inst not in observer.heart.living()


def test_an_ended_process_of_this_machine_is_known_dead_at_the_first_look(quick: Lab) -> None:
    dead = quick.peer(dead=True)
    assert quick.peer().heart.dead(dead.inst)


def moved(observer: Peer, other: Peer) -> None:
    other.heart.beat()
    observer.heart.observe()


def bad_sample(observer: Peer, _: Peer) -> None:
    observer.heart.bad_sample()


def late_sample(observer: Peer, _: Peer) -> None:
    wait_for(4 * HEARTBEAT)
    observer.heart.observe()


@pytest.mark.parametrize("machine", ["", "another machine"])
@pytest.mark.parametrize(
    "event",
    [
        pytest.param(moved, id="its counter moved"),
        pytest.param(bad_sample, id="a look failed"),
        pytest.param(late_sample, id="a look came late"),
    ],
)
def test_the_lease_begins_anew_when(
    quick: Lab, machine: str, event: Callable[[Peer, Peer], None]
) -> None:
    observer, other = quick.peer(), quick.peer(machine=machine)
    half = time.monotonic() + LEASE / 2
    while time.monotonic() < half:
        observer.heart.observe()
    start = time.monotonic()
    event(observer, other)
    assert seconds_until_dead(observer, other.inst, start) >= LEASE


def test_a_late_look_alone_condemns_nobody(quick: Lab) -> None:
    observer, other = quick.peer(), quick.peer(machine="another machine")
    for _ in range(GONE_SAMPLES + 1):
        observer.heart.observe()
    wait_for(LEASE * 1.1)
    observer.heart.observe()
    assert not observer.heart.dead(other.inst)


def test_a_verdict_ends_when_the_looks_do(quick: Lab) -> None:
    observer, silent = quick.peer(), quick.peer(machine="other")
    seconds_until_dead(observer, silent.inst, 0)
    wait_for(LEASE / 2)
    assert not observer.heart.dead(silent.inst)
    assert silent.inst in observer.heart.living()


def test_a_counter_that_moves_under_our_machine_id_gets_the_whole_lease(quick: Lab) -> None:
    observer, clone = quick.peer(), quick.peer(boot="a cloned disk's boot")
    observer.heart.observe()
    start = time.monotonic()
    moved(observer, clone)
    assert seconds_until_dead(observer, clone.inst, start) >= LEASE


def test_machines_without_an_id_are_not_called_clones(quick: Lab) -> None:
    observer, other = quick.peer(), quick.peer(machine="x", boot="another")
    for peer in (observer, other):
        peer.heart.identity = replace(peer.heart.identity, machine="")
    (entry,) = (quick.root / "spool/instances").glob(f"{other.inst}.*")
    entry.write_text(json.dumps(asdict(other.heart.identity)))
    observer.heart.observe()
    moved(observer, other)
    assert observer.heart.cloned() == set()


def test_an_owner_that_is_not_listed_is_dead_after_three_looks(quick: Lab) -> None:
    observer = quick.peer()
    verdicts = []
    for _ in range(GONE_SAMPLES + 1):
        verdicts.append(observer.heart.dead("lab-9-abcdef"))
        observer.heart.observe()
    assert verdicts == [False] * GONE_SAMPLES + [True]


def test_nobody_calls_itself_dead(quick: Lab) -> None:
    me = quick.peer(dead=True)
    assert not me.heart.dead(me.inst)
    assert me.heart.living() == [me.inst]


# -- identity -----------------------------------------------------------------------------------


def test_a_process_that_runs_is_not_gone() -> None:
    with process() as running:
        assert not identity_of(running.pid).process_gone()


def test_a_zombie_counts_as_gone() -> None:
    with process() as running:
        identity = identity_of(running.pid)
        running.send_signal(signal.SIGKILL)
        until(lambda: state_of(running.pid) == "Z", "a zombie")
        assert identity.process_gone()


def test_another_process_under_the_same_number_counts_as_gone() -> None:
    mine = Identity.mine()
    assert mine.pid == os.getpid()
    assert not mine.process_gone()
    assert replace(mine, started=mine.started - 1).process_gone()


GONE = """
import sys
from stager.identity import Identity
print(Identity("", "", "", "", int(sys.argv[1]), int(sys.argv[2])).process_gone())
"""


def test_another_users_process_that_the_sandbox_hides_is_not_gone() -> None:
    """systemd's ProtectProc=invisible is this mount option."""
    mount = "mount -t proc -o hidepid=invisible proc /proc"
    user = "setpriv --reuid 65534 --regid 65534 --clear-groups"
    with process() as running:
        command = ["unshare", "-m", "sh", "-c", f'{mount} && exec {user} "$@"', "sh"]
        for pid, gone in ((running.pid, "False"), (2**22 - 1, "True")):
            done = subprocess.run(
                [*command, sys.executable, "-c", GONE, str(pid), "1234"],
                capture_output=True, text=True, check=False, cwd=ROOT, timeout=30,
            )  # fmt: skip
            assert done.stdout.strip() == gone, done.stderr


# -- one's own heartbeat ------------------------------------------------------------------------


def test_an_instance_has_one_file_whose_name_counts(quick: Lab) -> None:
    peer = quick.peer()
    for count in range(3):
        assert quick.spool("instances") == [f"{peer.inst}.{count}"]
        peer.heart.beat()
    peer.heart.leave()
    assert quick.spool("instances") == []
    assert quick.is_clean()


def test_it_says_which_process_of_which_machine_it_is(quick: Lab) -> None:
    peer = quick.peer()
    file = quick.root / "spool/instances" / f"{peer.inst}.0"
    assert Identity(**json.loads(file.read_text())) == Identity.mine()


def test_an_instance_whose_file_is_taken_knows_that_it_was_buried(quick: Lab) -> None:
    peer = quick.peer(dead=True)
    assert quick.peer().heart.bury(set()) == [peer.inst]
    with pytest.raises(Buried):
        peer.heart.beat()


def test_a_heartbeat_older_than_half_a_lease_is_renewed_before_a_visible_step(quick: Lab) -> None:
    peer = quick.peer()
    peer.heart.confirm()
    assert peer.heart.count == 0
    wait_for(LEASE / 2)
    peer.heart.confirm()
    assert peer.heart.count == 1


def test_only_the_dead_who_own_nothing_are_buried(quick: Lab) -> None:
    dead, owner, alive = quick.peer(dead=True), quick.peer(dead=True), quick.peer()
    observer = quick.peer()
    assert observer.heart.bury({owner.inst}) == [dead.inst]
    assert quick.instances() == sorted([owner.inst, alive.inst, observer.inst])


def test_who_was_buried_does_not_live_until_the_next_look(quick: Lab) -> None:
    dead, observer = quick.peer(dead=True), quick.peer()
    assert observer.heart.bury(set()) == [dead.inst]
    observer.heart.bad_sample()
    assert observer.heart.living() == [observer.inst]


def test_proven_is_who_moved_or_whose_process_is_here(quick: Lab) -> None:
    here, there, gone = quick.peer(), quick.peer(machine="b"), quick.peer(dead=True)
    observer = quick.peer()
    assert [observer.heart.proven(p.inst) for p in (here, there, gone)] == [True, False, False]
    moved(observer, there)
    assert observer.heart.proven(there.inst)


def test_server_time_is_the_filesystems(quick: Lab) -> None:
    peer, file = quick.peer(), quick.root / "spool/tmp/now"
    file.touch()
    assert peer.heart.server_now() == pytest.approx(file.stat().st_ctime, abs=1)


def test_beats_from_two_threads_leave_one_file(quick: Lab) -> None:
    peer = quick.peer()

    def beat_often() -> None:
        for _ in range(50):
            peer.heart.beat()

    threads = [threading.Thread(target=beat_often) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert quick.spool("instances") == [f"{peer.inst}.100"]
