"""Members of an archive become published images, under the build's token.

Per image: adopt what is there and proves right, or stream the member into the work directory,
verified; then image (by link), sidecar, flag. A member that is missing or broken fails its image
only. Nothing that is visible is ever taken away by a failure.
"""

import os
import stat
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from stager import durable
from stager.archive import Archive
from stager.errors import (
    ArchiveChanged,
    ArchiveCorrupt,
    ImageNotInArchive,
    StagerError,
)
from stager.fetch import Fetching, Room
from stager.inflate import Unpacked, digest
from stager.instance import Heart
from stager.layout import Build
from stager.lock import Work
from stager.marker import Marker, Sidecar
from stager.progress import Progress
from stager.result import stamp
from stager.zipdir import Directory, Member


@dataclass(slots=True)
class Staging:
    """One build's images on their way, under one token and from one archive."""

    build: Build
    work: Work
    archive: Archive
    marker: Marker
    room: Room
    heart: Heart
    progress: Progress
    request_id: str
    force: bool = False
    failures: dict[str, StagerError] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    """Images that were there already and proved right."""

    def stage(self, images: list[str]) -> None:
        """Stage `images`; `failures` says which of them the archive could not give, and why."""
        self.progress.enter("reading the directory")
        directory, members = self._members(images)
        if not self.force:
            try:
                self._check_unchanged(directory)
            except ArchiveChanged:
                # Said only after reading twice: a wire may have flipped a bit.
                self._check_unchanged(self.archive.directory(self.progress.check))
        wanted = {i: m for i, m in members.items() if self.force or not self._adopt(i, m)}
        self.progress.total_bytes = sum(m.compressed for m in wanted.values())
        try:
            self.room.reserve(id(self.work), sum(m.size for m in wanted.values()))
            self._fetch_and_publish(wanted)
        finally:
            self.room.release(id(self.work))

    def _fetch_and_publish(self, members: dict[str, Member]) -> None:
        """Publish each image when its file is there; what stops one lets the others come first."""
        errors: dict[str, Exception] = {}
        self.progress.enter("fetching")
        fetching = Fetching(self.work, self.archive, self.room, self.progress, members)
        with closing(fetching.fetched()) as outcomes:
            for image, outcome in outcomes:
                if isinstance(outcome, ArchiveCorrupt):
                    self.failures[image] = outcome
                elif isinstance(outcome, Exception):
                    errors[image] = outcome
                else:
                    self.progress.enter("publishing")
                    self._publish(image, members[image], *outcome)
                    self.progress.enter("fetching")
        for image in members:
            if image in errors:
                raise errors[image]

    def _members(self, images: list[str]) -> tuple[Directory, dict[str, Member]]:
        """Find the wanted members; what looks corrupt is read once more first."""
        for last in (False, True):
            members: dict[str, Member] = {}
            self.failures.clear()
            try:
                directory = self.archive.directory(self.progress.check)
            except ArchiveCorrupt:
                if last:
                    raise
                continue
            for image in images:
                try:
                    members[image] = directory.member(self.marker.image_files[image])
                except (ArchiveCorrupt, ImageNotInArchive) as e:
                    self.failures[image] = e
            if not any(isinstance(e, ArchiveCorrupt) for e in self.failures.values()):
                break
        return directory, members

    def _check_unchanged(self, directory: Directory) -> None:
        """Raise ArchiveChanged if images staged before are others in this archive."""
        for image, sidecar in self.marker.sidecars(self.build).items():
            name = self.marker.image_files[image]
            facts = directory.facts(name)
            if sidecar.generation == self.archive.generation or facts is None:
                continue
            if facts != (sidecar.size, sidecar.crc32):
                raise ArchiveChanged(f"{name} in the archive is not the one that was staged before")

    def _publish(self, image: str, member: Member, file: Path, unpacked: Unpacked) -> None:
        """Make a verified file the visible image."""
        if self.force and self._is_there(image, unpacked):
            self.kept.add(image)
            return
        self.heart.confirm()
        self._drop_stray_record(image)
        visible = self.marker.image_path(self.build, image)
        # Below images/, which must be there: a mount point that lost its filesystem stays empty.
        durable.make_dirs(visible.parent, self.marker.paths.images)
        if durable.link(file, visible):
            durable.sync_dir(visible.parent)
        elif not self.force and self._adopt(image, member):
            # A cached "no such file" hid it when we looked before (NFS); the link told.
            return
        else:
            self._swap(image, file, visible)
        self._record(image, visible, unpacked)

    def _drop_stray_record(self, image: str) -> None:
        """Take away the record of an image that is gone, as a removal cut short leaves it.

        A new image of the same size would be taken for the old one, should we die before we record
        it.
        """
        path = self.marker.paths.sidecar(self.build.key, image)
        if Sidecar.read(path) is not None and self.marker.good(self.build, image) is None:
            self.work.away(path)

    def _adopt(self, image: str, member: Member) -> bool:
        """Take an image that is visible without a place in the flag, if it is what it should be."""
        if sidecar := self.marker.good(self.build, image):
            if sidecar.crc32 == f"{member.crc32:08x}":
                self.marker.write_flag(self.work, self.build)
                return True
            return False
        visible = self.marker.image_path(self.build, image)
        self.progress.enter("checking what is there")
        try:
            fd = os.open(visible, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_size != member.size:
                return False
            there = digest(fd, self.progress.check)
            os.fsync(fd)
        finally:
            os.close(fd)
        if there.crc32 != f"{member.crc32:08x}":
            return False
        self.kept.add(image)
        self._record(image, visible, there)
        return True

    def _is_there(self, image: str, unpacked: Unpacked) -> bool:
        """Whether the visible image has this very content, on disk and on record."""
        sidecar = self.marker.good(self.build, image)
        if sidecar is None or sidecar.sha256 != unpacked.sha256:
            return False
        self.progress.enter("comparing")
        fd = os.open(self.marker.image_path(self.build, image), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return digest(fd, self.progress.check) == unpacked
        finally:
            os.close(fd)

    def _swap(self, image: str, file: Path, visible: Path) -> None:
        """Replace a visible image: flag without it, its record away, rename over."""
        self.marker.write_flag(self.work, self.build, without=[image])
        self.work.away(self.marker.paths.sidecar(self.build.key, image))
        # Else a power loss could leave the old record beside the new image.
        durable.sync_dir(self.marker.paths.sidecars)
        self.work.check()
        os.rename(file, visible)
        durable.sync_dir(visible.parent)

    def _record(self, image: str, visible: Path, unpacked: Unpacked) -> None:
        sidecar = Sidecar(
            archive_url=self.archive.url,
            generation=self.archive.generation,
            size=unpacked.size,
            crc32=unpacked.crc32,
            sha256=unpacked.sha256,
            allocated=os.lstat(visible).st_blocks * 512,
            request_id=self.request_id,
            staged_at=stamp(self.heart.server_now()),
            host=self.heart.identity.host,
        )
        self.marker.write_sidecar(self.work, self.build, image, sidecar)
        self.marker.write_flag(self.work, self.build)
