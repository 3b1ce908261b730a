"""`status`: the words for every state, and when somebody should look after the spool."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from archives import make_image
from cloud import Cloud
from lab import BUCKET, BUILD, DEADLINE, FILES, Lab, until

from stager import durable, orders
from stager.config import load_config
from stager.identity import host_slug
from stager.layout import Waiting, parse_build
from stager.orders import Order

ABSENT = f"gs://{BUCKET}/x86-alex-release/R99"
HOST = socket.gethostname()


def say(lab: Lab, name: str) -> str:
    """Return what `status NAME` prints."""
    done = lab.stager("status", name)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def await_words(lab: Lab, name: str, words: str) -> str:
    """Ask until `status NAME` says something; return all it says."""
    last = ""

    def asked() -> bool:
        nonlocal last
        last = say(lab, name)
        return re.search(words, last) is not None

    try:
        until(asked)
    except AssertionError:
        raise AssertionError(f"{words!r} was not said, but {last!r}") from None
    return last


def put_in_waiting(lab: Lab, name: str, age: float, due_in: float) -> None:
    """Make a request that arrived `age` seconds ago and is due in `due_in` seconds."""
    now = time.time()
    arrived = f"{int((now - age) * 1e9)}-abcdef"
    entry = Waiting(5, int(now + due_in), 0, f"{name}.yaml", arrived, 1, 0, durable.nonce())
    path = lab.root / "spool/tmp" / durable.nonce()
    path.write_text(yaml.safe_dump({"build": BUILD, "images": ["test"]}))
    path.rename(lab.root / "spool/waiting" / str(entry))


def check(lab: Lab) -> tuple[int, str]:
    done = lab.stager("status", "--check")
    return done.returncode, done.stderr


# -- words -----------------------------------------------------------------------------------------


def test_what_is_not_claimed_yet_waits(lab: Lab) -> None:
    lab.drop("mine")
    assert say(lab, "mine").startswith("waiting: ")
    assert say(lab, "mine.yaml") == say(lab, "mine")


def test_a_request_waits_because_its_archive_is_not_there_yet(lab: Lab) -> None:
    lab.drop("mine", ABSENT)
    with lab.running():
        assert await_words(lab, "mine", "archive not there yet").startswith("waiting: ")


def test_a_request_waits_because_its_build_is_busy_and_says_where(public_dir: Path) -> None:
    lab = Lab(public_dir, {"lease": "60s"}).init()
    lab.archive()
    build = parse_build(BUILD, frozenset())
    peer = lab.peer()
    with peer.locks.take(build.key), lab.running():
        lab.drop("mine")
        assert await_words(lab, "mine", "busy") == f"waiting: build busy on {host_slug(HOST)}"
    peer.heart.leave()


def test_a_request_waits_for_room(lab: Lab) -> None:
    lab.archive()
    lab.write_config(min_free="99%")
    with lab.running():
        lab.drop("mine")
        assert await_words(lab, "mine", "no space").startswith("waiting: ")


def test_a_deferred_request_says_when_it_is_tried_again(lab: Lab) -> None:
    put_in_waiting(lab, "mine", 5, 3600)
    assert re.fullmatch(r"waiting: retry at \d\d:\d\d:\d\d", say(lab, "mine"))


def test_an_active_request_says_phase_bytes_rate_and_time_left(
    cloud_lab: tuple[Lab, Cloud],
) -> None:
    lab, cloud = cloud_lab
    lab.upload(cloud, images={FILES["test"]: make_image(1, 16_000_000)})
    cloud.slow(lab.archive_path().stat().st_size // 40)
    with lab.running():
        lab.drop("mine")
        said = await_words(lab, "mine", "[1-9] of ")
        words = r"active: fetching, test, on \S+, \d+ of \d+ MiB, \d+\.\d MB/s, \d+ s left"
        assert re.fullmatch(words, said), said
        view = json.loads(lab.stager("status", "mine", "--json").stdout)
        assert 0 < view["bytes"] < view["total_bytes"]
        left = (view["total_bytes"] - view["bytes"]) / view["bytes_per_second"]
        assert view["seconds_left"] == pytest.approx(left, abs=1)
        assert left > 1.5, "else the test is too slow to tell"
        listed = lab.stager("status").stdout
        assert "1 active, 0 waiting" in listed
        assert re.search(r"active +mine\.yaml +fetching", listed)
        cloud.clear_faults()
        lab.result("mine")


def test_an_answered_request_has_its_results_state(lab: Lab) -> None:
    lab.archive()
    lab.drop("first")
    lab.once()
    lab.drop("again")
    lab.drop("missing", ABSENT, wait=0)
    lab.drop("wrong", images=[])
    lab.once()
    said = {name: say(lab, name) for name in ("first", "again", "missing", "wrong")}
    assert said == {
        "first": "staged", "again": "already_staged", "missing": "failed", "wrong": "rejected",
    }  # fmt: skip


def test_the_spool_at_a_glance(lab: Lab) -> None:
    lab.archive()
    (lab.requests / "README").touch()
    (lab.requests / ".half.tmp").touch()
    with lab.running():
        lab.result(lab.drop("good"))
        lab.drop("missing", ABSENT)
        until(lambda: lab.spool("waiting"))
        data = json.loads(lab.stager("status", "--json").stdout)
        text = lab.stager("status").stdout
        listed = lab.stager("list").stdout
    assert [entry["request"] for entry in data["waiting"]] == ["missing.yaml"]
    assert [entry["request"] for entry in data["answered"]] == ["good.yaml"]
    assert [(i["host"], i["alive"]) for i in data["instances"]] == [(HOST, True)]
    assert (data["other_files"], data["others"]) == (2, ["README"])
    assert "2 other files in the drop box (README): only *.yaml" in text
    assert f"machines: {HOST}\n" in text
    assert "0 active, 1 waiting, 1 answered" in text
    assert "missing.yaml" in listed
    assert "good.yaml" in listed


def test_watching_goes_on_until_it_is_interrupted(lab: Lab) -> None:
    command = [sys.executable, "-m", "stager.cli", "status", "--watch", "--config", str(lab.config)]
    with subprocess.Popen(
        command, env=lab.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        heads = [line for _ in range(4) if (line := process.stdout.readline()).startswith("mach")]
        assert len(heads) == 2, "it is shown anew"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_after_a_clean_stop_it_is_known_at_once_that_nobody_runs(lab: Lab) -> None:
    with lab.running():
        pass
    lab.drop("mine")
    text = lab.stager("status").stdout
    assert text.startswith("machines: no watcherd runs (start it: systemctl start watcherd)\n")
    assert re.search(r"waiting +mine\.yaml  no watcherd runs\n", text)
    assert json.loads(lab.stager("status", "--json").stdout)["troubles"] == ["no watcherd runs"]


def test_after_a_kill_it_is_said_what_was_left_behind(cloud_lab: tuple[Lab, Cloud]) -> None:
    lab, cloud = cloud_lab
    lab.upload(cloud, images={FILES["test"]: make_image(1, 16_000_000)})
    cloud.slow(lab.archive_path().stat().st_size // 40)
    daemon = lab.start()
    lab.drop("mine")
    await_words(lab, "mine", "[1-9] of ")
    daemon.kill()
    lab.drop("next")
    text = lab.stager("status").stdout
    words = f"machines: {HOST} ended without signing off, last heartbeat "
    assert re.match(rf"{words}\d s ago; no watcherd runs \(start", text), text
    assert re.search(rf"active +mine\.yaml  left behind, on {HOST}  {BUILD} test\n", text), text
    assert re.search(r"waiting +next\.yaml  no watcherd runs\n", text), text
    assert say(lab, "mine") == f"active: left behind, on {HOST}"
    shown = json.loads(lab.stager("show", "mine", "--json").stdout)
    assert (shown["state"], shown["reason"]) == ("active", "its daemon ended or hangs")
    assert not shown.keys() & {"phase", "bytes", "bytes_per_second", "seconds_left"}
    (instance,) = json.loads(lab.stager("status", "--json").stdout)["instances"]
    assert (instance["alive"], instance["state"]) == (False, "ended")


def test_who_is_silent_elsewhere_for_a_lease_does_not_seem_to_run(public_dir: Path) -> None:
    lab = Lab(public_dir, {"lease": "6s"}).init()
    inst = lab.peer(machine="another").inst
    lab.drop("mine")
    text = lab.stager("status").stdout
    assert re.match(rf"machines: {inst} heartbeat \d s ago\n", text), text
    await_words(lab, "mine", "no watcherd seems to run")
    text = lab.stager("status").stdout
    words = (
        rf"machines: {inst} silent, last heartbeat \d s ago; no watcherd seems to run \(start it"
    )
    assert re.match(words, text), text


def test_orders_that_nobody_has_obeyed_are_counted(lab: Lab) -> None:
    paths = load_config(lab.config, {}).paths
    assert "orders" not in lab.stager("status").stdout
    for _ in range(2):
        orders.send(paths, Order("pause"))
    assert "orders that no watcherd has obeyed yet: 2\n" in lab.stager("status").stdout
    with lab.running():
        until(lambda: json.loads(lab.stager("status", "--json").stdout)["orders"] == 0)


def test_pinned_builds_are_listed_until_they_are_unpinned(lab: Lab) -> None:
    other = f"gs://{BUCKET}/a/other"
    with lab.running():
        assert lab.stager("pin", BUILD, other).returncode == 0
        for command in ("status", "list"):
            lines = lab.stager(command).stdout.splitlines()
            assert {f"pinned: {BUILD}", f"pinned: {other}"} <= set(lines)
            data = json.loads(lab.stager(command, "--json").stdout)
            assert (set(data["pinned"]), data["pinned_builds"]) == ({BUILD, other}, 2)
        assert lab.stager("unpin", BUILD).stderr == ""
        assert lab.stager("unpin", BUILD).stderr == f"{BUILD} was not pinned\n"
        assert "pinned: " + other in lab.stager("list").stdout
        assert BUILD not in lab.stager("list").stdout


def test_a_list_says_state_code_and_build_of_all(lab: Lab) -> None:
    lab.archive()
    with lab.running():
        for name, build in (("good", BUILD), ("missing", ABSENT)):
            lab.result(lab.drop(name, build, ["test"], wait=0))
        lab.result(lab.drop("wrong", images=["factory"]))
        lab.drop("later", f"{ABSENT}-later", ["test", "base"])
        until(lambda: f"{ABSENT}-later test,base\n" in lab.stager("list").stdout, "its build")
        lines = [re.split(r"  +", line.strip()) for line in lab.stager("list").stdout.splitlines()]
        listed = json.loads(lab.stager("list", "--json").stdout)
    assert ["staged", "good.yaml", f"{BUILD} test"] in lines
    assert ["failed", "missing.yaml", "archive_not_found", f"{ABSENT} test"] in lines
    assert ["rejected", "wrong.yaml", "invalid_request"] in lines
    assert [line[0] for line in lines if line[1] == "later.yaml"] in (["waiting"], ["active"])
    assert [(a["state"], a["code"], a["build"]) for a in listed["answered"]] == [
        ("staged", "", BUILD),
        ("failed", "archive_not_found", ABSENT),
        ("rejected", "invalid_request", ""),
    ]


# -- check -----------------------------------------------------------------------------------------


def test_a_healthy_spool_needs_nobody(lab: Lab) -> None:
    with lab.running():
        lab.drop("mine", ABSENT)
        assert check(lab) == (0, "")
        data = json.loads(lab.stager("status", "--check", "--json").stdout)
        assert data["troubles"] == []


def test_a_daemon_of_another_machine_is_seen_by_its_heartbeat(lab: Lab) -> None:
    lab.env["WATCHERD_BOOT_ID"] = "another-machine"
    with lab.running():
        lab.env.clear()
        assert check(lab) == (0, "")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("never", r"no watcherd runs\n"),
        ("stopped", r"no watcherd runs\n"),
        (
            "killed",
            r"no watcherd runs \(\S+ ended without signing off, last heartbeat \d s ago\)\n",
        ),
        ("silent elsewhere", r"no watcherd seems to run \(\S+ silent, last heartbeat \d s ago\)\n"),
    ],
)
def test_a_spool_without_a_live_instance_needs_somebody(lab: Lab, how: str, words: str) -> None:
    if how == "silent elsewhere":
        lab.peer(machine="another")
    elif how != "never":
        daemon = lab.start()
        daemon.kill() if how == "killed" else daemon.stop()
    code, said = check(lab)
    assert code == 1
    assert re.fullmatch(words, said), said


def test_a_standing_fault_needs_somebody_and_its_end_nobody(lab: Lab) -> None:
    lab.archive()
    lab.write_config(min_free="99%")
    with lab.running() as daemon:
        lab.drop("mine")
        daemon.await_log("the queue waits")
        until(lambda: check(lab)[0] == 1)
        assert f"{HOST}: " in check(lab)[1]
        assert "fault on" in lab.stager("status").stdout
        lab.write_config(min_free="0")
        daemon.process.send_signal(signal.SIGHUP)
        lab.result("mine")
        until(lambda: check(lab) == (0, ""))


def test_a_fault_of_another_machine_counts_as_much(lab: Lab) -> None:
    fault = {"code": "no_space", "message": "no room there", "hint": "make some"}
    with lab.running():
        until(lambda: check(lab) == (0, ""))
        other = lab.peer(machine="another")
        told = {"host": "another", "fault": fault}
        (lab.root / f"spool/instances/{other.inst}.status").write_text(json.dumps(told))
        assert check(lab) == (1, "another: no room there\n")


def test_a_spool_that_does_not_work_is_a_standing_fault(lab: Lab) -> None:
    with lab.running() as daemon:
        mark = lab.root / "results/.layout"
        mark.rename(lab.root / "away")
        daemon.await_log("the spool does not work")
        time_out = time.monotonic() + 5
        found: Any = (0, "")
        while found[0] == 0 and time.monotonic() < time_out:
            found = check(lab)
        (lab.root / "away").rename(mark)
        assert found[0] == 1, found
        assert ".layout" in found[1]


def test_a_request_that_has_waited_too_long_needs_somebody(lab: Lab) -> None:
    put_in_waiting(lab, "young", 60, 3600)
    with lab.running():
        assert check(lab) == (0, "")
        put_in_waiting(lab, "old", 2 * 3600, 3600)
        code, said = check(lab)
    assert code == 1
    assert "120 minutes" in said


def test_a_directory_that_is_away_is_a_fault_and_not_the_end_of_status(lab: Lab) -> None:
    static = lab.root / "static"
    with lab.running():
        static.rename(lab.root / "away")
        done = lab.stager("status", "--json")
        assert f"{static}: No such file or directory; is it mounted?" in done.stdout, done
        (lab.root / "away").rename(static)
        assert lab.ask(wait="0")["state"] == "failed", "it goes on"
