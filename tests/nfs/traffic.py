"""What is asked for, and what must come of it: builds with known images, requests that overlap."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from archives import make_archive, make_image
from lab import BUCKET, FILES

BUILDS = 20
"""Builds that everybody asks for."""
ALL_BUILDS = BUILDS + 11
"""One more for each step a worker is stopped at."""
IMAGES = ("test", "base", "recovery")
SUBSETS = (("test",), ("test", "base"), ("recovery", "test"), ("base",), IMAGES)


@dataclass(frozen=True)
class Ask:
    """One request of the traffic."""

    name: str
    build: int
    images: tuple[str, ...]
    side: str
    expires: bool
    """In half an hour: no clock that is wrong may make it so."""

    @property
    def text(self) -> str:
        """Return the request file."""
        words = {"build": url(self.build), "images": list(self.images)}
        return yaml.safe_dump(words | ({"expires": "30m"} if self.expires else {}))


def url(build: int) -> str:
    """Return a build's URL."""
    return f"gs://{BUCKET}/board-{build % 4}-release/R23-{build}.0.0"


def target(build: int) -> str:
    """Return a build's directory in the static tree."""
    return "images/" + url(build).removeprefix(f"gs://{BUCKET}/")


def make_builds(lab: Path, builds: int = ALL_BUILDS) -> None:
    """Write the archives and what is known of their images, before the machines boot."""
    known = {}
    for build in range(builds):
        contents = {
            file: make_image(build * 10 + i, 100_000 + 9_973 * (build + 7 * i))
            for i, file in enumerate(FILES.values())
        }
        path = lab / "archive" / url(build).removeprefix("gs://") / "image.zip"
        path.parent.mkdir(parents=True)
        make_archive(path, contents)
        known[target(build)] = {
            image: [file, len(contents[file]), zlib.crc32(contents[file])]
            for image, file in FILES.items()
        }
    (lab / "known.json").write_text(json.dumps(known))


def known(lab: Path) -> dict[str, dict[str, list[str | int]]]:
    """Return what is known of the images: {directory: {image: [file, size, crc32]}}."""
    found: dict[str, dict[str, list[str | int]]] = json.loads((lab / "known.json").read_text())
    return found


def make_asks(
    prefix: str, count: int, sides: Sequence[str], builds: Sequence[int] = range(BUILDS)
) -> list[Ask]:
    """Make requests for all builds in turn, every side asking for all of them."""
    return [
        Ask(
            f"{prefix}-{n}", builds[n // len(sides) % len(builds)], SUBSETS[n % len(SUBSETS)],
            sides[n % len(sides)], n % 7 == 0,
        )
        for n in range(count)
    ]  # fmt: skip
