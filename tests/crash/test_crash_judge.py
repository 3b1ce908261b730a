"""The judge of the crash matrix sees what is lost, torn, done twice or left over."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from judge import Judge
from lab import BUILD, FILES, Lab
from scenes import Scene

from stager.layout import parse_build

KEY = parse_build(BUILD, frozenset()).key


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Return a scene that was played to its end, in its own directories."""
    scene = Scene(tmp_path_factory.mktemp("scene"))
    scene.build()
    lab = Lab(scene.root, scene.lab_settings)
    scene.begin(lab)
    assert lab.once().returncode == 0
    return scene


@pytest.fixture
def judge(ended: Scene, tmp_path: Path) -> Judge:
    """Return the judge of a copy, as if it had been there before the answers."""
    for name in ("spool", "static", "results"):
        shutil.copytree(ended.root / name, tmp_path / name)
    made = Judge(ended, Lab(tmp_path, ended.lab_settings))
    made.given.clear()
    return made


def test_it_finds_nothing_where_nothing_is_wrong(judge: Judge) -> None:
    judge.at_the_kill()
    judge.in_the_end()


def tear(lab: Lab) -> None:
    os.truncate(lab.image("recovery"), 1000)


def replace(lab: Lab) -> None:
    image = lab.image("test")
    shutil.copyfile(image, image.with_name("copy"))
    image.with_name("copy").rename(image)


def lose_image(lab: Lab) -> None:
    lab.image("recovery").unlink()


def lose_flag(lab: Lab) -> None:
    (lab.target() / "staged").unlink()


def lose_record(lab: Lab) -> None:
    (lab.root / f"static/.stager/sidecars/{KEY}.test.json").unlink()


def lose_answer(lab: Lab) -> None:
    (lab.root / "results/a.yaml").unlink()


def lose_request(lab: Lab) -> None:
    (lab.root / "spool/done" / str(lab.ended("a")[0])).unlink()


def commit_twice(lab: Lab) -> None:
    [claim] = lab.ended("a")
    done = lab.root / "spool/done"
    shutil.copyfile(done / str(claim), done / f"{str(claim)[:-8]}abcdefgh")


def change_answer(lab: Lab) -> None:
    path = lab.root / "results/a.yaml"
    path.write_text(f"{path.read_text()}# once more\n")


def keep_token(lab: Lab) -> None:
    [token] = (lab.root / "static/.stager/locks" / KEY).iterdir()
    token.rename(token.with_name("9.vm-abcdef.abcdefgh"))


def second_token(lab: Lab) -> None:
    (lab.root / "static/.stager/locks" / KEY / "99.free").touch()


def leave(path: str) -> Callable[[Lab], None]:
    """Return what leaves a file over."""

    def spoil(lab: Lab) -> None:
        (lab.root / path).touch()

    spoil.__name__ = f"leave {path}"
    return spoil


PLACES = (
    "spool/x", "spool/tmp/x", "spool/private/x", "spool/instances/x", "spool/control/x.order",
    "results/.x", "static/.stager/tmp/x", "static/.stager/work/x", "static/.stager/sidecars/x.json",
)  # fmt: skip
SPOILS = (
    ("partial", tear), ("partial", replace), ("partial", lose_image), ("lost", lose_flag),
    ("partial", lose_record), ("answered twice", lose_answer), ("answered twice", lose_request),
    ("answered twice", commit_twice), ("answered twice", change_answer), ("left over", keep_token),
    ("left over", second_token), *(("left over", leave(place)) for place in PLACES),
)  # fmt: skip


@pytest.mark.parametrize(
    ("said", "spoil"), [pytest.param(*pair, id=pair[1].__name__) for pair in SPOILS]
)
def test_it_finds_what_is_wrong(judge: Judge, said: str, spoil: Callable[[Lab], None]) -> None:
    judge.at_the_kill()
    spoil(judge.lab)
    with pytest.raises(AssertionError, match=said):
        judge.in_the_end()


def test_an_image_that_was_staged_before_is_the_one_in_the_end(judge: Judge) -> None:
    assert [path.name for path in judge.before] == [FILES["test"]]
