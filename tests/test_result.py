"""The answer: its first line serves a shell script, the rest every YAML reader, the last us."""

import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stager.errors import ArchiveNotFound, Problem, RequestError
from stager.layout import Claim
from stager.result import (
    ArchivePart,
    ImagePart,
    Result,
    State,
    error_part,
    fits,
    parse_result,
    stamp,
    to_json,
    to_yaml,
)

CLAIM = Claim("nightly.yaml", "1700000000000000000-abcdef", 2, 1, "lab-7-uvwxyz", "abcdefgh")
IMAGE = ImagePart(
    state=State.STAGED, path="images/a/b/chromiumos_test_image.bin", size=1073741824,
    allocated=590348288, crc32="12e45678", sha256="0" * 64, generation=1700000000000000,
)  # fmt: skip
RESULT = Result(
    state=State.STAGED,
    request="nightly.yaml",
    request_id=CLAIM.request_id,
    request_sha256="1" * 64,
    submitter=1004,
    note="run 4711",
    build="gs://bucket/a/b",
    target="images/a/b",
    images={"test": IMAGE},
    archive=ArchivePart(object="gs://bucket/a/b/image.zip", generation=1700000000000000, size=5),
    bytes_fetched=5,
    attempts=1,
    host="lab-7",
    received=stamp(1700000000),
    started=stamp(1700000001),
    finished=stamp(1700000002),
)
FAILED = RESULT.model_copy(
    update={
        "state": State.FAILED,
        "error": error_part(ArchiveNotFound("there is no such object: yet")),
        "images": {
            "test": IMAGE,
            "base": ImagePart(state=State.FAILED, error=error_part(ArchiveNotFound("no: [such]"))),
        },
    }
)
PROBLEMS = [Problem("`a`: no", 3, 1), Problem("no place")]
REJECTED = Result(
    state=State.REJECTED, request="", request_id=CLAIM.request_id, attempts=0, host="lab-7",
    error=error_part(RequestError(PROBLEMS)), received=stamp(0), finished=stamp(1),
)  # fmt: skip
many = settings(max_examples=80, deadline=None, database=None)


class Core(yaml.SafeLoader):
    """YAML 1.2's core schema, as readers of other languages have it."""


Core.yaml_implicit_resolvers = {}
for tag, expression, first in (
    ("null", r"null|Null|NULL|~|", "nN~"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    Core.add_implicit_resolver(
        f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{expression})\Z"), list(first)
    )
LOADERS = [yaml.SafeLoader, yaml.FullLoader, yaml.BaseLoader, Core]
LOADERS += [yaml.CSafeLoader] if yaml.__with_libyaml__ else []
by_loader = pytest.mark.parametrize("loader", LOADERS, ids=lambda loader: loader.__name__)


@pytest.mark.parametrize("state", State)
def test_the_first_line_is_the_state_and_only_good_ones_end_in_staged(state: State) -> None:
    data = to_yaml(RESULT.model_copy(update={"state": state}), CLAIM)
    assert data.splitlines()[0].decode() == f"state: {state}"
    assert str(state).endswith("staged") is (state in {State.STAGED, State.ALREADY_STAGED})


def test_the_states_are_those_of_the_contract() -> None:
    assert {str(s) for s in State} == {
        "staged", "already_staged", "rejected", "failed", "cancelled",
    }  # fmt: skip


@by_loader
@pytest.mark.parametrize("result", [RESULT, FAILED, REJECTED], ids=["good", "failed", "rejected"])
def test_every_yaml_reader_reads_the_same(loader: Any, result: Result) -> None:
    data = yaml.load(to_yaml(result, CLAIM), loader)
    expected = to_json(result)
    if loader is yaml.BaseLoader:
        expected = yaml.load(yaml.safe_dump(expected), loader)
    for key in ("received", "started", "finished"):
        if key in expected and not isinstance(data[key], str):
            data[key] = data[key].strftime("%Y-%m-%dT%H:%M:%SZ")
    assert data == expected


@pytest.mark.parametrize("result", [RESULT, FAILED, REJECTED], ids=["good", "failed", "rejected"])
def test_an_answer_is_read_back_as_it_was(result: Result) -> None:
    assert parse_result(to_yaml(result, CLAIM)) == result


def test_the_keys_come_in_the_contracts_order_and_the_sure_ones_always() -> None:
    order = [
        "state", "request", "request_id", "request_sha256", "submitter", "build", "target",
        "images", "error", "archive", "bytes_fetched", "attempts", "host", "received", "started",
        "finished",
    ]  # fmt: skip
    sure = {"state", "request", "request_id", "host", "received", "finished", "attempts"}
    for result in (RESULT, FAILED, REJECTED):
        keys = list(yaml.safe_load(to_yaml(result, CLAIM)))
        assert [key for key in keys if key in order] == [key for key in order if key in keys]
        assert sure <= set(keys)
    assert "error" not in yaml.safe_load(to_yaml(RESULT, CLAIM))


def test_every_image_and_the_error_stand_on_one_line() -> None:
    lines = to_yaml(FAILED, CLAIM).decode().splitlines()
    assert sum(line.startswith(("  test: {", "  base: {", "error: {")) for line in lines) == 3
    assert not any("&" in line or "*" in line for line in lines)


def test_the_problems_of_a_rejected_file_have_their_places() -> None:
    error = yaml.safe_load(to_yaml(REJECTED, CLAIM))["error"]
    assert error["code"] == "invalid_request"
    assert error["hint"]
    assert error["problems"] == [
        {"line": 3, "column": 1, "message": "`a`: no"},
        {"line": 0, "column": 0, "message": "no place"},
    ]


@by_loader
@pytest.mark.parametrize(
    "digits",
    ["12345678", "00000000", "01234567", "12e45678", "1e234567", "0e000000", "0b101010", "0x123456",
     "deadbeef", "e1234567", "1_234_56", "60606060"],
)  # fmt: skip
def test_hex_that_looks_like_a_number_stays_a_text(loader: Any, digits: str) -> None:
    image = IMAGE.model_copy(update={"crc32": digits, "sha256": digits * 8})
    result = RESULT.model_copy(update={"images": {"test": image}, "request_sha256": digits * 8})
    data = yaml.load(to_yaml(result, CLAIM), loader)
    assert data["images"]["test"]["crc32"] == digits
    assert data["images"]["test"]["sha256"] == data["request_sha256"] == digits * 8


@by_loader
@many
@given(note=st.text("0123456789+-.eExXo_:~", max_size=12) | st.text(max_size=200))
@example(note="-12e45")
@example(note="+1e5")
@example(note=".5e3")
@example(note="no")
@example(note="null")
@example(note="2026-11-23")
@example(note="state: staged\nstate: staged")
@example(note="# x")
def test_a_note_stays_the_text_it_was(loader: Any, note: str) -> None:
    data = to_yaml(RESULT.model_copy(update={"note": note}), CLAIM)
    assert yaml.load(data, loader)["note"] == note
    assert data.splitlines()[0] == b"state: staged"
    assert fits(data, CLAIM)


# -- the last line ---------------------------------------------------------------------------------


def test_a_whole_answer_fits_its_claim() -> None:
    for result in (RESULT, FAILED, REJECTED):
        assert fits(to_yaml(result, CLAIM), CLAIM)


def test_no_part_of_an_answer_fits() -> None:
    data = to_yaml(RESULT, CLAIM)
    assert not any(fits(data[:length], CLAIM) for length in range(len(data)))
    half = len(data) // 2
    assert not fits(bytes(half) + data[half:], CLAIM), "a hole where blocks were not written"
    assert not fits(data[half:], CLAIM)
    assert not fits(data + data, replace(CLAIM, nonce="zzzzzzzz"))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"file": "other.yaml"}, id="name"),
        pytest.param({"id": "1700000000000000001-abcdef"}, id="id"),
        pytest.param({"g": 3}, id="takeover"),
        pytest.param({"a": 2}, id="start"),
        pytest.param({"inst": "lab-8-uvwxyz"}, id="instance"),
        pytest.param({"nonce": "abcdefgi"}, id="nonce"),
    ],
)
def test_an_answer_fits_no_other_claim(change: dict[str, Any]) -> None:
    assert not fits(to_yaml(RESULT, CLAIM), replace(CLAIM, **change))


def test_an_answer_to_another_request_does_not_fit() -> None:
    other = RESULT.model_copy(update={"request_id": "1700000000000000009-abcdef"})
    assert not fits(to_yaml(other, CLAIM), CLAIM)


@many
@given(st.binary(max_size=120) | st.text("state: gd{}[]&*!'\"\n#", max_size=80).map(str.encode))
@example(b"")
@example(b"state: staged\n")
@example(b"!!bool x")
@example(b"!!timestamp x")
@example(b"[" * 5000)
def test_rubbish_is_no_answer(data: bytes) -> None:
    assert parse_result(data) is None
    assert not fits(data, CLAIM)
