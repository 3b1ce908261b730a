"""Write schemas, reference and manual pages from the models: `make schema`.

What a key means is the text below it in its model, so there is one place to change.
"""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from stager import errors
from stager.config import Config
from stager.errors import StagerError, Then
from stager.models import duration
from stager.request import Request
from stager.result import Result
from stager.snapshot import Board

ROOT = Path(__file__).resolve().parent.parent
DRAFT = "https://json-schema.org/draft/2020-12/schema"
SYNONYMS = {"build": "archive_url", "images": "image_types"}
THEN = {
    Then.REJECT: "rejected at once",
    Then.LOOK_AGAIN: "looked for again until `wait` is over, then failed",
    Then.DEFER: "tried again later, failed after `attempts` tries",
    Then.FAIL: "failed at once",
    Then.HOLD: "the queue waits until it is over; nothing fails by it",
    Then.CANCEL: "cancelled",
}


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return what stands below each field of a model, those it has from another included."""
    bases = (b for b in model.__bases__ if issubclass(b, BaseModel) and b is not BaseModel)
    found = {key: meaning for base in bases for key, meaning in meanings(base).items()}
    body = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(body, ast.ClassDef)
    for field, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
            assert isinstance(field.target, ast.Name)
            assert isinstance(after.value, ast.Constant)
            found[field.target.id] = str(after.value.value)
    return found


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield a model and those of its fields."""
    yield model
    for field in model.model_fields.values():
        for part in parts(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from models(part)


def parts(annotation: Any) -> Iterator[Any]:
    """Yield a type and all those inside it."""
    yield annotation
    for inner in get_args(annotation):
        yield from parts(inner)


def described(model: type[BaseModel], title: str) -> dict[str, Any]:
    """Return a model's schema, each key with its meaning."""
    schema = model.model_json_schema()
    defined = schema.get("$defs", {}) | {model.__name__: schema}
    for each in models(model):
        for key, meaning in meanings(each).items():
            defined[each.__name__]["properties"][key]["description"] = meaning
    for part in defined.values():
        for key in part.get("properties", {}).values():
            key.pop("title", None)
    return {"$schema": DRAFT, **schema, "title": title}


def request_schema() -> dict[str, Any]:
    """Return the schema of a request file: with the seed's keys, and those of one's own."""
    schema = described(Request, "A request to watcherd")
    del schema["required"]
    for key, synonym in SYNONYMS.items():
        other = {**schema["properties"][key], "description": f"The same as `{key}`."}
        schema["properties"][synonym] = other
    schema["allOf"] = [
        {"oneOf": [{"required": [key]}, {"required": [synonym]}]}
        for key, synonym in SYNONYMS.items()
    ]
    schema["patternProperties"] = {"^x-": {"description": "Yours; ignored."}}
    return schema


def schemas() -> dict[str, dict[str, Any]]:
    """Return all schemas by the name of their file."""
    return {
        "request.schema.json": request_schema(),
        "result.schema.json": described(Result, "watcherd's answer to a request"),
        "config.schema.json": described(Config, "watcherd's configuration"),
        "status.schema.json": described(Board, "results/status.json: the spool at a glance"),
    }


def rows(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield a table's rows: key, default where there is one, meaning."""
    texts = meanings(model)
    for name, field in model.model_fields.items():
        default = field.default
        if isinstance(default, BaseModel):
            yield f"| `{prefix}{name}` | | {texts.get(name, '')} |"
            yield from rows(type(default), f"{prefix}{name}.")
            continue
        shown = default_text(field)
        shown = f"`{shown}`" if shown else ""
        yield f"| `{prefix}{name}` | {shown} | {texts.get(name, '')} |"


def default_text(field: FieldInfo) -> str:
    """Return a default as one would write it; empty where there is none."""
    if field.is_required() or field.default in (None, "", ()):
        return ""
    is_duration = any(part is duration for part in converters(field))
    return in_units(field.default) if is_duration else plain(field.default)


def converters(field: FieldInfo) -> Iterator[Any]:
    """Yield the functions that turn a field's text into its value."""
    for extra in field.metadata:
        yield getattr(extra, "func", None)


def in_units(seconds: float) -> str:
    """Return a duration in its largest whole unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g}{unit}"
    return f"{seconds:g}s" if seconds else "0"


def plain(value: Any) -> str:
    """Return a default as one would write it in YAML."""
    if isinstance(value, tuple):
        return "[" + ", ".join(value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def codes() -> Iterator[str]:
    """Yield a row for each error code: what it means, what happens, what to do."""
    for kind in vars(errors).values():
        if not (isinstance(kind, type) and issubclass(kind, StagerError)):
            continue
        if kind is StagerError or ("code" not in vars(kind) and kind is not errors.Internal):
            continue
        meaning = (kind.__doc__ or "").strip().splitlines()[0]
        hint = kind.default_hint
        yield f"| `{kind.code}` | {meaning} | {THEN[kind.then]} | {hint} |"


def reference() -> str:
    """Return docs/reference.md."""
    sections = [
        "# Reference",
        "Written by `make schema` from the models in `stager/`; the JSON Schemas are in `schema/`.",
        "## Request: `spool/requests/NAME.yaml`",
        (
            "`archive_url:` is another word for `build:`, `image_types:` for `images:`; keys that "
            "start with `x-` are yours. YAML or JSON, UTF-8, 64 KiB at most."
        ),
        table("key | default | meaning", rows(Request)),
        "## Answer: `results/NAME.yaml`",
        (
            "`state` is the first line. Keys without a value are left out. Sizes are in bytes, "
            "times are UTC."
        ),
        table("key |  | meaning", rows(Result)),
        *(
            f"### {each.__name__.removesuffix('Part')}\n\n" + table("key |  | meaning", rows(each))
            for each in dict.fromkeys(models(Result))
            if each is not Result
        ),
        "## Error codes",
        table("code | what it means | what happens | what to do", codes()),
        "## Configuration: `config.yaml`",
        (
            "Durations: seconds, or a number with s, m, h or d. Sizes: bytes, or a number with K, "
            "M, G or T. `STAGER_<KEY>` in the environment overrides a key; `__` between levels."
        ),
        table("key | default | meaning", rows(Config)),
    ]
    return "\n\n".join(sections) + "\n"


def table(head: str, lines: Iterator[str]) -> str:
    """Return a table in Markdown."""
    return "\n".join([f"| {head} |", "|" + "---|" * len(head.split("|")), *lines])


def files() -> dict[Path, str]:
    """Return what is to be written, by path."""
    import manpages  # noqa: PLC0415 (which asks this module for the keys)

    found = {
        ROOT / "schema" / name: json.dumps(schema, indent=2) + "\n"
        for name, schema in schemas().items()
    }
    found |= {ROOT / "man" / name: text for name, text in manpages.pages().items()}
    return found | {ROOT / "docs/reference.md": reference()}


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
