"""The on_done command: told of every answer, and harmless whatever it does."""

import json
import os
import stat
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest
from lab import BUILD, Lab, until
from test_spool import answer_to

from stager.hook import Call, Hook
from stager.layout import Claim
from stager.result import Result, State

TELLS = """\
#!{python}
import json, os, sys
told = {{k: v for k, v in os.environ.items() if k.startswith("WATCHERD_")}}
told |= {{"argv": sys.argv[1:], "answer": json.load(sys.stdin)}}
with open("{told}.new", "a") as f:
    f.write(json.dumps(told) + "\\n")
os.link("{told}.new", "{told}." + told["WATCHERD_NAME"])
"""


def told(lab: Lab, name: str) -> dict[str, Any]:
    """Return what the command was told about a request."""
    until((lab.root / f"told.{name}").exists, f"a call for {name}")
    lines = (lab.root / "told.new").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    mine = [call for call in found if call["WATCHERD_NAME"] == name]
    assert len(mine) == 1, "called once"
    return dict(mine[0])


def program(lab: Lab, text: str) -> str:
    path = lab.root / "on-done"
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def telling(lab: Lab) -> Lab:
    """Return a lab whose command writes down what it is told."""
    command = program(lab, TELLS.format(python=sys.executable, told=lab.root / "told"))
    lab.write_config(on_done=[command, "one argument; $(not a shell)"])
    return lab


def test_it_is_told_of_good_and_of_bad_answers(telling: Lab) -> None:
    telling.archive()
    with telling.running():
        name = telling.drop("good")
        answer = telling.result(name)
        good = told(telling, name)
        assert good["argv"] == ["one argument; $(not a shell)"]
        assert good["answer"]["images"]["test"]["sha256"] == answer["images"]["test"]["sha256"]
        assert good["WATCHERD_STATE"] == "staged"
        assert good["WATCHERD_BUILD"] == BUILD
        assert Path(good["WATCHERD_RESULT"]).read_text().startswith("state: staged")
        assert Path(good["WATCHERD_TARGET"]) == telling.target()
        telling.result(telling.drop_text("bad", "nothing: here\n"))
        bad = told(telling, "bad")
        assert (bad["WATCHERD_STATE"], bad["WATCHERD_CODE"]) == ("rejected", "invalid_request")


def test_it_is_called_for_all_answers_before_the_daemon_ends(telling: Lab) -> None:
    telling.archive()
    names = [telling.drop(f"many-{i}") for i in range(20)]
    done = telling.once()
    assert done.returncode == 0, done.stderr
    assert all((telling.root / f"told.{name}").exists() for name in names)


def test_a_new_command_counts_after_a_reload(lab: Lab) -> None:
    lab.archive()
    with lab.running() as daemon:
        assert lab.ask()["state"] == "staged"
        command = program(lab, TELLS.format(python=sys.executable, told=lab.root / "told"))
        lab.write_config(on_done=[command])
        os.kill(daemon.process.pid, 1)
        daemon.await_log("read again")
        lab.result(lab.drop("later"))
        assert told(lab, "later")["WATCHERD_STATE"] == "already_staged"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("#!/bin/sh\necho alas >&2\nexit 3\n", "exit code 3: alas", id="it fails"),
        pytest.param("#!/bin/sh\nkill -9 $$\n", "exit code -9", id="it dies"),
        pytest.param("#!/nowhere/sh\n", "No such file", id="it can't be started"),
        pytest.param("no program\n", "Exec format error", id="it is no program"),
    ],
)
def test_its_failure_is_said_and_changes_nothing(lab: Lab, text: str, said: str) -> None:
    lab.archive()
    lab.write_config(on_done=[program(lab, text)])
    with lab.running() as daemon:
        answer = lab.ask()
        assert answer["state"] == "staged"
        daemon.await_log(f"on_done failed: {said}")
        assert answer["request_id"] in daemon.log
        assert lab.ask()["state"] == "already_staged"


def test_one_that_hangs_keeps_nobody_and_ends_with_its_children(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.archive()
    pids = lab.root / "pids"
    lab.write_config(on_done=[program(lab, f"#!/bin/sh\nsleep 99 &\necho $! $$ >> {pids}\nwait\n")])
    (lab.root / "sitecustomize.py").write_text(
        "import stager.hook\nstager.hook.CALL_SECONDS = 0.5\n"
    )
    monkeypatch.setitem(lab.env, "PYTHONPATH", f"{lab.root}:{lab.environment()['PYTHONPATH']}")
    with lab.running() as daemon:
        assert lab.ask()["state"] == "staged"
        assert lab.ask()["state"] == "already_staged"
        daemon.await_log("on_done failed: killed after")
        until(lambda: len(pids.read_text().splitlines()) == 2, "the second call")
        until(lambda: daemon.log.count("killed after") == 2, "the second end")
    for pid in pids.read_text().split():
        assert (
            not os.path.exists(f"/proc/{pid}/cmdline")
            or not Path(f"/proc/{pid}/cmdline").read_bytes()
        ), "a process of the command is left"


def test_a_call_that_finds_no_thread_waits_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = Hook(["touch", str(tmp_path / "called")])
    result = Result(
        state=State.FAILED, request="a.yaml", request_id="1-a", attempts=0, host="here",
        received="", finished="",
    )  # fmt: skip

    def none_left(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as short:
        short.setattr(threading.Thread, "start", none_left)
        hook.call(Call(result, tmp_path, ""))
        hook.stop()
    hook.call(Call(result, tmp_path, ""))
    hook.stop()
    assert (tmp_path / "called").exists()


def test_calls_from_several_workers_at_once_share_one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the thread that nobody knows of would never end."""
    call = Call(answer_to(Claim("a.yaml", "1-a", 1, 1, "x-aaaaaa", "abcdefgh")), Path("/x"), "")
    workers, make = 4, threading.Thread.__init__
    gate, hook = threading.Barrier(workers), Hook(["/nowhere/on-done"])

    def make_slowly(self: threading.Thread, *args: Any, **options: Any) -> None:
        """Be a machine that has much to do: others get on meanwhile."""
        time.sleep(0.05)
        make(self, *args, **options)

    def work(_: int) -> None:
        gate.wait(30)
        hook.call(call)

    with ThreadPoolExecutor(workers) as pool:
        monkeypatch.setattr(threading.Thread, "__init__", make_slowly)
        list(pool.map(work, range(workers)))
        monkeypatch.undo()
    hook.stop()
    assert not [t for t in threading.enumerate() if t.name == "on_done"]
