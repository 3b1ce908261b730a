"""The `staged` flag and the sidecars: what is staged already.

The flag is the seed's: one image name a line. A sidecar is our record of one image: where it came
from and what it is. An image counts as staged when flag, sidecar and the file's size agree; that
asks neither the network nor the token. Both are only replaced by rename, under the build's token,
out of the work directory.
"""

import json
import os
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from stager import durable, mounts
from stager.errors import StorageError, TargetConflict
from stager.layout import FLAG, Build, Paths
from stager.lock import Work

FLAG_TRIES = 5
BLANKS = " \t\r\x0b\x0c"
TOUCH_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Sidecar:
    """The record of a staged image. Sizes in bytes, CRC-32 and SHA-256 in hex."""

    archive_url: str
    generation: int
    size: int
    crc32: str
    sha256: str
    allocated: int
    request_id: str
    staged_at: str
    host: str
    verified: bool = True
    """Whether it was compared with the archive (an adopted one may have none any more)."""

    @classmethod
    def read(cls, path: Path) -> "Sidecar | None":
        """Read a sidecar; None where there is none, or nothing that we wrote."""
        try:
            return cls(**json.loads(durable.read_file(path)))
        except (FileNotFoundError, ValueError, TypeError):
            return None


class Marker:
    """Reads and writes the flags and sidecars of builds."""

    def __init__(self, paths: Paths, image_files: dict[str, str]) -> None:
        self.paths, self.image_files = paths, image_files

    def look_afresh(self, build: Build) -> None:
        """Have the names of a build's files asked for anew, once its token is ours.

        On NFS one that was missing when we looked before it was staged is "missing" for half a
        minute more, and a flag written by that would lose an image. A touch of the directory ends
        that, and with the token nobody else changes it.
        """
        if mounts.is_nfs(self.paths.static):
            for directory in (self.paths.target(build), self.paths.sidecars):
                with suppress(FileNotFoundError):
                    durable.set_time(directory)

    def image_path(self, build: Build, image: str) -> Path:
        """Return where an image is visible."""
        return self.paths.target(build) / self.image_files[image]

    def staged(self, build: Build, images: Iterable[str]) -> dict[str, Sidecar]:
        """Return those of `images` that are staged: flag, sidecar and size agree.

        The sidecars are touched first, so that retention sees a use before it could remove them;
        an answer that took longer than a minute is asked for again.
        """
        images = list(images)
        while True:
            # A clock that goes on while the machine sleeps.
            began = time.clock_gettime(time.CLOCK_BOOTTIME)
            touched = [image for image in images if self._touch(build, image)]
            flagged = set(self.read_flag(build)) if touched else set()
            found = {i: self.good(build, i) for i in touched if i in flagged}
            if time.clock_gettime(time.CLOCK_BOOTTIME) - began < TOUCH_SECONDS:
                return {
                    image: sidecar
                    for image, sidecar in found.items()
                    if sidecar and sidecar.archive_url == build.archive_url
                }

    def good(self, build: Build, image: str) -> Sidecar | None:
        """Return an image's sidecar if a visible file of that size is there."""
        sidecar = Sidecar.read(self.paths.sidecar(build.key, image))
        return sidecar if sidecar and sidecar.size == self._size(build, image) else None

    def sidecars(self, build: Build) -> dict[str, Sidecar]:
        """Return the sidecars of all configured images that have a good one."""
        found = {image: self.good(build, image) for image in self.image_files}
        return {image: sidecar for image, sidecar in found.items() if sidecar}

    def read_flag(self, build: Build) -> list[str]:
        """Return the flag's lines as the seed reads them: stripped, no doubles, no blanks."""
        try:
            data = durable.read_file(self.paths.target(build) / FLAG)
        except (FileNotFoundError, NotADirectoryError):
            return []
        text = data.decode("utf-8", "surrogateescape")
        lines = (line.strip(BLANKS) for line in text.split("\n"))
        return list(dict.fromkeys(line for line in lines if line))

    def listed(self, build: Build, without: Iterable[str] = ()) -> list[str]:
        """Return what the flag should list now: see the design, "Flag"."""
        old, without = self.read_flag(build), set(without)
        good = set(self.sidecars(build))
        keep = [
            line
            for line in old
            if line not in self.image_files or line in good or self.is_older(build, line)
        ]
        new = [image for image in self.image_files if image in good and image not in keep]
        return [line for line in keep + new if line not in without]

    def write_flag(self, work: Work, build: Build, without: Iterable[str] = ()) -> None:
        """Write the flag anew from what is there, and see that it says so."""
        without = tuple(without)
        for _ in range(FLAG_TRIES):
            lines = self.listed(build, without)
            if lines == self.read_flag(build):
                return
            self._replace_flag(work, build, lines)
        if self.listed(build, without) != self.read_flag(build):
            raise StorageError(f"the flag of {build.target} does not keep what is written to it")

    def _replace_flag(self, work: Work, build: Build, lines: list[str]) -> None:
        new, target = work.file(), self.paths.target(build)
        text = "".join(f"{line}\n" for line in lines)
        durable.write_new(new, text.encode("utf-8", "surrogateescape"))
        work.check()
        _put(new, target / FLAG, lambda: self.read_flag(build) == lines)
        durable.sync_dir(target)

    def is_true(self, build: Build) -> bool:
        """Whether the flag lists what it should."""
        return self.listed(build) == self.read_flag(build)

    def write_sidecar(self, work: Work, build: Build, image: str, sidecar: Sidecar) -> None:
        """Record an image that is visible now."""
        new = work.file()
        durable.write_new(new, json.dumps(asdict(sidecar), indent=1).encode() + b"\n")
        path = self.paths.sidecar(build.key, image)
        _put(new, path, lambda: Sidecar.read(path) == sidecar)
        durable.sync_dir(self.paths.sidecars)

    def check_target(self, build: Build) -> None:
        """Raise TargetConflict where something else than we would make is in a target's place.

        Nothing is followed out of the static tree, and nothing of others is replaced.
        """
        path = self.paths.static
        for part in build.target.split("/"):
            path /= part
            if _kind(path) not in {None, stat.S_IFDIR}:
                raise TargetConflict(f"{build.target}: {part} is no directory in the static tree")
        for name in (FLAG, *self.image_files.values()):
            if _kind(path / name) not in {None, stat.S_IFREG}:
                raise TargetConflict(f"{build.target}/{name} is no regular file")

    def _touch(self, build: Build, image: str) -> bool:
        try:
            durable.set_time(self.paths.sidecar(build.key, image))
        except FileNotFoundError:
            return False
        return True

    def is_older(self, build: Build, image: str) -> bool:
        """Whether an older devserver staged this image: listed, there, not empty, no record."""
        path = self.paths.sidecar(build.key, image)
        return bool(self._size(build, image)) and Sidecar.read(path) is None

    def _size(self, build: Build, image: str) -> int | None:
        try:
            return os.lstat(self.image_path(build, image)).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None


def _put(new: Path, target: Path, is_there: Callable[[], bool]) -> None:
    """Rename over a name that others read; a lost reply is resolved by reading it."""
    try:
        os.rename(new, target)
    except FileNotFoundError:
        if not is_there():
            raise


def _kind(path: Path) -> int | None:
    """Return the type of what has a name; None: nothing has it."""
    try:
        return stat.S_IFMT(os.lstat(path).st_mode)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return stat.S_IFREG
