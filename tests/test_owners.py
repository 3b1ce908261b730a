"""Who may do what: a second, unprivileged uid, its own requests, and everybody else's."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from archives import make_image
from cloud import Cloud
from lab import BUCKET, BUILD, FILES, NOBODY, Lab, until
from yard import STRANGER

DAEMON = 65531
ABSENT = f"gs://{BUCKET}/x86-alex-release/R99-1.0.0"
ENTRY = re.compile(r"(p\d\.\d+\.u\d+\.)?(?P<entry>.*~\d+)-.*")
ROOMS = ("active", "waiting", "done", "failed", "cancelled")
THEIRS = ["done", "rejected", "waiting", "unclaimed", "withdrawn"]


@pytest.fixture
def open_lab(public_dir: Path) -> Iterator[Lab]:
    """Return a lab whose daemons have a uid of their own, as nobody else in the tests."""
    made = Lab(public_dir, {"settle": "0.3s"}, user=DAEMON)
    made.archive()
    yield made.init()
    made.end()


def drop_as(lab: Lab, uid: int, name: str, build: str = BUILD) -> None:
    """Drop a request of a user's by mv."""
    new = lab.requests / f".{name}.new"
    new.write_text(f"build: {build}\nimages: [test]\n")
    os.chown(new, uid, -1)
    os.rename(new, lab.requests / f"{name}.yaml")


def rooms(lab: Lab) -> dict[str, list[str]]:
    """Return which requests are where, by their dropped names and ids, and all that is public."""
    found: dict[str, list[str]] = {"unclaimed": sorted(os.listdir(lab.requests))}
    for room in ROOMS:
        state = "pending" if room in {"active", "waiting"} else room
        entries = [m["entry"] for m in map(ENTRY.fullmatch, lab.spool(room)) if m]
        found[state] = sorted(found.get(state, []) + entries)
    found["paused"] = json.loads(lab.stager("status", "--json").stdout)["paused"]
    found["results"] = sorted(p.read_text() for p in (lab.root / "results").glob("*.yaml"))
    found["static"] = sorted(map(str, (lab.root / "static/images").rglob("*")))
    return found


def others_requests(lab: Lab) -> dict[str, list[str]]:
    """Have requests of another user in every state, and return what `rooms` says of them."""
    for name, build in (("done", BUILD), ("rejected", "gs://no/a/b"), ("waiting", ABSENT)):
        drop_as(lab, STRANGER, name, build)
    drop_as(lab, STRANGER, "withdrawn", ABSENT)
    for name in ("done", "rejected"):
        lab.result(name)
    until(lambda: len(lab.spool("waiting")) == 2, "two to wait")
    assert lab.stager("cancel", "withdrawn").returncode == 0
    lab.write_config(settle="60s")
    reread(lab)
    (lab.requests / "unclaimed.yaml").write_text(f"build: {BUILD}\nimages: [test]\n")
    os.chown(lab.requests / "unclaimed.yaml", STRANGER, -1)
    return rooms(lab)


def reread(lab: Lab) -> None:
    """Have the daemon read its configuration again."""
    daemon = lab.daemons[-1]
    daemon.process.send_signal(signal.SIGHUP)
    daemon.await_log("the configuration was read again")


def test_another_user_can_submit_wait_look_and_retry(open_lab: Lab) -> None:
    lab = open_lab
    with lab.running():
        asked = lab.stager("submit", BUILD, "test", "base", "--wait", user=NOBODY)
        name = asked.stderr.split()[0]
        waited = lab.stager("wait", name, user=NOBODY)
        looks = [("status",), ("status", name), ("status", "--check"), ("list",), ("show", name)]
        shown = [lab.stager(*words, user=NOBODY) for words in looks]
        retried = lab.stager("retry", name, user=NOBODY)
        until(lambda: len(lab.ended(name)) == 1 and lab.is_clean(), "the retry to be answered")
    assert (asked.returncode, waited.returncode) == (0, 0), asked.stderr
    answer = yaml.safe_load(asked.stdout)
    assert answer == yaml.safe_load(waited.stdout)
    assert (answer["state"], answer["submitter"]) == ("staged", NOBODY)
    assert [done.returncode for done in shown] == [0] * len(looks), shown
    assert "staged" in shown[1].stdout
    assert [name in done.stdout for done in shown[3:]] == [True, True]
    assert retried.returncode == 0, retried.stderr
    again = lab.result(name)
    assert (again["retry_of"], again["submitter"]) == (answer["request_id"], str(NOBODY))
    (entry,) = lab.spool("done")
    assert (lab.root / "spool/done" / entry).stat().st_uid == NOBODY


def test_another_user_can_cancel_what_waits_and_what_is_not_taken_yet(open_lab: Lab) -> None:
    lab = open_lab
    with lab.running():
        before = others_requests(lab)
        drop_as(lab, NOBODY, "mine", ABSENT)
        (lab.requests / "new.yaml").write_text(f"build: {BUILD}\nimages: [test]\n")
        os.chown(lab.requests / "new.yaml", NOBODY, -1)
        until(lambda: any("mine.yaml" in name for name in lab.spool("waiting")), "mine to wait")
        done = lab.stager("cancel", "mine", "new", user=NOBODY)
        codes = [lab.stager("wait", name, user=NOBODY).returncode for name in ("mine", "new")]
        answers = [lab.result(name) for name in ("mine", "new")]
        for name in ("mine", "new"):
            (lab.root / f"results/{name}.yaml").rename(lab.root / name)
        after = rooms(lab)
    assert (done.returncode, codes) == (0, [6, 6]), done.stderr
    assert {(a["state"], a["submitter"], a["error"]["code"]) for a in answers} == {
        ("cancelled", str(NOBODY), "cancelled")
    }
    mine = [entry for entry in after["cancelled"] if entry.startswith(("mine.", "new."))]
    after["cancelled"] = [entry for entry in after["cancelled"] if entry not in mine]
    assert (len(mine), after) == (2, before)


def test_one_cancels_ones_own_active_request_and_not_that_of_another(public_dir: Path) -> None:
    other = f"gs://{BUCKET}/x86-alex-release/R24"
    with Cloud() as cloud:
        lab = Lab(
            public_dir, {"archive": {"source": "gcs"}}, {"STORAGE_EMULATOR_HOST": cloud.url}, DAEMON
        )
        lab.upload(cloud)
        lab.upload(cloud, other, images={FILES["test"]: make_image(1, 5_000_000)})
        lab.init()
        cloud.slow(50_000)
        with lab.running():
            drop_as(lab, NOBODY, "mine", BUILD)
            drop_as(lab, STRANGER, "theirs", other)
            until(lambda: len([n for n in lab.spool("active") if ".a1." in n]) == 2, "both active")
            done = lab.stager("cancel", "mine", "theirs", user=NOBODY)
            mine = lab.result("mine")
            assert not (lab.root / "results/theirs.yaml").exists()
            cloud.clear_faults()
            theirs = lab.result("theirs")
            until(lab.is_clean)
    assert done.returncode != 0
    assert (mine["state"], theirs["state"]) == ("cancelled", "staged")
    assert not lab.image("test").exists()
    assert lab.flag() == []


def test_of_two_requests_of_one_name_each_owner_cancels_only_their_own(open_lab: Lab) -> None:
    lab = open_lab
    with lab.running():
        for number, uid in enumerate((STRANGER, NOBODY, STRANGER), 1):
            drop_as(lab, uid, "same", ABSENT)
            until(lambda: len(lab.spool("waiting")) == number)  # noqa: B023
        lab.stager("cancel", "same", user=NOBODY)
        (ended,) = until(lambda: lab.ended("same"))
        left = [n for n in lab.spool("waiting") + lab.spool("active") if "same.yaml" in n]
        assert lab.result("same")["submitter"] == str(NOBODY)
        assert len(left) == 2
        lab.stager("retry", "same", user=STRANGER)
        assert str(ended) in lab.spool("cancelled")


REFUSED = [
    ("cancel", "waiting"),
    ("cancel", "waiting.yaml"),
    ("cancel", "unclaimed"),
    ("cancel", *THEIRS),
    ("retry", "done"),
    ("retry", "rejected"),
    ("retry", *THEIRS),
]
BY_ID = [("cancel", "ID-OF-waiting"), ("retry", "ID-OF-done"), ("retry", "ID-OF-rejected")]
RULERS = [
    ("cancel", "--all"),
    ("cancel", "--all", "--state", "waiting"),
    ("retry", "--all"),
    ("retry", "--all", "--state", "cancelled"),
    ("retry", "--all", "--code", "bucket_not_allowed"),
    ("pause",),
    ("pause", "--host", "elsewhere"),
    ("resume",),
]
ADMIN = [
    ("init",), ("verify", "--repair"), ("gc",), ("pin", BUILD), ("unpin", BUILD), ("adopt",),
    ("doctor", "--repair"),
]  # fmt: skip


@pytest.mark.parametrize("words", [*REFUSED, *BY_ID, *RULERS, *ADMIN], ids=" ".join)
def test_what_is_others_is_refused_and_nothing_changes(
    open_lab: Lab, words: tuple[str, ...]
) -> None:
    lab = open_lab
    with lab.running():
        before = others_requests(lab)
        listed = json.loads(lab.stager("list", "--json").stdout)
        entries = [e for kind in ("waiting", "active", "answered") for e in listed[kind]]
        ids = {f"ID-OF-{Path(e['request']).stem}": e["request_id"] for e in entries}
        done = lab.stager(*[ids.get(word, word) for word in words], user=NOBODY)
        after = rooms(lab)
    assert done.returncode not in {0, 4}, done
    assert after == before


@pytest.mark.parametrize("words", [*REFUSED, *RULERS], ids=" ".join)
def test_an_order_is_judged_by_the_owner_of_its_file(open_lab: Lab, words: tuple[str, ...]) -> None:
    """The command would be obeyed, were it not that its order belongs to nobody."""
    lab, control = open_lab, open_lab.root / "spool/control"
    with lab.running():
        before = others_requests(lab)
        if words == ("resume",):
            assert lab.stager("pause").returncode == 0
            before = rooms(lab)
            assert before["paused"]
    client = subprocess.Popen(
        [sys.executable, "-m", "stager.cli", words[0], "--config", str(lab.config), *words[1:]],
        env=lab.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with client:
        (order,) = until(lambda: list(control.glob("*.order")), "the order")
        os.chown(order, NOBODY, -1)
        with lab.running() as daemon:
            output = client.communicate(timeout=20)
            daemon.await_log(f"uid={NOBODY}")
            until(lambda: not order.exists())
            after = rooms(lab)
    assert client.returncode not in {0, 4}, output
    assert after == before


def test_ruler_commands_work_for_the_daemons_user(open_lab: Lab) -> None:
    lab = open_lab
    with lab.running():
        others_requests(lab)
        done: list[Any] = [
            lab.stager(*words, user=DAEMON)
            for words in (("pause",), ("resume",), ("cancel", "--all"), ("retry", "rejected"))
        ]
        until(lambda: os.listdir(lab.requests) == [] and lab.is_clean(), "all to be cancelled")
    assert [d.returncode for d in done] == [0, 0, 0, 0], done
    assert lab.result("waiting")["state"] == lab.result("unclaimed")["state"] == "cancelled"
