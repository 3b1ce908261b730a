"""What must hold right after a kill, and what when another daemon has done the rest.

Everything is compared with all that is there: the three trees are walked, and whatever is not
expected is a leftover.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from lab import BUCKET, FILES, Lab
from scenes import Scene

from stager import doctor
from stager.config import load_config
from stager.layout import FLAG, Claim, parse_build
from stager.lock import Token

NAMES = frozenset(FILES.values())
EMPTY = ("requests", "active", "waiting", "private", "tmp", "instances")
ROOMS = ("done", "failed", "cancelled")


PAGE = {"status.json", "status.html"}
COLUMNS = ("lost", "answered twice", "partial", "left over")
"""What a fault is counted as."""


@contextmanager
def column(name: str) -> Iterator[None]:
    """Say of what fails in a block where it counts."""
    try:
        yield
    except (AssertionError, LookupError, OSError, ValueError) as e:
        raise AssertionError(f"{name}: {e!r}") from e


@dataclass
class Judge:
    """Watches one set of directories over a kill and a restart."""

    scene: Scene
    lab: Lab
    first: dict[str, bytes] = field(default_factory=dict)
    """The answers that were published when the daemon was killed, by request id."""
    before: dict[Path, int] = field(default_factory=dict)
    """What was staged before and must stay, with its inode."""
    given: set[str] = field(default_factory=set)
    """The answers that were there before: a retry replaces them."""

    def __post_init__(self) -> None:
        kept = [self.lab.image(image) for image in self.scene.kept]
        self.before = {path: path.stat().st_ino for path in kept}
        self.given = {result["request_id"] for result, _ in self._results()}

    # -- at any moment -------------------------------------------------------------------------

    def at_any_moment(self) -> None:
        """Assert what a reader may rely on whenever it looks."""
        with column("partial"):
            self._assert_whole()
        with column("answered twice"):
            self._assert_committed()

    def _assert_whole(self) -> None:
        for target, files in self._targets().items():
            build = f"gs://{BUCKET}/{target}"
            for file in files - {FLAG}:
                there = read(self._target(target) / file)
                assert there in self.scene.allowed(build, file), f"{target}/{file}"
            for image in self.lab.flag(build):
                self._assert_recorded(build, image)
        for path, inode in self.before.items():
            assert os.stat(path).st_ino == inode, f"staged before, and not the same: {path}"

    def at_the_kill(self) -> None:
        """Assert that, and take note of what was answered already."""
        self.at_any_moment()
        self.first = {result["request_id"]: data for result, data in self._results()}
        for request_id in self.given & set(self.first):
            del self.first[request_id]

    def _assert_recorded(self, build: str, image: str) -> None:
        """Assert that an image in a flag is there, with a record that tells the truth."""
        content = read(self.lab.image(image, build))
        record = json.loads(self._sidecar(build, image).read_bytes())
        assert record["size"] == len(content)
        assert record["crc32"] == f"{zlib.crc32(content):08x}"
        assert record["sha256"] == hashlib.sha256(content).hexdigest()

    def _assert_committed(self) -> None:
        """Assert that an answer is only there for what has ended, and says what it ended as."""
        rooms = {c.request_id: room for room, c in self._ended()}
        for result, _ in self._results():
            # A retry takes the request, and leaves the answer until there is a new one.
            if result["request_id"] in rooms:
                good = result["state"].endswith("staged")
                room = "cancelled" if result["state"] == "cancelled" else "done"
                assert rooms[result["request_id"]] == (room if good or room != "done" else "failed")

    # -- in the end ----------------------------------------------------------------------------

    def in_the_end(self) -> None:
        """Assert that all is done: once, right, with nothing left over and nothing missing."""
        self.at_any_moment()
        with column("answered twice"):
            self._assert_answers()
        with column("lost"):
            self._assert_images()
        with column("left over"):
            self._assert_nothing_left()
            found = doctor.examine(load_config(self.lab.config, {}), 0.0)
            assert not found, found

    def _assert_answers(self) -> None:
        ended = self._ended()
        results = self._results()
        assert sorted(c.file for _, c in ended) == [f"{n}.yaml" for n in self.scene.answers]
        assert sorted(r["request"] for r, _ in results) == [f"{n}.yaml" for n in self.scene.answers]
        ids = {c.request_id for _, c in ended}
        assert set(self.first) <= {result["request_id"] for result, _ in results}
        for result, data in results:
            assert result["request_id"] in ids
            assert data == self.first.get(result["request_id"], data)
            name = result["request"].removesuffix(".yaml")
            assert result["state"] in self.scene.states(name), data.decode()
            assert int(result["attempts"]) <= 2
            if result["state"].endswith("staged"):
                assert "error" not in result
                self._assert_good(result)

    def _assert_good(self, result: dict[str, Any]) -> None:
        """Assert that a good answer says what is there."""
        for image, part in result["images"].items():
            content = read(self.lab.root / "static" / part["path"])
            assert content == self.scene.wanted()[result["build"]][image]
            assert part["state"].endswith("staged")
            assert part["sha256"] == hashlib.sha256(content).hexdigest()

    def _assert_images(self) -> None:
        wanted = self.scene.wanted()
        assert set(self._targets()) == {build.removeprefix(f"gs://{BUCKET}/") for build in wanted}
        for build, images in wanted.items():
            assert sorted(self.lab.flag(build)) == sorted(images)
            for image, content in images.items():
                path = self.lab.image(image, build)
                assert read(path) == content
                assert path.stat().st_mode & 0o777 == 0o644

    def _assert_nothing_left(self) -> None:
        root, wanted = self.lab.root, self.scene.wanted()
        for room in EMPTY:
            assert self.lab.spool(room) == [], room
        expected = {"LAYOUT", "requests", "control", *EMPTY, *ROOMS}
        assert set(os.listdir(root / "spool")) == expected
        answers = {f"{name}.yaml" for name in self.scene.answers}
        assert set(os.listdir(root / "results")) - PAGE == {".layout"} | answers
        for target, files in self._targets().items():
            images = wanted[f"gs://{BUCKET}/{target}"]
            assert files == {FLAG} | {FILES[image] for image in images}
        stager = root / "static/.stager"
        assert set(os.listdir(stager)) == {"LAYOUT", "locks", "work", "sidecars", "tmp"}
        assert os.listdir(stager / "work") == os.listdir(stager / "tmp") == []
        records = {self._sidecar(b, image).name for b, images in wanted.items() for image in images}
        assert set(os.listdir(stager / "sidecars")) == records
        for lock in (stager / "locks").iterdir():
            [token] = map(Token.parse, os.listdir(lock))
            assert token is not None, lock.name
            assert not token.inst, f"{lock.name}: {token}"
        self._assert_orders_answered()

    def _assert_orders_answered(self) -> None:
        files = sorted((self.lab.root / "spool/control").iterdir())
        outcomes = [json.loads(file.read_bytes())["outcome"] for file in files]
        said = {name: text for outcome in outcomes for name, text in outcome.items()}
        wanted = self.scene.orders()
        assert all(file.suffix == ".answer" for file in files)
        assert len(outcomes) == len(wanted) == len(said), outcomes
        for name, text in wanted.items():
            assert said[name].startswith(text), said

    # -- what is there -------------------------------------------------------------------------

    def _targets(self) -> dict[str, set[str]]:
        """Return all directories below static/images that hold no directories, with their files."""
        images = self.lab.root / "static/images"
        return {
            str(Path(path).relative_to(images)): set(files)
            for path, directories, files in os.walk(images)
            if not directories and path.count("/") > str(images).count("/") + 1
        }

    def _target(self, target: str) -> Path:
        return self.lab.root / "static/images" / target

    def _sidecar(self, build: str, image: str) -> Path:
        return load_config(self.lab.config, {}).paths.sidecar(parse_build(build, NAMES).key, image)

    def _ended(self) -> list[tuple[str, Claim]]:
        claims = [(room, Claim.parse(name)) for room in ROOMS for name in self.lab.spool(room)]
        assert all(claim for _, claim in claims)
        return [(room, claim) for room, claim in claims if claim]

    def _results(self) -> list[tuple[dict[str, Any], bytes]]:
        """Return the published answers, parsed and as they are; each must be whole."""
        found = []
        for path in (self.lab.root / "results").glob("*.yaml"):
            data = path.read_bytes()
            result: dict[str, Any] = yaml.load(data, yaml.BaseLoader)
            assert {"state", "request", "request_id", "finished"} <= set(result or ()), (
                f"partial: {data!r}"
            )
            found.append((result, data))
        return found


def read(path: Path) -> bytes:
    """Read a file without a trace in its times: retention looks at them."""
    fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
    with os.fdopen(fd, "rb") as f:
        return f.read()
