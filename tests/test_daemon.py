"""The daemon as a program: what it refuses to start on, what it says, and how --once ends."""

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from lab import BUILD, NOBODY, ROOT, Lab, until

from stager import __version__


def refused(lab: Lab) -> str:
    """Start a daemon that must refuse to; return what it says on stderr."""
    done = lab.once()
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


# -- what it does not start on ------------------------------------------------------------------


def change_layout(lab: Lab, **changes: object) -> None:
    for mark in ("spool/LAYOUT", "static/.stager/LAYOUT", "results/.layout"):
        path = lab.root / mark
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def swap_spool(lab: Lab) -> None:
    other = lab.root / "other"
    other.mkdir()
    Lab(other).init()
    (lab.root / "spool").rename(lab.root / "spool.old")
    (other / "spool").rename(lab.root / "spool")


NO_SPOOLS: dict[str, tuple[Callable[[Lab], object], str]] = {
    "an unmounted spool": (
        lambda lab: (lab.root / "spool/LAYOUT").unlink(), "run `stager init` once"),
    "an unmounted static tree": (
        lambda lab: (lab.root / "static/.stager/LAYOUT").unlink(), "run `stager init` once"),
    "unmounted results": (
        lambda lab: (lab.root / "results/.layout").unlink(), "run `stager init` once"),
    "nothing set up": (
        lambda lab: (lab.root / "spool").rename(lab.root / "gone"), "run `stager init` once"),
    "a torn layout file": (
        lambda lab: (lab.root / "spool/LAYOUT").write_text("vers"), "is not a layout file"),
    "a spool of another set": (swap_spool, "not of one set: compare"),
    "another layout version": (lambda lab: change_layout(lab, version=2), "layout version 2"),
    "another user's spool": (
        lambda lab: change_layout(lab, uid=12345), "start the daemon as that user"),
    "another lease": (lambda lab: change_layout(lab, lease=77.0), "set lease: 77"),
    "another heartbeat": (lambda lab: change_layout(lab, heartbeat=0.25), "heartbeat: 0.25"),
}  # fmt: skip


@pytest.mark.parametrize(("break_it", "said"), NO_SPOOLS.values(), ids=NO_SPOOLS)
def test_it_does_not_start_on(lab: Lab, break_it: Callable[[Lab], object], said: str) -> None:
    name = lab.drop("a")
    break_it(lab)
    assert said in refused(lab)
    if lab.requests.exists():
        assert lab.requests.parent.name == "spool"
        assert not (lab.root / "results" / f"{name}.yaml").exists()


def test_it_does_not_start_as_another_user_than_the_spools(lab: Lab) -> None:
    lab.user = NOBODY
    said = refused(lab)
    assert f"uid {os.geteuid()}" in said
    assert f"uid {NOBODY}" in said


@contextmanager
def other_filesystem() -> Iterator[Path]:
    """Give a directory on a filesystem of its own (a tmpfs that every Linux has)."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


@pytest.mark.parametrize("place", ["results", "static/images"])
def test_links_that_can_not_work_are_refused_with_the_reason(lab: Lab, place: str) -> None:
    with other_filesystem() as away:
        assert away.stat().st_dev != lab.root.stat().st_dev
        here = lab.root / place
        for file in here.iterdir():
            (away / file.name).write_bytes(file.read_bytes())
        here.rename(here.with_name("before"))
        here.symlink_to(away)
        said = refused(lab)
        again = lab.stager("init")
        assert not list(away.glob(".probe*"))
    assert again.returncode == 2
    for text in (said, again.stderr):
        assert os.strerror(errno.EXDEV) in text
        assert "both must be on one filesystem" in text


def test_what_a_start_that_was_killed_left_is_removed_by_the_next(lab: Lab) -> None:
    left = [lab.root / place / ".probe" for place in ("results", "static/images")]
    for path in left:
        path.touch()
    with lab.running():
        assert not any(path.exists() for path in left)


def test_it_says_which_rooms_have_a_wrong_mode_and_how_to_mend_them(lab: Lab) -> None:
    (lab.root / "spool/private").chmod(0o777)
    with lab.running() as daemon:
        daemon.await_log(f"chmod 700 {lab.root}/spool/private")


# -- options ------------------------------------------------------------------------------------


def run(*options: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "watcherd.py"), *options]
    keep = {k: v for k, v in os.environ.items() if not k.startswith("STAGER_")}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=30, env=keep | env
    )


def test_its_version_says_what_a_report_needs() -> None:
    done = run("--version")
    assert done.returncode == 0
    assert __version__ in done.stdout
    for part in ("Python", "watchdog", "google-cloud-storage"):
        assert re.search(rf"{part} \d+\.\d+", done.stdout)


def test_a_good_configuration_needs_no_spool_to_be_checked() -> None:
    assert run("--check-config", "--config", str(ROOT / "config.yaml")).returncode == 0


@pytest.mark.parametrize("option", [["--check-config"], [], ["--once"]], ids=str)
def test_all_faults_of_a_configuration_are_told_with_line_and_column(
    tmp_path: Path, option: list[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("workers: many\nsettle: soon\narchive:\n  sauce: gcs\n")
    done = run(*option, "--config", str(config), STAGER_ATTEMPTS="0")
    assert done.returncode == 2
    assert done.stdout == ""
    for place in ("1:1: `workers`", "2:1: `settle`", "4:3: `archive.sauce`"):
        assert f"{config}:{place}" in done.stderr
    assert "$STAGER_ATTEMPTS: `attempts`" in done.stderr


@pytest.mark.parametrize("option", ["--check-config", "--once"])
def test_a_configuration_that_is_not_there_is_said_to_be(tmp_path: Path, option: str) -> None:
    done = run(option, "--config", str(tmp_path / "none.yaml"))
    assert (done.returncode, "can't read" in done.stderr) == (2, True)


# -- watching -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("watch", "mode"), [("auto", "inotify"), ("poll", "poll")])
def test_it_says_how_it_watches_and_does_it(lab: Lab, watch: str, mode: str) -> None:
    lab.archive()
    lab.write_config(watch=watch, rescan="60s" if mode == "inotify" else "0.2s")
    with lab.running() as daemon:
        assert f"mode={mode}" in daemon.log
        assert re.search(r"filesystem=\w+", daemon.log)
        assert lab.result(lab.drop("moved"))["state"] == "staged"
        text = yaml.safe_dump({"build": BUILD, "images": ["test"]})
        (lab.requests / "written.yaml").write_text(text)
        assert lab.result("written")["state"] == "already_staged"
        (lab.requests / ".new").write_text(text)
        os.link(lab.requests / ".new", lab.requests / "linked.yaml")
        assert lab.result("linked")["state"] == "already_staged"


def test_a_spool_that_goes_away_is_said_once_and_work_goes_on_when_it_is_back(lab: Lab) -> None:
    lab.archive()
    spool, away = lab.root / "spool", lab.root / "away"
    with lab.running() as daemon:
        spool.rename(away)
        daemon.await_log("the spool does not work, requests wait: ")
        (spool / "requests").mkdir(parents=True)
        for room in (spool, away):
            text = yaml.safe_dump({"build": BUILD, "images": ["test"]})
            (room / "requests/a.yaml").write_text(text)
        assert stays((spool / "requests/a.yaml").exists, 1.5)
        assert os.listdir(spool) == ["requests"], "an unmounted mount point became a spool"
        shutil.rmtree(spool)
        away.rename(spool)
        daemon.await_log("the spool answers again")
        assert lab.result("a")["state"] == "staged"
        assert daemon.log.count("the spool does not work") == 1
        assert len(lab.instances()) == 1
    assert len(lab.ended("a")) == 1
    assert lab.spool("active") == lab.spool("requests") == lab.spool("private") == []


def test_a_spool_that_is_replaced_by_another_sets_is_left_alone(lab: Lab) -> None:
    lab.archive()
    with lab.running() as daemon:
        swap_spool(lab)
        daemon.await_log("not of one set: compare")
        lab.drop("a")
        assert stays((lab.requests / "a.yaml").exists, 2.5)
        assert lab.instances() == [], "it writes into a spool that is not its own"
        (lab.root / "spool").rename(lab.root / "other/spool")
        (lab.root / "spool.old").rename(lab.root / "spool")
        assert lab.result(lab.drop("b"))["state"] == "staged"
        assert daemon.log.count("not of one set") == 1


def test_what_it_makes_is_readable_by_all_whatever_its_umask(lab: Lab) -> None:
    lab.archive()
    before = os.umask(0o077)
    try:
        daemon = lab.start()
    finally:
        os.umask(before)
    lab.result(lab.drop("a", images=["test", "base"]))
    assert daemon.stop() == 0
    made = [lab.root / "results/a.yaml", *lab.target().iterdir()]
    assert {oct(path.stat().st_mode & 0o7777) for path in made} == {"0o644"}
    above = [p for p in lab.target().parents if p.is_relative_to(lab.root / "static/images")]
    assert {oct(path.stat().st_mode & 0o7777) for path in [lab.target(), *above]} == {"0o755"}


def stays(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition holds for so long."""
    end = time.monotonic() + seconds
    until(lambda: not condition() or time.monotonic() > end)
    return condition()
