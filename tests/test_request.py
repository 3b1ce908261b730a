"""The request contract: what a file's bytes mean, however they are written."""

import json
import string
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lab import BUCKET, BUILD, FILES

from stager.errors import RequestError
from stager.request import Request, Rules, parse_request

RULES = Rules(FILES, (BUCKET, "other-bucket"))
HEAD = f"build: {BUILD}\nimages: [test]\n"
many = settings(max_examples=250, deadline=None, database=None)


def parse(text: str | bytes, rules: Rules = RULES) -> Request:
    return parse_request(text if isinstance(text, bytes) else text.encode(), rules)


# -- what is accepted ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(HEAD, id="yaml"),
        pytest.param(f"archive_url: {BUILD}\nimage_types: [test]\n", id="the seed's spelling"),
        pytest.param(f"archive_url: {BUILD}\nimages: test\n", id="mixed spelling, one text"),
        pytest.param(f"build: {BUILD}/\nimages: [test]", id="slash at the end, no newline"),
        pytest.param(f"build: {BUILD}\nimages: [test, test, test]\n", id="doubles"),
        pytest.param(f"build: {BUILD}\nimages: ' test ,test'\n", id="doubles in one text"),
        pytest.param(f"---\n{HEAD}...\n", id="document marks"),
        pytest.param(f"\ufeff{HEAD}", id="byte order mark"),
        pytest.param(HEAD.replace("\n", "\r\n"), id="lines of other systems"),
        pytest.param(f"# a comment\n\n{HEAD}", id="comments"),
        pytest.param(f"{HEAD}x-a: [1, {{b: c}}]\nx-: no\n", id="private keys"),
        pytest.param(
            f"{HEAD}wait:\nexpires:\npriority:\nforce:\nnote:\n", id="optional ones empty"
        ),
        pytest.param(json.dumps({"build": BUILD, "images": ["test"]}), id="json"),
        pytest.param(json.dumps({"build": BUILD, "images": "test"}, indent="\t"), id="tabbed json"),
        pytest.param(
            json.dumps({"build": BUILD, "images": ["test"], "note": None, "wait": None}),
            id="json nulls",
        ),
        pytest.param(
            json.dumps({"build": BUILD, "images": ["test"]}, separators=(",", ":")).replace(
                "/", "\\/"
            ),
            id="dense json",
        ),
    ],
)
def test_the_smallest_request_can_be_written_in_many_ways(text: str) -> None:
    request = parse(text)
    assert request.build.url == BUILD
    assert request.images == ("test",)
    assert request.model_copy(update={"build": None}) == parse(HEAD).model_copy(
        update={"build": None}
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        *[
            pytest.param(f"priority: {word}", {"priority": value}, id=f"priority {word}")
            for word, value in {"high": 2, "normal": 5, "low": 8, "0": 0, "9": 9, "'3'": 3}.items()
        ],
        *[
            pytest.param(f"expires: {word}", {"expires": value}, id=f"duration {word}")
            for word, value in {
                "90": 90, "1.5": 1.5, "2s": 2, "10m": 600, "2h": 7200, "1d": 86400, "'1.5 h'": 5400
            }.items()
        ],
        pytest.param("wait: 0", {"wait": 0}, id="one look"),
        *[
            pytest.param(f"force: {word}", {"force": value}, id=f"boolean {word}")
            for value, words in {
                True: ("true", "yes", "on", "True", "'yes'"),
                False: ("false", "no", "off", "OFF"),
            }.items()
            for word in words
        ],
        *[
            pytest.param(f"note: {word}", {"note": word}, id=f"text {word}")
            for word in (
                "no", "1.10", "0x1F", "012", "1_000", "2026-11-23", "12:30:45", "true", "1e3", "="
            )
        ],
        pytest.param('note: ""', {"note": ""}, id="empty text"),
        pytest.param(f"note: {'ü' * 200}", {"note": "ü" * 200}, id="200 characters"),
        pytest.param("note: |\n two\n lines", {"note": "two\nlines\n"}, id="block text"),
        pytest.param(
            json.dumps({"note": "\N{PARTY POPPER} ü"})[1:-1],
            {"note": "\N{PARTY POPPER} ü"},
            id="json's pairs of escapes",
        ),
    ],
)  # fmt: skip
def test_values_are_read_from_the_text_as_it_was_typed(line: str, expected: dict[str, Any]) -> None:
    whole = "{" + f'"build": "{BUILD}", "images": ["test"], {line}' + "}\n"
    text = whole if line.startswith('"') else f"{HEAD}{line}\n"
    assert expected.items() <= parse(text).model_dump().items()


def test_a_version_like_build_stays_as_it_was_typed() -> None:
    request = parse(f"build: gs://{BUCKET}/1.10/1e3\nimages: [test]\n")
    assert (request.build.rel_path, request.build.short_build) == ("1.10", "1e3")


def test_images_keep_the_order_they_were_asked_in() -> None:
    text = f"build: {BUILD}\nimages: [recovery, test, recovery, base, test]\n"
    assert parse(text).images == ("recovery", "test", "base")


# -- whatever comes --------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        "build", "archive_url", "images", "image_types", "priority", "expires", "wait", "force",
        "note", "x-a", BUILD, "test", "factory", "high", "1h", "yes", ": ", "- ", "[", "]", "{",
        "}", ", ", "\n", "\n  ", "&a ", "*a", "!!int ", "<<", "'", '"', "|\n", "? ", "---\n",
        "...\n", "%YAML 1.1\n", "\\", "\t", "#", "~", "\ufeff", "\x85", "\u2028", "9" * 400,
    ]
)  # fmt: skip


@many
@given(st.binary(max_size=300) | st.lists(WORDS, max_size=40).map(lambda w: "".join(w).encode()))
@example(b"!!bool x")
@example(b"\xef\xbb\xbf\xff")
@example(b"? ? ? ? a")
def test_arbitrary_bytes_are_a_request_or_a_rejection(data: bytes) -> None:
    try:
        assert isinstance(parse(data), Request)
    except RequestError as e:
        found = e.problems
    else:
        return
    assert found
    assert all(problem.message and problem.line >= 0 for problem in found)


PARTS = st.text(string.ascii_letters + string.digits + "._+~-", min_size=1, max_size=128).filter(
    lambda part: not part.startswith(".") and part not in {"staged", *FILES.values()}
)
PRINTABLE = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cn", "Cc", "Co"]), max_size=200
)
FIELDS = st.fixed_dictionaries(
    {
        "build": st.lists(PARTS, min_size=2, max_size=4).map(
            lambda parts: f"gs://{BUCKET}/{'/'.join(parts)}"
        ),
        "images": st.lists(st.sampled_from(sorted(FILES)), min_size=1, unique=True),
    },
    optional={
        "priority": st.integers(0, 9),
        "expires": st.integers(0, 10**8),
        "wait": st.integers(0, 10**8),
        "force": st.booleans(),
        "note": PRINTABLE,
    },
)


@many
@given(FIELDS, st.sampled_from([yaml.safe_dump, json.dumps]))
def test_valid_requests_round_trip(fields: dict[str, Any], write: Any) -> None:
    request = parse(write(fields))
    assert request.build.url == fields["build"]
    assert list(request.images) == fields["images"]
    for key in ("expires", "wait", "note"):
        assert getattr(request, key) == fields.get(key)
    assert request.force is fields.get("force", False)
    assert request.priority == fields.get("priority", 5)
