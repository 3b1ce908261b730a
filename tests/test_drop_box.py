"""How files come into the drop box, and when they are taken out of it: the contract, from outside.

The scripts that drop files are real shell commands. When a request was taken is told by its id,
which begins with the file's ctime after the take: by the clock that also set its mtime.
"""

import hashlib
import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab import BUILD, Lab, until

from stager.dropbox import DropBox

LONG_SETTLE = {"settle": "60s"}
SOON_SECONDS = 10.0
TEXT = f"build: {BUILD}\nimages: [test]\n"


def sh(script: str, lab: Lab, **names: str) -> int:
    """Run a shell script in the lab's directory; return when it began, in ns of the clock."""
    probe = lab.root / "clock"
    probe.write_text("")
    environment = lab.environment() | {"box": str(lab.requests), "text": TEXT} | names
    subprocess.run(["sh", "-euc", script], cwd=lab.root, env=environment, check=True, timeout=30)
    return probe.stat().st_mtime_ns


def taken_ns(answer: dict[str, Any]) -> int:
    """Return when a request was taken."""
    return int(answer["request_id"][:19])


@pytest.mark.parametrize(
    "script",
    [
        pytest.param('printf %s "$text" >$box/.x.tmp; mv $box/.x.tmp $box/x.yaml', id="mv-inside"),
        pytest.param('printf %s "$text" >outside; mv outside $box/x.yaml', id="mv-from-outside"),
        pytest.param(
            'printf %s "$text" >outside; touch $box/x.yaml; mv -f outside $box/x.yaml',
            id="mv-over-an-older-one",
        ),
        pytest.param('printf %s "$text" >outside; ln outside $box/x.yaml', id="ln"),
        pytest.param(
            'printf %s "$text" >$box/.x.tmp; ln $box/.x.tmp $box/x.yaml; rm $box/.x.tmp',
            id="ln-then-rm",
        ),
        pytest.param(
            'printf "%s" "$text" | head -c -1 >outside; mv outside $box/x.yaml',
            id="mv-without-a-final-newline",
        ),
    ],
)
def test_what_is_moved_or_linked_in_is_taken_at_once(lab: Lab, script: str) -> None:
    lab.archive()
    lab.write_config(**LONG_SETTLE)
    with lab.running():
        sh(script, lab)
        assert lab.result("x", SOON_SECONDS)["state"] == "staged"
    assert len(lab.ended("x")) == 1


def test_a_hundred_that_are_moved_in_one_by_one_are_all_taken_at_once(lab: Lab) -> None:
    lab.archive()
    lab.write_config(**LONG_SETTLE)
    with lab.running():
        for number in range(100):
            lab.drop_text(f"x{number}", TEXT)
        until(lambda: len(lab.spool("done")) == 100, "all to be answered")


def test_a_hint_that_comes_while_a_scan_runs_is_not_lost(tmp_path: Path) -> None:
    box = DropBox(tmp_path, 3600.0)

    def move_in() -> None:
        for number in range(3000):
            (tmp_path / ".new").write_text(TEXT)
            os.rename(tmp_path / ".new", tmp_path / f"x{number}.yaml")
            box.hints.note("moved", f"x{number}.yaml")

    def take() -> int:
        for name in (taken := box.settled(1000)):
            os.unlink(tmp_path / name)
            box.claimed(name)
        return len(taken)

    thread = threading.Thread(target=move_in)
    thread.start()
    while thread.is_alive():
        take()
    while take():
        pass
    assert os.listdir(tmp_path) == []


def test_what_submit_drops_is_taken_at_once(lab: Lab) -> None:
    lab.archive()
    lab.write_config(**LONG_SETTLE)
    with lab.running():
        done = lab.stager("submit", BUILD, "test", "--wait", "--timeout", "10s")
        assert done.returncode == 0, done.stderr
        assert yaml.safe_load(done.stdout)["state"] == "staged"
        named = lab.stager("submit", BUILD, "test").stdout.strip()
        assert lab.result(named, SOON_SECONDS)["state"] == "already_staged"


@pytest.mark.parametrize("watch", ["inotify", "poll"])
@pytest.mark.parametrize(
    "script",
    [
        pytest.param(
            """set -f; IFS='
'; for line in $text; do printf '%s\\n' "$line" >>$box/x.yaml; sleep .3; done""",
            id="opened-again-for-each-piece",
        ),
        pytest.param(
            'printf %s "$text" | { while read -r l; do echo "$l"; sleep .3; done; } >$box/x.yaml',
            id="one-cat",
        ),
        pytest.param(
            "cp outside $box/x.yaml; for i in 1 2 3; do sleep .3; touch $box/x.yaml; done",
            id="touched",
        ),
        pytest.param(
            "cp outside $box/x.yaml; for i in 600 640 644; do sleep .3; chmod $i $box/x.yaml; done",
            id="chmod",
        ),
        pytest.param(
            "for i in 1 2 3; do cp outside $box/.tmp; cp $box/.tmp $box/x.yaml; sleep .3; done",
            id="copied-again",
        ),
    ],
)
def test_a_file_is_taken_once_and_whole_when_it_has_settled(
    lab: Lab, script: str, watch: str
) -> None:
    lab.archive()
    lab.write_config(settle="1s", watch=watch)
    text = f"{TEXT}priority: high\nnote: the end\n"
    (lab.root / "outside").write_text(text)
    with lab.running():
        sh(script, lab, text=text)
        last_change = (lab.requests / "x.yaml").lstat()
        answer = lab.result("x", SOON_SECONDS)
    assert answer["state"] == "staged"
    assert answer["request_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert answer["note"] == "the end"
    settled = (taken_ns(answer) - max(last_change.st_mtime_ns, last_change.st_ctime_ns)) / 1e9
    assert 0.9 < settled < 5
    assert len(lab.ended("x")) == 1
    assert lab.is_clean()


@pytest.mark.parametrize(
    "then",
    [
        pytest.param("", id="and-nothing-else"),
        pytest.param("cat $box/x.yaml >seen", id="and-read-by-somebody"),
        pytest.param("printf '#' >>$box/x.yaml", id="and-opened-again"),
    ],
)
def test_a_file_closed_without_a_final_newline_needs_only_settle(lab: Lab, then: str) -> None:
    lab.archive()
    lab.write_config(settle="0.3s")
    with lab.running():
        sh(f'printf %s "$text" | head -c -1 >$box/x.yaml\n{then}', lab)
        assert lab.result("x", SOON_SECONDS)["state"] == "staged"


def test_without_events_a_file_without_a_final_newline_may_still_be_growing(lab: Lab) -> None:
    lab.archive()
    lab.write_config(watch="poll")
    with lab.running():
        sh('printf %s "$text" | head -c -1 >$box/x.yaml', lab)
        until(lambda: "x.yaml" in os.listdir(lab.requests))
        for number in range(8):  # each of these settles and is answered meanwhile
            sh(f'printf %s "$text" >$box/other{number}.yaml', lab)
            assert lab.result(f"other{number}")["state"].endswith("staged")
        assert os.listdir(lab.requests) == ["x.yaml"]
        assert lab.stager("status", "x").returncode == 0
        sh("printf '\\nnote: grown\\n' >>$box/x.yaml", lab)
        assert lab.result("x", SOON_SECONDS)["note"] == "grown"
    assert len(lab.ended("x")) == 1


@pytest.mark.parametrize("watch", ["inotify", "poll"])
def test_files_that_were_there_before_the_daemon_are_taken(lab: Lab, watch: str) -> None:
    lab.archive()
    lab.write_config(watch=watch)
    sh('printf %s "$text" >$box/written.yaml', lab)
    lab.drop("moved")
    with lab.running():
        states = {lab.result(name)["state"] for name in ("written", "moved")}
    assert states <= {"staged", "already_staged"}


TAKEN = ["a.yaml", "b.yml", "c.json", "~d.yaml", "e.yaml.yaml", "f.tmp.yaml", "-g.yaml", "h #.yml"]
LEFT = [
    ".a.yaml", ".yaml", "#b.yaml", "#c.yaml#", "d.yaml~", "e.json~", "f.YAML", "g.Yml", "h.txt",
    "yaml", "i", "j.yaml.tmp", "k.yaml.swp", "l.yaml.", "m.yaml ", "n.toml", ".o.json.swp", "p.yam",
]  # fmt: skip


def test_only_names_of_the_contract_are_taken_and_the_others_stay(lab: Lab) -> None:
    lab.archive()
    with lab.running():
        for name in [*LEFT, *TAKEN]:
            (lab.requests / f".{name}.new").write_text(TEXT)
            os.rename(lab.requests / f".{name}.new", lab.requests / name)
        states = {lab.result(name.rpartition(".")[0])["state"] for name in TAKEN}
        assert lab.result(lab.drop("last"))["state"] == "already_staged"
        status = json.loads(lab.stager("status", "--json").stdout)
    assert states <= {"staged", "already_staged"}
    assert sorted(os.listdir(lab.requests)) == sorted(LEFT)
    assert all((lab.requests / name).read_text() == TEXT for name in LEFT)
    assert len(LEFT) in status.values()


JSON = {"build": BUILD, "images": ["test", "base"], "note": "a/b ü", "force": True}
FACE = JSON | {"note": "\N{GRINNING FACE}"}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(json.dumps(JSON), id="one-line"),
        pytest.param(json.dumps(FACE), id="surrogate-pairs"),
        pytest.param(json.dumps(FACE, ensure_ascii=False), id="utf-8"),
        pytest.param(json.dumps(JSON, indent="\t"), id="tabs"),
        pytest.param(json.dumps(JSON, indent=2).replace("\n", "\r\n"), id="carriage-returns"),
        pytest.param(json.dumps(JSON).replace("/", "\\/"), id="escaped-slashes"),
        pytest.param("\ufeff" + json.dumps(JSON), id="byte-order-mark"),
    ],
)
def test_json_is_accepted_as_programs_write_it(lab: Lab, text: str) -> None:
    lab.archive()
    with lab.running():
        answer = lab.result(lab.drop_text("x", text, ".json"))
    assert answer["state"] == "staged", answer
    assert answer["note"] == json.loads(text.removeprefix("\ufeff"))["note"]
    assert list(answer["images"]) == JSON["images"]


def test_a_request_of_64_kib_is_accepted_and_one_byte_more_is_not(lab: Lab) -> None:
    lab.archive()
    with lab.running():
        whole = lab.drop_text("whole", TEXT + "#" * (64 * 1024 - len(TEXT)))
        more = lab.drop_text("more", TEXT + "#" * (64 * 1024 - len(TEXT) + 1))
        assert lab.result(whole)["state"] == "staged"
        answer = lab.result(more)
    assert (answer["state"], answer["error"]["code"]) == ("rejected", "invalid_request")


def test_a_file_removed_before_it_is_taken_is_withdrawn_unanswered(lab: Lab) -> None:
    lab.archive()
    lab.write_config(settle="2s")
    with lab.running():
        sh('printf %s "$text" >$box/x.yaml', lab)
        began = sh("sleep .3; rm $box/x.yaml", lab)
        sh('printf %s "$text" >$box/later.yaml', lab)
        assert taken_ns(lab.result("later")) > began
    assert not (lab.root / "results/x.yaml").exists()
    assert lab.ended("x") == []
