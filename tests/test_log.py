"""The log: one line an event, in the form that its reader takes, and no secret in it."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Sequence

import pytest
from cloud import Cloud
from lab import ROOT, Lab, until
from yard import SECRET

HEAD = f"""
import logging, sys, threading, warnings
import structlog
from stager import log
log.set_up(sys.argv[1], "info")
logger = structlog.get_logger()
secret = {SECRET!r}
"""
FAULT = """
def read(content):
    raise ValueError(f"can't parse {content}")
try:
    try:
        read(secret)
    except ValueError as e:
        {}[secret]
except KeyError:
    logger.exception("a fault of ours", request_id="17-abc")
"""
OUTSIDE = {
    "a library's warning": "logging.getLogger('urllib3').warning('a\\nb')",
    "a deprecation": "warnings.simplefilter('always'); warnings.warn('old')",
    "a fault in a thread": "t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()",
    "a fault that ends it": "raise RuntimeError(secret)",
    "one where nobody can raise": "class A:\n def __del__(self): raise ValueError(secret)\nA()",
}


def lines(
    script: str, form: str = "auto", *, journal: bool = False, code: int | None = 0
) -> list[str]:
    """Run a script; return what it wrote to stderr."""
    read, write = os.pipe()
    info = os.fstat(write)
    env = {k: v for k, v in os.environ.items() if k != "JOURNAL_STREAM"} | {"PYTHONPATH": str(ROOT)}
    if journal:
        env["JOURNAL_STREAM"] = f"{info.st_dev}:{info.st_ino}"
    with os.fdopen(read, encoding="utf-8") as told:
        done = subprocess.run(
            [sys.executable, "-c", HEAD + script, form],
            stderr=write, check=False, env=env, timeout=30,
        )  # fmt: skip
        os.close(write)
        text = told.read()
    assert code is None or done.returncode == code, text
    return text.splitlines()


@pytest.mark.parametrize("form", ["text", "json", "auto"])
@pytest.mark.parametrize("journal", [False, True], ids=["a pipe", "the journal"])
def test_a_fault_of_ours_is_one_line_that_says_where_and_what_kind(
    form: str, journal: bool
) -> None:
    [line] = lines(FAULT, form, journal=journal)
    assert line.startswith("<3>") == journal
    assert "Traceback: " in line
    assert re.search(r"<string>:\d+ <module>: KeyError, after ", line)
    assert re.search(r"<string>:\d+ read: ValueError", line)
    assert "17-abc" in line
    assert SECRET not in line
    if form == "json":
        data = json.loads(line.removeprefix("<3>"))
        assert (data["event"], data["level"]) == ("a fault of ours", "error")
        assert data["request_id"] == "17-abc"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", data["timestamp"])


@pytest.mark.parametrize("script", OUTSIDE.values(), ids=OUTSIDE)
def test_what_is_not_our_event_becomes_one(script: str) -> None:
    [line] = lines(script, "json", journal=True, code=None)
    assert json.loads(line[3:])["level"] in {"warning", "critical"}
    assert line[:3] in {"<2>", "<4>"}
    assert SECRET not in line


@pytest.mark.parametrize(
    ("level", "priority"), [("info", 6), ("warning", 4), ("error", 3), ("critical", 2)]
)
def test_the_journal_gets_its_levels(level: str, priority: int) -> None:
    [line] = lines(f"logger.{level}('told', request_id='1-a')", journal=True)
    assert re.fullmatch(rf"<{priority}>\[{level} *\] told request_id=1-a", line)


def test_control_characters_reach_no_reader() -> None:
    [line] = lines("logger.info('a\\x1b[31m\\nb', entry='c\\rd')", "text")
    assert r"a\x1b[31m\nb" in line
    assert r"c\rd" in line


def on_a_terminal(words: Sequence[str], **env: str) -> str:
    """Run a program whose stderr is a terminal; return what it shows."""
    ours, its = pty.openpty()
    process = subprocess.Popen(words, stderr=its, env=os.environ | env)
    os.close(its)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # the terminal's other side was closed
        pass
    os.close(ours)
    assert process.wait(30) == 0
    return shown.decode()


def test_colour_is_for_terminals_that_want_it() -> None:
    words = [sys.executable, "-c", HEAD + "logger.info('told')", "auto"]
    env = {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    assert "\x1b[" in on_a_terminal(words, **env)
    assert "\x1b[" not in on_a_terminal(words, NO_COLOR="1", **env)
    assert "\x1b[" not in lines("logger.info('told')")[0]


# -- the daemon's -------------------------------------------------------------------------------


def test_the_seeds_messages_are_there_each_with_its_request(lab: Lab) -> None:
    lab.write_config(log={"format": "json"})
    lab.archive()
    with lab.running() as daemon:
        ids = [lab.ask(images=["base", "test"])["request_id"] for _ in range(2)]
    events = [json.loads(line) for line in daemon.log.splitlines()]
    target = "images/x86-alex-release/R23-2811.0.0"
    said = [e["event"] for e in events if e.get("request_id") == ids[0]]
    assert said[:2] == [
        f"Image(s) `base' and `test' for build {target} will be staged",
        "Downloading image archive from gs://chromeos-image-archive/x86-alex-release/R23-2811.0.0",
    ]
    assert said[2:] == ["staged"]
    again = [e["event"] for e in events if e.get("request_id") == ids[1]]
    assert again == [
        f"All requested images (`base' and `test') for build {target} have already been staged."
    ]


def test_an_idle_daemon_says_nothing(lab: Lab) -> None:
    lab.write_config(rescan="0.05s")
    with lab.running() as daemon:
        before = daemon.log
        until(lambda: any(int(n.rpartition(".")[2]) > 6 for n in beats(lab)), "some beats")
        assert daemon.log == before


def beats(lab: Lab) -> list[str]:
    return [name for name in lab.spool("instances") if name[-1].isdigit()]


BAD_KEY = {
    "type": "service_account",
    "client_email": f"{SECRET}@b.invalid",
    "private_key_id": SECRET,
    "token_uri": f"https://{SECRET}.invalid/token",
    "private_key": f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n",
}
BAD_REQUESTS = (
    SECRET,
    f"build: {SECRET}",
    f"images: [{SECRET}",
    f"{SECRET}: &a [*a]",
    f"build: gs://x/y/z\nimages: [test]\npriority: {SECRET}",
    f"\x00{SECRET}",
)


@pytest.mark.parametrize("key", [json.dumps(BAD_KEY), f"{{{SECRET}"], ids=["a bad key", "no JSON"])
def test_no_word_of_a_key_or_of_what_was_dropped_is_told(
    cloud_lab: tuple[Lab, Cloud], key: str
) -> None:
    lab, cloud = cloud_lab
    lab.upload(cloud)
    file = lab.root / "key.json"
    file.write_text(key)
    log = {"format": "json", "level": "debug"}
    lab.write_config(archive={"source": "gcs", "credentials": str(file)}, log=log)
    with lab.running() as daemon:
        lab.drop("asks")
        daemon.await_log("the queue waits: the key file is none")
        for number, content in enumerate(BAD_REQUESTS):
            lab.drop_text(f"bad{number}", content)
            assert lab.result(f"bad{number}")["state"] == "rejected"
    assert SECRET not in daemon.log
    events = [json.loads(line) for line in daemon.log.splitlines()]
    assert len([e for e in events if e["event"].startswith("rejected")]) == len(BAD_REQUESTS)
