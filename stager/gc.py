"""Retention of builds: those that nobody used for longest go, when the rules say so.

A use is a request that was answered from the images there: it touches their sidecars. Never
removed: what is pinned, was used or (where the filesystem keeps that) read within the hour, is
wanted by a request that waits, or is worked on; files without a sidecar of ours.

Removal, under the build's token: flag without the images; then the sidecars' times are looked at
once more, as an answer may have been given meanwhile: touched lately, then the flag is written
back; then the images, the directory and, last, the sidecars: wherever a crash comes in between,
they tell the next pass what was ours.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from stager import durable, pins
from stager.config import Config, KeepBuilds
from stager.errors import BuildBusy, RequestError, TakenOver
from stager.layout import FLAG, Build, Paths, parse_build
from stager.lock import Work
from stager.marker import Marker, Sidecar
from stager.request import MAX_BYTES, parse_request
from stager.visit import Visit

LATELY_SECONDS = 3600.0
PINNED = "pinned"


@dataclass(slots=True)
class Staged:
    """A build with images of ours; `used`: when last, in seconds of the file server's clock."""

    build: Build
    images: list[str] = field(default_factory=list)
    used: float = 0.0
    bytes: int = 0
    spared: str = ""
    """Why it stays whatever the rules say; empty: it may go."""


@dataclass(frozen=True, slots=True)
class Removal:
    """A build that goes, or would; bytes on disk."""

    build: Build
    why: str
    bytes: int
    spared: str = ""
    """Why it was left after all."""


def collect(visit: Visit, *, dry_run: bool = False) -> Iterator[Removal]:
    """Remove what the rules let go, least recently used first; yield each build."""
    config = visit.config
    rules, now = config.retention.builds, visit.heart.server_now()
    if not any((rules.keep, rules.age, rules.size)):
        return
    builds = survey(config, now)
    chosen = choose(builds, rules, now, _missing_bytes(config))
    for staged, why in chosen:
        spared = "" if dry_run else _remove_build(visit, staged)
        yield Removal(staged.build, why, staged.bytes, spared)
    going = {id(staged) for staged, _ in chosen}
    for staged in builds:
        if id(staged) not in going and not dry_run:
            _mend_flag(visit, staged)


def survey(config: Config, now: float) -> list[Staged]:
    """Return all builds that have images of ours, from their sidecars."""
    paths, found = config.paths, dict[str, Staged]()
    names = frozenset(config.images.values())
    for name in durable.listing(paths.sidecars, touch=False):
        key, _, image = name.removesuffix(".json").rpartition(".")
        path = paths.sidecars / name
        if image not in config.images or (sidecar := Sidecar.read(path)) is None:
            continue
        build = parse_build(sidecar.archive_url.rpartition("/")[0], names)
        staged = found.setdefault(key, Staged(build))
        staged.images.append(image)
        staged.bytes += sidecar.allocated
        staged.used = max(staged.used, _touched(path))
        if now - _read(paths.target(build) / config.images[image]) < LATELY_SECONDS:
            staged.spared = "read within the hour"
    pinned, wanted = pinned_keys(paths), _wanted(config)
    for key, staged in found.items():
        if key in pinned:
            staged.spared = PINNED
        elif key in wanted:
            staged.spared = "a request waits for it"
        elif now - staged.used < LATELY_SECONDS:
            staged.spared = "used within the hour"
    return list(found.values())


def choose(
    builds: list[Staged], rules: KeepBuilds, now: float, missing: int
) -> list[tuple[Staged, str]]:
    """Return what goes, and why: by age, number a board, size of all, then `missing` bytes."""
    builds = sorted(builds, key=lambda staged: staged.used)
    chosen: dict[int, tuple[Staged, str]] = {}

    def go(found: Iterable[tuple[Staged, str]]) -> None:
        for staged, why in found:
            chosen.setdefault(id(staged), (staged, why))

    def left() -> list[Staged]:
        return [staged for staged in builds if id(staged) not in chosen]

    if rules.age:
        go(_unused(builds, now, rules.age))
    if rules.keep:
        go(_outnumbered(builds, rules.keep))
    if rules.size:
        excess = sum(staged.bytes for staged in left()) - rules.size
        go(_oldest(left(), excess, "bytes more than retention.builds.size"))
    missing -= sum(staged.bytes for staged, _ in chosen.values())
    go(_oldest(left(), missing, "bytes missing to min_free"))
    return sorted(chosen.values(), key=lambda pair: pair[0].used)


def _unused(builds: list[Staged], now: float, age: float) -> Iterator[tuple[Staged, str]]:
    for staged in builds:
        if now - staged.used > age and not staged.spared:
            yield staged, f"not used for {(now - staged.used) / 86400:.1f} days"


def _outnumbered(builds: list[Staged], keep: int) -> Iterator[tuple[Staged, str]]:
    """Yield all but the `keep` last used of each board; pinned ones don't count."""
    boards: dict[str, list[Staged]] = defaultdict(list)
    for staged in builds:
        if staged.spared != PINNED:
            boards[staged.build.rel_path].append(staged)
    for board, members in boards.items():
        for staged in members[:-keep]:
            if not staged.spared:
                yield staged, f"{keep} builds of {board} were used later"


def _oldest(builds: list[Staged], excess: int, what: str) -> Iterator[tuple[Staged, str]]:
    """Yield the builds used longest ago until `excess` bytes are gone."""
    for staged in builds:
        if excess > 0 and not staged.spared:
            yield staged, f"{excess} {what}"
            excess -= staged.bytes


def pinned_keys(paths: Paths) -> set[str]:
    """Return the keys of the pinned builds."""
    return set(pins.keys(durable.listing(paths.spool, touch=False)))


def _missing_bytes(config: Config) -> int:
    fs = os.statvfs(config.static)
    wanted = config.min_free_bytes(fs.f_blocks * fs.f_frsize)
    return max(0, wanted - fs.f_bavail * fs.f_frsize)


def _touched(sidecar: Path) -> float:
    """Return when an image was last asked for, by the file server's clock.

    The sidecar is opened, as only that makes an NFS client ask for the time anew.
    """
    try:
        fd = os.open(sidecar, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0.0
    try:
        return os.fstat(fd).st_mtime
    finally:
        os.close(fd)


def _read(image: Path) -> float:
    """Return when an image was last read, where the filesystem keeps that."""
    try:
        return image.stat().st_atime
    except OSError:
        return 0.0


def _wanted(config: Config) -> set[str]:
    """Return the keys of the builds that requests wait for or are worked on."""
    keys = set()
    for room in (config.paths.waiting, config.paths.active):
        for name in durable.listing(room, touch=False):
            try:
                request = parse_request(durable.read_file(room / name, MAX_BYTES), config.rules)
            except (OSError, RequestError):
                continue
            keys.add(request.build.key)
    return keys


def _remove_build(visit: Visit, staged: Staged) -> str:
    """Remove a build's images; return why not, if so."""
    try:
        with visit.locks.take(staged.build.key) as work:
            if staged.build.key in pinned_keys(visit.config.paths):
                return "pinned meanwhile"
            return remove(work, visit.marker, staged, visit.heart.server_now())
    except BuildBusy as e:
        return f"busy: {e}"


def _mend_flag(visit: Visit, staged: Staged) -> None:
    """List a build again that a removal, cut short, took out of its flag, and that now stays."""
    build, marker = staged.build, visit.marker
    if set(staged.images) <= set(marker.read_flag(build)) or marker.is_true(build):
        return
    with suppress(BuildBusy, TakenOver), visit.locks.take(build.key) as work:
        marker.look_afresh(build)
        marker.write_flag(work, build)


def remove(work: Work, marker: Marker, staged: Staged, now: float) -> str:
    """Remove images under the build's token, in the order the head of this file argues for."""
    build, paths = staged.build, marker.paths
    marker.look_afresh(build)
    marker.write_flag(work, build, without=staged.images)
    used = max(_touched(paths.sidecar(build.key, image)) for image in staged.images)
    if now - used < LATELY_SECONDS:
        marker.write_flag(work, build)
        return "used meanwhile"
    for image in staged.images:
        work.check()
        work.away(marker.image_path(build, image))
    if not marker.read_flag(build):
        _remove_target(work, paths.target(build))
    for image in staged.images:
        work.away(paths.sidecar(build.key, image))
    return ""


def _remove_target(work: Work, target: Path) -> None:
    """Remove a build's directory where nothing but an empty flag is left in it."""
    if target.is_dir() and durable.listing(target, touch=False) in ([], [FLAG]):
        work.away(target / FLAG)
        with suppress(OSError):
            os.rmdir(target)
        durable.sync_dir(target.parent)
