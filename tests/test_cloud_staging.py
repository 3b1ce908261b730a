"""Staging from Cloud Storage by the real daemon: right bytes, few bytes, whatever the wire does."""

import os
import random
import re
import struct
import subprocess
import time
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from archives import BROKEN, make_archive, make_image, small_images, sparse_zip64
from cloud import Cloud
from lab import BUCKET, BUILD, FILES, Lab

TEST, BASE, RECOVERY = (FILES[image] for image in ("test", "base", "recovery"))
OBJECT = BUILD.removeprefix(f"gs://{BUCKET}/") + "/image.zip"
MIB = 1 << 20
Labs = tuple[Lab, Cloud]


def put(lab: Lab, cloud: Cloud, how: Callable[[Path], object]) -> Path:
    """Put an archive made by `how` into the cloud; return where it is on disk."""
    path = lab.archive_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    how(path)
    cloud.put(BUCKET, OBJECT, path)
    return path


@cache
def large_images() -> dict[str, bytes]:
    return {name: make_image(i, 4 * MIB + i) for i, name in enumerate(FILES.values())}


def info(path: Path, name: str = TEST) -> zipfile.ZipInfo:
    with zipfile.ZipFile(path) as archive:
        return archive.getinfo(name)


def directory_bytes(path: Path) -> int:
    with zipfile.ZipFile(path) as archive:
        return path.stat().st_size - archive.start_dir


def staged(lab: Lab, *images: str, **more: Any) -> dict[str, Any]:
    """Have a daemon stage images of the build; return the answer, which must be good."""
    with lab.running():
        result = lab.result(lab.drop("one", images=images or ("test",), **more))
    assert result["state"] == "staged", result
    assert lab.is_clean(), lab.listing()
    return result


def peak_rss_bytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    assert found
    return int(found[1]) * 1024


# -- few bytes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["deflate", "stored"])
@pytest.mark.parametrize("image", FILES)
def test_only_the_wanted_members_bytes_are_fetched_and_zeros_take_no_room(
    cloud_lab: Labs, image: str, method: Any
) -> None:
    lab, cloud = cloud_lab
    images = large_images()
    path = put(lab, cloud, lambda path: make_archive(path, images, method=method))
    result = staged(lab, image)
    allowed = info(path, FILES[image]).compress_size * 1.01 + directory_bytes(path)
    asked = sum((hit.end or 0) - (hit.start or 0) for hit in cloud.hits("media"))
    assert cloud.sent() <= asked <= allowed
    assert int(result["bytes_fetched"]) == cloud.sent()
    assert len(cloud.hits("metadata")) == 1
    visible, original, copy = lab.image(image), lab.root / "original", lab.root / "copy"
    original.write_bytes(images[FILES[image]])
    assert visible.read_bytes() == original.read_bytes()
    subprocess.run(["cp", "--sparse=always", original, copy], check=True)
    subprocess.run(["sync", copy], check=True)
    assert visible.stat().st_blocks <= copy.stat().st_blocks
    assert int(result["images"][image]["allocated"]) == visible.stat().st_blocks * 512


def test_a_member_of_many_slices_is_staged_by_several_connections(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    images = {TEST: random.Random(3).randbytes(36 * MIB), RECOVERY: b"small"}
    path = put(lab, cloud, lambda path: make_archive(path, images, method="stored"))
    cloud.cut(3 * MIB, 4)
    cloud.cut(5 * MIB, 2, rst=True)
    with lab.running() as daemon:
        result = lab.result(lab.drop("one"))
        assert peak_rss_bytes(daemon.process.pid) < 200 * MIB
    assert result["state"] == "staged", result
    assert lab.image("test").read_bytes() == images[TEST]
    spans = {h.start for h in cloud.hits("media") if (h.end or 0) - (h.start or 0) > MIB}
    assert len(spans) >= 5
    assert max((h.end or 0) - (h.start or 0) for h in cloud.hits("media")) < 20 * MIB
    assert int(result["bytes_fetched"]) <= info(path).compress_size * 1.01 + directory_bytes(path)


def test_a_member_of_4_gib_is_staged_in_bounded_memory_as_a_sparse_file(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    lab.archive_path().parent.mkdir(parents=True)
    sparse = sparse_zip64(lab.archive_path())
    cloud.put(BUCKET, OBJECT, lab.archive_path())
    with lab.running() as daemon:
        result = lab.result(lab.drop("one"), seconds=100)
        assert peak_rss_bytes(daemon.process.pid) < 200 * MIB
    assert result["state"] == "staged", result
    visible = lab.image("test")
    assert visible.stat().st_size == int(result["images"]["test"]["size"]) == sparse.size
    assert int(result["images"]["test"]["crc32"], 16) == sparse.crc
    data_bytes = len(sparse.head) + len(sparse.tail)
    assert visible.stat().st_blocks * 512 < data_bytes + 32 * 1024
    with visible.open("rb") as file:
        assert file.read(len(sparse.head)) == sparse.head
        file.seek(-len(sparse.tail), os.SEEK_END)
        assert file.read() == sparse.tail


# -- right bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rst", [False, True], ids=["FIN", "RST"])
def test_twenty_cut_connections_inside_a_member_cost_no_byte(cloud_lab: Labs, rst: bool) -> None:
    lab, cloud = cloud_lab
    put(lab, cloud, lambda path: make_archive(path, {TEST: make_image(4, 6 * MIB)}))
    cloud.cut(70_000, 20, rst=rst)
    result = staged(lab)
    assert lab.image("test").read_bytes() == make_image(4, 6 * MIB)
    assert len(cloud.hits("media")) > 20
    assert result["attempts"] == "1"
    assert int(result["bytes_fetched"]) <= cloud.sent()


def test_a_whole_object_for_a_range_is_never_used_as_data(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    put(lab, cloud, make_archive)
    cloud.ignore_range(2)
    staged(lab)
    assert lab.image("test").read_bytes() == small_images()[TEST]


def test_a_stalled_stream_is_resumed_after_the_time_out(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    path = put(lab, cloud, make_archive)
    cloud.stall(100_000, seconds=60)
    began = time.monotonic()
    staged(lab)
    assert 10 < time.monotonic() - began < 30
    assert lab.image("test").read_bytes() == small_images()[TEST]
    stalled, resumed = cloud.hits("media")[-2:]
    assert stalled.sent == 100_000
    assert (stalled.start or 0) < (resumed.start or 0) <= (stalled.start or 0) + stalled.sent
    assert resumed.end == stalled.end
    assert cloud.sent() <= info(path).compress_size * 1.01 + directory_bytes(path) + 100_000


def in_directory(path: Path, field: int) -> int:
    """Return the offset of a byte of the test image's entry in the directory."""
    data, at = path.read_bytes(), 0
    with zipfile.ZipFile(path) as archive:
        at = archive.start_dir
    while data[at + 46 :][: len(TEST)] != TEST.encode():
        at += 46 + sum(struct.unpack("<3H", data[at + 28 :][:6]))
    return at + field


FLIPS: list[Any] = [
    pytest.param(lambda path: info(path).header_offset + 5000, id="data"),
    pytest.param(lambda path: info(path).header_offset, id="local-signature"),
    pytest.param(lambda path: info(path).header_offset + 26, id="local-name-length"),
    pytest.param(lambda path: info(path).header_offset + 28, id="local-extra-length"),
    pytest.param(lambda path: path.stat().st_size - 22, id="end-signature"),
    pytest.param(lambda path: path.stat().st_size - 6, id="directory-offset"),
    pytest.param(lambda path: path.stat().st_size - 10, id="directory-size"),
    pytest.param(lambda path: in_directory(path, 0), id="entry-signature"),
    pytest.param(lambda path: in_directory(path, 8), id="entry-flags"),
    pytest.param(lambda path: in_directory(path, 10), id="entry-method"),
    pytest.param(lambda path: in_directory(path, 16), id="entry-sum"),
    pytest.param(lambda path: in_directory(path, 20), id="entry-packed-size"),
    pytest.param(lambda path: in_directory(path, 24), id="entry-size"),
    pytest.param(lambda path: in_directory(path, 42), id="entry-offset"),
]


@pytest.mark.parametrize("place", FLIPS)
def test_a_byte_changed_once_on_the_wire_is_read_once_more(
    cloud_lab: Labs, place: Callable[[Path], int]
) -> None:
    lab, cloud = cloud_lab
    path = put(lab, cloud, make_archive)
    cloud.corrupt(place(path), times=1)
    staged(lab, "test", "recovery")
    assert lab.image("test").read_bytes() == small_images()[TEST]
    assert lab.image("recovery").read_bytes() == small_images()[RECOVERY]


def test_a_byte_changed_once_on_the_wire_is_no_changed_archive(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    path = put(lab, cloud, make_archive)
    with lab.running():
        assert lab.result(lab.drop("first"))["state"] == "staged"
        cloud.put(BUCKET, OBJECT, path)
        cloud.corrupt(in_directory(path, 16), times=1)
        result = lab.result(lab.drop("second", images=["recovery"]))
    assert result["state"] == "staged", result
    assert lab.flag() == ["test", "recovery"]


@pytest.mark.parametrize(
    ("how", "place"),
    [
        pytest.param("flipped_bit", 100_000, id="its-data"),
        pytest.param("deflate_invalid_block", 100_000, id="its-first-block"),
        pytest.param("local_header_bad_signature", 0, id="its-header"),
        pytest.param("encrypted", -1, id="its-entry"),
        pytest.param("truncated", -1, id="the-directory"),
    ],
)
def test_corrupt_is_said_only_after_reading_once_more(
    cloud_lab: Labs, how: str, place: int
) -> None:
    lab, cloud = cloud_lab
    place %= put(lab, cloud, BROKEN[how]).stat().st_size
    with lab.running():
        result = lab.result(lab.drop("one"))
    assert result["error"]["code"] == "archive_corrupt"
    assert sum((h.start or 0) <= place < (h.end or 0) for h in cloud.hits("media")) == 2
    assert lab.flag() == []


# -- one version -----------------------------------------------------------------------------------


def versions(lab: Lab, cloud: Cloud) -> tuple[dict[str, bytes], dict[str, bytes], Path]:
    """Put one version in place; return both versions' images, and the other's archive."""
    old = {TEST: make_image(1, 400_000), RECOVERY: make_image(2, 300_000)}
    new = {TEST: make_image(3, 400_000), RECOVERY: make_image(4, 300_000)}
    put(lab, cloud, lambda path: make_archive(path, old))
    other = lab.root / "new.zip"
    make_archive(other, new)
    return old, new, other


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_an_archive_replaced_between_two_reads_is_never_mixed(cloud_lab: Labs, number: int) -> None:
    lab, cloud = cloud_lab
    old, new, other = versions(lab, cloud)
    cloud.cut(50_000, 1)
    cloud.replace_before(number, BUCKET, OBJECT, other)
    with lab.running():
        result = lab.result(lab.drop("one", images=["test", "recovery"]))
    present = {
        name: lab.image(i).read_bytes() for i, name in FILES.items() if lab.image(i).exists()
    }
    assert present.items() <= old.items() or present.items() <= new.items()
    if result["state"] != "staged":  # one image of the old version was in place already
        assert result["error"]["code"] == "archive_changed", result
        assert len(present) == 1, "whichever of the two was read first"
    else:
        assert len(present) == 2
    assert lab.flag() == [image for image in FILES if FILES[image] in present]
    generations = {p["generation"] for p in result["images"].values() if "generation" in p}
    assert len(generations) == 1


def test_an_archive_replaced_all_the_time_is_unavailable(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    *_, other = versions(lab, cloud)
    lab.write_config(attempts=1)
    for number in range(1, 30):
        cloud.replace_before(number, BUCKET, OBJECT, other)
    with lab.running():
        result = lab.result(lab.drop("one"))
    assert (result["state"], result["error"]["code"]) == ("failed", "archive_unavailable"), result
    assert not lab.image("test").exists()
    assert lab.is_clean()
