"""`submit` and `wait`: what is dropped, whose answer is taken, and what happens meanwhile."""

import fcntl
import hashlib
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import pytest
import yaml
from archives import make_image
from cloud import Cloud
from lab import BUCKET, BUILD, DEADLINE, FILES, Lab, until

from stager.request import Rules, parse_request

RULES = Rules(FILES, (BUCKET,))
ABSENT = f"gs://{BUCKET}/x86-alex-release/R99"


@contextmanager
def client(lab: Lab, *words: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Have a client command running for the length of a block."""
    command = [sys.executable, "-m", "stager.cli", words[0], "--config", str(lab.config)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    with subprocess.Popen(
        [*command, *words[1:]], env=lab.environment(), text=True, **options
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def await_line(stream: IO[str] | None, text: str, seconds: float = DEADLINE) -> None:
    """Read lines until one holds `text`."""
    assert stream is not None
    end = time.monotonic() + seconds
    said = ""
    while text not in said:
        ready, _, _ = select.select([stream], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"{text!r} was not said: {said}"
        line = stream.readline()
        assert line, f"{text!r} was not said: {said}"
        said += line


# -- what is dropped -------------------------------------------------------------------------------


def test_submit_drops_one_whole_request_and_prints_its_name(lab: Lab) -> None:
    done = lab.stager(
        "submit", BUILD, "test", "base", "--priority", "high", "--expires", "2h", "--wait-archive",
        "0", "--force", "--note", "no: it is \N{SNOWMAN}", umask=0o077,
    )  # fmt: skip
    (name,) = done.stdout.split()
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(lab.requests) == [f"{name}.yaml"]
    path = lab.requests / f"{name}.yaml"
    request = parse_request(path.read_bytes(), RULES)
    assert dict(request) == {
        "build": request.build, "images": ("test", "base"), "priority": 2, "expires": 7200,
        "wait": 0, "force": True, "note": "no: it is \N{SNOWMAN}",
    }  # fmt: skip
    assert request.build.url == BUILD
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.stat().st_nlink == 1
    assert path.read_bytes().endswith(b"\n")


def test_every_submission_has_a_name_and_bytes_of_its_own(lab: Lab) -> None:
    for _ in range(2):
        lab.stager("submit", BUILD + "/", "test")
    dropped = list(lab.requests.iterdir())
    assert len({path.read_bytes() for path in dropped}) == 2
    assert all("R23-2811.0.0" in path.name for path in dropped)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param([BUILD, "factory"], "invalid images requested: ['factory']", id="image"),
        pytest.param(["gs://x/y", "test"], "build", id="build"),
        pytest.param(["gs://foreign/a/b", "test"], "bucket is not allowed", id="bucket"),
        pytest.param([BUILD, "test", "--priority", "77"], "--priority: a priority", id="priority"),
        pytest.param([BUILD, "test", "--expires", "soon"], "--expires: a duration", id="expires"),
        pytest.param([BUILD, "test", "--wait-archive", "1w"], "--wait-archive: a", id="wait"),
        pytest.param([BUILD, "test", "--note", "x" * 201], "200 characters", id="note"),
        pytest.param([b"gs://\xff/a/b", "test"], "rejected", id="not UTF-8"),
    ],
)
def test_what_would_be_rejected_is_not_dropped(
    lab: Lab, words: list[str | bytes], said: str
) -> None:
    for more in ([], ["--wait"], ["--dry-run"]):
        done = lab.stager("submit", *map(os.fsdecode, words), *more)
        assert (done.returncode, done.stdout) == (3, "")
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert os.listdir(lab.requests) == []


def test_all_that_is_wrong_is_said_at_once(lab: Lab) -> None:
    done = lab.stager("submit", "nowhere", "factory", "--priority", "77", "--expires", "soon")
    assert done.returncode == 3
    for words in ("gs://BUCKET/PATH/BUILD", "['factory']", "--priority", "--expires", "hint: "):
        assert words in done.stderr


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        pytest.param([BUILD, "test", "--priority", "77"], "", id="priority"),
        pytest.param([BUILD, "test", "--expires", "soon"], "", id="expires"),
        pytest.param(["x86-alex-release/R23", "test"], "", id="build"),
        pytest.param(
            [BUILD, "tset,base"],
            "; did you mean `test`? images here: test, base, recovery", id="image",
        ),
        pytest.param(
            ["gs://foreign/a/b", "test"],
            "; name one of the allowed buckets, or have the admin add it to archive.buckets",
            id="bucket",
        ),
    ],
)  # fmt: skip
def test_a_hint_is_about_what_is_wrong(lab: Lab, words: list[str], hint: str) -> None:
    done = lab.stager("submit", *words)
    assert done.returncode == 3
    first = "hint: nothing was dropped; correct it and ask again"
    assert done.stderr.splitlines()[-1] == f"{first}{hint}"


def test_a_dry_run_prints_the_request_and_drops_nothing(lab: Lab) -> None:
    done = lab.stager("submit", BUILD, "recovery", "test", "--dry-run")
    assert done.returncode == 0
    assert parse_request(done.stdout.encode(), RULES).images == ("recovery", "test")
    assert os.listdir(lab.requests) == []


def test_a_name_that_waits_already_is_not_replaced(lab: Lab) -> None:
    assert lab.stager("submit", BUILD, "test", "--name", "mine").stdout == "mine\n"
    before = (lab.requests / "mine.yaml").read_bytes()
    done = lab.stager("submit", BUILD, "base", "--name", "mine")
    assert (done.returncode, done.stdout) == (2, "")
    assert "another name" in done.stderr
    assert (lab.requests / "mine.yaml").read_bytes() == before
    assert os.listdir(lab.requests) == ["mine.yaml"]


# -- whose answer ----------------------------------------------------------------------------------


def test_only_the_answer_to_ones_own_bytes_is_taken(lab: Lab) -> None:
    lab.archive()
    lab.drop("mine", images=["base"])
    assert lab.once().returncode == 0
    early = lab.stager("submit", BUILD, "test", "--name", "mine", "--wait", "--timeout", "0.3")
    assert (early.returncode, early.stdout) == (4, ""), "the answer there is to other bytes"
    assert lab.once().returncode == 0
    with client(lab, "submit", BUILD, "test", "--name", "mine", "--wait") as process:
        (path,) = until(lambda: list(lab.requests.glob("mine.yaml")))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        with lab.running():
            stdout, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, stderr
    assert stderr.splitlines()[0] == "mine"
    answer = yaml.safe_load(stdout)
    assert answer["request_sha256"] == digest
    assert list(answer["images"]) == ["test"]


def test_wait_does_not_take_an_older_answer_while_a_request_of_that_name_waits(lab: Lab) -> None:
    lab.archive()
    lab.drop("again", images=["base"])
    lab.once()
    lab.drop("again", images=["test"])
    assert lab.stager("wait", "again", "--timeout", "0.3").returncode == 4
    with client(lab, "wait", "again") as process, lab.running():
        stdout, _ = process.communicate(timeout=DEADLINE)
    assert list(yaml.safe_load(stdout)["images"]) == ["test"]


def test_a_name_that_ends_like_a_file_is_answered_too(lab: Lab) -> None:
    lab.archive()
    lab.drop("night", images=["base"])
    with lab.running():
        lab.result("night")
        done = lab.stager(
            "submit", BUILD, "test", "--name", "night.yaml", "--wait", "--timeout", "10"
        )
        assert done.returncode == 0, done.stderr
        assert list(yaml.safe_load(done.stdout)["images"]) == ["test"]


def test_an_answer_that_is_committed_but_not_published_yet_is_waited_for(lab: Lab) -> None:
    lab.archive()
    lab.drop("late")
    lab.once()
    (claim,) = lab.ended("late")
    # As a machine leaves it that dies between the two; whoever comes next publishes.
    (lab.root / "results/late.yaml").rename(lab.root / "spool/private" / str(claim))
    with client(lab, "wait", "late", "--timeout", "20") as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        with lab.running():
            assert process.wait(DEADLINE) == 0


def test_a_wait_goes_on_while_nothing_can_be_read(lab: Lab) -> None:
    lab.archive()
    lab.drop("mine")
    away = lab.root / "away"
    with client(lab, "wait", "mine", "--timeout", "60") as process:
        await_line(process.stderr, "no watcherd runs")
        requests = lab.root / "spool/requests"
        requests.rename(away)
        requests.write_text("a file where a directory should be\n")
        await_line(process.stderr, "the wait goes on: ")
        requests.unlink()
        away.rename(requests)
        with lab.running():
            assert process.wait(DEADLINE) == 0


def test_an_older_answer_is_not_taken_while_a_newer_one_is_on_its_way(lab: Lab) -> None:
    lab.archive()
    answer = lab.root / "results/again.yaml"
    lab.drop("again", images=["base"])
    lab.once()
    older = answer.read_bytes()
    lab.drop("again", images=["test"])
    lab.once()
    claim = max(lab.ended("again"), key=lambda claim: claim.arrived_ns)
    answer.rename(lab.root / "spool/private" / str(claim))
    answer.write_bytes(older)
    with client(lab, "wait", "again", "--timeout", "60") as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        with lab.running():
            stdout, _ = process.communicate(timeout=DEADLINE)
    assert list(yaml.safe_load(stdout)["images"]) == ["test"]


# -- while waiting ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["time-out", "^C"])
def test_a_request_goes_on_when_its_waiter_has_gone(lab: Lab, how: str) -> None:
    lab.archive()
    words = ["submit", BUILD, "test", "--name", "mine", "--wait"]
    if how == "time-out":
        done = lab.stager(*words, "--timeout", "0.2")
        assert done.returncode == 4
        assert "the request goes on" in done.stderr
    else:
        with client(lab, *words) as process:
            await_line(process.stderr, "mine")
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=DEADLINE)
        assert (process.returncode, stdout) == (130, "")
        assert "Traceback" not in stderr
    with lab.running():
        assert lab.result("mine")["state"] == "staged"
        assert lab.stager("wait", "mine").returncode == 0


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ("nobody", "no watcherd runs"),
        ("a killed one", "no watcherd runs"),
        ("one elsewhere", "no live watcherd for 2 s"),
    ],
)
def test_whoever_waits_is_warned_when_no_daemon_moves_or_is_there(
    lab: Lab, there: str, words: str
) -> None:
    if there == "one elsewhere":
        lab.peer(machine="another")
    elif there == "a killed one":
        lab.start().kill()
    lab.drop("mine")
    with client(lab, "wait", "mine") as process:
        await_line(process.stderr, words)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=DEADLINE)
    assert (process.returncode, stdout) == (130, "")
    assert "watcherd" not in stderr, "it is said once"


def test_whoever_waits_is_not_warned_while_a_daemon_lives(lab: Lab) -> None:
    lab.drop("mine", ABSENT)
    with lab.running():
        done = lab.stager("wait", "mine", "--timeout", "3.5")
    assert done.returncode == 4
    assert "watcherd" not in done.stderr


def test_an_unclaimed_request_can_be_withdrawn_and_is_never_answered(lab: Lab) -> None:
    lab.archive()
    words = ["submit", BUILD, "test", "--name", "mine", "--wait"]
    with client(lab, *words) as process:
        (path,) = until(lambda: list(lab.requests.glob("mine.yaml")))
        path.unlink()
        assert process.wait(DEADLINE) == 5
    with lab.running():
        lab.result(lab.drop("other"))
    assert not (lab.root / "results/mine.yaml").exists()
    assert lab.stager("wait", "mine").returncode == 5


WATCHED = """
import json, sys
events = []
sys.addaudithook(lambda name, args: events.append([name, str(args[0])])
                 if name in ("os.listdir", "open") else None)
from stager.cli import main
try:
    main()
finally:
    with open({path!r}, "w") as f:
        json.dump(events, f)
"""


def test_waiting_is_done_by_listing_and_the_answer_is_opened_once(lab: Lab) -> None:
    lab.archive()
    told, results = lab.root / "events.json", lab.root / "results"
    lab.drop("mine")
    command = [sys.executable, "-c", WATCHED.format(path=str(told)), "wait", "mine"]
    with subprocess.Popen(
        [*command, "--config", str(lab.config)], env=lab.environment(), stdout=subprocess.PIPE
    ) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        with lab.running():
            assert process.wait(DEADLINE) == 0
    events = [tuple(event) for event in json.loads(told.read_text())]
    opened = ("open", str(results / "mine.yaml"))
    assert events.count(opened) == 1
    before = events[: events.index(opened)]
    assert before.count(("os.listdir", str(lab.requests))) >= 3
    assert before[-1] == ("os.listdir", str(results))


def test_a_terminal_shows_a_bar_with_rate_and_time_left(cloud_lab: tuple[Lab, Cloud]) -> None:
    lab, cloud = cloud_lab
    contents = lab.upload(cloud, images={FILES["test"]: make_image(1, 16_000_000)})
    cloud.slow(lab.archive_path().stat().st_size // 5)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    lab.env["TERM"] = "xterm-256color"
    words = ["submit", BUILD, "test", "--name", "mine", "--wait"]
    shown = b""
    with lab.running(), client(lab, *words, stderr=theirs) as process:
        os.close(theirs)
        end = time.monotonic() + DEADLINE
        while process.poll() is None and time.monotonic() < end:
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    shown += os.read(ours, 65536)
                except OSError:  # the other end is closed
                    break
        stdout, _ = process.communicate(timeout=DEADLINE)
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert process.returncode == 0, text
    assert yaml.safe_load(stdout)["state"] == "staged"
    assert lab.image("test").read_bytes() == contents[FILES["test"]]
    bar = r"mine: fetching test [━╸╺ ]+[\d.]+/[\d.]+ MB [\d.]+ [kM]B/s \d:\d\d:\d\d"
    frames = re.findall(bar, text)
    assert frames, text
    done = [float(m[1]) for f in frames if (m := re.search(r"([\d.]+)/", f))]
    assert len(set(done)) >= 2, "the bar moves"
    assert done == sorted(done)
