"""Names: of answers, and of the states on disk, by expressions written from the contract."""

import grp
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from cloud import Cloud
from crowd import UNSAFE_NAMES
from lab import BUCKET, BUILD, NOBODY, Lab, until

TEXT = f"build: {BUILD}\nimages: [test]\n"
ABSENT = f"gs://{BUCKET}/x86-alex-release/R99-1.0.0"
WORD = r"[^.~/]+"
REQUEST = rf"(?P<file>.*)~(?P<id>(?P<ns>\d{{19}}){WORD})\.g(?P<g>\d+)\.a(?P<a>\d+)"
STATES = {
    "active": re.compile(rf"{REQUEST}\.(?P<inst>{WORD})\.(?P<nonce>{WORD})", re.DOTALL),
    "waiting": re.compile(
        rf"p(?P<p>\d)\.(?P<due>\d+)\.u(?P<uid>\d+)\.{REQUEST}\.(?P<nonce>{WORD})", re.DOTALL
    ),
} | dict.fromkeys(("done", "failed", "cancelled"), re.compile(rf"{REQUEST}.*", re.DOTALL))
LONGEST = "x" * 150

SAFE_NAMES = [
    "plain", "a b", " a", "a ", "-rf", "--", "~", "a~b", "a~", "~a", "ü", "名前", "\N{SNOWMAN}",
    "a.yaml", "a.tmp", "A", "$(touch x)", "`id`", "a;b|c&d", "*", "?", "[a]", "{a,b}", "a'b", 'a"b',
    "a\\b", "a:b", "a: b", "%n%s", "status", "LAYOUT", "layout", "null", "true", "1.10", "0x10",
    "a#b", "@", "=a", "a%2fb", "p5.0.u0.a", "x~1795490787014057258-abc.g1.a0.host.abcde",
    "x" * 149, LONGEST, "ü" * 75,
]  # fmt: skip


def find(lab: Lab, room: str, file: str) -> dict[str, str]:
    """Return the parts of the one name in a room that stands for a dropped file; else nothing."""
    names = lab.spool(room)
    assert all(len(os.fsencode(name)) <= 255 for name in names)
    matches = [STATES[room].fullmatch(name) for name in names]
    assert all(matches), names
    found = [m.groupdict() for m in matches if m and m["file"] == file]
    assert len(found) <= 1
    return found[0] if found else {}


def test_a_safe_name_names_its_answer_and_its_state(lab: Lab) -> None:
    lab.archive()
    assert len(set(SAFE_NAMES)) == len(SAFE_NAMES)
    with lab.running() as daemon:
        for name in SAFE_NAMES:
            lab.drop_text("next", TEXT, ".tmp")
            os.rename(lab.requests / "next.tmp", lab.requests / f"{name}.yaml")
        answers = {name: lab.result(name) for name in SAFE_NAMES}
        until(lab.is_clean)
    assert {answer["state"] for answer in answers.values()} <= {"staged", "already_staged"}
    assert {name: answer["request"] for name, answer in answers.items()} == {
        name: f"{name}.yaml" for name in SAFE_NAMES
    }
    ids = {name: find(lab, "done", f"{name}.yaml").get("id") for name in SAFE_NAMES}
    assert ids == {name: answer["request_id"] for name, answer in answers.items()}
    assert len(set(ids.values())) == len(SAFE_NAMES)
    assert not (lab.root / "x").exists()
    assert all(line.isprintable() for line in daemon.log.splitlines())
    assert results(lab) == {f"{name}.yaml" for name in SAFE_NAMES}


def results(lab: Lab) -> set[str]:
    """Return the names of the answers that are there."""
    pages = {"status.json", "status.html", ".layout"}
    return set(os.listdir(lab.root / "results")) - pages


def test_a_name_that_can_name_no_answer_is_answered_by_its_id(lab: Lab) -> None:
    lab.archive()
    with lab.running() as daemon:
        for raw in UNSAFE_NAMES.values():
            lab.drop_text("next", TEXT, ".tmp")
            os.rename(bytes(lab.requests / "next.tmp"), bytes(lab.requests) + b"/" + raw)
        until(lambda: len(results(lab)) == len(UNSAFE_NAMES) and lab.is_clean(), "all answers")
        listed = lab.stager("list").stdout + lab.stager("status").stdout
    assert os.listdir(lab.requests) == []
    matches = [STATES["done"].fullmatch(name) for name in lab.spool("done")]
    assert {m["file"] for m in matches if m} == {""}
    ids = {m["id"] for m in matches if m}
    assert results(lab) == {f"{request_id}.yaml" for request_id in ids}
    for request_id in ids:
        answer = lab.result(request_id)
        assert answer["request_id"] == request_id
        assert answer["state"] in {"staged", "already_staged"}
        assert "request" in answer
    assert all(line.isprintable() for line in (daemon.log + listed).splitlines())


def test_three_suffixes_are_one_name_and_each_file_is_answered(lab: Lab) -> None:
    lab.archive()
    with lab.running():
        for suffix in (".yaml", ".yml", ".json"):
            lab.drop_text("a", TEXT, suffix)
        until(lambda: len(lab.spool("done")) == 3 and lab.is_clean(), "three answers")
        answer = lab.result("a")
        waited = [lab.stager("wait", f"a{s}").returncode for s in ("", ".yaml", ".yml", ".json")]
    files = {find(lab, "done", f"a.{end}")["file"]: find(lab, "done", f"a.{end}")["id"]
             for end in ("yaml", "yml", "json")}  # fmt: skip
    assert answer["request_id"] == files[answer["request"]]
    assert results(lab) == {"a.yaml"}
    assert waited == [0, 0, 0, 0]


def test_an_answer_begins_with_its_state_and_has_what_is_always_there(lab: Lab) -> None:
    lab.archive()
    with lab.running():
        lab.drop("good")
        lab.drop("bad", "gs://elsewhere/a/b")
        lab.drop("failed", ABSENT, wait=0)
        lab.drop("cancelled", ABSENT)
        until(lambda: find(lab, "waiting", "cancelled.yaml"))
        assert lab.stager("cancel", "cancelled").returncode == 0
        states = {name: lab.result(name) for name in ("good", "bad", "failed", "cancelled")}
    wanted = {"good": "staged", "bad": "rejected", "failed": "failed", "cancelled": "cancelled"}
    for name, answer in states.items():
        lines = (lab.root / f"results/{name}.yaml").read_text().splitlines()
        assert lines[0] == f"state: {wanted[name]}"
        always = {"state", "request", "request_id", "host", "received", "finished", "attempts"}
        assert always <= answer.keys()
        assert all(
            re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", answer[key])
            for key in ("received", "started", "finished") if key in answer
        )  # fmt: skip
        assert ("error" in answer) is (name != "good")
        assert answer["host"] in {socket.gethostname(), socket.gethostname().split(".")[0]}


def test_the_states_on_disk_are_as_written(cloud_lab: tuple[Lab, Cloud]) -> None:
    lab, cloud = cloud_lab
    lab.write_config(workers=1, archive={"source": "gcs", "connections": 1})
    lab.upload(cloud)
    cloud.stall(1_000, 60.0, None)
    before = (lab.root / "config.yaml").stat().st_mtime_ns
    with lab.running() as daemon:
        lab.drop("now~1")
        now = until(lambda: find(lab, "active", "now~1.yaml"), "now~1 to be claimed")
        now = until(lambda: started(lab, "now~1.yaml"), "now~1 to be started")
        (name,) = lab.spool("instances") and lab.instances()
        assert now["inst"] == name
        uid = 2**32 - 2
        for digit in "09":
            (lab.requests / ".new").write_text(f"{TEXT}priority: {digit}\n")
            os.chown(lab.requests / ".new", uid, -1)
            os.rename(lab.requests / ".new", lab.requests / f"p{digit}.json")
        parked = [until(lambda: find(lab, "waiting", f"p{d}.json")) for d in "09"]  # noqa: B023
        lab.drop("bad", "gs://elsewhere/a/b")
        lab.result("bad")
        assert lab.stager("cancel", "p9").returncode == 0
        cloud.clear_faults()
        answers = {name: lab.result(name) for name in ("now~1", "p0", "p9", "bad")}
        until(lab.is_clean)
        assert daemon.process.poll() is None
    assert [w["p"] for w in parked] == ["0", "9"]
    assert {(w["uid"], w["a"]) for w in parked} == {(str(uid), "0")}
    assert all(abs(int(w["due"]) - int(w["ns"]) // 10**9) <= 5 for w in parked)
    ends = {
        "now~1": find(lab, "done", "now~1.yaml"),
        "p0": find(lab, "done", "p0.json"),
        "p9": find(lab, "cancelled", "p9.json"),
        "bad": find(lab, "failed", "bad.yaml"),
    }
    for name, end in ends.items():
        assert end["id"] == answers[name]["request_id"]
        assert end["a"] == answers[name]["attempts"]
        assert before < int(end["ns"]) < end_of(lab, name)
    assert ends["now~1"]["id"] == now["id"]
    assert [ends["p0"]["id"], ends["p9"]["id"]] == [w["id"] for w in parked]
    assert int(ends["p0"]["g"]) > int(parked[0]["g"]) >= 1
    assert [ends[name]["a"] for name in ("now~1", "p9", "bad")] == ["1", "0", "0"]
    assert answers["p0"]["submitter"] == str(uid)


def started(lab: Lab, file: str) -> dict[str, str]:
    """Return the parts of an active name once its start was counted."""
    found = find(lab, "active", file)
    return found if found.get("a") == "1" else {}


def end_of(lab: Lab, name: str) -> int:
    """Return when the answer to NAME was written, in ns of the file server's clock."""
    return (lab.root / f"results/{name}.yaml").stat().st_mtime_ns


def test_the_longest_name_fits_through_waiting_and_a_retry(lab: Lab) -> None:
    with lab.running():
        (lab.requests / ".new").write_text(f"build: {ABSENT}\nimages: [test]\n")
        os.chown(lab.requests / ".new", 2**32 - 2, -1)
        os.rename(lab.requests / ".new", lab.requests / f"{LONGEST}.json")
        ids = []
        for _ in range(3):
            parked = until(lambda: find(lab, "waiting", f"{LONGEST}.json"), "it to wait")
            assert lab.stager("cancel", LONGEST).returncode == 0
            ids.append(parked["id"])
            done = lab.stager("retry", LONGEST)
            assert done.returncode == 0, done.stderr
        lab.archive(ABSENT)
        until(lambda: lab.spool("done") and lab.is_clean(), "the last one to be staged")
    answer = lab.result(LONGEST)
    assert answer["state"] == "staged"
    assert answer["retry_of"] in ids[-1]
    assert len(set(ids)) == 3


def modes(root: Path) -> dict[str, Any]:
    """Return owner and mode of everything below a directory, and of itself."""
    infos = {path: path.lstat() for path in [root, *root.rglob("*")]}
    return {str(p): (info.st_uid, oct(info.st_mode & 0o7777)) for p, info in infos.items()}


@pytest.fixture
def _closed_umask() -> Any:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_closed_umask")
def test_modes_and_owners_do_not_depend_on_the_umask(public_dir: Path) -> None:
    lab = Lab(public_dir, {"static": str(public_dir / "srv/deep/static")}, user=65532)
    lab.archive()
    for path in (lab.root / "archive").rglob("*"):
        path.chmod(0o755)
    (lab.root / "archive").chmod(0o755)
    lab.init()
    with lab.running():
        lab.drop("unreadable")
        for name in ("good", "bad"):
            (lab.requests / ".new").write_text(TEXT if name == "good" else "bad\n")
            (lab.requests / ".new").chmod(0o644)
            os.chown(lab.requests / ".new", NOBODY, -1)
            os.rename(lab.requests / ".new", lab.requests / f"{name}.yaml")
        answers = {name: lab.result(name)["state"] for name in ("good", "bad", "unreadable")}
        listed = lab.stager("status", "--json", user=NOBODY)
        waited = lab.stager("wait", "good", user=NOBODY)
        spool, static = modes(lab.root / "spool"), modes(lab.root / "srv")
        answered = modes(lab.root / "results")
    assert answers == {"good": "staged", "bad": "rejected", "unreadable": "rejected"}
    assert (listed.returncode, waited.returncode) == (0, 0), listed.stderr
    user: Any = lab.user
    special = {"requests": "0o1777", "control": "0o1777", "private": "0o700", "tmp": "0o700"}
    wrong = {}
    for name, found in (spool | static | answered).items():
        path = Path(name)
        wanted = (user, special.get(path.name, "0o755" if path.is_dir() else "0o644"))
        if path.parent.name in {"done", "failed"}:
            wanted = (0, "0o600") if "unreadable" in name else (NOBODY, "0o644")
        if path.name == "tmp" and "static" in name:
            wanted = (user, "0o755")
        if found != wanted:
            wrong[name] = (found, wanted)
    assert not wrong
    assert yaml.safe_load(waited.stdout)["submitter"] == NOBODY


@pytest.mark.usefixtures("_closed_umask")
def test_init_with_a_group_lets_only_its_members_drop(public_dir: Path) -> None:
    lab = Lab(public_dir)
    assert lab.stager("init", "--group", "daemon").returncode == 0
    found = (lab.root / "spool/requests").stat()
    assert (oct(found.st_mode & 0o7777), found.st_gid) == ("0o3770", grp.getgrnam("daemon").gr_gid)
