"""The request contract: a file's bytes become a `Request`, or all of its problems at once.

Pure: no I/O. Error texts never quote the file beyond the image names asked for (which the seed
quotes too) and unknown keys that look like keys.
"""

import difflib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ValidationInfo, WithJsonSchema

from stager.errors import BucketNotAllowed, Problem, RequestError
from stager.layout import Build, parse_build
from stager.models import Duration, Flag, Strict, Text, check, texts
from stager.yamltext import Document, TextError, parse_text

MAX_BYTES = 64 * 1024
PRIORITIES = {"high": 2, "normal": 5, "low": 8}
NOT_ALLOWED = "the bucket is not allowed here"
UNKNOWN_IMAGES = "invalid images requested"
MOST_GUESSED = 20
_SYNONYMS = {"archive_url": "build", "image_types": "images"}


@dataclass(frozen=True, slots=True)
class Rules:
    """What this server allows a request to ask for."""

    image_files: dict[str, str]
    buckets: tuple[str, ...]
    allow_force: bool = True


def _rules(info: ValidationInfo) -> Rules:
    assert info.context is not None
    rules: Rules = info.context["rules"]
    return rules


def _build(value: Any, info: ValidationInfo) -> Any:
    if value is None:
        raise ValueError("must specify the build: gs://BUCKET/PATH/BUILD")
    if not isinstance(value, str):
        raise ValueError("the build must be a URL gs://BUCKET/PATH/BUILD")
    rules = _rules(info)
    build = parse_build(value, frozenset(rules.image_files.values()))
    if build.bucket not in rules.buckets:
        raise ValueError(f"{NOT_ALLOWED}; allowed: {', '.join(rules.buckets)}")
    return build


def _images(value: Any, info: ValidationInfo) -> Any:
    """Check in the seed's order: none, then all the unknown ones, then drop the doubles."""
    names = texts(value)
    if not names:
        raise ValueError("empty list of image types")
    known = _rules(info).image_files
    unknown = [name[:64] for name in dict.fromkeys(names) if name not in known]
    if unknown:
        raise ValueError(f"{UNKNOWN_IMAGES}: {unknown}")
    return tuple(dict.fromkeys(names))


def _priority(value: Any) -> Any:
    if isinstance(value, str) and value.strip() in PRIORITIES:
        return PRIORITIES[value.strip()]
    if isinstance(value, str) and len(value.strip()) == 1 and value.strip() in "0123456789":
        return int(value)
    raise ValueError("a priority is high, normal, low, or 0 (first) to 9")


def _note(value: Any) -> Any:
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError("a note is a text of at most 200 characters")
    return value


def _force(value: Any, info: ValidationInfo) -> Any:
    if value and not _rules(info).allow_force:
        raise ValueError("force is not allowed on this server (allow_force: false)")
    return value


class Request(Strict):
    """What a request file asks for."""

    build: Annotated[
        Build,
        BeforeValidator(_build),
        WithJsonSchema({"type": "string", "pattern": "^gs://[^/]+/.+/[^/]+/?$"}),
    ]
    """`gs://BUCKET/PATH/BUILD`; the images come from `image.zip` below it."""
    images: Annotated[
        tuple[str, ...],
        BeforeValidator(_images),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "array", "items": {"type": "string"}, "minItems": 1},
                    {"type": "string", "minLength": 1},
                ]
            }
        ),
    ]
    """What to stage: `test`, `base`, `recovery`; a list, or one text with commas."""
    priority: Annotated[
        int,
        BeforeValidator(_priority),
        WithJsonSchema({"enum": [*PRIORITIES, *range(10)]}),
    ] = PRIORITIES["normal"]
    """`high`, `normal`, `low`, or 0 (first) to 9."""
    expires: Duration | None = None
    """Give up if not finished this long after it was taken in (at once, where a daemon runs)."""
    wait: Duration | None = None
    """How long to wait for an archive not there yet, instead of `wait_for_archive`; 0: one look."""
    force: Annotated[Flag, AfterValidator(_force)] = False
    """Stage again even what is staged already."""
    note: Annotated[
        Text | None, BeforeValidator(_note), WithJsonSchema({"type": "string", "maxLength": 200})
    ] = None
    """At most 200 characters, repeated in the answer."""


def parse_request(data: bytes, rules: Rules) -> Request:
    """Parse a request file's bytes; raise RequestError with every problem, line and column."""
    if len(data) > MAX_BYTES:
        raise RequestError([Problem(f"the file is larger than {MAX_BYTES // 1024} KiB")])
    try:
        document = parse_text(data)
    except TextError as e:
        raise RequestError(e.problems) from None
    if not isinstance(document.data, dict):
        message = "keys with values are wanted: build: and images:"
        raise RequestError([Problem(message, *document.place(()))])
    _rename_synonyms(document)
    _drop_private(document)
    document.data.setdefault("build", None)
    document.data.setdefault("images", None)
    own, others = frozenset({"build", "images"}), tuple(_SYNONYMS)
    request, problems = check(Request, document, {"rules": rules}, own, others)
    if request is None:
        bucket_alone = all(problem.message.startswith(NOT_ALLOWED) for problem in problems)
        hint = ""
        if any(problem.message.startswith(UNKNOWN_IMAGES) for problem in problems):
            here = images_hint(texts(document.data["images"]), rules)
            hint = f"{RequestError.default_hint}; {here}"
        raise (BucketNotAllowed if bucket_alone else RequestError)(problems, hint)
    return request


def images_hint(wanted: Iterable[str], rules: Rules) -> str:
    """Say which images there are, and which of them may have been meant."""
    known = list(rules.image_files)
    # A file may hold very many.
    unknown = [name for name in dict.fromkeys(wanted) if name not in known][:MOST_GUESSED]
    several = {name for name in unknown if not set(name).isdisjoint("; |/")}
    single = [name for name in unknown if name not in several]
    close = [difflib.get_close_matches(name[:64].lower(), known, 1) for name in single]
    words = ", ".join(f"`{name}`" for name in dict.fromkeys(itertools.chain(*close)))
    guess = f"did you mean {words}? " if words else ""
    apart = "separate names by commas; " if several else ""
    return f"{guess}{apart}images here: {', '.join(known)}"


def _rename_synonyms(document: Document) -> None:
    """Bring the seed's spelling of the keys to ours."""
    for old, new in _SYNONYMS.items():
        if old not in document.data:
            continue
        place = document.places[(old,)]
        if new in document.data:
            message = f"`{old}` is another word for `{new}`: give one"
            document.problems.append(Problem(message, *place))
            del document.data[old]
            continue
        document.data[new] = document.data.pop(old)
        for path in [p for p in document.places if p[:1] == (old,)]:
            document.places[(new, *path[1:])] = document.places[path]


def _drop_private(document: Document) -> None:
    """Ignore the keys that start with `x-`, and optional keys left empty."""
    data, optional = document.data, set(Request.model_fields) - {"build", "images"}
    for key in list(data):
        if key.startswith("x-") or (data[key] is None and key in optional):
            del data[key]
