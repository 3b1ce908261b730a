"""The drop box: when a file may be claimed, by our own clock and what events tell."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from lab import until

from stager.dropbox import NO_NEWLINE_SECONDS, RETRY_SECONDS, WINDOW, DropBox
from stager.hints import LINKED_SECONDS

SETTLE = 2.0
LINE = b"build: gs://b/c/d\n"


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Box:
    """A drop box with a clock of its own."""

    path: Path
    clock: Clock
    dropbox: DropBox

    def put(self, name: str, data: bytes = LINE, uid: int = 0) -> Path:
        file = self.path / name
        file.write_bytes(data)
        os.chown(file, uid, -1)
        return file

    def after(self, seconds: float, limit: int = 64) -> list[str]:
        self.clock.now += seconds
        return self.dropbox.settled(limit)


@pytest.fixture
def box(tmp_path: Path) -> Box:
    clock = Clock()
    return Box(tmp_path, clock, DropBox(tmp_path, SETTLE, clock))


def settled_after(box: Box, least: float) -> None:
    """Assert that all there is is settled after so many seconds, and not before."""
    if least:
        assert box.after(0) == []
        assert 0 < box.dropbox.next_due() <= least
        assert box.after(least - 0.001) == []
        assert box.after(0.002)
    else:
        assert box.after(0)


# -- settling -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "data", "seconds"),
    [
        pytest.param([], LINE, SETTLE, id="nothing is told"),
        pytest.param([], LINE[:-1], NO_NEWLINE_SECONDS, id="no final newline"),
        pytest.param([], b"", NO_NEWLINE_SECONDS, id="empty"),
        pytest.param(["moved"], LINE, 0, id="moved in"),
        pytest.param(["moved"], LINE[:-1], 0, id="moved in without a newline"),
        pytest.param(["created"], LINE, LINKED_SECONDS, id="linked in"),
        pytest.param(["created"], LINE[:-1], LINKED_SECONDS, id="linked in without a newline"),
        pytest.param(["created", "opened"], LINE, SETTLE, id="being written"),
        pytest.param(["created", "opened"], LINE[:-1], NO_NEWLINE_SECONDS, id="half written"),
        pytest.param(["created", "opened", "closed"], LINE, SETTLE, id="written and closed"),
        pytest.param(["created", "opened", "closed"], LINE[:-1], SETTLE, id="closed, no newline"),
        pytest.param(["opened", "closed", "opened"], LINE[:-1], NO_NEWLINE_SECONDS,
                     id="opened again"),
    ],
)  # fmt: skip
def test_a_file_is_settled(box: Box, events: list[str], data: bytes, seconds: float) -> None:
    for event in events:
        box.dropbox.hints.note(event, "a.yaml")
    box.put("a.yaml", data)
    settled_after(box, seconds)


def grow(file: Path) -> None:
    with file.open("ab") as f:
        f.write(LINE)


def replace_it(file: Path) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(file.read_bytes())
    new.rename(file)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(grow, id="it grew"),
        pytest.param(lambda file: os.utime(file, (1, 1)), id="its time was set"),
        pytest.param(lambda file: file.chmod(0o600), id="its mode was set"),
        pytest.param(replace_it, id="another file has its name"),
        pytest.param(lambda file: os.truncate(file, 3), id="it was cut"),
    ],
)
def test_settling_begins_anew_when(box: Box, change: Callable[[Path], None]) -> None:
    file = box.put("a.yaml", LINE * 2)
    assert box.after(0) == []
    assert box.after(SETTLE * 0.9) == []
    change(file)
    if file.read_bytes().endswith(b"\n"):
        settled_after(box, SETTLE)
    else:
        settled_after(box, NO_NEWLINE_SECONDS)


def test_a_file_that_came_and_went_between_two_looks_begins_anew(box: Box) -> None:
    box.put("a.yaml").unlink()
    assert box.after(0) == []
    box.put("a.yaml")
    settled_after(box, SETTLE)


def test_a_hint_about_one_name_is_spent_with_its_claim(box: Box) -> None:
    box.dropbox.hints.note("moved", "a.yaml")
    box.put("a.yaml").unlink()
    box.dropbox.claimed("a.yaml")
    box.put("a.yaml")
    settled_after(box, SETTLE)


def test_a_file_whose_time_came_since_the_last_look_is_due_at_once(box: Box) -> None:
    box.put("a.yaml")
    assert box.after(0) == []
    assert box.after(SETTLE - 0.001) == []
    box.clock.now += 0.01
    assert box.dropbox.next_due() == 0


def test_settled_files_that_nobody_has_room_for_do_not_make_the_daemon_spin(box: Box) -> None:
    for n in range(3):
        box.put(f"{n}.yaml")
    assert box.after(0) == []
    assert box.after(SETTLE, limit=0) == []
    assert box.dropbox.next_due() > SETTLE


# -- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("a.yaml", True), ("a.yml", True), ("a.json", True), ("ä b.yaml", True),
        ("a~1.yaml", True), ("a", False), (".a.yaml", False), ("#a.yaml", False),
        ("a.yaml~", False), ("a.yaml.tmp", False), ("a.YAML", False), ("a.txt", False),
        (".yaml", False),
    ],
)  # fmt: skip
def test_a_file_is_taken_by_its_name(box: Box, name: str, taken: bool) -> None:
    box.put(name)
    assert box.dropbox.hints.note("moved", name) is taken
    assert box.after(0) == ([name] if taken else [])
    assert box.dropbox.others == (0 if taken else 1)


@pytest.mark.parametrize("kind", ["moved", "created", "closed"])
def test_a_hint_wakes_the_daemon_only_for_names_it_takes(box: Box, kind: str) -> None:
    assert box.dropbox.hints.note(kind, "a.yaml")
    assert not box.dropbox.hints.note(kind, ".a.yaml.tmp")
    assert not box.dropbox.hints.note("opened", "a.yaml")


# -- many files ---------------------------------------------------------------------------------


def test_files_are_given_out_as_they_came(box: Box) -> None:
    def is_later_than(came: int) -> bool:
        return box.put("tick").stat().st_ctime_ns > came

    for name in ("c.yaml", "a.yaml", "b.yaml"):
        until(partial(is_later_than, box.put(name).stat().st_ctime_ns))
    assert box.after(0) == []
    assert box.after(SETTLE) == ["c.yaml", "a.yaml", "b.yaml"]


def test_who_drops_hundreds_does_not_keep_others_out(box: Box) -> None:
    for n in range(100):
        box.put(f"many-{n:03}.yaml", uid=1001)
    box.put("one.yaml", uid=1002)
    box.after(0)
    given = box.after(SETTLE, limit=4)
    assert len(given) == 4
    assert "one.yaml" in given[:2]
    assert box.dropbox.next_due() == 0


def test_a_file_that_an_event_told_of_comes_first_however_many_there_are(box: Box) -> None:
    for n in range(WINDOW + 10):
        (box.path / f"{n}.yaml").touch()
    last = os.listdir(box.path)[-1]
    box.dropbox.hints.note("moved", last)
    assert box.after(0) == [last]
    assert len(box.dropbox.seen) == WINDOW + 10


def test_files_that_never_settle_do_not_keep_others_out_however_many(box: Box) -> None:
    for n in range(WINDOW + 10):
        (box.path / f"{n}.yaml").touch()
    *restless, last = os.listdir(box.path)
    box.put(last, uid=1002)
    given: list[str] = []
    for looks in range(10):
        for name in restless:
            os.utime(box.path / name, (looks, looks))
        given = given or box.after(SETTLE)
    assert given == [last]


# -- what can't be claimed ----------------------------------------------------------------------


def test_what_can_not_be_claimed_is_left_alone_until_it_changes(box: Box) -> None:
    file = box.put("a.yaml")
    box.dropbox.hints.note("moved", "a.yaml")
    assert box.after(0) == ["a.yaml"]
    assert box.dropbox.skip("a.yaml", "Permission denied")
    assert box.dropbox.unclaimable() == {"a.yaml": "Permission denied"}
    assert box.after(SETTLE) == []
    grow(file)
    assert box.after(0) == ["a.yaml"]


def test_it_is_tried_again_after_a_while_and_said_only_once(box: Box) -> None:
    box.put("a.yaml")
    box.dropbox.hints.note("moved", "a.yaml")
    assert box.after(0) == ["a.yaml"]
    assert box.dropbox.skip("a.yaml", "Device or resource busy")
    assert box.after(RETRY_SECONDS + 1) == ["a.yaml"]
    assert not box.dropbox.skip("a.yaml", "Device or resource busy")
    (box.path / "a.yaml").unlink()
    assert box.after(0) == []
    assert box.dropbox.unclaimable() == {}


def test_a_file_that_keeps_changing_is_told_apart_from_one_that_settles(box: Box) -> None:
    log = box.put("log.yaml")
    box.put("a.yaml")
    for _ in range(3):
        grow(log)
        assert box.after(0.1) == []
    assert box.dropbox.settling() == (["a.yaml"], ["log.yaml"])


def test_what_comes_while_a_crowd_is_worked_off_is_looked_for_at_its_end(box: Box) -> None:
    for name in ("a", "b"):
        box.put(f"{name}.yaml")
        box.dropbox.hints.note("moved", f"{name}.yaml")
    for expected in ("a.yaml", "b.yaml"):
        (name,) = box.after(0, limit=1)
        assert name == expected
        (box.path / name).unlink()
        box.dropbox.claimed(name)
        if name == "a.yaml":
            box.put("c.yaml")
            box.dropbox.hints.note("moved", "c.yaml")
    assert box.dropbox.next_due() == 0
    assert box.after(0, limit=1) == ["c.yaml"]
