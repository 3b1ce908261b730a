"""The sample configuration for nginx, in a real nginx: what is served, and what is refused."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import BUILD, FILES, Lab, until
from webserver import fetch, nginx

PATH = "/images/x86-alex-release/R23-2811.0.0"


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Lab, str]]:
    """Return a lab in which a build is staged, and the URL of the nginx that serves it."""
    root = Path(tempfile.mkdtemp(prefix="watcherd-site-"))
    root.chmod(0o755)  # nginx reads as www-data
    lab = Lab(root).init()
    lab.archive()
    try:
        with lab.running(), nginx(lab) as url:
            lab.result(lab.drop("mine", BUILD, ["test", "base"]))
            until((root / "results/status.json").exists, "the status page")
            (root / "static/images/.hidden").mkdir()
            (root / "static/images/.hidden/staged").write_text("hidden\n")
            yield lab, url
    finally:
        lab.end()
        shutil.rmtree(root)


def test_an_image_is_served_whole_and_by_range(site: tuple[Lab, str]) -> None:
    lab, url = site
    data = lab.image("test").read_bytes()
    status, headers, body = fetch(f"{url}{PATH}/{FILES['test']}")
    assert (status, body) == (200, data)
    assert headers["content-type"] == "application/octet-stream"
    assert headers["accept-ranges"] == "bytes"
    status, headers, body = fetch(f"{url}{PATH}/{FILES['test']}", Range="bytes=1000-1999")
    assert (status, body) == (206, data[1000:2000])
    assert headers["content-range"] == f"bytes 1000-1999/{len(data)}"
    assert fetch(f"{url}{PATH}/{FILES['test']}", "HEAD")[1]["content-length"] == str(len(data))
    status, _, _ = fetch(f"{url}{PATH}/{FILES['test']}", **{"If-None-Match": headers["etag"]})
    assert status == 304


def test_the_flag_and_the_answers_are_text_that_is_asked_for_anew(site: tuple[Lab, str]) -> None:
    _, url = site
    for path, start in ((f"{PATH}/staged", b"test\n"), ("/results/mine.yaml", b"state: staged\n")):
        status, headers, body = fetch(url + path)
        assert status == 200
        assert headers["content-type"].startswith("text/plain")
        assert headers["cache-control"] == "no-cache"
        assert headers["x-content-type-options"] == "nosniff"
        assert start in body


def test_a_directory_is_listed_as_json_without_dot_names(site: tuple[Lab, str]) -> None:
    lab, url = site
    (lab.target() / ".hidden").write_text("x")
    status, headers, body = fetch(f"{url}{PATH}/")
    (lab.target() / ".hidden").unlink()
    assert status == 200
    assert headers["content-type"].startswith("application/json")
    listed = {entry["name"]: entry.get("size") for entry in json.loads(body)}
    assert set(listed) == {FILES["test"], FILES["base"], "staged"}
    assert listed[FILES["test"]] == lab.image("test").stat().st_size


@pytest.mark.parametrize(
    "path",
    [
        "/.stager/", "/.stager/LAYOUT", "/.stager/locks/", "/results/.layout", "/images/.hidden",
        "/images/%2e%2e/.stager/LAYOUT", "/images//.stager/LAYOUT", "/%2estager/LAYOUT",
        "/images/.hidden/staged", "/images/../.stager/LAYOUT", "/images/./.stager/",
        "/results/../static/.stager/LAYOUT",
    ],
)  # fmt: skip
def test_dot_paths_are_refused(site: tuple[Lab, str], path: str) -> None:
    lab, url = site
    status, _, body = fetch(url + path)
    assert status in {400, 403, 404}
    assert (lab.root / "static/.stager/LAYOUT").read_bytes() not in body
    assert b"hidden\n" not in body


@pytest.mark.parametrize(
    "path", ["/results/../spool/LAYOUT", "/results../spool/LAYOUT", "/spool/", "/config.yaml"]
)
def test_nothing_else_is_served(site: tuple[Lab, str], path: str) -> None:
    _, url = site
    assert fetch(url + path)[0] in {400, 403, 404}


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
def test_only_reading_is_possible(site: tuple[Lab, str], method: str) -> None:
    _, url = site
    assert fetch(f"{url}/results/mine.yaml", method)[0] in {403, 405}
    assert fetch(f"{url}{PATH}/staged", method)[0] in {403, 405}


def test_a_symbolic_link_leads_nowhere(site: tuple[Lab, str]) -> None:
    lab, url = site
    for link in (lab.target() / "link", lab.root / "results/link.yaml"):
        link.symlink_to(Path("/etc/hostname"))
    assert fetch(f"{url}{PATH}/link")[0] == 403
    assert fetch(f"{url}/results/link.yaml")[0] == 403
    for link in (lab.target() / "link", lab.root / "results/link.yaml"):
        link.unlink()


def test_the_root_leads_to_the_status_page(site: tuple[Lab, str]) -> None:
    _, url = site
    status, headers, _ = fetch(f"{url}/")
    assert (status, headers["location"]) == (302, f"{url}/results/status.html")
    status, headers, body = fetch(f"{url}/results/status.html")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert b"<h1>watcherd</h1>" in body
    status, headers, body = fetch(f"{url}/results/status.json")
    assert headers["content-type"].startswith("application/json")
    assert json.loads(body)["version"]
