"""Names and paths, without any I/O: where things are, and what a name on disk says.

The names are the state: a claim's name tells which request it is, how often it was claimed and
started, and by whom. `parse` is the inverse of `str` and gives None for a name that is not ours.
"""

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

SUFFIXES = (".yaml", ".yml", ".json")
IMAGE_ARCHIVE = "image.zip"
FLAG = "staged"
MAX_NAME_BYTES = 150
ROOMS = ("done", "failed", "cancelled")
"""The directories of the answered requests."""
SLASHES = set("/\u2044\u2215\u29f8\uff0f")
"""What people, or programs that fold characters, may take for a slash."""
PIN_PREFIX = "pinned."
"""A file in the spool's own directory whose name goes on with the key of a build to keep."""
RETRY = "--"
"""In an id: what stands behind it is the id of the request that this one is a retry of."""

_PART = re.compile(r"(?!\.)[A-Za-z0-9._+~-]{1,128}")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_ID = r"(?P<id>[a-z0-9-]+)\.g(?P<g>\d+)\.a(?P<a>\d+)"
_CLAIM = re.compile(
    rf"(?P<file>.*)~{_ID}\.(?P<inst>[A-Za-z0-9-]+)\.(?P<nonce>[a-z2-7]+)", re.DOTALL
)
_WAITING = re.compile(
    rf"p(?P<p>\d)\.(?P<due>\d+)\.u(?P<uid>\d+)\.(?P<file>.*)~{_ID}\.(?P<nonce>[a-z2-7]+)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Build:
    """A build: `gs://BUCKET/REL/PATH/SHORT`."""

    bucket: str
    rel_path: str
    short_build: str

    @property
    def url(self) -> str:
        return f"gs://{self.bucket}/{self.rel_path}/{self.short_build}"

    @property
    def object_name(self) -> str:
        return f"{self.rel_path}/{self.short_build}/{IMAGE_ARCHIVE}"

    @property
    def archive_url(self) -> str:
        return f"gs://{self.bucket}/{self.object_name}"

    @property
    def target(self) -> str:
        """Where its images are, below the static tree (the bucket is no part of it)."""
        return f"images/{self.rel_path}/{self.short_build}"

    @property
    def key(self) -> str:
        """A flat name for the target: readable at its start, unique by its end."""
        path = f"{self.rel_path}/{self.short_build}"
        slug = re.sub(r"[^A-Za-z0-9-]+", "_", path)[-60:].strip("_")
        return f"{slug}-{hashlib.sha256(path.encode()).hexdigest()[:16]}"


def parse_build(url: str, image_files: frozenset[str]) -> Build:
    """Parse a build's URL; ValueError in the words of a person."""
    if not url.startswith("gs://"):
        raise ValueError("the build must be a URL gs://BUCKET/PATH/BUILD")
    bucket, *parts = url.removeprefix("gs://").removesuffix("/").split("/")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError("the build's bucket is no bucket name: 3 to 222 of a-z 0-9 . _ -")
    if len(parts) < 2:
        raise ValueError("the build needs a path and a build name: gs://BUCKET/PATH/BUILD")
    for part in parts:
        if part == "":
            raise ValueError("the build's path has an empty part (// or too many slashes)")
        if not _PART.fullmatch(part):
            raise ValueError(
                "a part of the build's path may have 1 to 128 letters, digits and ._+~- "
                "and must not start with a dot"
            )
        if part == IMAGE_ARCHIVE:
            raise ValueError(f"the build is what holds {IMAGE_ARCHIVE}: leave that out")
        if part == FLAG or part in image_files:
            raise ValueError("a part of the build's path has the name of a staged file")
    return Build(bucket, "/".join(parts[:-1]), parts[-1])


def is_request_name(name: str) -> bool:
    """Whether a name in the drop box is taken (others stay where they are)."""
    return name.endswith(SUFFIXES) and not name.startswith((".", "#"))


def request_name(name: str) -> str:
    """NAME: a dropped name without its suffix."""
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


def can_name_result(name: str) -> bool:
    """Whether NAME can safely name `results/NAME.yaml`."""
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        return False
    return (
        0 < len(raw) <= MAX_NAME_BYTES
        and name.isprintable()
        and not SLASHES & set(name)
        and not name.startswith((".", "#"))
    )


@dataclass(frozen=True, slots=True)
class Claim:
    """A request owned by an instance: `<FILE>~<id>.g<N>.a<N>.<inst>.<nonce>`.

    `file` is the dropped name verbatim, or empty where it can't name a result. `g` counts claims
    and takeovers (0: taken, not yet accepted), `a` counts starts.
    """

    file: str
    id: str
    g: int
    a: int
    inst: str
    nonce: str

    def __str__(self) -> str:
        return f"{self.file}~{self.id}.g{self.g}.a{self.a}.{self.inst}.{self.nonce}"

    @classmethod
    def parse(cls, name: str) -> "Claim | None":
        m = _CLAIM.fullmatch(name)
        return m and cls(m["file"], m["id"], int(m["g"]), int(m["a"]), m["inst"], m["nonce"])

    @property
    def request_id(self) -> str:
        return self.id.split(RETRY)[0]

    @property
    def retry_of(self) -> str | None:
        return self.id.split(RETRY)[1] if RETRY in self.id else None

    @property
    def arrived_ns(self) -> int:
        """The file's ctime after the take, by the file server's clock."""
        return arrival_ns(self.id)

    @property
    def result_file(self) -> str:
        """The file in results/ that answers it."""
        return result_file(self.file, self.request_id)

    def next(self, inst: str, nonce: str, *, starts: int = 0) -> "Claim":
        """Return the name after a takeover (g+1), or after a start."""
        return replace(self, g=self.g + 1 - starts, a=self.a + starts, inst=inst, nonce=nonce)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request nobody works on: `p<digit>.<due>.u<uid>.<FILE>~<id>.g<N>.a<N>.<nonce>`.

    `due` is in seconds of the file server's clock.
    """

    priority: int
    due: int
    uid: int
    file: str
    id: str
    g: int
    a: int
    nonce: str

    def __str__(self) -> str:
        head = f"p{self.priority}.{self.due}.u{self.uid}."
        return f"{head}{self.file}~{self.id}.g{self.g}.a{self.a}.{self.nonce}"

    @classmethod
    def parse(cls, name: str) -> "Waiting | None":
        m = _WAITING.fullmatch(name)
        if not m:
            return None
        numbers = int(m["p"]), int(m["due"]), int(m["uid"])
        return cls(*numbers, m["file"], m["id"], int(m["g"]), int(m["a"]), m["nonce"])

    def claimed(self, inst: str, nonce: str) -> Claim:
        return Claim(self.file, self.id, self.g + 1, self.a, inst, nonce)

    @property
    def request_id(self) -> str:
        return self.id.split(RETRY)[0]

    @property
    def retry_of(self) -> str | None:
        return self.id.split(RETRY)[1] if RETRY in self.id else None

    @property
    def arrived_ns(self) -> int:
        return arrival_ns(self.id)


def arrival_ns(request_id: str) -> int:
    """When a request was dropped: nanoseconds of the file server's clock, from its id."""
    head = request_id.split("-", maxsplit=1)[0]
    return int(head) if head.isdigit() else 0


def result_file(file: str, request_id: str) -> str:
    """Return the name in results/ for a dropped name (empty: it could name no result)."""
    return f"{request_name(file) if file else request_id}.yaml"


class Paths:
    """Where everything is, from the three directories of the configuration."""

    def __init__(self, spool: Path, static: Path, results: Path) -> None:
        self.spool, self.static, self.results = spool, static, results
        self.requests = spool / "requests"
        self.control = spool / "control"
        self.active = spool / "active"
        self.waiting = spool / "waiting"
        self.done = spool / "done"
        self.failed = spool / "failed"
        self.cancelled = spool / "cancelled"
        self.instances = spool / "instances"
        self.private = spool / "private"
        self.tmp = spool / "tmp"
        self.images = static / "images"
        self.stager = static / ".stager"
        self.locks = self.stager / "locks"
        self.work = self.stager / "work"
        self.sidecars = self.stager / "sidecars"
        self.static_tmp = self.stager / "tmp"
        # One mark for each directory, so that an unmounted mount point is never taken for it.
        self.marks = (spool / "LAYOUT", self.stager / "LAYOUT", results / ".layout")

    def target(self, build: Build) -> Path:
        """Return the directory of a build's images."""
        return self.static / build.target

    def sidecar(self, key: str, image: str) -> Path:
        """Return the record of one staged image."""
        return self.sidecars / f"{key}.{image}.json"
