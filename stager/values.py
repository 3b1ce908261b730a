"""Kinds of values that only the configuration has: text to value, or ValueError in plain words."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from stager.models import size, text


def _absolute(value: Path) -> Path:
    if not value.is_absolute():
        raise ValueError("an absolute path is wanted")
    return value


def _image_files(value: Any) -> Any:
    """Image names to members of image.zip: plain file names, each once."""
    if not isinstance(value, dict) or not value:
        raise ValueError("at least one image is wanted: name: member of image.zip")
    for name, member in value.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", str(name)):
            raise ValueError("an image's name may have 1 to 32 letters, digits, - and _")
        if not isinstance(member, str) or not re.fullmatch(r"[A-Za-z0-9_][\w.+-]{0,127}", member):
            raise ValueError("a member is a plain file name at the top of image.zip")
    if len(set(value.values())) < len(value) or "staged" in value.values():
        raise ValueError("each image needs a file name of its own, and none may be `staged`")
    return value


def _min_free(value: Any) -> Any:
    """Check a percentage or a size."""
    value = text(value)
    m = re.fullmatch(r"(\d{1,2}(?:\.\d+)?)\s*%", value)
    if not m and value.rstrip().endswith("%"):
        raise ValueError("a percentage below 100 (5%), or a size such as 20G, is wanted")
    if not m:
        size(value)
    return value


def _textfile(value: Any) -> Any:
    """Check a path that node_exporter would read."""
    value = text(value)
    if value and not re.fullmatch(r"/.*[^/]\.prom", value):
        raise ValueError("an absolute path that ends in .prom is wanted")
    return value


def _address(value: Any) -> Any:
    """Check an address to listen on."""
    value = text(value)
    m = re.fullmatch(r"(?:[A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", value)
    if value and not (m and 0 < int(m[1]) < 65536):
        raise ValueError("ADDRESS:PORT is wanted, or :PORT")
    return value


AbsolutePath = Annotated[Path, BeforeValidator(text), AfterValidator(_absolute)]
ImageFiles = Annotated[dict[str, str], BeforeValidator(_image_files)]
MinFree = Annotated[str, BeforeValidator(_min_free)]
Textfile = Annotated[str, BeforeValidator(_textfile)]
Address = Annotated[str, BeforeValidator(_address)]
