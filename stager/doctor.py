"""Checks of a live spool: the invariants of the protocol, and the staged images themselves.

A running spool changes while it is looked at, so a finding counts only when two looks, some time
apart, agree on it.
"""

import os
import stat
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stager import durable, site
from stager.config import Config
from stager.errors import NotNow, SetupError
from stager.inflate import digest
from stager.layout import FLAG, Build, Claim, Paths, Waiting, arrival_ns, parse_build
from stager.lock import Token
from stager.marker import Sidecar

SETTLE_SECONDS = 2.0
STATES = ("active", "waiting", "done", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it must be."""

    rule: str
    what: str
    hint: str


def examine(config: Config, seconds: float = SETTLE_SECONDS) -> list[Finding]:
    """Return what two looks agree on."""
    first = set(_findings(config))
    if not first:
        return []
    time.sleep(seconds)
    return sorted(first & set(_findings(config)), key=lambda f: (f.rule, f.what))


def _findings(config: Config) -> Iterator[Finding]:
    paths = config.paths
    try:
        site.check(config)
    except (SetupError, NotNow) as e:
        yield Finding("layout", str(e), "mount what belongs there, or correct the configuration")
        return
    uid = site.Layout.read(paths.marks[0]).uid
    modes = [*site.check_modes(paths, uid), *_unreadable(paths)]
    for problem in modes:
        yield Finding("owners and modes", problem, "run the command named")
    if not any("is not there" in problem for problem in modes):
        yield from _states(paths)
        yield from _tokens(paths)
        yield from _flags(config)


def _unreadable(paths: Paths) -> Iterator[str]:
    """Say what of the published is not for everybody to read."""
    for name in durable.listing(paths.results, touch=False):
        if name.endswith(".yaml") and not name.startswith("."):
            yield from _closed(paths.results / name, 0o644)
    for directory, _, files in os.walk(paths.images):
        yield from _closed(Path(directory), 0o755)
        for file in files:
            yield from _closed(Path(directory) / file, 0o644)


def _closed(path: Path, mode: int) -> Iterator[str]:
    try:
        now = stat.S_IMODE(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if now & 0o444 != 0o444 or now & mode & 0o111 != mode & 0o111:
        yield f"{path} can't be read by everybody: chmod {mode:o} {path}"


def _states(paths: Paths) -> Iterator[Finding]:
    """I1, I2: a request is in exactly one state."""
    seen: dict[str, list[str]] = defaultdict(list)
    for room in STATES:
        for name in durable.listing(paths.spool / room, touch=os.geteuid() == 0):
            parsed = Waiting.parse(name) if room == "waiting" else Claim.parse(name)
            if parsed is None:
                yield Finding("names", f"{room}/{name!a}", "not ours: move it elsewhere")
            elif not (isinstance(parsed, Claim) and parsed.g == 0):
                seen[parsed.request_id].append(room)
                if arrival_ns(parsed.id) <= 0:
                    yield Finding("names", f"{room}/{name!a}", "an id without a time")
    for request_id, rooms in seen.items():
        if len(rooms) > 1:
            what = f"request {request_id} is in {', '.join(rooms)}"
            yield Finding("one state", what, "report this: it must not happen")


def _tokens(paths: Paths) -> Iterator[Finding]:
    """I5: exactly one token per build."""
    for key in durable.listing(paths.locks, touch=False):
        names = durable.listing(paths.locks / key, touch=False)
        tokens = [t for t in map(Token.parse, names) if t]
        if len(tokens) != 1 or len(names) != 1:
            yield Finding(
                "one token", f"locks/{key} holds {len(tokens)} tokens in {len(names)} files",
                "with no watcherd running, leave only the highest number there",
            )  # fmt: skip


def _flags(config: Config) -> Iterator[Finding]:
    """I3, I4: a flag lists only images that are there, whole, with a record."""
    paths = config.paths
    for directory, _, files in os.walk(paths.images):
        if FLAG not in files:
            continue
        target = os.path.relpath(directory, paths.static)
        with open(os.path.join(directory, FLAG), errors="replace") as f:
            lines = {line.strip() for line in f}
        for image in sorted(lines & set(config.images)):
            path = Path(directory, config.images[image])
            size = path.stat().st_size if path.exists() else 0
            key = Build("-", *target.removeprefix("images/").rsplit("/", 1)).key
            sidecar = Sidecar.read(paths.sidecar(key, image))
            if size == 0 or (sidecar and sidecar.size != size):
                what = f"{target}: {image} is listed, but not there" + (" whole" if size else "")
                yield Finding("true flags", what, "drop a request for it: it is staged again")


def damaged(config: Config) -> Iterator[tuple[str, str, str]]:
    """Read every staged image and compare it with its sidecar; yield build, image and damage."""
    paths = config.paths
    for name in sorted(durable.listing(paths.sidecars, touch=False)):
        key, _, image = name.removesuffix(".json").rpartition(".")
        sidecar = Sidecar.read(paths.sidecar(key, image))
        if sidecar is None or image not in config.images:
            continue
        url = sidecar.archive_url.rpartition("/")[0]
        build = parse_build(url, frozenset(config.images.values()))
        try:
            fd = os.open(paths.target(build) / config.images[image], os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield url, image, "is not there"
            continue
        try:
            found = digest(fd)
        finally:
            os.close(fd)
        if found.size != sidecar.size:
            yield url, image, f"has {found.size} bytes, {sidecar.size} were staged"
        elif found.sha256 != sidecar.sha256:
            yield url, image, "has other content than was staged"
