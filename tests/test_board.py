"""status.json and status.html: who writes them, when, how large they are, what they remember."""

import json
import os
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hand import by_hand
from jsonschema import Draft202012Validator
from lab import BUCKET, BUILD, DEADLINE, NOBODY, ROOT, Lab, Peer, until

from stager import board as board_module
from stager import status
from stager.board import Notice
from stager.config import load_config
from stager.layout import Waiting

ABSENT = f"gs://{BUCKET}/x86-alex-release/R99"


def read(lab: Lab) -> dict[str, Any]:
    """Return status.json, which must be as its schema says."""
    data: dict[str, Any] = json.loads((lab.root / "results/status.json").read_text())
    schema = json.loads((ROOT / "schema/status.schema.json").read_text())
    Draft202012Validator(schema).validate(data)
    return data


def notice(lab: Lab, peer: Peer) -> Notice:
    return Notice(load_config(lab.config, {}).paths, peer.heart, lambda: None)


def is_daemon(lab: Lab, peer: Peer) -> None:
    """Have an instance tell of itself, as daemons do and visiting commands don't."""
    (lab.root / "spool/instances" / f"{peer.inst}.status").write_text('{"host": "lab-1"}')


def waiting(number: int, now: float) -> str:
    """Return the name of a request that has waited for `number` seconds and more."""
    arrived = f"{int((now - 100 - number) * 1e9)}-{number:06}"
    starts, due = number % 2, int(now + 900) * (number % 2)
    return str(Waiting(5, due, 1000, f"r{number}.yaml", arrived, 1, starts, "abcdefgh"))


def test_the_whole_day_of_a_spool_is_on_the_board(lab: Lab) -> None:
    lab.archive()
    with lab.running():
        lab.ask()
        lab.ask(ABSENT, wait=0)
        lab.drop("later", ABSENT)
        path = lab.root / "results/status.json"
        until(lambda: path.exists() and read(lab)["counts"]["waiting"] == 1)
        until(lambda: [a["state"] for a in read(lab)["answered"]] == ["staged", "failed"])
        data = read(lab)
        html = (lab.root / "results/status.html").read_text()
    staged, failed = data["answered"]
    assert staged["build"] == BUILD
    assert (staged["images"], staged["code"]) == (["test"], "")
    assert failed["code"] == "archive_not_found"
    assert failed["hint"]
    assert data["counts"] == {"waiting": 1, "deferred": 0, "active": 0, "done": 1, "failed": 1,
                              "cancelled": 0}  # fmt: skip
    assert [(i["alive"], i["workers"]) for i in data["instances"]] == [(True, 2)]
    assert data["troubles"] == []
    assert data["disks"][0]["tree"] == "spool and static"
    assert "later.yaml" in html
    for name in ("status.json", "status.html"):
        assert (lab.root / "results" / name).stat().st_mode & 0o777 == 0o644


def test_only_the_lowest_daemon_writes(lab: Lab) -> None:
    low, high = sorted((lab.peer(machine="a"), lab.peer(machine="b")), key=lambda peer: peer.inst)
    path = lab.root / "results/status.json"
    is_daemon(lab, low)
    is_daemon(lab, high)
    for peer in (low, high):
        peer.heart.observe()
    notice(lab, high).turn()
    assert not path.exists()
    notice(lab, low).turn()
    assert [i["name"] for i in read(lab)["instances"]] == [low.inst, high.inst]


def test_a_visiting_command_with_a_lower_name_does_not_stop_the_board(lab: Lab) -> None:
    low, high = sorted((lab.peer(machine="a"), lab.peer(machine="b")), key=lambda peer: peer.inst)
    is_daemon(lab, high)
    high.heart.observe()
    assert low.inst in high.heart.living()
    notice(lab, high).turn()
    assert (lab.root / "results/status.json").exists()


def test_nothing_is_written_while_nothing_changes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, path = lab.peer(), lab.root / "results/status.json"
    mine = notice(lab, peer)
    mine.turn()
    first = path.stat().st_ino
    mine.turn()
    mine.turn()
    assert path.stat().st_ino == first
    lab.drop("news")
    mine.turn()
    assert read(lab)["counts"]["waiting"] == 1
    second = path.stat().st_ino
    assert second != first
    monkeypatch.setattr(board_module, "SIGN_OF_LIFE_SECONDS", 0.0)
    mine.turn()
    assert path.stat().st_ino != second, "a sign of life now and then"


def test_the_last_day_outlives_the_daemon(lab: Lab) -> None:
    lab.archive()
    path = lab.root / "results/status.json"
    with lab.running():
        size = int(lab.ask()["bytes_fetched"])
        until(lambda: path.exists() and read(lab)["history"][-1]["fetched_bytes"] == size)
    data = read(lab)
    hour_ago = {**data["history"][-1], "time": data["history"][-1]["time"] - 3600}
    path.write_text(json.dumps({**data, "history": [hour_ago, *data["history"]]}))
    before = path.stat().st_ino
    with lab.running():
        until(lambda: path.stat().st_ino != before)
        history = read(lab)["history"]
    assert history[0] == hour_ago
    assert sum(sample["good"] for sample in history) == 2
    assert sum(sample["fetched_bytes"] for sample in history) == 2 * size, "nothing counted twice"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"history": 1}', '{"history": [1]}', '{"history": [{"time": "x"}]}',
     '{"history": [{"time": -1e99}]}', '{"history": [' + "[" * 5000 + "]}"],
    ids=range(9),
)  # fmt: skip
def test_odd_history_is_no_fault(lab: Lab, text: str) -> None:
    (lab.root / "results/status.json").write_text(text)
    notice(lab, lab.peer()).turn()
    assert len(read(lab)["history"]) == 1


@pytest.mark.timeout(300)
def test_a_hundred_thousand_waiting_make_neither_a_large_nor_a_slow_board(lab: Lab) -> None:
    count, now = 100_000, time.time()
    room = lab.root / "spool/waiting"
    fd = os.open(room, os.O_DIRECTORY)
    for number in range(count):
        os.close(os.open(waiting(number, now), os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    for number in range(3000):
        (lab.requests / f"d{number}.yaml").touch()
    mine = notice(lab, lab.peer())
    mine.turn()
    before = resource.getrusage(resource.RUSAGE_SELF)
    mine.publish()
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 5, "seconds of a core"
    data = read(lab)
    assert data["counts"]["waiting"] == count + 3000
    assert data["counts"]["deferred"] == count // 2
    assert data["waiting"][0]["request"] == f"r{count - 1}.yaml", "the oldest first"
    assert data["oldest_seconds"] >= count
    assert "the oldest request has waited" in data["troubles"][0]
    for name in ("status.json", "status.html"):
        assert (lab.root / "results" / name).stat().st_size < 150_000
    assert "102,950 more" in (lab.root / "results/status.html").read_text()


def test_very_many_pins_make_no_large_board(lab: Lab) -> None:
    for number in range(3000):
        path = lab.root / "spool" / f"pinned.a_R{number:04}-0123456789abcdef"
        path.write_text(f"{BUILD}-{number}\n")
    notice(lab, lab.peer()).turn()
    data = read(lab)
    assert data["pinned_builds"] == 3000
    assert data["pinned"] == [f"{BUILD}-{number}" for number in range(100)]
    assert (lab.root / "results/status.html").stat().st_size < 50_000


def test_a_build_that_is_pinned_anew_is_read_anew(lab: Lab) -> None:
    path, peer = lab.root / "spool/pinned.a_R1-0123456789abcdef", lab.peer()
    for build in (BUILD, f"gs://other/{BUILD}"):
        (lab.root / "spool/tmp/new").write_text(f"{build}\n")
        (lab.root / "spool/tmp/new").rename(path)
        notice(lab, peer).turn()
        assert read(lab)["pinned"] == [build]


def test_who_leaves_as_the_last_says_on_the_page_that_nobody_runs(lab: Lab) -> None:
    first, second = lab.start(), lab.start()
    path = lab.root / "results/status.html"
    until((lab.root / "results/status.json").exists, "the page, and then the other file")
    until(lambda: len(read(lab)["instances"]) == 2)
    assert first.stop() == 0
    assert "Healthy" in path.read_text()
    lab.drop("later", ABSENT)
    until(lambda: "later.yaml" in path.read_text())
    assert second.stop() == 0
    assert "No watcherd runs" in path.read_text()
    data = read(lab)
    assert (data["troubles"], data["instances"]) == (["no watcherd runs"], [])
    assert [entry["request"] for entry in data["waiting"]] == ["later.yaml"]
    with lab.running():
        until(lambda: "Healthy" in path.read_text())


def test_of_several_that_stop_at_once_the_last_says_on_the_page_that_nobody_runs(
    lab: Lab,
) -> None:
    daemons = [lab.start() for _ in range(4)]
    until((lab.root / "results/status.json").exists)
    until(lambda: len(read(lab)["instances"]) == len(daemons))
    for daemon in daemons:
        daemon.process.send_signal(signal.SIGTERM)
    assert {daemon.process.wait(DEADLINE) for daemon in daemons} == {0}
    assert "No watcherd runs" in (lab.root / "results/status.html").read_text()
    assert read(lab)["troubles"] == ["no watcherd runs"]


def test_who_leaves_after_others_were_killed_says_that_too(public_dir: Path) -> None:
    lab = Lab(public_dir, {"lease": "60s", "heartbeat": "10s"}).init()
    try:
        killed, last = lab.start(), lab.start()
        killed.kill()
        assert last.stop() == 0
        said = read(lab)["troubles"]
    finally:
        lab.end()
    assert len(said) == 1
    assert said[0].startswith("no watcherd runs")


def test_of_very_many_the_oldest_are_listed(lab: Lab) -> None:
    now = time.time()
    for number in range(30):
        (lab.root / "spool/waiting" / waiting(number, now)).touch()
    snapshot = status.take(load_config(lab.config, {}).paths, most=10)
    assert [entry.request for entry in snapshot.waiting] == [
        f"r{n}.yaml" for n in range(29, 19, -1)
    ]
    assert snapshot.oldest_seconds >= 129


def test_what_was_answered_last_is_shown_last_however_old_it_is(lab: Lab) -> None:
    lab.archive()
    done = lab.root / "spool/done"
    with lab.running():
        for _ in range(3):
            lab.ask(ABSENT, wait=0)
        path = lab.root / "results/status.json"
        until(lambda: path.exists() and read(lab)["counts"]["failed"] == 3)
        arrived = f"{int((time.time() - 86400) * 1e9)}-abcdef"
        (done / f"old.yaml~{arrived}.g1.a1.lab-1-abcdef.abcdefgh").write_text("x")
        until(lambda: read(lab)["counts"]["done"] == 1)
        last = read(lab)["answered"][-1]
    assert (last["request"], last["room"], last["state"]) == ("old.yaml", "done", "")


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "text"])
def test_what_can_not_be_claimed_is_listed_with_the_fix(public_dir: Path, as_json: bool) -> None:
    lab = Lab(public_dir, user=NOBODY).init()
    (lab.requests / "folder.yaml").mkdir()
    words = f"its owner (uid 0) or root removes it: rm -r {lab.requests}/folder.yaml"
    try:
        with lab.running() as daemon:
            daemon.await_log("can't claim an entry")
            path = lab.root / "results/status.html"
            until(lambda: path.exists() and "rm -r " in path.read_text())
            said = lab.stager("status", *(["--json"] if as_json else [])).stdout
    finally:
        lab.end()
    if as_json:
        assert words in json.loads(said)["unclaimable"]["folder.yaml"]
    else:
        assert f"can't be claimed: folder.yaml: Permission denied; it is a folder; {words}" in said


def test_a_name_that_is_no_text_is_escaped_everywhere(lab: Lab) -> None:
    path = os.fsencode(lab.requests) + b"/caf\xe9\x1b[2J.yaml"
    Path(os.fsdecode(path)).write_text(yaml.safe_dump({"build": BUILD}))
    mine = notice(lab, lab.peer())
    mine.turn()
    shown = read(lab)["waiting"][0]["request"]
    assert shown == r"caf\udce9\x1b[2J.yaml"
    assert shown in (lab.root / "results/status.html").read_text()
    assert json.loads(lab.stager("status", "--json").stdout)["waiting"][0]["request"] == shown


def test_what_another_version_told_oddly_is_said_once_and_waited_out(public_dir: Path) -> None:
    lab = Lab(public_dir, {"lease": "60s"}).init()
    lab.archive()
    instances, path = lab.root / "spool/instances", lab.root / "results/status.json"
    (instances / "zz-abcdef.7").write_text("{}")
    odd = instances / "zz-abcdef.status"
    odd.write_text('{"host": ["lab-9"], "workers": "many"}')
    try:
        with lab.running() as daemon:
            until(lambda: "a fault of ours in the status page" in daemon.log)
            assert lab.ask()["state"] == "staged", "the work goes on"
            assert not path.exists()
            odd.write_text('{"host": "lab-9", "workers": 3}')
            until(path.exists)
            assert "lab-9" in {instance["host"] for instance in read(lab)["instances"]}
            assert daemon.log.count("a fault of ours") == 1
            daemon.log_path.write_text("")  # with the traceback, which was wanted here
    finally:
        lab.end()


def test_storage_that_fails_costs_only_freshness(lab: Lab) -> None:
    lab.archive()
    results = lab.root / "results"
    (results / "status.json").mkdir()
    with lab.running() as daemon:
        daemon.await_log("the status page can't be written")
        assert lab.ask()["state"] == "staged"
        (results / "status.json").rmdir()
        daemon.await_log("the status page is written again")
        assert daemon.log.count("can't be written") == 1


def test_a_page_that_is_being_written_at_the_end_leaves_nothing(
    public_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(public_dir, {"heartbeat": "0.01s", "lease": "60s"}).init()
    replace, under_way, goes_on = os.rename, threading.Event(), threading.Event()

    def slow(source: Path, target: Path) -> None:
        if target.name == "status.html":
            under_way.set()
            goes_on.wait()
        replace(source, target)

    with by_hand(lab) as server:
        monkeypatch.setattr(os, "rename", slow)
        server.notice.start()
        assert under_way.wait(DEADLINE)
        threading.Timer(0.3, goes_on.set).start()
    assert lab.is_clean(), lab.listing()
