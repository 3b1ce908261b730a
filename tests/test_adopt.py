"""`stager adopt`: an older devserver's tree becomes ours, and nothing in it is believed blindly."""

import json
import os
from typing import Any

import pytest
from lab import BUCKET, BUILD, FILES, NOBODY, Lab

from stager.layout import parse_build

KEY = parse_build(BUILD, frozenset()).key
OTHER = f"gs://{BUCKET}/x86-alex-release/R99"


def stage_as_devserver(lab: Lab, build: str, images: dict[str, bytes]) -> None:
    """Leave what the devserver's stage_images left: images, and a flag it appended to."""
    target = lab.target(build)
    target.mkdir(parents=True)
    for image, content in images.items():
        (target / FILES[image]).write_bytes(content)
    (target / "staged").write_text("".join(f"{image}\n" for image in (*images, *images)))


def adopt(lab: Lab, *options: str, code: int = 0) -> dict[str, Any]:
    """Run the command; return its document, with images by (target, image)."""
    done = lab.stager("adopt", "--json", *options)
    assert done.returncode == code, done.stderr + done.stdout
    data: dict[str, Any] = json.loads(done.stdout)
    data["images"] = {(i["build"], i["image"]): i["outcome"] for i in data["images"]}
    return data


def target(lab: Lab, build: str = BUILD) -> str:
    return str(lab.target(build).relative_to(lab.root / "static"))


def test_what_the_archive_confirms_is_adopted_and_not_fetched_again(lab: Lab) -> None:
    contents = lab.archive()
    stage_as_devserver(lab, BUILD, {"test": contents[FILES["test"]], "base": b"x"})
    before = lab.image("test").stat()
    data = adopt(lab, code=1)
    assert data["images"][target(lab), "test"] == "adopted"
    assert "is not what gs://" in data["images"][target(lab), "base"]
    after = lab.image("test").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    with lab.running():
        assert lab.ask()["state"] == "already_staged"
        answer = lab.ask(images=["base"])
        assert answer["state"] == "staged"
    assert lab.image("base").read_bytes() == contents[FILES["base"]]
    assert adopt(lab)["images"] == {}, "nothing is left to adopt"


def test_without_an_archive_an_image_is_recorded_as_unverified(lab: Lab) -> None:
    stage_as_devserver(lab, OTHER, {"recovery": b"only we have it"})
    data = adopt(lab)
    assert data["images"] == {
        (target(lab, OTHER), "recovery"): "adopted, unverified: its archive is gone"
    }
    (sidecar,) = (lab.root / "static/.stager/sidecars").iterdir()
    record = json.loads(sidecar.read_text())
    assert (record["verified"], record["size"]) == (False, 15)
    with lab.running():
        assert lab.ask(OTHER, ["recovery"])["state"] == "already_staged"


def test_the_archive_may_be_in_another_of_the_buckets(lab: Lab) -> None:
    second = BUILD.replace(BUCKET, "chromiumos-image-archive")
    contents = lab.archive(second)
    stage_as_devserver(lab, BUILD, {"test": contents[FILES["test"]]})
    assert adopt(lab)["images"] == {(target(lab), "test"): "adopted"}
    with lab.running():
        assert lab.ask(second)["state"] == "already_staged"


@pytest.mark.parametrize("leftover", ["empty", "not flagged", "not there"])
def test_what_was_never_whole_is_not_adopted(lab: Lab, leftover: str) -> None:
    lab.archive()
    stage_as_devserver(lab, BUILD, {"test": b"" if leftover == "empty" else b"x"})
    if leftover == "not flagged":
        (lab.target() / "staged").write_text("base\n")
    if leftover == "not there":
        lab.image("test").unlink()
    assert adopt(lab)["images"] == {}


def test_a_dry_run_changes_nothing(lab: Lab) -> None:
    contents = lab.archive()
    stage_as_devserver(lab, BUILD, {"test": contents[FILES["test"]]})
    data = adopt(lab, "--dry-run")
    assert data["images"] == {(target(lab), "test"): "would be checked"}
    assert not os.listdir(lab.root / "static/.stager/sidecars")


def test_wrong_owners_are_listed_with_the_line_that_mends_them(lab: Lab) -> None:
    contents = lab.archive()
    stage_as_devserver(lab, BUILD, {"test": contents[FILES["test"]]})
    os.chown(lab.image("test"), NOBODY, -1)
    data = adopt(lab, code=1)
    assert data["owners"] == [f"chown 0 {lab.image('test')}"]
    assert data["images"][target(lab), "test"] == "adopted"


def test_a_build_that_is_worked_on_is_left(lab: Lab) -> None:
    contents = lab.archive()
    stage_as_devserver(lab, BUILD, {"test": contents[FILES["test"]]})
    peer = lab.peer()
    with peer.locks.take(KEY):
        data = adopt(lab, code=1)
    assert data["images"][target(lab), "test"].startswith("left: build busy")
