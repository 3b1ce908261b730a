"""The judge of the runs on NFS sees each kind of fault: every one is planted once."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from soak import table
from traffic import make_asks, target, url
from verdict import Verdict, judge

ASKS = make_asks("ask", 2, ("a",), (0,))
FILE, IMAGE = "chromiumos_test_image.bin", b"whole" * 1000
KEY = "board-0-release_R23-0_0_0-0123456789abcdef"
WORK, LOCK = "static/.stager/work", f"static/.stager/locks/{KEY}"
PLACE = f"static/{target(0)}"
BEGIN = [
    ["", "watching", ""],
    [LOCK, "there", "0.free"],
    [LOCK, "from", "0.free"],
    [LOCK, "to", "1.lab-a-aaaaaa.aaaaaaaa"],
    [WORK, "to", f"{KEY}.1.lab-a-aaaaaa.aaaaaaaa"],
    [PLACE, "new", FILE],
    [WORK, "gone", f"{KEY}.1.lab-a-aaaaaa.aaaaaaaa"],
    [LOCK, "from", "1.lab-a-aaaaaa.aaaaaaaa"],
    [LOCK, "to", "2.free"],
]


class Home:
    """A run that went well, taken home; a test breaks one thing of it."""

    def __init__(self, lab: Path) -> None:
        self.path, self.events = lab / "run", [*BEGIN]
        self.reader: dict[str, object] = {"counts": {"images": 1}, "bad": []}
        rooms = ("active", "waiting", "private", "done", "failed", "cancelled")
        for room in (*(f"spool/{name}" for name in rooms), "results", WORK, PLACE):
            (self.path / room).mkdir(parents=True)
        known = {target(0): {"test": [FILE, len(IMAGE), zlib.crc32(IMAGE)]}}
        (self.path / "known.json").write_text(json.dumps(known))
        (self.path / PLACE / FILE).write_bytes(IMAGE)
        (self.path / PLACE / "staged").write_text("test\n")
        for ask in ASKS:
            images = {name: {"state": "staged"} for name in ask.images}
            answer = {"state": "staged", "build": url(ask.build), "images": images}
            (self.path / "results" / f"{ask.name}.yaml").write_text(yaml.safe_dump(answer))
            self.ended("done", ask.name, "a")
            self.events.append(["results", "to", f"{ask.name}.yaml"])

    def ended(self, room: str, name: str, nonce: str) -> None:
        """Have a request end in a room."""
        claim = f"{name}.yaml~1795630242427626435-7wgnte.g1.a1.lab-a-aaaaaa.{nonce * 8}"
        (self.path / "spool" / room / claim).touch()

    def judge(self) -> Verdict:
        """Write what was seen, and judge."""
        lines = [json.dumps([float(n), *event]) for n, event in enumerate(self.events)]
        (self.path.parent / "run.events").write_text("\n".join(lines))
        (self.path / "reader.json").write_text(json.dumps(self.reader))
        return judge(self.path, ASKS)


def test_a_good_run_is_good(tmp_path: Path) -> None:
    verdict = Home(tmp_path).judge()
    assert (verdict.requests, verdict.problems) == (2, [])


def plant_lost(home: Home) -> None:
    (home.path / "results/ask-0.yaml").unlink()


def plant_two_ends(home: Home) -> None:
    home.ended("failed", "ask-0", "b")


def plant_two_answers(home: Home) -> None:
    home.events.append(["results", "to", "ask-1.yaml"])


def plant_wrong(home: Home) -> None:
    (home.path / "results/ask-0.yaml").write_text("state: failed\nbuild: x\n")


def plant_torn_image(home: Home) -> None:
    (home.path / PLACE / FILE).write_bytes(IMAGE[:-1])


def plant_rewritten_image(home: Home) -> None:
    home.events.append([PLACE, "write", FILE])


def plant_swapped_image(home: Home) -> None:
    home.events.append([PLACE, "to", FILE])


def plant_bad_read(home: Home) -> None:
    home.reader["bad"] = [f"{FILE}: 17 bytes"]


def plant_two_workers(home: Home) -> None:
    home.events.insert(5, [WORK, "to", f"{KEY}.1.lab-b-bbbbbb.bbbbbbbb"])


def plant_forked_token(home: Home) -> None:
    home.events.insert(4, [LOCK, "to", "1.lab-b-bbbbbb.bbbbbbbb"])


@pytest.mark.parametrize(
    ("plant", "column"),
    [
        (plant_lost, "lost"),
        (plant_two_ends, "answered_twice"),
        (plant_two_answers, "answered_twice"),
        (plant_wrong, "wrong"),
        (plant_torn_image, "partial_reads"),
        (plant_rewritten_image, "partial_reads"),
        (plant_swapped_image, "partial_reads"),
        (plant_bad_read, "partial_reads"),
        (plant_two_workers, "double_staging"),
        (plant_forked_token, "double_staging"),
    ],
)
def test_each_kind_of_fault_is_counted(
    plant: Callable[[Home], None], column: str, tmp_path: Path
) -> None:
    home = Home(tmp_path)
    plant(home)
    verdict = home.judge()
    assert verdict.as_dict()[column] > 0
    assert verdict.problems


def plant_untrue_flag(home: Home) -> None:
    (home.path / PLACE / "staged").write_text("test\nbase\n")


def plant_leftover(home: Home) -> None:
    (home.path / "spool/active/something").touch()


def plant_missed_events(home: Home) -> None:
    home.events.append(["", "overflow", ""])


def plant_idle_reader(home: Home) -> None:
    home.reader["counts"] = {}


def plant_traceback(home: Home) -> None:
    (home.path / "a.log").write_text("Traceback (most recent call last)\n")


@pytest.mark.parametrize(
    "plant",
    [plant_untrue_flag, plant_leftover, plant_missed_events, plant_idle_reader, plant_traceback],
)
def test_what_has_no_column_is_a_problem(plant: Callable[[Home], None], tmp_path: Path) -> None:
    home = Home(tmp_path)
    plant(home)
    assert home.judge().problems


def test_the_table_adds_up_the_runs_of_a_scenario() -> None:
    runs = [Verdict(requests=200, reads=5, recovered_seconds=s).as_dict() for s in (3.0, 9.5)]
    rows = [{"scenario": "cut off", "version": "4.2", **run} for run in runs]
    last = table(rows).splitlines()[-1]
    assert last == "| cut off | 4.2 | 2 | 0 | 400 | 0 | 0 | 0 | 0 | 0 | 10 | 9.5 s |"
