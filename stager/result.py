"""The answer to a request: `results/NAME.yaml`, `state` on its first line.

Written whole and synced in a private place first; its last line names the claim it answers, so
that whoever finishes a dead machine's work can tell a whole answer that fits from another.
"""

import json
import time
from enum import StrEnum
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from stager.errors import Problem, RequestError, StagerError
from stager.layout import Claim


class State(StrEnum):
    """Finished states; the good ones, and only they, end in "staged"."""

    STAGED = "staged"
    ALREADY_STAGED = "already_staged"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ProblemPart(_Part):
    """One fault of the file; line and column count from 1, 0: no place."""

    line: int = 0
    column: int = 0
    message: str


class ErrorPart(_Part):
    """What went wrong, and what to do next."""

    code: str
    """One of the codes of docs/reference.md."""
    message: str
    """What is wrong."""
    hint: str = ""
    """What to do next."""
    problems: tuple[ProblemPart, ...] | None = None
    """Every fault of a rejected file."""


class ImagePart(_Part):
    """One image: where it is and what it is, or why it is not there. Sizes in bytes."""

    state: State
    """How this image ended."""
    path: str | None = None
    """Where it is, below the static tree."""
    url: str | None = None
    """Where it is served, if `static_url` is configured."""
    size: int | None = None
    """Its length."""
    allocated: int | None = None
    """What it takes on disk: runs of zeros are holes."""
    crc32: str | None = None
    """CRC-32 of the zip entry, checked, in hex."""
    sha256: str | None = None
    """SHA-256 of the image, in hex."""
    generation: int | None = None
    """The archive's generation that it was read from."""
    error: ErrorPart | None = None
    """Why it is not there."""


class ArchivePart(_Part):
    """The object that was read, at one generation."""

    object: str
    """Its `gs://` name."""
    generation: int
    """The one that was read, from first to last byte."""
    size: int
    """The whole archive, of which only a part is read."""


class Result(_Part):
    """The whole answer, in the order of its lines. Times are UTC, to the second."""

    state: State
    """How it ended; `staged` and `already_staged` are good."""
    request: str
    """The dropped file's name; empty where that can't be told safely."""
    request_id: str
    """Unique, never used again."""
    retry_of: str | None = None
    """The request id that this one repeats."""
    request_sha256: str | None = None
    """Of the bytes acted on."""
    submitter: int | None = None
    """The uid that owned the file."""
    note: str | None = None
    """The request's own."""
    build: str | None = None
    """The build asked for."""
    target: str | None = None
    """The directory of its images, below the static tree."""
    images: dict[str, ImagePart] | None = None
    """One part for each image asked for."""
    error: ErrorPart | None = None
    """Absent when good; else the request's, or the first failed image's."""
    archive: ArchivePart | None = None
    """What was read."""
    bytes_fetched: int | None = None
    """Read from the archive since work on it began for the last time."""
    attempts: int
    """How often work on it began; not counted where a stop or a fault of the machine ended it."""
    host: str
    """The machine that answered."""
    received: str
    """When it was taken in: at once, where a daemon runs."""
    started: str | None = None
    """When work on it began."""
    finished: str
    """When it was answered."""


def error_part(error: StagerError) -> ErrorPart:
    """Return an error as it stands in a result."""
    problems = None
    if isinstance(error, RequestError):
        problems = tuple(_problem_part(problem) for problem in error.problems)
    return ErrorPart(
        code=error.code, message=error.message, hint=error.hint, problems=problems or None
    )


def _problem_part(problem: Problem) -> ProblemPart:
    return ProblemPart(line=problem.line, column=problem.column, message=problem.message)


def stamp(seconds: float) -> str:
    """Return a time as results show it: 2026-11-23T15:25:15Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class _Stamp(str):
    """A time, written without quotes."""

    __slots__ = ()


class _Flow(dict[str, Any]):
    """Keys and values, written on one line."""


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """libyaml's, at an eighth of the CPU, where it is there."""


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # Quoted where another YAML reader might see a number: 12e45678 is a fine CRC-32.
    odd = value[:1] in set("0123456789+-.") or not value.isprintable()
    style = '"' if odd else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _represent_flow(dumper: yaml.SafeDumper, value: _Flow) -> yaml.MappingNode:
    return dumper.represent_mapping("tag:yaml.org,2002:map", value, flow_style=True)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(_Flow, _represent_flow)
_Dumper.add_representer(
    _Stamp, lambda dumper, v: dumper.represent_scalar("tag:yaml.org,2002:timestamp", str(v))
)


def to_yaml(result: Result, claim: Claim) -> bytes:
    """Return the answer's bytes; the last line is a comment that names the claim."""
    data: dict[str, Any] = result.model_dump(mode="json", exclude_none=True)
    for key in ("received", "started", "finished"):
        if key in data:
            data[key] = _Stamp(data[key])
    for key in ("error", "archive"):
        if key in data:
            data[key] = _Flow(data[key])
    if "images" in data:
        data["images"] = {image: _Flow(part) for image, part in data["images"].items()}
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100_000)
    return f"{text}{_last_line(claim)}".encode()


def _last_line(claim: Claim) -> str:
    return f"# {claim}\n"


def fits(data: bytes, claim: Claim) -> bool:
    """Whether these bytes are a whole answer to this very claim."""
    if not data.endswith(f"\n{_last_line(claim)}".encode()):
        return False
    result = parse_result(data)
    return result is not None and result.request_id == claim.request_id


def parse_result(data: bytes) -> Result | None:
    """Read an answer; None where the bytes are none (or not all of one)."""
    try:
        return Result.model_validate(yaml.load(data, Loader=_Loader))  # noqa: S506 (a safe one)
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError):
        return None
    except RecursionError:
        return None


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Leaves times as the text they are."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def to_json(result: Result) -> dict[str, Any]:
    """Return the answer as plain data for --json."""
    data: dict[str, Any] = json.loads(result.model_dump_json(exclude_none=True))
    return data
