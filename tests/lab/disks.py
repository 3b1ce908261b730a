"""Small filesystems of their own for a lab: to be filled, shut down, unmounted, mounted again."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


def run(*command: str | Path) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


@dataclass
class Disk:
    """A filesystem in a file (or in memory, for tmpfs), mounted at a place."""

    place: Path
    kind: str = "ext4"
    size: str = "48M"
    options: tuple[str, ...] = ()
    ballast: list[Path] = field(default_factory=list)

    @property
    def image(self) -> Path:
        return self.place.with_suffix(".img")

    def make(self) -> "Disk":
        self.place.mkdir()
        if self.kind != "tmpfs":
            run("truncate", "-s", self.size, self.image)
            run(f"mkfs.{self.kind}", "-q", *self.options, self.image)
        self.mount()
        return self

    def mount(self) -> None:
        if self.kind == "tmpfs":
            run("mount", "-t", "tmpfs", "-o", f"size={self.size},mode=755", "tmpfs", self.place)
        else:
            run("mount", "-o", "loop", self.image, self.place)

    def unmount(self, *options: str) -> None:
        run("umount", *options, self.place)

    def is_unmounted(self) -> bool:
        """Unmount, if nobody is using it just now."""
        command = ["umount", str(self.place)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def remount(self, mode: str) -> None:
        run("mount", "-o", f"remount,{mode}", self.place)

    def fill(self, leave: int = 0) -> None:
        """Take all room but for about so many bytes."""
        path = self.place / f"ballast-{len(self.ballast)}"
        self.ballast.append(path)
        fs = os.statvfs(self.place)
        with suppress_full(), path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, fs.f_bavail * fs.f_frsize - leave))
        while not leave:
            with suppress_full(), path.open("ab") as file:
                file.write(bytes(4096))
                continue
            break

    def fill_inodes(self) -> None:
        """Take all inodes."""
        self.ballast.append(self.place / "ballast")
        self.ballast[-1].mkdir()
        with suppress_full():
            for number in range(1 << 20):
                (self.ballast[-1] / str(number)).touch()

    def empty(self) -> None:
        """Give the room back."""
        for path in self.ballast:
            run("rm", "-r", path)
        self.ballast.clear()

    def free(self) -> tuple[int, int]:
        """Return the free blocks and inodes."""
        fs = os.statvfs(self.place)
        return fs.f_bavail, fs.f_favail

    def end(self) -> None:
        while os.path.ismount(self.place):
            self.unmount("-l")


@contextmanager
def suppress_full() -> Iterator[None]:
    """End the block where the filesystem is full."""
    try:
        yield
    except OSError as e:
        if e.errno != 28:
            raise


@contextmanager
def disk(
    place: Path, kind: str = "ext4", size: str = "48M", options: tuple[str, ...] = ()
) -> Iterator[Disk]:
    """Have a filesystem of its own for the length of a block."""
    made = Disk(place, kind, size, options).make()
    try:
        yield made
    finally:
        made.end()
