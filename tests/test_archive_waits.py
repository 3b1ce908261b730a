"""What is waited for: archives that are not there yet, and a service that does not answer."""

import time
from typing import Any

import pytest
from archives import make_image
from cloud import Cloud
from lab import BUCKET, BUILD, FILES, Lab, until

OTHER_BUCKET = "chromiumos-image-archive"
OBJECT = BUILD.removeprefix(f"gs://{BUCKET}/") + "/image.zip"
OTHER_BUILD = f"gs://{BUCKET}/other-release/R1-2.3"
Labs = tuple[Lab, Cloud]


def waits(lab: Lab, count: int = 1) -> None:
    """Wait until so many requests wait, unclaimed."""
    until(
        lambda: len(lab.spool("waiting")) == count and not lab.spool("active"),
        f"{count} requests waiting",
    )


def code(result: dict[str, Any]) -> str:
    return str(result["error"]["code"])


# -- not there yet ---------------------------------------------------------------------------------


def test_one_look_serves_all_that_wait_for_an_archive(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    with lab.running():
        names = [lab.drop(f"n{i}", images=["test", "base"][: 1 + i % 2]) for i in range(30)]
        waits(lab, 30)
        looks = len(cloud.hits("metadata"))
        lab.upload(cloud)
        results = [lab.result(name) for name in names]
    assert looks == 1
    assert {r["state"] for r in results} <= {"staged", "already_staged"}
    assert {r["attempts"] for r in results} <= {"0", "1"}  # looking is not counted
    # One more look found it; the second image needs the archive once more.
    assert len(cloud.hits("metadata")) <= 4


def test_thirty_waiters_ask_no_oftener_than_one(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    with lab.running():
        for i in range(30):
            lab.drop(f"n{i}", wait="60s")
        until(lambda: len(cloud.hits("metadata")) >= 3, "three looks")
        waits(lab, 30)
        assert len(cloud.hits("metadata")) == 3


def test_no_worker_is_held_meanwhile(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    lab.write_config(workers=1)
    lab.upload(cloud, OTHER_BUILD)
    with lab.running():
        lab.drop("waits")
        waits(lab)
        assert lab.result(lab.drop("goes", OTHER_BUILD), seconds=5)["state"] == "staged"
        waits(lab)
        lab.upload(cloud)
        assert lab.result("waits")["state"] == "staged"


@pytest.mark.parametrize("beside", ["factory_image.zip", "image.zip.part", "test_image.zip"])
def test_only_the_exact_object_name_ends_the_wait(cloud_lab: Labs, beside: str) -> None:
    lab, cloud = cloud_lab
    lab.archive()
    cloud.put(BUCKET, OBJECT.replace("image.zip", beside), lab.archive_path())
    cloud.put(OTHER_BUCKET, OBJECT, lab.archive_path())
    with lab.running():
        result = lab.result(lab.drop("one", wait=0))
    assert code(result) == "archive_not_found"
    assert {hit.name for hit in cloud.hits()} == {OBJECT}


@pytest.mark.parametrize(
    ("status", "expected", "hint"),
    [
        pytest.param(404, "archive_not_found", "uploaded", id="404"),
        pytest.param(403, "archive_denied", "may not exist", id="403"),
    ],
)
def test_wait_0_is_one_look(cloud_lab: Labs, status: int, expected: str, hint: str) -> None:
    lab, cloud = cloud_lab
    cloud.fail("metadata", status, None)
    with lab.running():
        result = lab.result(lab.drop("one", wait=0))
    assert (result["state"], code(result)) == ("failed", expected)
    assert hint in result["error"]["hint"]
    assert f"{BUILD}/image.zip" in result["error"]["message"]
    assert len(cloud.hits("metadata")) == 1


def test_it_is_given_up_when_the_wait_is_over_and_not_before(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    lab.write_config(wait_for_archive="1s")
    with lab.running():
        began = time.monotonic()
        lab.drop("patient", wait="4s")
        results = [lab.result(lab.drop("by-default"))]
        assert 0.9 < time.monotonic() - began < 3.5
        results.append(lab.result("patient"))
        assert 3.9 < time.monotonic() - began < 8
    assert {code(r) for r in results} == {"archive_not_found"}
    assert len(cloud.hits("metadata")) <= 3


def test_what_was_denied_is_staged_once_it_is_granted(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    lab.upload(cloud)
    cloud.fail("metadata", 403, 1)
    with lab.running() as daemon:
        result = lab.result(lab.drop("one"))
    assert (result["state"], result["attempts"]) == ("staged", "1")
    assert "the queue waits" not in daemon.log


def test_a_request_dropped_behind_the_upload_gets_a_look_of_its_own(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    with lab.running():
        lab.drop("waits")
        waits(lab)
        lab.upload(cloud)
        assert lab.result(lab.drop("hurried", wait=0))["state"].endswith("staged")


def test_another_buckets_build_of_the_same_path_is_looked_for_by_itself(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    other = BUILD.replace(BUCKET, OTHER_BUCKET)
    contents = lab.upload(cloud, other)
    with lab.running():
        lab.drop("waits")
        waits(lab)
        result = lab.result(lab.drop("there", other, wait=0))
        assert result["state"] == "staged", result
    assert lab.image("test").read_bytes() == contents[FILES["test"]]


def test_another_buckets_broken_build_says_nothing_of_this_one(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    other = BUILD.replace(BUCKET, OTHER_BUCKET)
    cloud.put(OTHER_BUCKET, OBJECT, b"<html>no zip</html>" * 9)
    with lab.running():
        lab.drop("waits")
        waits(lab)
        assert code(lab.result(lab.drop("broken", other))) == "archive_corrupt"
        lab.upload(cloud)
        assert lab.result("waits")["state"] == "staged"


# -- out of order ----------------------------------------------------------------------------------


UNAVAILABLE: list[Any] = [
    pytest.param(lambda cloud: cloud.fail("metadata", 503, None), id="metadata-503"),
    pytest.param(lambda cloud: cloud.fail("metadata", 429, None), id="metadata-429"),
    pytest.param(lambda cloud: cloud.fail("media", 500, None), id="media-500"),
    pytest.param(lambda cloud: cloud.cut(0, None), id="cut-at-once"),
    pytest.param(lambda cloud: cloud.ignore_range(None), id="200-for-range"),
]


@pytest.mark.parametrize("break_it", UNAVAILABLE)
def test_a_service_that_stays_away_fails_the_request_after_its_attempts(
    cloud_lab: Labs, break_it: Any
) -> None:
    lab, cloud = cloud_lab
    lab.write_config(attempts=1)
    lab.upload(cloud)
    break_it(cloud)
    with lab.running() as daemon:
        result = lab.result(lab.drop("one"))
        assert (result["state"], code(result)) == ("failed", "archive_unavailable"), result
        assert result["attempts"] == "1"
        cloud.clear_faults()
        second = lab.result(lab.drop("two"))
        assert second["state"] == "staged", str(second)
    assert "the queue waits" not in daemon.log
    assert lab.is_clean()


def test_a_deferred_request_is_tried_again_and_others_go_on_meanwhile(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    lab.write_config(workers=1, attempts=2)
    lab.upload(cloud)
    lab.upload(cloud, OTHER_BUILD)
    cloud.fail("media", 503, 4, name=OBJECT)
    with lab.running() as daemon:
        lab.drop("later")
        daemon.await_log("deferred for")
        waits(lab)
        deferred = time.monotonic()
        names = [lab.drop("same-build", images=["base"]), lab.drop("goes", OTHER_BUILD)]
        assert lab.result("goes", seconds=3)["state"] == "staged"
        assert lab.result("later")["state"] == "staged"
        assert 3 < time.monotonic() - deferred < 10
        assert lab.result(names[0])["state"] == "staged"
    assert lab.result("later")["attempts"] == "2"
    assert daemon.log.count("deferred for") == 1


def test_a_service_away_longer_than_the_attempts_fails_all_that_wait_for_the_build(
    cloud_lab: Labs,
) -> None:
    lab, cloud = cloud_lab
    lab.write_config(attempts=2)
    lab.upload(cloud)
    cloud.fail("metadata", 503, None)
    with lab.running() as daemon:
        lab.drop("one")
        daemon.await_log("deferred for")
        lab.drop("two")
        results = [lab.result(name) for name in ("one", "two")]
    assert {code(r) for r in results} == {"archive_unavailable"}
    assert results[0]["attempts"] == "2"
    assert len(cloud.hits("metadata")) == 8  # two attempts, four tries each


def test_retry_after_is_honoured(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    lab.upload(cloud)
    cloud.fail("metadata", 429, 1, retry_after=2)
    with lab.running():
        began = time.monotonic()
        result = lab.result(lab.drop("one"))
    assert (result["state"], result["attempts"]) == ("staged", "1")
    assert time.monotonic() - began > 2


def test_the_good_image_stays_when_the_service_fails_for_the_next(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    lab.write_config(attempts=1)
    images = {FILES["test"]: make_image(1, 100_000), FILES["base"]: make_image(2, 2_000_000)}
    lab.upload(cloud, images=images, method="stored")
    cloud.slow(1_000_000)
    cloud.cut(1_000_000)
    with lab.running():
        lab.drop("one", images=["test", "base"])
        until(lambda: lab.flag() == ["test"], "the first image")
        cloud.fail("media", 503, None)
        result = lab.result("one")
    assert (result["state"], code(result)) == ("failed", "archive_unavailable"), result
    states = {image: part["state"] for image, part in result["images"].items()}
    assert states == {"test": "staged", "base": "failed"}
    assert lab.image("test").read_bytes() == images[FILES["test"]]
    assert lab.flag() == ["test"]


def test_what_is_staged_is_answered_while_the_service_is_away(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    lab.upload(cloud)
    with lab.running():
        assert lab.result(lab.drop("one"))["state"] == "staged"
        cloud.reset_log()
        cloud.fail("any", 503, None)
        result = lab.result(lab.drop("two"), seconds=3)
    assert (result["state"], cloud.hits()) == ("already_staged", [])


def test_what_an_archive_lacked_is_no_answer_for_who_asks_after_it_was_completed(
    cloud_lab: Labs,
) -> None:
    lab, cloud = cloud_lab
    test, recovery = (make_image(n, 300_000) for n in range(2))
    lab.upload(cloud, images={FILES["test"]: test})
    cloud.slow(50_000)
    with lab.running():
        lab.drop("early", images=["test", "recovery"])
        until(lambda: cloud.sent() > 20_000)
        lab.upload(cloud, images={FILES["test"]: test, FILES["recovery"]: recovery})
        lab.drop("late", images=["recovery"])
        until(lambda: lab.spool("waiting"))
        cloud.slow(None)
        assert code(lab.result("early")) == "image_not_in_archive"
        assert lab.result("late")["state"] == "staged"
    assert lab.image("recovery").read_bytes() == recovery
