"""Names on disk: what they say is what was put into them, whatever it was."""

import string
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lab import BUCKET, FILES

from stager import durable
from stager.identity import host_slug
from stager.layout import (
    MAX_NAME_BYTES,
    Claim,
    Paths,
    Waiting,
    can_name_result,
    is_request_name,
    parse_build,
    request_name,
    result_file,
)

IMAGE_FILES = frozenset(FILES.values())
many = settings(max_examples=200, deadline=None, database=None)


# -- builds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "rel_path", "short_build"),
    [
        pytest.param("a/b", "a", "b", id="two parts"),
        pytest.param("a/b/", "a", "b", id="one slash dropped"),
        pytest.param("a/b/c/d", "a/b/c", "d", id="many parts"),
        pytest.param("x86-alex_he/R23-1.0+a~b", "x86-alex_he", "R23-1.0+a~b", id="all signs"),
        pytest.param(f"{'p' * 128}/{'b' * 128}", "p" * 128, "b" * 128, id="the longest parts"),
        pytest.param("a../b..", "a..", "b..", id="dots elsewhere"),
        pytest.param("stagedx/Staged", "stagedx", "Staged", id="nearly the flag's name"),
    ],
)
def test_a_builds_url_gives_object_and_target(url: str, rel_path: str, short_build: str) -> None:
    build = parse_build(f"gs://{BUCKET}/{url}", IMAGE_FILES)
    assert (build.bucket, build.rel_path, build.short_build) == (BUCKET, rel_path, short_build)
    assert build.url == f"gs://{BUCKET}/{rel_path}/{short_build}"
    assert build.object_name == f"{rel_path}/{short_build}/image.zip"
    assert build.archive_url == f"{build.url}/image.zip"
    assert build.target == f"images/{rel_path}/{short_build}"


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("", id="nothing"),
        pytest.param("chromeos-image-archive/a/b", id="no scheme"),
        pytest.param("https://chromeos-image-archive/a/b", id="another scheme"),
        pytest.param("GS://chromeos-image-archive/a/b", id="capitals"),
        pytest.param(" gs://chromeos-image-archive/a/b", id="a space first"),
        pytest.param("gs:///a/b", id="no bucket"),
        pytest.param("gs://Bucket/a/b", id="a bucket in capitals"),
        pytest.param("gs://b/a/b", id="a bucket of one letter"),
        pytest.param("gs://bucket", id="only a bucket"),
        pytest.param("gs://bucket/b", id="no path"),
        pytest.param("gs://bucket//b", id="an empty part first"),
        pytest.param("gs://bucket/a//b", id="an empty part"),
        pytest.param("gs://bucket/a/b//", id="two slashes at the end"),
        pytest.param("gs://bucket/a/../b", id="up"),
        pytest.param("gs://bucket/./a/b", id="here"),
        pytest.param("gs://bucket/a/.b", id="hidden"),
        pytest.param("gs://bucket/a/..b", id="two dots first"),
        pytest.param(f"gs://bucket/a/{'b' * 129}", id="a part of 129"),
        pytest.param("gs://bucket/a/b c", id="a space"),
        pytest.param("gs://bucket/a/b\n", id="a newline at the end"),
        pytest.param("gs://bucket/a/b\0", id="a zero"),
        pytest.param("gs://bucket/a/b%2f", id="per cent"),
        pytest.param("gs://bucket/a\\b/c", id="a backslash"),
        pytest.param("gs://bucket/a/bü", id="an umlaut"),
        pytest.param("gs://bucket/a/b?x", id="a query"),
        pytest.param("gs://bucket/a/b#x", id="a fragment"),
        pytest.param("gs://bucket/a/*", id="a pattern"),
        pytest.param("gs://bucket/a/b/image.zip", id="the archive's name"),
        pytest.param("gs://bucket/a/staged", id="the flag's name"),
        pytest.param("gs://bucket/staged/a", id="the flag's name in the path"),
        *[pytest.param(f"gs://bucket/a/{name}", id=name) for name in sorted(IMAGE_FILES)],
    ],
)
def test_a_url_that_could_lead_astray_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^(the|a part of the) build"):
        parse_build(url, IMAGE_FILES)


def test_a_build_key_is_flat_and_its_own_for_every_target() -> None:
    urls = ["a/b", "a_b/c", "a/b_c", "a/b/c", "a-/b", "a/-b", "a.b/c", "A/b"]
    builds = [parse_build(f"gs://{BUCKET}/{url}", IMAGE_FILES) for url in urls]
    assert len({build.key for build in builds}) == len(urls)
    long = parse_build(f"gs://{BUCKET}/{'/'.join(['p' * 128] * 6)}", IMAGE_FILES)
    for build in (*builds, long):
        assert set(build.key) <= set(string.ascii_letters + string.digits + "_-")
        assert len(f"{build.key}.4711.{host_slug('h' * 60)}-abcdef.abcdefgh.abcdefgh") <= 255
    other = parse_build(f"gs://other-bucket/{urls[0]}", IMAGE_FILES)
    assert other.key == builds[0].key


# -- requests --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "taken", "result"),
    [
        pytest.param("a.yaml", True, "a.yaml", id="yaml"),
        pytest.param("a.yml", True, "a.yaml", id="yml"),
        pytest.param("a.json", True, "a.yaml", id="json"),
        pytest.param("a.b.yaml", True, "a.b.yaml", id="a dot inside"),
        pytest.param("a.json.yaml", True, "a.json.yaml", id="two suffixes"),
        pytest.param("~a~1.yaml", True, "~a~1.yaml", id="tildes inside"),
        pytest.param("-rf.yaml", True, "-rf.yaml", id="like an option"),
        pytest.param("ein Wunsch für dich.yaml", True, "ein Wunsch für dich.yaml", id="words"),
        pytest.param(".a.yaml", False, "", id="hidden"),
        pytest.param(".yaml", False, "", id="only a suffix"),
        pytest.param("#a.yaml", False, "", id="an editor's copy"),
        pytest.param("#a.yaml#", False, "", id="another editor's copy"),
        pytest.param("a.yaml~", False, "", id="a backup"),
        pytest.param("a.yaml.tmp", False, "", id="half written"),
        pytest.param("a.YAML", False, "", id="capitals"),
        pytest.param("a.txt", False, "", id="another suffix"),
        pytest.param("yaml", False, "", id="no suffix"),
    ],
)
def test_names_say_whether_a_file_is_taken_and_how_it_is_answered(
    name: str, taken: bool, result: str
) -> None:
    assert is_request_name(name) is taken
    if taken:
        assert can_name_result(request_name(name))
        assert result_file(name, "an-id") == result


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        pytest.param("a", True, id="one letter"),
        pytest.param("n" * MAX_NAME_BYTES, True, id="150 bytes"),
        pytest.param("n" * (MAX_NAME_BYTES + 1), False, id="151 bytes"),
        pytest.param("ü" * 75, True, id="150 bytes of umlauts"),
        pytest.param("ü" * 76, False, id="152 bytes of umlauts"),
        pytest.param("", False, id="empty"),
        pytest.param("a\udcff", False, id="not UTF-8"),
        pytest.param("a\nb", False, id="newline"),
        pytest.param("a\x1b[31m", False, id="escape"),
        pytest.param("a\x7f", False, id="delete"),
        pytest.param("a\x9b2J", False, id="a control character of one byte"),
        pytest.param("a\u202eb", False, id="written backwards"),
        pytest.param("a\u2028b", False, id="line separator"),
        pytest.param("a\ufeffb", False, id="byte order mark"),
        pytest.param("..", False, id="up"),
        pytest.param("a/b", False, id="slash"),
        pytest.param("a\u2215b", False, id="division slash"),
        pytest.param("a\u2044b", False, id="fraction slash"),
        pytest.param("a\uff0fb", False, id="full-width slash"),
        pytest.param("a\u29f8b", False, id="big solidus"),
    ],
)
def test_only_a_safe_name_names_a_result(name: str, safe: bool) -> None:
    assert can_name_result(name) is safe


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), max_size=30) | st.text(
    "~.agp019-u", max_size=30
)
IDS = st.from_regex(
    r"[1-9][0-9]{0,19}-[a-z2-7]{6}(--[1-9][0-9]{0,19}-[a-z2-7]{6})?", fullmatch=True
)
INSTS = st.from_regex(r"[A-Za-z0-9-]{1,16}-[a-z2-7]{6}", fullmatch=True)
COUNTS = st.integers(0, 10**6)
NONCES = st.from_regex(r"[a-z2-7]{8}", fullmatch=True)
CLAIMS = st.builds(Claim, NAMES, IDS, COUNTS, COUNTS, INSTS, NONCES)
WAITING = st.builds(Waiting, st.integers(0, 9), COUNTS, COUNTS, NAMES, IDS, COUNTS, COUNTS, NONCES)


@many
@given(CLAIMS)
@example(Claim("a~1-a.g1.a1.h-a.abc.yaml", "1-b", 1, 0, "h-b", "abc"))
@example(Claim("two\nlines.yaml", "1-b", 1, 0, "h-b", "abc"))
@example(Claim("", "1-b", 0, 0, "h-b", "abc"))
def test_a_claims_name_can_be_read_back(claim: Claim) -> None:
    assert Claim.parse(str(claim)) == claim


@many
@given(WAITING)
@example(Waiting(5, 1, 0, "p5.1.u0.a~1-a.g1.a1.abc.yaml", "1-b", 1, 0, "abc"))
def test_a_waiting_requests_name_can_be_read_back(waiting: Waiting) -> None:
    assert Waiting.parse(str(waiting)) == waiting


@many
@given(st.text(max_size=80) | st.text("pug~.-0a", max_size=80))
def test_any_other_name_is_read_back_or_is_none_of_ours(name: str) -> None:
    for kind in (Claim, Waiting):
        parsed = kind.parse(name)
        assert parsed is None or kind.parse(str(parsed)) == parsed


def test_a_retry_knows_what_it_is_a_retry_of() -> None:
    claim = Claim("a.yaml", "17-abcdef--16-uvwxyz", 1, 0, "h-aaaaaa", "abcdefgh")
    assert (claim.request_id, claim.retry_of) == ("17-abcdef", "16-uvwxyz")
    assert claim.arrived_ns == 17
    assert Claim("a.yaml", "17-abcdef", 1, 0, "h-aaaaaa", "abcdefgh").retry_of is None


def test_no_name_is_longer_than_255_bytes() -> None:
    file = "n" * MAX_NAME_BYTES + ".yaml"
    some_id, inst = f"{10**18}-abcdef--{10**18}-abcdef", f"{host_slug('h' * 60)}-abcdef"
    claim = Claim(file, some_id, 9999, 99, inst, durable.nonce())
    waiting = Waiting(9, 9_999_999_999, 2**32 - 2, file, some_id, 9999, 99, durable.nonce())
    assert len(str(claim).encode()) <= 255
    assert len(str(waiting).encode()) <= 255


def test_every_directory_of_the_design_has_its_place() -> None:
    paths = Paths(Path("/s"), Path("/t"), Path("/r"))
    below = {path.relative_to("/s").as_posix() for path in vars(paths).values()
             if isinstance(path, Path) and path.is_relative_to("/s")}  # fmt: skip
    assert below == {
        ".", "requests", "control", "active", "waiting", "done", "failed", "cancelled", "instances",
        "private", "tmp",
    }  # fmt: skip
    assert paths.images == Path("/t/images")
    assert {paths.locks, paths.work, paths.sidecars} == {
        Path("/t/.stager") / name for name in ("locks", "work", "sidecars")
    }
    assert paths.marks == (Path("/s/LAYOUT"), Path("/t/.stager/LAYOUT"), Path("/r/.layout"))
