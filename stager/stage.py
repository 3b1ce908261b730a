"""Members of an archive become published images, under the build's token.

Per image: adopt what is there and proves right, or stream the member into the work directory,
verified; then image (by link), sidecar, flag. A member that is missing or broken fails its image
only. Nothing that is visible is ever taken away by a failure.
"""

import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stager import durable
from stager.archive import Archive
from stager.config import Config
from stager.errors import (
    ArchiveChanged,
    ArchiveCorrupt,
    BuildBusy,
    ImageNotInArchive,
    NoSpace,
    StagerError,
)
from stager.inflate import Unpacked, digest, unpack
from stager.instance import Heart
from stager.layout import Build
from stager.lock import Work
from stager.marker import Marker, Sidecar
from stager.progress import Progress
from stager.result import stamp
from stager.zipdir import Directory, Member


class Room:
    """What the filesystem still has for this process's workers."""

    def __init__(self, static: Path, config: Config) -> None:
        self.static, self.config = static, config
        self._reserved: dict[int, int] = {}
        self._lock = threading.Lock()

    def reserve(self, owner: int, wanted: int) -> None:
        """Put `wanted` bytes aside for `owner`; raise NoSpace where they are not there."""
        with self._lock:
            fs = os.statvfs(self.static)
            free = fs.f_bavail * fs.f_frsize
            keep = self.config.min_free_bytes(fs.f_blocks * fs.f_frsize)
            others = sum(n for other, n in self._reserved.items() if other != owner)
            if free - wanted < keep:
                raise NoSpace(f"{wanted} bytes are needed, {free} are free; min_free keeps {keep}")
            if free - others - wanted < keep:
                raise BuildBusy("this machine, which needs the room for another build first")
            self._reserved[owner] = wanted

    def left(self, owner: int, wanted: int) -> None:
        """Say how much of what was put aside is not written yet."""
        with self._lock:
            self._reserved[owner] = max(0, wanted)

    def release(self, owner: int) -> None:
        """Give back what was put aside."""
        with self._lock:
            self._reserved.pop(owner, None)


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
    left_after: int = 0
    """Bytes still to be written once the current image is."""

    def stage(self, images: list[str]) -> None:
        """Stage `images`; `failures` says which of them the archive could not give, and why."""
        self.progress.enter("reading the directory")
        directory, members = self._members(images)
        if not self.force:
            try:
                self._check_unchanged(directory)
            except ArchiveChanged:
                # Said only after reading twice: a wire may have flipped a bit.
                self._check_unchanged(self.archive.directory())
        self.progress.total_bytes = sum(m.compressed for m in members.values())
        try:
            left = sum(m.size for m in members.values())
            self.room.reserve(id(self), left)
            for image, member in members.items():
                self.progress.image, self.left_after = image, left - member.size
                left -= member.size
                try:
                    self._stage_one(image, member)
                except ArchiveCorrupt as e:
                    self.failures[image] = e
        finally:
            self.room.release(id(self))

    def _members(self, images: list[str]) -> tuple[Directory, dict[str, Member]]:
        """Find the wanted members; what looks corrupt is read once more first."""
        for last in (False, True):
            members: dict[str, Member] = {}
            self.failures.clear()
            try:
                directory = self.archive.directory()
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

    def _stage_one(self, image: str, member: Member) -> None:
        if not self.force and self._adopt(image, member):
            self.progress.total_bytes -= member.compressed
            return
        self.progress.enter("fetching")
        file, unpacked = self._fetch_twice(image, member)
        self.progress.enter("publishing")
        if self.force and self._is_there(image, unpacked):
            self.kept.add(image)
            return
        self.heart.confirm()
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

    def _fetch_twice(self, image: str, member: Member) -> tuple[Path, Unpacked]:
        """Fetch again, directory entry and all, where the archive looks corrupt at first."""
        try:
            return self._fetch(member)
        except ArchiveCorrupt:
            name = self.marker.image_files[image]
            return self._fetch(self.archive.directory().member(name))

    def _fetch(self, member: Member) -> tuple[Path, Unpacked]:
        """Stream a member into the work directory: whole, checked and on disk, or an error."""
        done_before = self.progress.done_bytes
        file = self.work.file()
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            chunks = self.archive.stream(member, self.progress.check)
            unpacked = unpack(self._watched(chunks, member, fd), member, fd)
            os.fchmod(fd, 0o644)
            os.fsync(fd)
        except BaseException:
            self.progress.done_bytes = done_before
            durable.discard(file)
            raise
        finally:
            os.close(fd)
        return file, unpacked

    def _watched(self, chunks: Iterator[bytes], member: Member, fd: int) -> Iterator[bytes]:
        for chunk in chunks:
            self.progress.done_bytes += len(chunk)
            written = os.fstat(fd).st_blocks * 512
            self.room.left(id(self), self.left_after + member.size - written)
            yield chunk

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
