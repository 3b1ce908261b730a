"""`stager show` of a request without an answer: why it waits, how long, and what to do about it."""

import json
import os
import re
import socket
import time
from typing import Any

import pytest
import yaml
from lab import BUCKET, NOBODY, Lab, until

ABSENT = f"gs://{BUCKET}/x86-alex-release/R99"
NOT_THERE = "archive not there yet"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def show(lab: Lab, name: str, user: int | None = None) -> dict[str, Any]:
    """Return what `show NAME` prints."""
    done = lab.stager("show", name, "--json", user=user)
    assert done.returncode == 0, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)
    return data


def shown(lab: Lab, name: str, reason: str, user: int | None = None) -> dict[str, Any]:
    """Ask until it waits for this reason; return all that is said then."""

    def asked() -> dict[str, Any]:
        data = show(lab, name, user)
        return data if data.get("reason") == reason else {}

    return until(asked, f"{name} waits: {reason}")


def waiting(lab: Lab, count: int) -> None:
    until(lambda: len(lab.spool("waiting")) == count, f"{count} wait")


def test_what_waits_for_its_archive_says_until_when_and_what_to_check(lab: Lab) -> None:
    lab.drop("mine", ABSENT, ["test", "base"], priority="low", expires="2h", wait="1h", note="n 1")
    with lab.running():
        data = shown(lab, "mine", NOT_THERE)
    assert data["hint"].startswith("check the build's URL")
    assert (data["position"], data["waiting_in_all"]) == (1, 1)
    assert (data["submitter"], data["priority"], data["note"]) == (os.geteuid(), 8, "n 1")
    assert (data["build"], data["images"]) == (ABSENT, ["test", "base"])
    times = [data[key] for key in ("received", "given_up_at", "expires")]
    assert sorted(set(times)) == times
    assert all(TIME.fullmatch(time) for time in times)


def test_what_waits_its_turn_says_how_many_come_first(lab: Lab) -> None:
    with lab.running():
        for number in range(3):
            lab.drop(f"a-{number}", f"{ABSENT}-{number}", wait="1h")
            waiting(lab, number + 1)
        tmp = lab.requests / ".b.tmp"
        tmp.write_text(yaml.safe_dump({"build": ABSENT, "images": "test", "wait": "1h"}))
        os.chown(tmp, NOBODY, -1)
        tmp.rename(lab.requests / "b.yaml")
        waiting(lab, 4)
        lab.drop("urgent", f"{ABSENT}-4", priority="high", wait="1h")
        waiting(lab, 5)
        lab.stager("pause")  # else one of them may just be looked at again
        waiting(lab, 5)
        places = {name: show(lab, name)["position"] for name in ("urgent", "a-0", "a-1", "a-2")}
    # Submitters take turns: nobody's one request comes before the second of another.
    assert places == {"urgent": 1, "a-0": 2, "a-1": 4, "a-2": 5}
    assert show(lab, "b")["position"] == 2
    assert show(lab, "b")["waiting_in_all"] == 5


def test_without_a_daemon_it_is_said_how_to_start_one(lab: Lab) -> None:
    lab.drop("mine")
    data = show(lab, "mine")
    assert (data["reason"], data["submitter"]) == ("no watcherd runs", os.geteuid())
    assert "systemctl start watcherd" in data["hint"]
    assert lab.stager("status", "mine").stdout == "waiting: no watcherd runs\n"


@pytest.mark.parametrize("host", [[], ["--host", socket.gethostname()]], ids=["all", "the only"])
def test_what_is_paused_says_so(lab: Lab, host: list[str]) -> None:
    lab.archive()
    with lab.running():
        assert lab.stager("pause", *host).returncode == 0
        lab.drop("mine")
        data = shown(lab, "mine", "paused")
        assert " ".join(["stager resume", *host[:1]]) in data["hint"]
        assert lab.stager("resume", *host).returncode == 0
        assert lab.result("mine")["state"] == "staged"


def test_a_fault_of_the_machine_says_what_its_admin_can_do(lab: Lab) -> None:
    lab.archive()
    lab.write_config(min_free="99%")
    with lab.running():
        lab.drop("mine")
        data = shown(lab, "mine", "no space")
        assert "min_free" in data["hint"]
        assert f"what to do: {data['hint']}" in lab.stager("status").stdout


def test_what_a_file_says_is_for_those_who_may_read_it(lab: Lab) -> None:
    tmp = lab.requests / ".mine.tmp"
    tmp.write_text(f"build: {ABSENT}\nimages: test\nnote: mine alone\n")
    tmp.chmod(0o600)
    tmp.rename(lab.requests / "mine.yaml")
    with lab.running():
        assert shown(lab, "mine", NOT_THERE)["note"] == "mine alone"
        theirs = shown(lab, "mine", NOT_THERE, user=NOBODY)
    assert "note" not in theirs
    assert theirs["submitter"] == os.geteuid()


def test_what_no_daemon_has_accepted_is_not_opened(lab: Lab) -> None:
    os.mkfifo(lab.requests / "pipe.yaml")
    assert show(lab, "pipe")["state"] == "waiting"


def test_who_waits_for_an_archive_is_told_so_all_the_time_and_the_log_once(lab: Lab) -> None:
    lab.archive()
    with lab.running() as daemon:
        lab.ask()
        name = lab.drop("absent", ABSENT)
        shown(lab, name, NOT_THERE)
        end, told = time.monotonic() + 5, list[dict[str, Any]]()
        while time.monotonic() < end:
            told.append(show(lab, name))
        assert {t["reason"] for t in told if t["state"] == "waiting"} == {NOT_THERE}
        assert daemon.log.count("waits for its archive") == 1
        assert daemon.log.count("will be staged") == 1
