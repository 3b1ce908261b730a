"""The configuration: defaults < file < environment, checked whole, every problem with its place.

`config.yaml` at the project's root states every default; a test holds the two together.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
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
    whole,
)
from stager.request import Rules
from stager.values import AbsolutePath, Address, ImageFiles, MinFree, Textfile
from stager.yamltext import Document, TextError, parse_text

DEFAULT_PATH = Path("/etc/stager/config.yaml")
PREFIX = "STAGER_"
IMAGES = {
    "test": "chromiumos_test_image.bin",
    "base": "chromiumos_base_image.bin",
    "recovery": "recovery_image.bin",
}


class ArchiveConfig(Strict):
    """Where archives come from."""

    source: Literal["gcs", "directory"] = "gcs"
    """`gcs`, or `directory`: DIRECTORY/<bucket>/<object>, an air-gapped mirror."""
    directory: Text = ""
    """The mirror's directory."""
    buckets: Texts = ("chromeos-image-archive", "chromiumos-image-archive")
    """What a request may name."""
    credentials: Text = "default"
    """`default`, `anonymous`, or a service account's key file."""
    connections: Annotated[int, BeforeValidator(whole(1, 32))] = 4
    """Ranged reads ahead of the inflater, per image."""

    @model_validator(mode="after")
    def _needs(self) -> "ArchiveConfig":
        if self.source == "directory" and not self.directory.startswith("/"):
            raise ValueError("`source: directory` needs `directory:`, an absolute path")
        return self


class LogConfig(Strict):
    """How the daemon logs."""

    format: Literal["auto", "text", "json"] = "auto"
    """`auto`: text, with journal levels under systemd."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is logged."""


class MetricsConfig(Strict):
    """Where metrics go."""

    textfile: Textfile = ""
    """A file for node_exporter's textfile collector, on this machine: an absolute path, *.prom."""
    http: Address = ""
    """ADDRESS:PORT of an endpoint, or :PORT for all of the machine's addresses."""

    @property
    def listen(self) -> tuple[str, int]:
        """The address and the port to listen on."""
        host, _, port = self.http.rpartition(":")
        return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 (asked for)


class KeepBuilds(Strict):
    """How many builds stay; 0 = off."""

    keep: Annotated[int, BeforeValidator(whole(0, 1_000_000))] = 0
    """So many of each board, those used last."""
    age: Duration = 0.0
    """So long after the last use."""
    size: Size = 0
    """So large, all together."""


class RetentionConfig(Strict):
    """How long things stay; 0 = for ever."""

    builds: KeepBuilds = KeepBuilds()
    """Which builds stay; where one rule is set, builds also go when `min_free` is not met."""
    results: Duration = 30 * 86400.0
    """How long answers stay."""
    requests: Duration = 30 * 86400.0
    """How long answered requests stay."""


class Config(Strict):
    """The whole configuration; durations in seconds."""

    spool: AbsolutePath = Path("/srv/watcherd/spool")
    """Requests are dropped into spool/requests."""
    static: AbsolutePath = Path("/srv/watcherd/static")
    """The tree that the HTTP server serves."""
    results: AbsolutePath = Path("/srv/watcherd/results")
    """The answers; on the spool's filesystem."""
    archive: ArchiveConfig = ArchiveConfig()
    """Where archives come from."""
    images: ImageFiles = Field(default=IMAGES)
    """What a request may ask for: name: member of image.zip."""
    workers: Annotated[int, BeforeValidator(whole(1, 256))] = 2
    """Builds staged at the same time by this machine."""
    watch: Literal["auto", "inotify", "poll"] = "auto"
    """How the drop box is watched; `auto` polls on network filesystems."""
    settle: Duration = 2.0
    """So long must a file stay unchanged that was not moved or linked in."""
    rescan: Duration | None = None
    """Between scans; left out: 15s, and 3s on network filesystems."""
    heartbeat: Duration = 10.0
    """As `stager init` wrote it into the spool."""
    lease: Annotated[Duration, Field(validate_default=True)] = 90.0
    """So long without a heartbeat, and a machine is dead; as `stager init` wrote it."""
    attempts: Annotated[int, BeforeValidator(whole(1, 1000))] = 5
    """Tries while Cloud Storage does not answer properly."""
    wait_for_archive: Duration = 600.0
    """For an archive that is not there yet; a request's `wait` overrides it."""
    min_free: MinFree = "5%"
    """What stays free of the static tree's filesystem: a percentage, or a size such as 20G."""
    static_url: Text = ""
    """Where the static tree is served: puts `url:` into answers."""
    allow_force: Flag = True
    """Whether requests may `force`."""
    log: LogConfig = LogConfig()
    """How the daemon logs."""
    metrics: MetricsConfig = MetricsConfig()
    """Where metrics go."""
    on_done: Texts = ()
    """A command and its arguments, run after each answer."""
    retention: RetentionConfig = RetentionConfig()
    """How long things stay; 0: for ever."""

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
