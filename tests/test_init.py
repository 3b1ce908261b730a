"""`stager init` makes the directories, once; the daemon only ever looks whether they are right."""

import grp
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from lab import NOBODY, Lab
from pyfakefs.fake_filesystem import FakeFilesystem

from stager import site
from stager.config import Config
from stager.errors import SetupError
from stager.layout import Paths

OPEN = ("spool/requests", "spool/control")
PRIVATE = ("spool/private", "spool/tmp")
ROOMS = (
    *("spool", "static", "results", "static/images", "static/.stager"),
    *(f"spool/{n}" for n in ("active", "waiting", "done", "failed", "cancelled", "instances")),
    *(f"static/.stager/{n}" for n in ("locks", "work", "sidecars")),
)
MARKS = ("spool/LAYOUT", "static/.stager/LAYOUT", "results/.layout")
MODES = dict.fromkeys(OPEN, 0o1777) | dict.fromkeys(PRIVATE, 0o700)
MODES |= dict.fromkeys(ROOMS, 0o755) | dict.fromkeys(MARKS, 0o644)


@pytest.fixture
def bare(public_dir: Path) -> Lab:
    """Return a lab that nobody has initialised, its directories in one that is not there yet."""
    home = public_dir / "srv"
    names = ("spool", "static", "results")
    return Lab(public_dir, {name: str(home / name) for name in names})


def modes(home: Path) -> dict[str, int]:
    return {name: stat.S_IMODE((home / name).lstat().st_mode) for name in MODES}


def everything(home: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Return inode, mode, owner and content of all that is there."""
    found = {}
    for path in home.rglob("*"):
        info = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (info.st_ino, info.st_mode, info.st_uid, data)
    return found


def foreign_group() -> str:
    """Return a group that is not ours."""
    return next(g.gr_name for g in grp.getgrall() if g.gr_gid != os.getegid())


# -- making ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000], ids=["usual", "private", "open"])
def test_init_makes_all_directories_whatever_the_umask(bare: Lab, umask: int) -> None:
    done = bare.stager("init", umask=umask)
    assert (done.returncode, done.stderr) == (0, "")
    home = bare.root / "srv"
    assert modes(home) == MODES
    assert stat.S_IMODE(home.stat().st_mode) == 0o755, "everybody must be able to reach them"
    made = {str(path.relative_to(home)) for path in home.rglob("*")}
    assert set(MODES) <= made <= {*MODES, "static/.stager/tmp"}


def test_a_layout_file_says_version_set_lease_heartbeat_and_uid(bare: Lab) -> None:
    told = yaml.safe_load(bare.stager("init").stdout)
    texts = [(bare.root / "srv" / mark).read_text() for mark in MARKS]
    assert len(set(texts)) == 1
    assert yaml.safe_load(texts[0]) == {
        "version": site.VERSION, "set": told["set"], "lease": 2, "heartbeat": 0.5,
        "uid": os.geteuid(),
    }  # fmt: skip


def test_a_second_init_changes_nothing(bare: Lab) -> None:
    first = bare.stager("init")
    before = everything(bare.root / "srv")
    second = bare.stager("init", umask=0o077)
    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert everything(bare.root / "srv") == before


def test_init_completes_what_is_missing_and_puts_modes_right(bare: Lab) -> None:
    first = yaml.safe_load(bare.stager("init").stdout)
    home = bare.root / "srv"
    shutil.rmtree(home / "results")
    (home / "spool/waiting").rmdir()
    (home / "spool/private").chmod(0o777)
    (home / "spool/done/kept").touch()
    again = yaml.safe_load(bare.stager("init").stdout)
    assert again["set"] == first["set"]
    assert modes(home) == MODES
    assert (home / "spool/done/kept").exists()


def test_init_by_root_leaves_everything_to_the_daemons_user(public_dir: Path) -> None:
    lab = Lab(public_dir, user=NOBODY).init()
    shutil.rmtree(lab.root / "spool/waiting")
    (lab.root / "results/.layout").unlink()
    assert lab.stager("init").returncode == 0
    owners = {name: (lab.root / name).lstat().st_uid for name in MODES}
    assert owners == dict.fromkeys(MODES, NOBODY)
    assert yaml.safe_load((lab.root / "results/.layout").read_text())["uid"] == NOBODY


def test_a_group_can_have_the_drop_box_for_itself(bare: Lab) -> None:
    group, home = foreign_group(), bare.root / "srv"
    done = bare.stager("init", "--group", group, umask=0o077)
    assert done.returncode == 0, done.stderr
    assert modes(home) == MODES | {"spool/requests": 0o3770}
    assert (home / "spool/requests").stat().st_gid == grp.getgrnam(group).gr_gid


def test_a_second_init_does_not_open_a_groups_drop_box_to_all(bare: Lab) -> None:
    box = bare.root / "srv/spool/requests"
    assert bare.stager("init", "--group", foreign_group()).returncode == 0
    assert bare.stager("init").returncode == 0
    assert stat.S_IMODE(box.stat().st_mode) == 0o3770


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param(["--group", "no-such-group"], "no group no-such-group", id="no such group"),
        pytest.param([], "different sets", id="two sets"),
    ],
)
def test_init_refuses_what_cant_be_right(lab: Lab, options: list[str], words: str) -> None:
    path = lab.root / "results/.layout"
    path.write_text(path.read_text().replace("set: ", "set: f"))
    done = lab.stager("init", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_init_by_somebody_else_changes_nothing(bare: Lab) -> None:
    bare.stager("init")
    before = everything(bare.root / "srv")
    done = bare.stager("init", user=NOBODY)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert everything(bare.root / "srv") == before


# -- checking --------------------------------------------------------------------------------------


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


BREAKAGES: dict[str, tuple[Callable[[Paths], object], str]] = {
    "the spool is not mounted": (lambda p: p.marks[0].unlink(), "stager init"),
    "the static tree is not mounted": (lambda p: p.marks[1].unlink(), "stager init"),
    "the results are not mounted": (lambda p: p.marks[2].unlink(), "stager init"),
    "another spool": (lambda p: rewrite(p.marks[0], "set: ", "set: f"), "one set"),
    "another static tree": (lambda p: rewrite(p.marks[1], "set: ", "set: f"), "one set"),
    "other results": (lambda p: rewrite(p.marks[2], "set: ", "set: f"), "one set"),
    "another version": (lambda p: rewrite(p.marks[0], "version: 1", "version: 9"), "version 9"),
    "another user": (lambda p: rewrite(p.marks[0], "uid: ", "uid: 1"), "uid 1"),
    "another lease": (lambda p: rewrite(p.marks[0], "lease: 90", "lease: 80"), "lease: 80"),
    "another heartbeat": (
        lambda p: rewrite(p.marks[0], "heartbeat: 10", "heartbeat: 11"), "heartbeat: 11",
    ),
    "rubbish": (lambda p: p.marks[1].write_text("no layout"), "not a layout file"),
    "half a file": (lambda p: p.marks[1].write_text("version: 1\nset: a\n"), "not a layout file"),
    "broken YAML": (lambda p: p.marks[1].write_text("version: ["), "not a layout file"),
}  # fmt: skip


@pytest.fixture
def made(fs: FakeFilesystem) -> Iterator[Config]:
    """Return the configuration of directories that are right (on pyfakefs's disk)."""
    config = Config()
    site.init(config)
    site.check(config)
    site.check_links(config.paths)
    yield config
    assert fs.exists(str(config.spool))


@pytest.mark.parametrize("what", BREAKAGES)
def test_directories_that_are_not_right_are_told_apart(made: Config, what: str) -> None:
    breakage, words = BREAKAGES[what]
    breakage(made.paths)
    with pytest.raises(SetupError, match=words):
        site.check(made)


def test_a_configuration_must_agree_with_the_layout(made: Config) -> None:
    for change in ({"lease": 91.0}, {"heartbeat": 11.0}):
        with pytest.raises(SetupError, match="lease: 90 and heartbeat: 10"):
            site.check(made.model_copy(update=change))
    assert site.check(made).uid == os.geteuid()
    assert replace(site.check(made), version=site.VERSION) == site.check(made)


@pytest.mark.parametrize("missing", ["everything", *MARKS])
def test_the_daemon_makes_nothing_and_says_what_to_run(bare: Lab, missing: str) -> None:
    home = bare.root / "srv"
    if missing == "everything":
        home.mkdir()
    else:
        bare.stager("init")
        (home / missing).unlink()
    before = everything(home)
    done = bare.once()
    assert (done.returncode, done.stdout) == (2, "")
    assert "stager init" in done.stderr
    assert "Traceback" not in done.stderr
    assert everything(home) == before


def test_machines_that_set_up_at_the_same_time_make_one_set(bare: Lab) -> None:
    for _ in range(5):
        shutil.rmtree(bare.root / "srv", ignore_errors=True)
        command = [sys.executable, "-m", "stager.cli", "init", "--config", str(bare.config)]
        both = [
            subprocess.Popen(command, env=bare.environment(), stdout=subprocess.PIPE)
            for _ in range(3)
        ]
        said = [process.communicate(timeout=60)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0, 0]
        assert len(set(said)) == 1, "all say the same set"
        ids = {yaml.safe_load((bare.root / "srv" / mark).read_text())["set"] for mark in MARKS}
        assert len(ids) == 1
        assert not list((bare.root / "srv").rglob(".*.tmp"))
