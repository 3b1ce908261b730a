"""The main job, end to end: a dropped request becomes images, flag and answer."""

from archives import make_archive
from cloud import Cloud
from lab import BUCKET, BUILD, FILES, Lab


def test_a_dropped_request_is_staged_flagged_and_answered(lab: Lab) -> None:
    contents = lab.archive()
    with lab.running():
        result = lab.result(lab.drop("one", images=["test", "recovery"]))
    assert result["state"] == "staged"
    assert lab.flag() == ["test", "recovery"]
    for image in ("test", "recovery"):
        assert lab.image(image).read_bytes() == contents[FILES[image]]
    assert not lab.image("base").exists()
    assert sorted(p.name for p in lab.target().iterdir()) == sorted(
        ["staged", FILES["test"], FILES["recovery"]]
    )
    assert lab.is_clean()


def test_the_same_from_cloud_storage(cloud_lab: tuple[Lab, Cloud]) -> None:
    lab, cloud = cloud_lab
    path = lab.archive_path()
    path.parent.mkdir(parents=True)
    contents = make_archive(path)
    cloud.put(BUCKET, BUILD.removeprefix(f"gs://{BUCKET}/") + "/image.zip", path)
    with lab.running():
        result = lab.result(lab.drop("one"))
    assert result["state"] == "staged", result
    assert lab.image("test").read_bytes() == contents[FILES["test"]]
    assert int(result["bytes_fetched"]) == cloud.sent()
