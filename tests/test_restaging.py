"""Images that are there already: adopted, repaired, or by `force` staged afresh.

One daemon serves the module, each test a build of its own.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from archives import BROKEN, make_image
from lab import BUCKET, BUILD, FILES, NOBODY, Lab, serving

TEST = FILES["test"]
IMAGES = {name: make_image(i, 300_000) for i, name in enumerate(FILES.values())}
OTHERS = {name: make_image(50 + i, 310_000) for i, name in enumerate(FILES.values())}
Identity = tuple[int, int, bytes]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with serving() as made:
        yield made


@pytest.fixture
def build(request: pytest.FixtureRequest, lab: Lab) -> str:
    """Return a build of this test's own, with an archive."""
    words = "".join(c if c.isalnum() else "-" for c in request.node.name)
    made = f"gs://{BUCKET}/board-release/{words}"
    lab.archive(made, images=IMAGES)
    return made


def identity(path: Path) -> Identity:
    """Return what stays the same for a file that nobody swapped or wrote to."""
    info = path.stat()
    return info.st_ino, info.st_mtime_ns, path.read_bytes()


def sidecar_path(lab: Lab, build: str, image: str = "test") -> Path:
    name = build.rpartition("/")[2]
    (path,) = (lab.root / "static/.stager/sidecars").glob(f"*{name[-40:]}-*.{image}.json")
    return path


# -- force -----------------------------------------------------------------------------------------


def test_force_with_the_same_content_swaps_nothing(lab: Lab, build: str) -> None:
    assert lab.ask(build)["state"] == "staged"
    before = identity(lab.image("test", build))
    result = lab.ask(build, force=True)
    assert result["state"].endswith("staged"), result
    assert int(result["bytes_fetched"]) > 0
    assert identity(lab.image("test", build)) == before
    assert lab.flag(build) == ["test"]


def test_force_stages_afresh_what_the_archive_now_holds(lab: Lab, build: str) -> None:
    first = lab.ask(build, ["test", "base"])
    untouched = identity(lab.image("base", build))
    lab.archive(build, images=OTHERS)
    second = lab.ask(build, ["test"], force=True)
    assert (first["state"], second["state"]) == ("staged", "staged")
    assert lab.image("test", build).read_bytes() == OTHERS[TEST]
    assert identity(lab.image("base", build)) == untouched
    assert sorted(lab.flag(build)) == ["base", "test"]
    assert second["images"]["test"]["generation"] == second["archive"]["generation"]
    assert second["images"]["test"]["crc32"] != first["images"]["test"]["crc32"]
    again = lab.ask(build, ["test"])
    assert (again["state"], again["images"]["test"]["sha256"]) == (
        "already_staged", second["images"]["test"]["sha256"],
    )  # fmt: skip


def test_a_reader_sees_the_old_or_the_new_image_and_never_a_part(lab: Lab, build: str) -> None:
    old, new = ({TEST: make_image(seed, 5_000_000)} for seed in (8, 9))
    lab.archive(build, images=old)
    assert lab.ask(build)["state"] == "staged"
    path, seen, ended = lab.image("test", build), set(), threading.Event()
    problems: list[str] = []

    def read() -> None:
        while not ended.is_set():
            try:
                seen.add(path.read_bytes())
            except OSError as e:
                problems.append(str(e))
            if "test" in lab.flag(build) and not path.exists():
                problems.append("flagged, but not there")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for images in (new, old, new):
            lab.archive(build, images=images)
            assert lab.ask(build, force=True)["state"] == "staged"
    finally:
        ended.set()
        reader.join()
    assert not problems
    assert seen <= {old[TEST], new[TEST]}
    assert path.read_bytes() == new[TEST]


@pytest.mark.parametrize("how", ["flipped_bit", "not_a_zip", "deflate_ends_early"])
def test_a_force_that_fails_takes_nothing_away(lab: Lab, build: str, how: str) -> None:
    lab.ask(build, ["test", "recovery"])
    before = {path.name: identity(path) for path in lab.target(build).iterdir()}
    record = sidecar_path(lab, build).read_bytes()
    BROKEN[how](lab.archive_path(build))
    result = lab.ask(build, ["test"], force=True)
    assert (result["state"], result["error"]["code"]) == ("failed", "archive_corrupt")
    assert {path.name: identity(path) for path in lab.target(build).iterdir()} == before
    assert sidecar_path(lab, build).read_bytes() == record


def test_force_may_be_forbidden(public_dir: Path) -> None:
    lab = Lab(public_dir, {"allow_force": False}).init()
    lab.archive(images=IMAGES)
    with lab.running():
        assert lab.ask()["state"] == "staged"
        before = identity(lab.image("test"))
        lab.archive(images=OTHERS)
        dropped = lab.requests / ".one.tmp"
        dropped.write_text(f"build: {BUILD}\nimages: [test]\nforce: true\n")
        os.chown(dropped, NOBODY, -1)
        dropped.rename(lab.requests / "one.yaml")
        result = lab.result("one")
        assert result["state"] == "rejected", str(result)
        assert result["error"]["code"] == "invalid_request"
        assert "force" in result["error"]["message"]
        assert lab.ask(force=False)["state"] == "already_staged"
    assert identity(lab.image("test")) == before


# -- what an older devserver left ------------------------------------------------------------------


THERE: list[Any] = [
    pytest.param(lambda path: path.write_bytes(IMAGES[TEST]), True, id="right"),
    pytest.param(lambda path: path.write_bytes(b""), False, id="empty"),
    pytest.param(lambda path: path.write_bytes(IMAGES[TEST][:-4096]), False, id="truncated"),
    pytest.param(lambda path: path.write_bytes(IMAGES[TEST] + b"\0"), False, id="longer"),
    pytest.param(lambda path: path.write_bytes(OTHERS[TEST][:300_000]), False, id="same-size"),
]


@pytest.mark.parametrize("flagged", [True, False], ids=["flagged", "unflagged"])
@pytest.mark.parametrize(("leave", "is_right"), THERE)
def test_an_image_without_a_record_is_adopted_if_right_and_replaced_if_not(
    lab: Lab, build: str, leave: Callable[[Path], object], is_right: bool, flagged: bool
) -> None:
    target, path = lab.target(build), lab.image("test", build)
    target.mkdir(parents=True)
    leave(path)
    if flagged:
        (target / "staged").write_text("autotest\ntest\n")
    inode = path.lstat().st_ino
    result = lab.ask(build)
    assert result["state"] == ("already_staged" if is_right else "staged"), result
    assert (path.lstat().st_ino == inode) is is_right
    assert path.read_bytes() == IMAGES[TEST]
    assert lab.flag(build) == (["autotest", "test"] if flagged else ["test"])
    if is_right:  # only the directory was fetched, to know what is right
        assert int(result["bytes_fetched"]) < 10_000
    assert json.loads(sidecar_path(lab, build).read_text())["size"] == len(IMAGES[TEST])


def link_to_the_right_one(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    elsewhere.write_bytes(IMAGES[TEST])
    path.symlink_to(elsewhere)


@pytest.mark.parametrize("force", [False, True], ids=["plain", "force"])
@pytest.mark.parametrize("leave", [link_to_the_right_one, os.mkfifo, os.mkdir])
def test_what_is_no_file_in_an_images_place_is_a_conflict_and_stays(
    lab: Lab, build: str, leave: Callable[[Path], object], force: bool
) -> None:
    path = lab.image("test", build)
    path.parent.mkdir(parents=True)
    leave(path)
    before = path.lstat()
    result = lab.ask(build, force=force)
    assert (result["state"], result["error"]["code"]) == ("failed", "target_conflict"), result
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert lab.flag(build) == []


def test_an_older_devservers_flag_is_kept_while_its_images_are_not_asked_for(
    lab: Lab, build: str
) -> None:
    target = lab.target(build)
    target.mkdir(parents=True)
    lab.image("base", build).write_bytes(IMAGES[FILES["base"]])
    lab.image("recovery", build).write_bytes(b"")
    (target / "staged").write_text("base\nrecovery\nautotest_packages\n")
    assert lab.ask(build)["state"] == "staged"
    # The empty one was never there; the unknown line is somebody else's.
    assert lab.flag(build) == ["base", "autotest_packages", "test"]


# -- what a hand did to a staged image -------------------------------------------------------------


def truncate(lab: Lab, build: str) -> None:
    os.truncate(lab.image("test", build), 100_000)


def remove(lab: Lab, build: str) -> None:
    lab.image("test", build).unlink()


def remove_all(lab: Lab, build: str) -> None:
    for path in lab.target(build).iterdir():
        path.unlink()
    lab.target(build).rmdir()


def unflag(lab: Lab, build: str) -> None:
    (lab.target(build) / "staged").write_text("")


def remove_flag(lab: Lab, build: str) -> None:
    (lab.target(build) / "staged").unlink()


def forget(lab: Lab, build: str) -> None:
    sidecar_path(lab, build).unlink()


def garble(lab: Lab, build: str) -> None:
    sidecar_path(lab, build).write_text('{"size": ')


HURT: list[Any] = [
    pytest.param(truncate, False, id="truncated"),
    pytest.param(remove, False, id="removed"),
    pytest.param(remove_all, False, id="all-removed"),
    pytest.param(unflag, True, id="unflagged"),
    pytest.param(remove_flag, True, id="flag-removed"),
    pytest.param(forget, True, id="record-removed"),
    pytest.param(garble, True, id="record-garbled"),
]


@pytest.mark.parametrize(("hurt", "is_kept"), HURT)
def test_a_staged_image_that_was_tampered_with_is_checked_or_staged_again(
    lab: Lab, build: str, hurt: Callable[[Lab, str], None], is_kept: bool
) -> None:
    assert lab.ask(build)["state"] == "staged"
    inode = lab.image("test", build).stat().st_ino
    hurt(lab, build)
    result = lab.ask(build)
    assert result["state"] == ("already_staged" if is_kept else "staged"), result
    assert lab.image("test", build).read_bytes() == IMAGES[TEST]
    assert lab.flag(build) == ["test"]
    if is_kept:
        assert lab.image("test", build).stat().st_ino == inode
    assert lab.ask(build)["state"] == "already_staged"
