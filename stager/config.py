"""The configuration: defaults < file < environment, checked whole, every problem with its place.

`config.yaml` at the project's root states every default; a test holds the two together.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from stager.errors import Problem, SetupError
from stager.layout import Paths
from stager.models import (
    Duration,
    FaultAt,
    Flag,
    Size,
    Strict,
    Text,
    Texts,
    check,
    size,
    text,
    whole,
)
from stager.request import Rules
from stager.yamltext import Document, TextError, parse_text

DEFAULT_PATH = Path("/etc/stager/config.yaml")
PREFIX = "STAGER_"
IMAGES = {
    "test": "chromiumos_test_image.bin",
    "base": "chromiumos_base_image.bin",
    "recovery": "recovery_image.bin",
}


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
    if not m:
        size(value)
    return value


AbsolutePath = Annotated[Path, BeforeValidator(text), AfterValidator(_absolute)]


class ArchiveConfig(Strict):
    """Where archives come from."""

    source: Literal["gcs", "directory"] = "gcs"
    directory: Text = ""
    buckets: Texts = ("chromeos-image-archive", "chromiumos-image-archive")
    credentials: Text = "default"
    connections: Annotated[int, BeforeValidator(whole(1, 32))] = 4

    @model_validator(mode="after")
    def _needs(self) -> "ArchiveConfig":
        if self.source == "directory" and not self.directory.startswith("/"):
            raise ValueError("`source: directory` needs `directory:`, an absolute path")
        return self


class LogConfig(Strict):
    """How the daemon logs."""

    format: Literal["auto", "text", "json"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class MetricsConfig(Strict):
    """Where metrics go."""

    textfile: Text = ""
    http: Text = ""


class KeepBuilds(Strict):
    """How many builds stay; 0 = off."""

    keep: Annotated[int, BeforeValidator(whole(0, 1_000_000))] = 0
    age: Duration = 0.0
    size: Size = 0


class RetentionConfig(Strict):
    """How long things stay; 0 = for ever."""

    builds: KeepBuilds = KeepBuilds()
    results: Duration = 30 * 86400.0
    requests: Duration = 30 * 86400.0


class Config(Strict):
    """The whole configuration; durations in seconds."""

    spool: AbsolutePath = Path("/srv/watcherd/spool")
    static: AbsolutePath = Path("/srv/watcherd/static")
    results: AbsolutePath = Path("/srv/watcherd/results")
    archive: ArchiveConfig = ArchiveConfig()
    images: Annotated[dict[str, str], BeforeValidator(_image_files)] = Field(default=IMAGES)
    workers: Annotated[int, BeforeValidator(whole(1, 256))] = 2
    watch: Literal["auto", "inotify", "poll"] = "auto"
    settle: Duration = 2.0
    rescan: Duration | None = None
    heartbeat: Duration = 10.0
    lease: Annotated[Duration, Field(validate_default=True)] = 90.0
    attempts: Annotated[int, BeforeValidator(whole(1, 1000))] = 5
    wait_for_archive: Duration = 600.0
    min_free: Annotated[str, BeforeValidator(_min_free)] = "5%"
    static_url: Text = ""
    allow_force: Flag = True
    log: LogConfig = LogConfig()
    metrics: MetricsConfig = MetricsConfig()
    on_done: Texts = ()
    retention: RetentionConfig = RetentionConfig()

    @field_validator("lease")
    @classmethod
    def _agrees(cls, lease: float, info: ValidationInfo) -> float:
        heartbeat = info.data.get("heartbeat", 0.001)
        if heartbeat <= 0 or lease < 2.999 * heartbeat:
            message = "`lease` must be at least three times `heartbeat`, and both above 0"
            raise FaultAt(message, "lease", "heartbeat")
        return lease

    @field_validator("rescan")
    @classmethod
    def _goes_on(cls, rescan: float | None) -> float | None:
        if rescan is not None and rescan <= 0:
            raise FaultAt("`rescan` must be above 0", "rescan")
        return rescan

    @property
    def paths(self) -> Paths:
        return Paths(self.spool, self.static, self.results)

    @property
    def rules(self) -> Rules:
        return Rules(self.images, self.archive.buckets, self.allow_force)

    def min_free_bytes(self, total_bytes: int) -> int:
        """Return what must stay free of a filesystem of `total_bytes`."""
        if self.min_free.endswith("%"):
            return int(total_bytes * float(self.min_free[:-1]) / 100)
        return int(size(self.min_free))


def find_config(option: str | None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the configuration file's path: --config, $STAGER_CONFIG, the default place."""
    return Path(option or environ.get("STAGER_CONFIG") or DEFAULT_PATH)


def load_config(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Load, override, check; raise SetupError with every problem as FILE:LINE:COLUMN."""
    try:
        data = path.read_bytes()
    except OSError as e:
        hint = "give another with --config or $STAGER_CONFIG"
        raise SetupError(f"can't read the configuration {path}: {e.strerror}; {hint}") from None
    return parse_config(data, str(path), environ)


def parse_config(data: bytes, name: str, environ: Mapping[str, str]) -> Config:
    """Check a configuration's text and the environment's overrides together."""
    try:
        document = parse_text(data)
    except TextError as e:
        raise _error(name, e.problems, {}) from None
    if document.data is None:
        document.data = {}
    if not isinstance(document.data, dict):
        raise _error(name, [Problem("keys with values are wanted", 1, 1)], {})
    variables = _override(document, environ)
    config, problems = check(Config, document)
    if config is None:
        raise _error(name, problems, variables)
    return config


def _override(document: Document, environ: Mapping[str, str]) -> dict[int, str]:
    """Put STAGER_<KEY> variables into the document; negative lines stand for their names."""
    variables: dict[int, str] = {}
    for variable in sorted(v for v in environ if v.startswith(PREFIX) and v != "STAGER_CONFIG"):
        path = tuple(variable.removeprefix(PREFIX).lower().split("__"))
        number = -len(variables) - 1
        variables[number] = variable
        inside: Any = document.data
        for part in path[:-1]:
            if not isinstance(inside.get(part), dict):
                # The other images keep their defaults.
                inside[part] = dict(IMAGES) if part == "images" else {}
                document.places[path[: path.index(part) + 1]] = (number, 1)
            inside = inside[part]
        inside[path[-1]] = environ[variable]
        document.places[path] = (number, 1)
    return variables


def _error(name: str, problems: list[Problem], variables: dict[int, str]) -> SetupError:
    lines = [
        f"${variables[p.line]}: {p.message}" if p.line < 0 else f"{name}:{p}" for p in problems
    ]
    return SetupError("\n".join(lines), problems)
