"""The client commands as programs: exit codes, what goes to stdout, and who may do what."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab import BUCKET, BUILD, NOBODY, Lab, until

from stager.client import exit_code

MISSING = f"gs://{BUCKET}/x86-alex-release/R99-not-there"


@pytest.fixture(scope="module")
def spool() -> Iterator[Lab]:
    """Return a lab with a live daemon and a request of every state, for tests that change none."""
    root = Path(tempfile.mkdtemp(prefix="watcherd-test-"))
    root.chmod(0o755)
    lab = Lab(root).init()
    lab.archive()
    with lab.running():
        lab.drop("good")
        lab.drop("good-too", priority="high")
        lab.drop("bad", MISSING, wait=0)
        lab.drop("wrong", images=["factory"])
        lab.drop("pending", MISSING + "-yet")
        lab.drop("stopped", MISSING + "-either")
        for name in ("good", "good-too", "bad", "wrong"):
            lab.result(name)
        assert lab.stager("cancel", "stopped").returncode == 0
        lab.result("stopped")
        yield lab
    lab.end()
    shutil.rmtree(root)


def run(lab: Lab, line: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return lab.stager(*line.split(), **options)


# -- exit codes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code"),
    [
        pytest.param("wait good", 0, id="staged"),
        pytest.param("wait bad", 1, id="failed"),
        pytest.param("wait", 2, id="usage"),
        pytest.param("wait wrong", 3, id="rejected"),
        pytest.param("wait pending --timeout 0.1", 4, id="timed out"),
        pytest.param("wait nobody", 5, id="no such request"),
        pytest.param("wait stopped", 6, id="cancelled"),
        pytest.param("wait good.yaml good.yml good.json", 0, id="with a suffix"),
        pytest.param("wait good good-too", 0, id="all good"),
        pytest.param("wait good stopped", 6, id="6 before 0"),
        pytest.param("wait stopped wrong good", 3, id="3 before 6"),
        pytest.param("wait wrong stopped bad", 1, id="1 before 3"),
        pytest.param("wait bad pending wrong --timeout 0.1", 4, id="4 before 1"),
        pytest.param("wait pending nobody bad --timeout 1", 5, id="5 before 4"),
        pytest.param("show good", 0, id="show"),
        pytest.param("show pending", 0, id="show what waits"),
        pytest.param("show nobody", 5, id="show nothing"),
        pytest.param("status", 0, id="status"),
        pytest.param("status bad", 0, id="status of a failed one"),
        pytest.param("status nobody", 5, id="status of nothing"),
        pytest.param("status --check", 0, id="healthy"),
        pytest.param("list", 0, id="list"),
        pytest.param("cancel nobody", 5, id="cancel nothing"),
        pytest.param("cancel good", 1, id="too late to cancel"),
        pytest.param("cancel stopped", 0, id="cancelled before"),
        pytest.param("retry nobody", 5, id="retry nothing"),
        pytest.param(f"submit {BUILD} factory", 3, id="submit what would be rejected"),
        pytest.param(f"submit {BUILD} test --wait", 0, id="submit and wait"),
        pytest.param(f"submit {MISSING} test --wait --wait-archive 0", 1, id="submit in vain"),
        pytest.param(f"submit {MISSING} test --wait --timeout 0.3", 4, id="submit too briefly"),
        pytest.param("verify", 0, id="all sound"),
        pytest.param("doctor", 0, id="all well"),
        pytest.param("--help", 0, id="help"),
        pytest.param("--version", 0, id="version"),
    ],
)  # fmt: skip
def test_the_exit_code_says_how_it_ended(spool: Lab, line: str, code: int) -> None:
    done = direct(spool, line) if line.startswith("--") else run(spool, line)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def direct(lab: Lab, line: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the program with just these words."""
    return subprocess.run(
        [sys.executable, "-m", "stager.cli", *line.split()], capture_output=True, text=True,
        env=lab.environment() | env, timeout=30, check=False, cwd="/",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0, 6], 6), ([6, 3], 3), ([3, 1], 1), ([1, 4], 4), ([4, 5], 5), ([5, 2], 2),
        ([0, 6, 3, 1, 4, 5, 2], 2), ([0], 0),
    ],
)  # fmt: skip
def test_several_end_with_the_first_of_2_5_4_1_3_6_0(codes: list[int], expected: int) -> None:
    assert exit_code(codes) == exit_code(codes[::-1]) == expected


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("frobnicate", id="no such command"),
        pytest.param("status --frobnicate", id="no such option"),
        pytest.param("--json status", id="an option before the command"),
        pytest.param("--config CONFIG status", id="the configuration before the command"),
        pytest.param("submit --config CONFIG", id="no build"),
        pytest.param(f"submit {BUILD} --config CONFIG", id="no image"),
        pytest.param("wait --config CONFIG", id="wait for nothing"),
        pytest.param("wait x --timeout soon --config CONFIG", id="no duration"),
        pytest.param(f"submit {BUILD} test --timeout 5 --config CONFIG", id="no wait to time out"),
        pytest.param("pin --config CONFIG", id="pin nothing"),
        pytest.param("pin R23-1 --config CONFIG", id="pin no build"),
        pytest.param(f"unpin {BUILD} gs://a --config CONFIG", id="unpin a build and none"),
        pytest.param("show --config CONFIG", id="show nothing"),
        pytest.param("cancel --config CONFIG", id="cancel nothing"),
        pytest.param("cancel x --all --config CONFIG", id="a name and all"),
        pytest.param("retry --config CONFIG", id="retry nothing"),
        pytest.param("cancel --all --state foo --config CONFIG", id="no state to cancel in"),
        pytest.param("cancel --all --state done --config CONFIG", id="too late to cancel"),
        pytest.param("cancel --all --code nope --config CONFIG", id="no code"),
        pytest.param("retry --all --state waiting --config CONFIG", id="too early to retry"),
        pytest.param("status --config /no/such/file", id="no configuration"),
        pytest.param("status --config BROKEN", id="a broken configuration"),
        pytest.param(f"submit {BUILD} test --name a/b --config CONFIG", id="a name with a slash"),
        pytest.param(f"submit {BUILD} test --name .a --config CONFIG", id="a hidden name"),
        pytest.param(f"submit {BUILD} test --name {'n' * 151} --config CONFIG", id="a long name"),
    ],
)
def test_usage_and_configuration_errors_end_with_2(spool: Lab, line: str) -> None:
    broken = spool.root / "broken.yaml"
    broken.write_text("wrokers: 1\n")
    done = direct(spool, line.replace("CONFIG", str(spool.config)).replace("BROKEN", str(broken)))
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr
    assert "Traceback" not in done.stderr
    assert spool.spool("requests") == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("cancel --all --state foo", "'foo' is not one of 'waiting', 'active'"),
        ("retry --all --state foo", "'foo' is not one of 'done', 'failed', 'cancelled'"),
        ("cancel --all --code nope", "'archive_not_found'"),
    ],
)
def test_the_words_that_choose_requests_are_told(spool: Lab, line: str, words: str) -> None:
    done = run(spool, line)
    assert done.returncode == 2
    assert words in done.stderr
    assert not [name for name in spool.spool("control") if name.endswith(".order")]


def test_the_configuration_before_the_command_is_told_its_place(spool: Lab) -> None:
    done = direct(spool, f"--config {spool.config} status")
    assert done.returncode == 2
    assert f"`stager COMMAND --config {spool.config}`" in done.stderr


def test_the_environment_is_part_of_the_configuration(spool: Lab) -> None:
    assert direct(spool, "status", STAGER_CONFIG=str(spool.config)).returncode == 0
    done = direct(spool, "status", STAGER_CONFIG=str(spool.config), STAGER_NOTHING="1")
    assert done.returncode == 2
    assert "$STAGER_NOTHING" in done.stderr


COMMANDS = [
    f"submit {BUILD} test", "wait x", "status", "status x", "list", "show x", "cancel x",
    "retry x", "pause", "resume", "verify", "doctor",
]  # fmt: skip


@pytest.mark.parametrize("line", COMMANDS)
@pytest.mark.parametrize("there", ["nothing", "an empty mount point"])
def test_without_a_spool_every_command_says_what_to_run(
    public_dir: Path, line: str, there: str
) -> None:
    lab = Lab(public_dir)
    if there != "nothing":
        for name in ("spool", "static", "results"):
            (lab.root / name).mkdir()
    done = run(lab, line)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "stager init" in done.stderr
    assert "Traceback" not in done.stderr


# -- what goes where -------------------------------------------------------------------------------

DOCUMENTS = {
    "init": "init",
    "submit": f"submit {BUILD} test",
    "submit and wait": f"submit {BUILD} test --wait",
    "submit for show": f"submit {BUILD} test --dry-run",
    "wait": "wait good",
    "wait for a failed one": "wait bad",
    "wait for several": "wait good bad wrong",
    "status": "status",
    "status of one": "status pending",
    "status checked": "status --check",
    "list": "list",
    "show": "show good",
    "show what waits": "show pending",
    "cancel": "cancel stopped",
    "cancel what is not there": "cancel nobody",
    "retry": "retry nobody",
    "pause": "pause --host elsewhere",
    "resume": "resume --host elsewhere",
    "verify": "verify",
    "doctor": "doctor",
}


@pytest.mark.parametrize("what", DOCUMENTS)
def test_every_command_has_a_json_document_and_nothing_else_on_stdout(
    spool: Lab, what: str
) -> None:
    done = run(spool, f"{DOCUMENTS[what]} --json")
    assert isinstance(json.loads(done.stdout), dict), done.stdout


@pytest.mark.parametrize("what", [k for k in DOCUMENTS if not k.startswith(("status", "list"))])
def test_documents_for_people_are_yaml(spool: Lab, what: str) -> None:
    document = yaml.safe_load(run(spool, DOCUMENTS[what]).stdout)
    assert isinstance(document, str if what == "submit" else dict)


def test_json_and_yaml_say_the_same(spool: Lab) -> None:
    for line in ("wait good", "wait bad", "wait good wrong", "show bad"):
        text, as_json = run(spool, line), run(spool, f"{line} --json")
        assert yaml.safe_load(text.stdout) == json.loads(as_json.stdout)


def test_wait_prints_the_answer_and_explains_it_on_stderr(spool: Lab) -> None:
    done = run(spool, "wait bad")
    answer = yaml.safe_load(done.stdout)
    assert done.stdout.startswith("state: failed\n")
    assert answer["error"]["code"] == "archive_not_found"
    assert answer["error"]["message"] in done.stderr
    assert f"hint: {answer['error']['hint']}" in done.stderr
    several = yaml.safe_load(run(spool, "wait bad good").stdout)
    assert several["bad"] == answer
    assert several["good"]["state"] in {"staged", "already_staged"}


def test_a_request_is_found_by_name_by_dropped_name_and_by_id(spool: Lab) -> None:
    answer = yaml.safe_load(run(spool, "show good").stdout)
    for name in ("good.yaml", answer["request_id"]):
        assert yaml.safe_load(run(spool, f"show {name}").stdout) == answer
        assert run(spool, f"wait {name}").returncode == 0
    waiting = yaml.safe_load(run(spool, "show pending").stdout)
    assert waiting["state"] in {"waiting", "active"}
    for name in ("pending.yaml", waiting["request_id"]):
        shown = yaml.safe_load(run(spool, f"show {name}").stdout)
        assert (shown["request"], shown["request_id"]) == ("pending.yaml", waiting["request_id"])
        assert run(spool, f"wait {name} --timeout 0").returncode == 4


def test_a_reader_that_went_away_is_no_fault(spool: Lab) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "stager.cli", "list", "--config", str(spool.config)]
    done = subprocess.run(
        command, stdout=theirs, stderr=subprocess.PIPE, env=spool.environment(), timeout=30,
        check=False,
    )  # fmt: skip
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, b"")


def test_no_bars_and_no_colours_where_there_is_no_terminal(spool: Lab) -> None:
    for line in (f"submit {BUILD} test --wait", "wait bad", "status", "list"):
        done = run(spool, line)
        assert "\x1b" not in done.stdout + done.stderr
        assert "\r" not in done.stdout + done.stderr


def test_a_machine_that_nobody_knows_is_told_beside_those_that_are(spool: Lab) -> None:
    host = socket.gethostname()
    done = run(spool, "pause --host elsewhere")
    assert done.returncode == 0
    assert done.stderr == (
        f"no machine elsewhere is known here now (known: {host}): it is paused for when it comes; "
        "stager resume --host elsewhere takes that back\n"
    )
    slip = f"{host}x"
    assert f"(known: {host}; did you mean {host}?)" in run(spool, f"pause --host {slip}").stderr
    assert slip in json.loads(run(spool, "status --json").stdout)["paused"]
    assert run(spool, f"resume --host {slip}").stderr == ""
    assert run(spool, "resume --host elsewhere").stderr == ""
    done = run(spool, "resume --host elsewhere")
    assert done.stderr == "elsewhere itself was not paused (paused: none)\n"
    for name in (host, host.split(".")[0]):
        assert run(spool, f"pause --host {name}").stderr == ""
        assert run(spool, f"resume --host {name}").stderr == ""


READ = r"read 1 staged image \(300 kB\) below \S+; damaged: none\n"
WOULD_GO = (
    r"looked at 1 build \(\d+ kB\), \d+ answered requests and \d+ answers; would go: 0 builds, "
    r"0 files; builds stay: no rule of retention\.builds is set\n"
)

EXAMINED = (
    r"looked at \d+ requests, \d+ answers, \d+ tokens, 1 build, 1 image; "
    r"broken: none, remarks: none\n"
)
NONE_OLDER = r"looked at 1 flagged build below \S+/images; older images without a record: none\n"


@pytest.mark.parametrize(
    ("line", "said", "looked_at"),
    [
        pytest.param("verify", READ, {"images": 1, "bytes": 300_000}, id="verify"),
        pytest.param("gc --dry-run", WOULD_GO, {"builds": 1}, id="gc"),
        pytest.param("doctor", EXAMINED, {}, id="doctor"),
        pytest.param("adopt --dry-run", NONE_OLDER, {"builds": 1}, id="adopt"),
    ],
)
def test_who_finds_nothing_says_what_was_looked_at(
    spool: Lab, line: str, said: str, looked_at: dict[str, int]
) -> None:
    done = run(spool, line)
    assert re.fullmatch(said, done.stderr), done.stderr
    shown = yaml.safe_load(done.stdout).get("looked_at", {})
    assert {key: shown[key] for key in looked_at} == looked_at


# -- who may ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["verify", "doctor", "pause", "cancel --all"])
def test_only_root_and_the_daemons_user_may_rule(spool: Lab, line: str) -> None:
    done = run(spool, line, user=NOBODY)
    assert (done.returncode, done.stdout) == (2, "")
    assert "daemon's user" in done.stderr
    assert not [name for name in spool.spool("control") if name.endswith(".order")]


@pytest.mark.parametrize(
    "line", ["wait good", "status", "status --check", "list", "show bad", "show pending"]
)
def test_anybody_may_look(spool: Lab, line: str) -> None:
    def heads() -> list[tuple[int, list[str]]]:
        looks = [run(spool, line, user=user) for user in (None, NOBODY)]
        return [(look.returncode, look.stdout.splitlines()[:1]) for look in looks]

    # What waits is looked at now and then, and is active meanwhile.
    until(lambda: len({str(head) for head in heads()}) == 1, "the same for both")
