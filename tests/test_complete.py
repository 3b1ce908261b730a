"""What the shell offers: names, images, builds and machines; silent, soon, never very many."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab import BUCKET, BUILD, FILES, Lab, until

from stager import complete
from stager.layout import Claim, Waiting

ABSENT = f"gs://{BUCKET}/x86-alex-release/R99"


def offered(lab: Lab, *words: str, config: Path | None = None) -> list[str]:
    """Return what bash is offered for the last of the words behind `stager`."""
    env = lab.environment() | {
        "STAGER_CONFIG": str(config or lab.config), "_STAGER_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["stager", *words]), "COMP_CWORD": str(len(words)),
    }  # fmt: skip
    # The name a program is called by decides which variable it asks.
    program = "import sys; from stager.cli import main; sys.argv = ['stager']; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False,
        timeout=30,
    )  # fmt: skip
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_names_are_offered_where_they_fit(lab: Lab) -> None:
    lab.archive()
    with lab.running():
        lab.result(lab.drop("done-1"))
        lab.drop("later-1", ABSENT)
        until(lambda: any("later-1" in name for name in lab.spool("waiting")), "it waits")
        assert lab.stager("pause").returncode == 0
        assert lab.stager("pause", "--host", "elsewhere").returncode == 0
        assert lab.stager("pin", BUILD).returncode == 0
    lab.drop("new-1")
    assert set(offered(lab, "cancel", "")) == {"later-1", "new-1"}
    assert offered(lab, "cancel", "new-1", "") == ["later-1"], "not again what stands there"
    assert offered(lab, "retry", "") == ["done-1"]
    for command in ("wait", "show", "status"):
        assert set(offered(lab, command, "")) == {"later-1", "new-1", "done-1"}
        assert offered(lab, command, "d") == ["done-1"]
    assert offered(lab, "submit", BUILD, "") == list(FILES)
    assert offered(lab, "submit", BUILD, "re") == ["recovery"]
    assert offered(lab, "unpin", "") == [BUILD]
    assert offered(lab, "resume", "--host", "") == ["elsewhere"]
    assert offered(lab, "cancel", "--all", "--state", "") == ["waiting", "active"]
    assert "archive_not_found" in offered(lab, "retry", "--all", "--code", "archive")


def test_machines_are_offered_while_they_are_known(lab: Lab) -> None:
    with lab.running():
        until(lambda: any(name.endswith(".status") for name in lab.spool("instances")))
        assert offered(lab, "pause", "--host", "") == [os.uname().nodename]


@pytest.mark.parametrize("fault", ["no configuration", "a broken one", "no spool"])
def test_a_fault_offers_nothing_and_says_nothing(lab: Lab, fault: str) -> None:
    config = lab.root / "other.yaml"
    if fault == "a broken one":
        config.write_text("wrokers: 1\n")
    elif fault == "no spool":
        config.write_text(f"spool: {lab.root}/nowhere\n")
    for words in (("cancel", ""), ("status", ""), ("unpin", ""), ("pause", "--host", "")):
        assert offered(lab, *words, config=config) == []


def test_of_very_many_the_last_are_offered(lab: Lab) -> None:
    now = time.time()
    for number in range(300):
        arrived = f"{int((now - 1000 + number) * 1e9)}-abcdef"
        waiting = Waiting(5, 0, 0, f"w{number}.yaml", arrived, 1, 0, "abcdefgh")
        done = Claim(f"d{number}.yaml", arrived, 1, 1, "lab-1-abcdef", "abcdefgh")
        (lab.root / "spool/waiting" / str(waiting)).touch()
        (lab.root / "spool/done" / str(done)).touch()
    last = {f"w{number}" for number in range(200, 300)}
    assert set(offered(lab, "cancel", "")) == last
    assert len(offered(lab, "wait", "")) == complete.MOST


def test_a_name_that_a_shell_would_take_apart_is_not_offered(lab: Lab) -> None:
    for name in ("two words", "a;b", "$(id)", "a\nb", "plain"):
        lab.drop(name)
    assert offered(lab, "cancel", "") == ["plain"]


def test_a_look_that_hangs_is_not_waited_for(lab: Lab) -> None:
    config = lab.root / "hangs.yaml"
    os.mkfifo(config)  # nobody ever writes it
    began = time.monotonic()
    assert offered(lab, "cancel", "", config=config) == []
    assert time.monotonic() - began < complete.SECONDS + 10
