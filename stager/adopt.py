"""Takes over the images of an older devserver: flagged, there, not empty, without a record of ours.

Each is compared with its archive while that exists, else hashed and recorded as unverified. Done
as an instance among the others, under the build's token; images and flags themselves stay as they
are.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stager import durable, site
from stager.archive import Source
from stager.errors import ArchiveMissing, BuildBusy, StagerError
from stager.inflate import Unpacked, digest
from stager.layout import FLAG, Build, parse_build
from stager.marker import Sidecar
from stager.result import stamp
from stager.visit import Visit

NO_GENERATION = 0


@dataclass(frozen=True, slots=True)
class Adoption:
    """What became of one image, or would."""

    build: str
    image: str
    outcome: str


@dataclass(frozen=True, slots=True)
class _Archived:
    """A member of an archive: `facts` are its size and CRC-32, None where it is not in it."""

    url: str
    generation: int
    facts: tuple[int, str] | None


def flagged(visit: Visit) -> Iterator[Build]:
    """Yield the builds that have a flag file, whoever made it."""
    images = visit.marker.paths.images
    names = frozenset(visit.marker.image_files.values())
    bucket = visit.config.archive.buckets[0]
    for directory, _, files in os.walk(images):
        if FLAG in files:
            with suppress(ValueError):
                yield parse_build(f"gs://{bucket}/{Path(directory).relative_to(images)}", names)


def older(visit: Visit) -> Iterator[tuple[Build, list[str]]]:
    """Yield the builds that an older devserver staged, with those of their images."""
    marker = visit.marker
    for build in flagged(visit):
        listed = marker.read_flag(build)
        found = [i for i in marker.image_files if i in listed and marker.is_older(build, i)]
        if found:
            yield build, found


def adopt(visit: Visit, source: Source, *, dry_run: bool) -> Iterator[Adoption]:
    """Record what is found to be good; yield each image with what became of it."""
    for build, images in older(visit):
        for image in images:
            if dry_run:
                yield Adoption(build.target, image, "would be checked")
                continue
            try:
                with durable.storage():
                    outcome = _adopt(visit, source, build, image)
            except BuildBusy as e:
                outcome = f"left: {e}; run it again"
            except StagerError as e:
                outcome = f"left: {e.message}"
            yield Adoption(build.target, image, outcome)


def _adopt(visit: Visit, source: Source, build: Build, image: str) -> str:
    marker = visit.marker
    archived = _find(visit, source, build, image)
    with visit.locks.take(build.key) as work:
        marker.look_afresh(build)
        if not marker.is_older(build, image):
            return "left: it was staged or removed meanwhile"
        there, allocated = _hash(marker.image_path(build, image))
        if archived is not None and archived.facts != (there.size, there.crc32):
            return f"left: it is not what {archived.url} holds; a request for it stages it again"
        url, generation = build.archive_url, NO_GENERATION
        if archived is not None:
            url, generation = archived.url, archived.generation
        sidecar = Sidecar(
            archive_url=url, generation=generation, size=there.size, crc32=there.crc32,
            sha256=there.sha256, allocated=allocated, request_id="adopted",
            staged_at=stamp(visit.heart.server_now()), host=visit.heart.identity.host,
            verified=archived is not None,
        )  # fmt: skip
        marker.write_sidecar(work, build, image, sidecar)
    return "adopted" if archived else "adopted, unverified: its archive is gone"


def _find(visit: Visit, source: Source, build: Build, image: str) -> _Archived | None:
    """Return what the archive holds under an image's name; None: no bucket has the archive."""
    for bucket in visit.config.archive.buckets:
        try:
            archive = source.look(Build(bucket, build.rel_path, build.short_build), time.sleep)
        except ArchiveMissing:
            continue
        facts = archive.directory().facts(visit.marker.image_files[image])
        return _Archived(archive.url, archive.generation, facts)
    return None


def _hash(path: Path) -> tuple[Unpacked, int]:
    """Read an image, and see that it is on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        there = digest(fd)
        os.fsync(fd)
        return there, os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)


def foreign(visit: Visit) -> Iterator[site.Misfit]:
    """Yield what of the images' tree is not the daemon's user's: it could not be replaced."""
    uid = site.Layout.read(visit.config.paths.marks[0]).uid
    for directory, _, files in os.walk(visit.marker.paths.images):
        for path in (Path(directory), *(Path(directory) / file for file in files)):
            owner = path.lstat().st_uid
            if owner != uid:
                yield site.Misfit(path, f"belongs to uid {owner}", uid=uid)
