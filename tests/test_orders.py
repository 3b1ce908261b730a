"""Orders: cancel, retry, pause and resume, and which requests they mean."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import pytest
import yaml
from lab import BUCKET, BUILD, DEADLINE, FILES, NOBODY, Lab, until

from stager import client, durable, orders
from stager.config import load_config
from stager.layout import Claim, Waiting
from stager.orders import Order

ABSENT = f"gs://{BUCKET}/x86-alex-release/R99"


def answered(lab: Lab, name: str, *words: str) -> dict[str, str]:
    """Give an order that must go well; return what became of it."""
    done = lab.stager(name, *words, "--json")
    assert done.returncode == 0, done.stderr
    outcome: dict[str, str] = json.loads(done.stdout)
    return outcome


def result(lab: Lab, name: str, request_id: str) -> dict[str, Any]:
    """Wait for the answer of one request among several of a NAME."""
    path = lab.root / "results" / f"{name}.yaml"

    def look() -> dict[str, Any]:
        data: dict[str, Any] = yaml.load(path.read_bytes(), yaml.BaseLoader)
        return data if data["request_id"] == request_id else {}

    return until(look, f"the answer to {request_id}")


def waiting(lab: Lab) -> set[str]:
    """Return the dropped names that wait."""
    return {name.partition("~")[0].split(".", 3)[3] for name in lab.spool("waiting")}


def drop_absent(lab: Lab, *names: str) -> None:
    """Drop requests for an archive that is not there; wait until they wait."""
    for name in names:
        lab.drop(name, ABSENT)
    until(lambda: waiting(lab) >= {f"{name}.yaml" for name in names}, "them to wait")


# -- cancel ----------------------------------------------------------------------------------------


def test_cancel_ends_a_waiting_request_and_says_by_whom(lab: Lab) -> None:
    with lab.running():
        drop_absent(lab, "one", "other")
        assert answered(lab, "cancel", "one.yaml") == {"one.yaml": "cancelled"}
        answer = lab.result("one")
        assert waiting(lab) == {"other.yaml"}
    assert (answer["state"], answer["error"]["code"]) == ("cancelled", "cancelled")
    assert "stager retry" in answer["error"]["hint"]
    assert "uid 0" in answer["error"]["message"]
    (claim,) = lab.ended("one")
    assert str(claim) in lab.spool("cancelled")


def test_cancel_by_id_means_one_of_several_of_a_name(lab: Lab) -> None:
    with lab.running():
        drop_absent(lab, "one")
        lab.drop("one", ABSENT + "-too")
        until(lambda: len(lab.spool("waiting")) == 2)
        first, second = (entry.split("~")[1].split(".g")[0] for entry in lab.spool("waiting"))
        assert answered(lab, "cancel", first) == {first: "cancelled"}
        (left,) = lab.spool("waiting")
        assert second in left


def test_cancel_of_several_says_what_became_of_each(lab: Lab) -> None:
    lab.archive()
    with lab.running():
        lab.result(lab.drop("done"))
        drop_absent(lab, "one", "two")
        done = lab.stager("cancel", "one", "done", "two", "nobody")
        assert done.returncode == 5
        assert yaml.safe_load(done.stdout) == {
            "one": "cancelled", "two": "cancelled", "done": "already done", "nobody": "not found",
        }  # fmt: skip
        again = lab.stager("cancel", "one", "done")
        assert again.returncode == 1
        assert yaml.safe_load(again.stdout) == {"one": "cancelled", "done": "already done"}


@pytest.mark.parametrize(
    ("words", "cancelled"),
    [
        pytest.param([], {"one", "two", "new", "newer"}, id="all"),
        pytest.param(["--state", "waiting"], {"one", "two", "new", "newer"}, id="what waits"),
        pytest.param(["--state", "active"], set(), id="what is active"),
        pytest.param(["--code", "archive_not_found"], {"one", "two"}, id="a code"),
        pytest.param(["--code", "no_space"], set(), id="a code that none has"),
    ],
)
def test_cancel_all_can_be_told_which(lab: Lab, words: list[str], cancelled: set[str]) -> None:
    everything = {"one", "two", "new", "newer"}
    with lab.running():
        drop_absent(lab, "one", "two")
        answered(lab, "pause")
        for name in ("new", "newer"):
            lab.drop(name, ABSENT)
        outcome = answered(lab, "cancel", "--all", *words)
        assert outcome == dict.fromkeys(cancelled, "cancelled")
        for name in cancelled:
            assert lab.result(name)["state"] == "cancelled"
        left = waiting(lab) | set(lab.spool("requests"))
        assert left == {f"{name}.yaml" for name in everything - cancelled}


# -- retry -----------------------------------------------------------------------------------------


def test_retry_makes_a_new_request_of_the_stored_bytes(lab: Lab) -> None:
    text = yaml.safe_dump({"build": BUILD, "images": ["test"], "wait": 0, "note": "kept"})
    path = lab.requests / ".one.tmp"
    path.write_text(text)
    with lab.running():
        os.chown(path, NOBODY, -1)
        path.rename(lab.requests / "one.yaml")
        first = lab.result("one")
        assert first["error"]["code"] == "archive_not_found"
        lab.archive()
        (said,) = answered(lab, "retry", "one").values()
        fresh = said.rpartition(" ")[2]
        second = result(lab, "one", fresh)
    assert second["state"] == "staged"
    assert second["retry_of"] == first["request_id"] != second["request_id"]
    for key in ("request", "request_sha256", "submitter", "note"):
        assert second[key] == first[key]
    (claim,) = lab.ended("one")
    stored = lab.root / "spool/done" / str(claim)
    assert (stored.read_text(), stored.stat().st_uid) == (text, NOBODY)
    assert claim.a == 1, "its attempts are counted anew"


def test_of_several_of_a_name_the_last_is_retried(lab: Lab) -> None:
    lab.archive()
    with lab.running():
        for images in (["base"], ["recovery"]):
            (lab.root / "results/one.yaml").unlink(missing_ok=True)
            last = lab.result(lab.drop("one", images=images))
        (said,) = answered(lab, "retry", "one").values()
        fresh = result(lab, "one", said.rpartition(" ")[2])
    assert fresh["retry_of"] == last["request_id"]
    assert list(fresh["images"]) == ["recovery"]


def test_a_retry_can_be_retried(lab: Lab) -> None:
    with lab.running():
        ids = [lab.result(lab.drop("one", images=["factory"]))["request_id"]]
        for _ in range(2):
            (said,) = answered(lab, "retry", ids[-1]).values()
            ids.append(said.rpartition(" ")[2])
            assert result(lab, "one", ids[-1])["retry_of"] == ids[-2]
    assert len(set(ids)) == 3


@pytest.mark.parametrize(
    ("words", "retried"),
    [
        pytest.param([], {"missing", "wrong"}, id="all that failed"),
        pytest.param(["--code", "archive_not_found"], {"missing"}, id="a code"),
        pytest.param(["--state", "done"], {"good"}, id="the good ones"),
        pytest.param(["--state", "cancelled"], {"stopped"}, id="the cancelled ones"),
        pytest.param(["--state", "failed", "--code", "no_space"], set(), id="none"),
    ],
)
def test_retry_all_can_be_told_which(lab: Lab, words: list[str], retried: set[str]) -> None:
    lab.archive()
    with lab.running():
        drop_absent(lab, "stopped")
        lab.drop("good")
        lab.drop("missing", ABSENT, wait=0)
        lab.drop("wrong", images=["factory"])
        answered(lab, "cancel", "stopped")
        for name in ("good", "missing", "wrong", "stopped"):
            lab.result(name)
        outcome = answered(lab, "retry", "--all", *words)
        assert set(outcome) == retried
        rooms = ("active", "waiting", "done", "failed")
        known = [entry for room in rooms for entry in lab.spool(room)]
        for name, said in outcome.items():
            fresh = said.rpartition(" ")[2]
            assert any(entry.partition("~")[0].endswith(f"{name}.yaml") and fresh in entry
                       for entry in known), known  # fmt: skip


def test_who_retries_what_was_rejected_is_told_that_the_bytes_are_the_same(lab: Lab) -> None:
    with lab.running():
        lab.result(lab.drop("wrong", images=["factory"]))
        lab.result(lab.drop("missing", ABSENT, wait=0))
        done = lab.stager("retry", "wrong", "missing")
        assert done.returncode == 0
        (said,) = done.stderr.splitlines()
        assert said.startswith("wrong: rejected before, and again unless the configuration has")
        lab.write_config(images={"test": FILES["test"], "factory": "factory.bin"})
    with lab.running():
        fresh = yaml.safe_load(lab.stager("retry", "wrong").stdout)["wrong"].rpartition(" ")[2]
        until(lambda: any(fresh in name for name in lab.spool("waiting")), "it waits now")
        assert lab.stager("cancel", "wrong").returncode == 0


@pytest.mark.parametrize("got_to", ["the new request", "its id", "nothing"])
@pytest.mark.parametrize("by", ["name", "id"])
def test_a_retry_whose_taker_died_is_carried_out_once_and_answered(
    lab: Lab, by: str, got_to: str
) -> None:
    lab.drop("one", images=["factory"])
    assert lab.once().returncode == 1
    (old,) = lab.ended("one")
    meant = "one" if by == "name" else old.request_id
    dead, paths = lab.peer(dead=True), load_config(lab.config, {}).paths
    order = orders.send(paths, Order("retry", (meant,)))
    [[item], *_] = orders.received(paths, set())
    assert orders.take(paths, dead.inst, item)
    if got_to == "its id":
        assert dead.spool.take_again("failed", old)
    elif got_to == "the new request":
        fresh = Claim(old.file, f"abcdefgh--{old.request_id}", 0, 0, dead.inst, "abcdefgh")
        (paths.failed / str(old)).rename(paths.active / str(fresh))
    with lab.running():
        reply = until(lambda: orders.read_answer(paths, order, os.geteuid()), "an answer")
        assert reply is not None
        (said,) = reply.outcome.values()
        second = result(lab, "one", said.rpartition(" ")[2])
        until(lab.is_clean, "a clean spool")
    assert set(reply.outcome) == {meant}
    assert second["retry_of"] == old.request_id
    assert [claim.request_id for claim in lab.ended("one")] == [second["request_id"]]


def test_a_request_without_a_safe_name_is_retried_by_its_id(lab: Lab) -> None:
    with lab.running():
        lab.drop("x" * 151, ABSENT, wait=0)
        (claim,) = until(lambda: [c for c in map(Claim.parse, lab.spool("failed")) if c])
        first = lab.result(claim.request_id)
        (said,) = answered(lab, "retry", first["request_id"]).values()
        second = lab.result(said.rpartition(" ")[2])
    assert second["retry_of"] == first["request_id"]


# -- pause and resume ------------------------------------------------------------------------------


def test_nothing_is_claimed_between_pause_and_resume(lab: Lab) -> None:
    lab.archive()
    with lab.running():
        assert answered(lab, "pause") == {"all machines": "paused"}
        lab.drop("one")
        assert "paused" in lab.stager("status").stdout
        assert lab.stager("wait", "one", "--timeout", "1").returncode == 4
        assert lab.spool("requests") == ["one.yaml"]
        assert answered(lab, "resume") == {"all machines": "resumed"}
        assert lab.result("one")["state"] == "staged"
        assert "paused" not in lab.stager("status").stdout


def test_a_pause_outlives_the_daemon(lab: Lab) -> None:
    lab.archive()
    with lab.running():
        answered(lab, "pause")
    lab.drop("one")
    with lab.running():
        assert lab.stager("wait", "one", "--timeout", "1").returncode == 4
        answered(lab, "resume")
        lab.result("one")


def test_one_machine_can_be_paused(lab: Lab) -> None:
    lab.archive()
    with lab.running():
        assert answered(lab, "pause", "--host", "elsewhere") == {"elsewhere": "paused"}
        lab.result(lab.drop("one"))
        answered(lab, "pause", "--host", socket.gethostname())
        lab.drop("two")
        assert lab.stager("wait", "two", "--timeout", "1").returncode == 4
        assert set(json.loads(lab.stager("status", "--json").stdout)["paused"]) == {
            "elsewhere", socket.gethostname(),
        }  # fmt: skip
        answered(lab, "resume", "--host", socket.gethostname())
        lab.result("two")


def test_resume_of_what_is_not_paused_is_no_fault(lab: Lab) -> None:
    with lab.running():
        assert answered(lab, "resume") == {"all machines": "resumed"}


# -- an order without a daemon ---------------------------------------------------------------------


def test_an_order_stays_until_a_daemon_obeys_it(lab: Lab) -> None:
    lab.drop("one", ABSENT)
    control = lab.root / "spool/control"
    command = [sys.executable, "-m", "stager.cli", "cancel", "--config", str(lab.config), "one"]
    with subprocess.Popen(
        command, env=lab.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        until(lambda: list(control.glob("*.order")), "the order")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=DEADLINE)
    assert (process.returncode, stdout) == (130, b"")
    assert b"Traceback" not in stderr
    with lab.running():
        assert lab.result("one")["state"] == "cancelled"
        until(lambda: not list(control.glob("*.order")))


def test_an_order_is_a_whole_file_and_its_answer_is_found_by_listing(lab: Lab) -> None:
    paths = load_config(lab.config, {}).paths
    name = orders.send(paths, Order("cancel", ("nobody",)))
    assert [path.name for path in paths.control.iterdir()] == [f"{name}.order"]
    assert client.await_answer(paths, name, 0.1) is None
    with lab.running():
        answer = client.await_answer(paths, name, DEADLINE)
    assert answer is not None
    assert answer.outcome == {"nobody": "not found"}
    assert client.order_code(answer.outcome) == 5
    assert [path.name for path in paths.control.iterdir()] == [f"{name}.answer"]


def test_an_order_means_only_requests_that_were_there_before_it(lab: Lab) -> None:
    paths = load_config(lab.config, {}).paths
    lab.drop("one", ABSENT)
    orders.send(paths, Order("cancel", everything=True))
    text = yaml.safe_dump({"build": ABSENT, "images": ["test"]})
    lab.drop_text("one", text, ".yml")
    later = f"{time.time_ns() + 60 * 10**9}-abcdef"
    entry = Waiting(5, int(time.time()) + 3600, 0, "one.json", later, 1, 0, durable.nonce())
    (paths.waiting / str(entry)).write_text(text)
    with lab.running():
        assert lab.result("one")["state"] == "cancelled"
        until(lambda: waiting(lab) == {"one.yml", "one.json"}, "the later ones to wait on")
        until(lambda: not list(paths.control.glob("*.order")))
        assert waiting(lab) == {"one.yml", "one.json"}


def test_orders_that_were_left_are_obeyed_in_the_order_they_came(lab: Lab) -> None:
    config = load_config(lab.config, {})
    for verb in ("pause", "resume") * 4:
        orders.send(config.paths, Order(verb))
    with lab.running():
        until(lambda: len(list(config.paths.control.glob("*.answer"))) == 8, "obedience")
        assert "paused" not in lab.spool("")
