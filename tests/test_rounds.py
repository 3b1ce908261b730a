"""What is looked after beside requests: one thing that can't be done keeps nothing else waiting."""

from lab import BUILD, Lab, until

from stager.layout import parse_build
from stager.rounds import KEYS_AT_ONCE

KEYS = [parse_build(f"{BUILD}-{number}", frozenset()).key for number in range(3)]


def test_one_token_that_can_not_be_freed_keeps_neither_others_nor_requests_waiting(
    lab: Lab,
) -> None:
    dead, locks = lab.peer(dead=True), lab.root / "static/.stager/locks"
    for key in KEYS:
        dead.locks.take(key)
    # No directory, so that it can't even be listed; as good as one on a bad block.
    odd = locks / "odd"
    odd.write_text("")
    lab.archive()
    with lab.running() as daemon:
        assert lab.result(lab.drop("one"))["state"] == "staged"
        until(lambda: all([*(locks / key).glob("*.free")] for key in KEYS), "all freed")
        daemon.await_log("the token of a dead instance can't be freed")
    assert daemon.log.count("can't be freed") == 1
    assert "the spool does not work" not in daemon.log


def test_who_runs_for_a_moment_only_frees_all_that_the_dead_held_and_signs_off(lab: Lab) -> None:
    dead = lab.peer(dead=True)
    many = [f"{key}-{number}" for key in KEYS for number in range(KEYS_AT_ONCE)]
    for key in many:
        dead.locks.take(key)
    assert lab.once().returncode == 0
    locks = lab.root / "static/.stager/locks"
    assert all([*(locks / key).glob("*.free")] for key in many)
    assert lab.spool("instances") == []
