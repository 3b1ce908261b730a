"""Archives as a builder makes them: disk images of zero runs, system files and noise, deflated.

    python -m benchmarks.material FILE [--size 1G] [--images 3] [--seed 2811]

One seed, one set of system files: one archive, byte for byte.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
MEMBERS = ("chromiumos_test_image.bin", "chromiumos_base_image.bin", "recovery_image.bin")
SYSTEM_DIRS = ("/usr/bin", "/usr/lib", "/usr/share")
EXTENTS = [64 << 10 << power for power in range(10)]
"""64 KiB to 32 MiB: the runs that an image consists of."""
PIECE_BYTES = 1 << 20
ZEROS, SYSTEM = 0.4, 0.8
"""Below the first a run is of zeros, below the second of system files, else of noise."""
WHEN = (2012, 8, 1, 12, 0, 0)


@dataclass(frozen=True, slots=True)
class Content:
    """What a member must come out as."""

    name: str
    size: int
    compressed: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Archive:
    """An image.zip and what is in it."""

    path: Path
    images: tuple[Content, ...]

    @property
    def size(self) -> int:
        return self.path.stat().st_size


class _SystemFiles:
    """The bytes of this system's files, one after the other, in an order of its own."""

    def __init__(self, chance: random.Random) -> None:
        found = (
            Path(folder, name)
            for top in SYSTEM_DIRS
            for folder, _, names in os.walk(top)
            for name in names
        )
        self._paths = sorted(path for path in found if path.is_file() and not path.is_symlink())
        chance.shuffle(self._paths)
        self._at, self._rest = 0, b""

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        parts, got = [self._rest], len(self._rest)
        while got < size:
            path = self._paths[self._at % len(self._paths)]
            self._at += 1
            parts.append(path.read_bytes() if path.stat().st_size < 64 << 20 else b"")
            got += len(parts[-1])
        data = b"".join(parts)
        self._rest = data[size:]
        return data[:size]


def image(chance: random.Random, files: _SystemFiles, size: int) -> Iterator[bytes]:
    """Yield an image in pieces: 40 % zeros, 40 % system files, 20 % noise."""
    got = {"zeros": 0, "system": 0, "noise": 0}
    share = {"zeros": ZEROS, "system": SYSTEM - ZEROS, "noise": 1 - SYSTEM}
    while left := size - sum(got.values()):
        run = min(left, chance.choice(EXTENTS))
        # The kind that is most behind its share, so that small images have the same mix.
        kind = max(share, key=lambda kind: share[kind] * (sum(got.values()) + run) - got[kind])
        got[kind] += run
        for start in range(0, run, PIECE_BYTES):
            part = min(PIECE_BYTES, run - start)
            if kind == "zeros":
                yield bytes(part)
            else:
                yield files.take(part) if kind == "system" else chance.randbytes(part)


def make_archive(path: Path, size: int, images: int = 3, seed: int = 2811) -> Archive:
    """Find the archive that was made before, or have it made; sizes in bytes.

    By a process of its own: what that takes of memory is else counted for all whom we start.
    """
    facts = path.with_suffix(".json")
    if not facts.exists():
        command = [sys.executable, "-m", "benchmarks.material", str(path), f"--size={size}"]
        subprocess.run([*command, f"--images={images}", f"--seed={seed}"], check=True, cwd=ROOT)
    found = json.loads(facts.read_text())
    return Archive(path, tuple(Content(**content) for content in found))


def make(path: Path, size: int, images: int, seed: int) -> None:
    """Make an archive, and its facts beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chance, contents = random.Random(seed), []
    files = _SystemFiles(chance)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in MEMBERS[:images]:
            info = zipfile.ZipInfo(name, WHEN)
            info.compress_type = zipfile.ZIP_DEFLATED
            sha = hashlib.sha256()
            with archive.open(info, "w", force_zip64=size >= 1 << 31) as member:
                for piece in image(chance, files, size):
                    sha.update(piece)
                    member.write(piece)
            contents.append(Content(name, size, info.compress_size, sha.hexdigest()))
        for name in ("mount_image.sh", "umount_image.sh", "pack_partitions.sh"):
            archive.writestr(zipfile.ZipInfo(name, WHEN), b"#!/bin/sh\nexit 0\n")
    path.with_suffix(".json").write_text(json.dumps([asdict(content) for content in contents]))


def parse_size(text: str) -> int:
    """Read 256M, 1G or a number of bytes."""
    units = {"K": 10, "M": 20, "G": 30}
    shift = units.get(text[-1:].upper())
    return int(text[:-1]) << shift if shift else int(text)


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--size", default="1G", help="Of each image.")
@click.option("--images", default=3, help="How many.")
@click.option("--seed", default=2811)
def main(path: Path, size: str, images: int, seed: int) -> None:
    """Make an archive at PATH, and its facts beside it."""
    make(path, parse_size(size), images, seed)


if __name__ == "__main__":
    main()
