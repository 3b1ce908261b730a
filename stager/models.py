"""What requests and configuration share: text to values, and pydantic's findings in plain words.

Converters take the text as it was typed (yamltext.py types nothing) and raise ValueError with
words for a person; `check` joins all of a text's problems with their lines and columns.
"""

import difflib
import re
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, WithJsonSchema

from stager.errors import Problem
from stager.yamltext import Document, Path

Model = TypeVar("Model", bound=BaseModel)

KEY = re.compile(r"[A-Za-z][A-Za-z_-]{0,31}")
"""What a key looks like; digits are more likely part of somebody's secret."""
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TRUE, _FALSE = {"true", "yes", "on"}, {"false", "no", "off"}


class Strict(BaseModel):
    """Base of the models: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def duration(value: Any) -> Any:
    """Return seconds, from a number, or a number with s, m, h or d."""
    if isinstance(value, str):
        m = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", value.strip())
        if not m:
            raise ValueError("a duration is a number of seconds, or a number with s, m, h or d")
        value = float(m[1]) * _UNITS[m[2]]
    if not isinstance(value, int | float):
        raise ValueError("a duration is a number of seconds, or a number with s, m, h or d")
    if value > 3650 * 86400:
        raise ValueError("a duration of more than ten years is surely a mistake")
    return float(value)


def boolean(value: Any) -> Any:
    """Return True or False, from true, false, yes, no, on, off."""
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _TRUE | _FALSE:
            return word in _TRUE
        raise ValueError("say true or false")
    if not isinstance(value, bool):
        raise ValueError("say true or false")
    return value


def whole(low: int, high: int) -> Any:
    """Return a converter to a whole number within bounds."""

    def convert(value: Any) -> Any:
        if isinstance(value, str) and re.fullmatch(r"-?\d{1,9}", value.strip()):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high} is wanted")
        return value

    return convert


def text(value: Any) -> Any:
    """Return a text; nothing else is one."""
    if not isinstance(value, str):
        raise ValueError("a text is wanted here")
    return value


def texts(value: Any) -> Any:
    """Return a list of texts, from a list or from one text with commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if value is None:
        return []
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError("a list of words is wanted here")
    return [item.strip() for item in value]


def size(value: Any) -> Any:
    """Return bytes, from a number or a number with K, M, G or T (powers of 1024)."""
    if isinstance(value, str):
        m = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", value.strip())
        if not m:
            raise ValueError("a size is a number of bytes, or a number with K, M, G or T")
        value = int(float(m[1]) * _SIZES[m[2]])
    return value


_NUMBER = {"type": "number", "minimum": 0}


def _written(pattern: str) -> WithJsonSchema:
    """Return the schema of a number that may be written with a unit."""
    return WithJsonSchema({"anyOf": [_NUMBER, {"type": "string", "pattern": pattern}]})


_WORDS = {"type": "array", "items": {"type": "string"}}
Duration = Annotated[float, BeforeValidator(duration), _written(r"^\s*\d+(\.\d+)?\s*[smhd]?\s*$")]
Flag = Annotated[
    bool,
    BeforeValidator(boolean),
    WithJsonSchema({"enum": [True, False, *sorted(_TRUE | _FALSE)]}),
]
Text = Annotated[str, BeforeValidator(text)]
Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(texts),
    WithJsonSchema({"anyOf": [_WORDS, {"type": "string"}]}),
]
Size = Annotated[int, BeforeValidator(size), _written(r"^\s*\d+(\.\d+)?\s*[KMGT]?i?B?\s*$")]


def check(
    model: type[Model],
    document: Document,
    context: dict[str, Any] | None = None,
    unlabelled: frozenset[str] = frozenset(),
    known: tuple[str, ...] = (),
) -> tuple[Model | None, list[Problem]]:
    """Validate a document; return the model, or None, and all problems in the text's order.

    What reading the text found comes too, and silences what follows from it. What is missing comes
    last: a misspelt key may be the reason.
    `unlabelled`: the keys whose messages already say what they are about, and that stand where the
    value does; `known`: other words for keys. Both are given for requests, whose own words are not
    quoted: a file may be somebody's secret, linked in. Of an unknown key only what looks like one
    is (KEY).
    """
    found = list(document.problems)
    absent: list[Problem] = []
    try:
        result = model.model_validate(document.data, context=context)
    except ValidationError as e:
        result = None
        for error in e.errors():
            path = tuple(error["loc"])
            if path not in document.unread:
                problem = _problem(model, document, error, unlabelled, known)
                (found if path in document.places else absent).append(problem)
    found.sort(key=lambda p: (p.line, p.column))
    found += absent
    return (None if found else result), found


class FaultAt(ValueError):
    """What is wrong with several keys together; it is shown at the first of them that is given."""

    def __init__(self, message: str, *keys: str) -> None:
        super().__init__(message)
        self.keys = keys


def _problem(
    model: type[BaseModel],
    document: Document,
    error: Any,
    unlabelled: frozenset[str],
    known: tuple[str, ...],
) -> Problem:
    path: Path = tuple(error["loc"])
    name = ".".join(str(part) for part in path)
    match error["type"]:
        case "extra_forbidden":
            keys = [*_keys(model, path[:-1]), *known]
            close = difflib.get_close_matches(str(path[-1]), keys, 1, 0.6)
            message = "unknown key" + (f" (did you mean `{close[0]}`?)" if close else "")
        case "missing":
            message, name = f"`{name}` is missing", ""
        case "model_type" | "dict_type" | "model_attributes_type":
            message = "keys with values are wanted here"
        case "value_error":
            fault = error["ctx"]["error"]
            message = str(fault)
            if isinstance(fault, FaultAt):
                given = [key for key in fault.keys if (*path[:-1], key) in document.places]
                path, name = (*path[:-1], *given[:1]), ""
        case "literal_error":
            message = f"one of {error['ctx']['expected']} is wanted"
        case _:
            message = error["msg"][0].lower() + error["msg"][1:]
    if len(name) > 64 or not name.isprintable():
        name = ""
    if unlabelled and error["type"] == "extra_forbidden" and not KEY.fullmatch(name):
        name = ""
    if len(path) == 1 and path[0] in unlabelled:
        return Problem(message, *document.value_place(path))
    label = f"`{name}`: " if name else ""
    return Problem(f"{label}{message}", *document.place(path))


def _keys(model: type[BaseModel], path: Path) -> list[str]:
    """Return the keys that a model knows at `path`."""
    for part in path:
        field = model.model_fields.get(str(part))
        inner = field and field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
