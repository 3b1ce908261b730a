"""What an archive can have wrong, through the real daemon: failed at once, with the reason.

One daemon serves the module, each test a build of its own; archives come from a directory.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from archives import BROKEN, EXTRAS, make_image, small_images
from lab import BUCKET, FILES, Lab, serving

OTHER_BUCKET = "chromiumos-image-archive"
TEST, BASE, RECOVERY = (FILES[image] for image in ("test", "base", "recovery"))
# Where these are broken no member can be found.
WITHOUT_DIRECTORY = {
    "truncated", "not_a_zip", "empty_file", "directory_larger_than_the_file",
    "directory_past_the_end",
}  # fmt: skip


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with serving(workers=4) as made:
        yield made


@pytest.fixture
def build(request: pytest.FixtureRequest) -> str:
    """Return a build of this test's own."""
    words = "".join(c if c.isalnum() else "-" for c in request.node.name)
    return f"gs://{BUCKET}/board-release/{words}"


def broken(lab: Lab, build: str, how: str) -> None:
    path = lab.archive_path(build)
    path.parent.mkdir(parents=True)
    BROKEN[how](path)


def code(part: dict[str, Any]) -> str:
    return str(part["error"]["code"])


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_member_fails_its_image_and_the_sound_one_is_staged(
    lab: Lab, build: str, how: str
) -> None:
    broken(lab, build, how)
    result = lab.ask(build, ("test", "recovery"))
    assert (result["state"], code(result)) == ("failed", "archive_corrupt"), result
    assert result["error"]["hint"]
    assert not lab.image("test", build).exists()
    if how in WITHOUT_DIRECTORY:
        assert "zip archive" in result["error"]["message"] or how == "directory_past_the_end"
        assert {i: code(part) for i, part in result["images"].items()} == dict.fromkeys(
            ["test", "recovery"], "archive_corrupt"
        )
        assert not lab.target(build).exists()
        return
    assert TEST in result["error"]["message"]
    assert code(result["images"]["test"]) == "archive_corrupt"
    assert result["images"]["recovery"]["state"] == "staged", result
    assert lab.flag(build) == ["recovery"]
    assert lab.image("recovery", build).read_bytes() == small_images()[RECOVERY]
    assert sorted(os.listdir(lab.target(build))) == sorted([RECOVERY, "staged"])


SOUND: list[Any] = [
    pytest.param({"method": "stored"}, id="stored"),
    pytest.param({"descriptors": True}, id="data-descriptors"),
    pytest.param({"zip64": True, "descriptors": True}, id="zip64-data-descriptors"),
    pytest.param({"comment": b"#" * 65_535}, id="longest-comment"),
    pytest.param({"prefix": b"MZ" * 5000, "comment": b"hi"}, id="prefix"),
    pytest.param({"order": [RECOVERY, "esp/", "id_rsa", TEST]}, id="other-order"),
    pytest.param({"images": {TEST: b"x", BASE: b"", RECOVERY: bytes(5000)}}, id="tiny-and-empty"),
]


@pytest.mark.parametrize("options", SOUND)
def test_every_kind_of_sound_archive_is_staged(
    lab: Lab, build: str, options: dict[str, Any]
) -> None:
    contents = lab.archive(build, **({"images": small_images()} | options))
    result = lab.ask(build, ("recovery", "test", "base"))
    assert result["state"] == "staged", result
    for image, file in FILES.items():
        assert lab.image(image, build).read_bytes() == contents[file]
        assert int(result["images"][image]["size"]) == len(contents[file])
    assert sorted(lab.flag(build)) == sorted(FILES)


def test_a_missing_image_is_told_with_what_the_archive_does_hold(lab: Lab, build: str) -> None:
    contents = lab.archive(build, images={TEST: make_image(1, 50_000)})
    assert lab.ask(build)["state"] == "staged"
    result = lab.ask(build, ("test", "base"))
    assert (result["state"], code(result)) == ("failed", "image_not_in_archive")
    message = result["error"]["message"]
    for name in [BASE, *contents, *(n for n in EXTRAS if "/" not in n)]:
        assert name in message
    assert result["images"]["test"]["state"] == "already_staged"
    assert result["images"]["base"]["state"] == "failed"
    assert lab.flag(build) == ["test"]


@pytest.mark.parametrize(
    ("images", "first"),
    [
        pytest.param(("base", "test", "recovery"), "image_not_in_archive", id="missing-first"),
        pytest.param(("recovery", "test", "base"), "archive_corrupt", id="broken-first"),
    ],
)
def test_the_error_is_that_of_the_first_failed_image_in_request_order(
    lab: Lab, build: str, images: tuple[str, ...], first: str
) -> None:
    lab.archive(build, images={TEST: small_images()[TEST], RECOVERY: b"recovery"})
    whole = bytearray(lab.archive_path(build).read_bytes())
    whole[whole.index(TEST.encode()) + 5000] ^= 1
    lab.archive_path(build).write_bytes(whole)
    result = lab.ask(build, images)
    assert {i: code(p) for i, p in result["images"].items() if p["state"] == "failed"} == {
        "test": "archive_corrupt", "base": "image_not_in_archive",
    }  # fmt: skip
    assert list(result["images"]) == list(images)
    assert code(result) == first
    assert result["images"]["recovery"]["state"] == "staged"
    assert lab.flag(build) == ["recovery"]
    for wanted in ("archive_corrupt", "image_not_in_archive"):
        again = lab.stager("retry", "--all", "--code", wanted).stdout
        assert "retried as" in again, "also where it is not the first"


# -- what is staged stays --------------------------------------------------------------------------


def snapshot(lab: Lab, build: str) -> dict[str, Any]:
    """Return all that a user of the static tree may see of a build."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in lab.target(build).iterdir()
    }


def other(build: str) -> str:
    return build.replace(BUCKET, OTHER_BUCKET)


def other_content(lab: Lab, build: str) -> None:
    images = {name: make_image(77 + i, 250_000) for i, name in enumerate(FILES.values())}
    lab.archive(build, images=images)


def other_broken(lab: Lab, build: str) -> None:
    BROKEN["flipped_bit"](lab.archive_path(build))


def without_test(lab: Lab, build: str) -> None:
    lab.archive(build, images={BASE: b"base"})


def uploaded_elsewhere(lab: Lab, build: str) -> None:
    lab.archive(other(build))


def removed(lab: Lab, build: str) -> None:
    lab.archive_path(build).unlink()


FAILURES: list[Any] = [
    pytest.param(other_content, {"images": ("base",)}, "archive_changed", id="changed"),
    pytest.param(
        other_broken, {"images": ("test",), "force": True}, "archive_corrupt", id="force-corrupt"
    ),
    pytest.param(
        without_test, {"images": ("test",), "force": True}, "image_not_in_archive",
        id="force-missing",
    ),
    pytest.param(
        removed, {"images": ("test",), "force": True, "wait": 0}, "archive_not_found",
        id="force-gone",
    ),
    pytest.param(uploaded_elsewhere, {"bucket": OTHER_BUCKET}, "target_conflict", id="conflict"),
    pytest.param(
        uploaded_elsewhere, {"bucket": OTHER_BUCKET, "force": True}, "target_conflict",
        id="force-conflict",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("happens", "wish", "expected"), FAILURES)
def test_a_failure_changes_nothing_of_what_is_staged(
    lab: Lab, build: str, happens: Callable[[Lab, str], None], wish: dict[str, Any], expected: str
) -> None:
    lab.archive(build)
    assert lab.ask(build, ("test", "recovery"))["state"] == "staged"
    before = snapshot(lab, build)
    happens(lab, build)
    wish = {"images": ("test",)} | wish
    asked = other(build) if wish.pop("bucket", None) else build
    result = lab.ask(asked, **wish)
    assert (result["state"], code(result)) == ("failed", expected), result
    assert snapshot(lab, build) == before
    if expected == "archive_changed":
        assert "force: true" in result["error"]["hint"]
    assert lab.ask(build, ("recovery", "test"))["state"] == "already_staged"


def test_an_archive_uploaded_again_with_the_same_content_is_no_change(lab: Lab, build: str) -> None:
    lab.archive(build)
    first = lab.ask(build)
    contents = lab.archive(build, method="stored")
    os.utime(lab.archive_path(build), (1, 1))
    second = lab.ask(build, ("test", "recovery"))
    assert (first["state"], second["state"]) == ("staged", "staged")
    assert second["images"]["test"]["state"] == "already_staged"
    assert lab.image("recovery", build).read_bytes() == contents[RECOVERY]
    assert second["images"]["recovery"]["generation"] != first["images"]["test"]["generation"]


def test_a_broken_member_that_is_not_asked_for_does_no_harm(lab: Lab, build: str) -> None:
    """Also where its image was staged before, and its size and sum are still those."""
    lab.archive(build, images=small_images())
    assert lab.ask(build, ("test",))["state"] == "staged"
    before = snapshot(lab, build)
    BROKEN["encrypted"](lab.archive_path(build))
    result = lab.ask(build, ("recovery",))
    assert result["state"] == "staged", result
    assert snapshot(lab, build)[TEST] == before[TEST]
    assert sorted(lab.flag(build)) == ["recovery", "test"]


def test_a_request_dropped_behind_an_answer_is_not_given_that_answer(lab: Lab, build: str) -> None:
    """Whoever repairs an archive asks at once: the daemon may still be putting things away."""
    for number in range(8):
        one = f"{build}-{number}"
        broken(lab, one, "truncated")
        assert code(lab.ask(one)) == "archive_corrupt"
        lab.archive(one)
        assert lab.ask(one)["state"] == "staged"
