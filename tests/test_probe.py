"""`stager probe` on good filesystems: the machines meet, agree, say yes, and leave nothing."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import NOBODY, until
from machines import Machine, outcome, said

from stager import durable
from stager.meeting import Absent, Meeting
from stager.presence import PREFIX
from stager.probe import JOINT
from stager.solo import QUESTIONS

pytestmark = pytest.mark.timeout(240)

Start = Callable[..., Machine]


@pytest.fixture
def start() -> Iterator[Start]:
    machines: list[Machine] = []

    def begin(*args: object, **kwargs: object) -> Machine:
        machines.append(Machine(*args, **kwargs))  # type: ignore[arg-type]
        return machines[-1]

    yield begin
    for machine in machines:
        machine.end()


def test_two_machines_agree_that_a_disk_serves_and_leave_nothing(
    public_dir: Path, start: Start
) -> None:
    a, b = (start(public_dir, "--seconds", "3", boot=boot) for boot in "ab")
    found, other = a.found, b.found
    assert (a.code, b.code) == (0, 0), a.said
    assert found["verdict"] == "yes"
    assert f"{public_dir} keeps what watcherd needs, as seen from " in found["words"]
    assert found["results"] == other["results"], "one verdict on all machines"
    assert {row["name"] for row in found["results"]} >= {*QUESTIONS, *JOINT}
    wins = found["machines"][0]["trials"]
    race = next(trial for trial in wins if trial["name"] == "one winner")["figures"]
    assert sum(race["won"].values()) == race["names"] >= 400
    assert outcome(found, "fences") == outcome(found, "fresh listings") == "yes"
    assert "create + sync" in found["machines"][1]["pace"]
    assert os.listdir(public_dir) == []


def test_three_machines_meet_when_three_are_wanted(public_dir: Path, start: Start) -> None:
    options = ("--machines", "3", "--seconds", "1")
    machines = [start(public_dir, *options, boot=boot) for boot in "abc"]
    found = [machine.found for machine in machines]
    assert [machine.code for machine in machines] == [0, 0, 0], machines[0].said
    assert len(found[0]["machines"]) == 3
    assert os.listdir(public_dir) == []


def test_one_machine_alone_says_what_it_cannot_tell(public_dir: Path, start: Start) -> None:
    machine = start(public_dir, "--machines", "1")
    found = machine.found
    assert machine.code == 0
    assert "run this on two at once" in found["words"]
    assert {row["name"] for row in found["results"]} == set(QUESTIONS)
    assert os.listdir(public_dir) == []


def test_any_user_who_can_write_there_may_probe(public_dir: Path, start: Start) -> None:
    shared = public_dir / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    a = start(shared, "--seconds", "1", boot="a", prefix=user)
    b = start(shared, "--seconds", "1", boot="b", prefix=user)
    assert a.found["verdict"] == b.found["verdict"] == "yes", a.said
    assert os.listdir(shared) == []


def test_different_users_on_two_machines_are_warned_of(public_dir: Path, start: Start) -> None:
    public_dir.chmod(0o1777)
    user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    a = start(public_dir, "--seconds", "1", boot="a", prefix=user)
    b = start(public_dir, "--seconds", "1", boot="b")
    assert "run the probe as the daemon's user" in str(a.found["results"]), a.said
    assert outcome(b.found, "one view") == "warning"


def test_two_probes_of_one_kernel_are_told_apart_from_two_machines(
    public_dir: Path, start: Start
) -> None:
    a, b = (start(public_dir, "--seconds", "1") for _ in range(2))
    assert outcome(a.found, "machines") == outcome(b.found, "machines") == "warning"
    assert "one kernel" in said(b.found, "machines") if b.said == "" else True


def test_nobody_comes_and_that_decides_nothing(public_dir: Path, start: Start) -> None:
    machine = start(public_dir, "--timeout", "1")
    found = machine.found
    assert machine.code == 2
    assert found["verdict"] == "unknown"
    assert "nobody else was seen" in found["words"]
    assert "not the same directory" in found["words"]
    assert os.listdir(public_dir) == []


def test_two_that_see_different_directories_never_meet(public_dir: Path, start: Start) -> None:
    # Each has a filesystem of its own on the mount point, as where an NFS mount failed.
    own = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {public_dir}; exec "$@"', "-")
    a, b = (start(public_dir, "--timeout", "3", prefix=own) for _ in range(2))
    assert a.found["verdict"] == b.found["verdict"] == "unknown"
    assert (a.code, b.code) == (2, 2)


def test_a_machine_that_dies_is_named_and_cleaned_up_after(public_dir: Path, start: Start) -> None:
    a = start(public_dir, "--seconds", "30", boot="a")
    b = start(public_dir, "--seconds", "30", boot="b")
    b.until_it_says("together: whole files")
    b.process.send_signal(signal.SIGKILL)
    found = a.found
    assert a.code == 2, a.said
    assert "was silent for 15 s" in found["words"]
    assert os.listdir(public_dir) == []


def test_an_interrupted_probe_takes_its_files_along(public_dir: Path, start: Start) -> None:
    a = start(public_dir, "--seconds", "30", boot="a")
    b = start(public_dir, "--seconds", "30", boot="b")
    b.until_it_says("together: whole files")
    b.process.send_signal(signal.SIGTERM)
    assert "ended the meeting" in a.found["words"] or "went away" in a.said, a.said
    assert a.code == 2
    b.process.wait(30)
    until(lambda: os.listdir(public_dir) == [], "everything is gone")


def test_files_of_an_earlier_probe_keep_nobody_from_meeting(public_dir: Path, start: Start) -> None:
    (public_dir / f"{PREFIX}free.dead-aaaaaaaa.2.17").touch()
    room = public_dir / f"{PREFIX}room.gone-aaaaaaaa"
    room.mkdir()
    (room / "group.json").write_text('{"members": ["gone-aaaaaaaa"], "plan": {}}')
    a, b = (start(public_dir, "--seconds", "1", boot=boot) for boot in "ab")
    assert a.found["verdict"] == b.found["verdict"] == "yes", a.said
    left = [f"{PREFIX}free.dead-aaaaaaaa.2.17"]
    assert os.listdir(public_dir) == left, "it is too young to be swept"
    with Meeting(public_dir, 1) as meeting:
        assert meeting.presence.sweep(0) == left
    assert os.listdir(public_dir) == []


def test_a_living_probe_is_never_swept(public_dir: Path) -> None:
    with Meeting(public_dir, 2) as first, Meeting(public_dir, 2) as second:
        for _ in range(5):
            second.presence.sweep(60)
            assert first.alone.is_dir()


def test_a_meeting_that_others_wait_for_ends_in_time(public_dir: Path) -> None:
    begun = time.monotonic()
    with (
        Meeting(public_dir, 2) as meeting,
        pytest.raises(Absent, match=r"no 2 machines met in 0\.5 s"),
    ):
        meeting.gather({}, 0.5)
    assert time.monotonic() - begun < 10


def test_words_in_a_meeting_reach_everybody(public_dir: Path) -> None:
    with Meeting(public_dir, 1) as meeting:
        meeting.gather({"seconds": 3}, 5)
        assert meeting.together("step", [1, "two"]) == {meeting.me: [1, "two"]}
        durable.remove_tree(meeting.room)
        with pytest.raises(Absent, match="ended the meeting before next"):
            meeting.together("next")


def test_without_json_the_verdict_is_the_first_line_and_each_hint_follows(
    public_dir: Path,
) -> None:
    command = [sys.executable, "-m", "stager.cli", "probe", "--machines", "1", str(public_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("yes")
    assert "  yes      hard links: they work, and never replace\n" in done.stdout
    figures = r"\S+ \S+ a second on average \(half took at most \S+ ms\)"
    assert re.search(rf"(?m)^  speed    rename: {figures}$", done.stdout)


def test_a_directory_that_is_not_there_is_a_usage_error(public_dir: Path) -> None:
    command = [sys.executable, "-m", "stager.cli", "probe", str(public_dir / "no")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (2, f"stager: there is no {public_dir / 'no'}\n")
