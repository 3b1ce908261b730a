"""What is asked for while a daemon is killed, and how it must have ended.

A scene prepares directories once (they are copied for every run), asks for something, and says what
must be there when all is done. What holds for every scene is in judge.py.
"""

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from archives import make_image
from lab import BUILD, FILES, Lab

from stager import orders
from stager.config import load_config
from stager.layout import parse_build
from stager.orders import Order

OTHER = f"{BUILD}-2"
IMAGE_BYTES = 50_000
DAY = 86400.0
Images = dict[str, dict[str, bytes]]


def images(seed: int) -> dict[str, bytes]:
    """Make small images, by their file names."""
    return {file: make_image(seed + n, IMAGE_BYTES) for n, file in enumerate(FILES.values())}


OLD, NEW, SECOND = images(1), images(11), images(21)


@dataclass
class Scene:
    """Two requests for two builds; one image was staged before."""

    name: ClassVar[str] = "two requests"
    settings: ClassVar[dict[str, Any]] = {}
    kept: ClassVar[tuple[str, ...]] = ("test",)
    """The images of BUILD that nobody may touch."""
    root: Path
    answers: tuple[str, ...] = ("a", "b")

    @property
    def lab_settings(self) -> dict[str, Any]:
        archive = {"source": "directory", "directory": str(self.root / "archive")}
        return {"archive": archive, "settle": "0.01s", "min_free": "0", **self.settings}

    def build(self) -> None:
        """Prepare the directories that every run gets a copy of."""
        self.root.mkdir(exist_ok=True)
        lab = Lab(self.root, self.lab_settings).init()
        self.prepare(lab)
        (self.root / "built").touch()

    @property
    def is_built(self) -> bool:
        return (self.root / "built").exists()

    def prepare(self, lab: Lab) -> None:
        lab.archive(BUILD, images=OLD)
        lab.archive(OTHER, images=SECOND)
        self.stage(lab, "earlier", BUILD, ["test"])

    def stage(self, lab: Lab, name: str, build: str, wanted: list[str]) -> None:
        """Have something done before, of which only what is staged stays."""
        lab.drop(name, build, wanted)
        assert lab.once(seconds=100).returncode == 0
        forget(lab)

    def copy(self, root: Path) -> Lab:
        """Return a copy of the prepared directories, with what is asked for in it."""
        for name in ("spool", "static", "results"):
            shutil.copytree(self.root / name, root / name, symlinks=True)
        lab = Lab(root, self.lab_settings)
        self.begin(lab)
        return lab

    def begin(self, lab: Lab) -> None:
        lab.drop("a", BUILD, ["test", "recovery"])
        lab.drop("b", OTHER, ["test", "base"])

    def allowed(self, build: str, file: str) -> list[bytes]:
        """Return what a visible image may be at any moment."""
        return [{BUILD: OLD, OTHER: SECOND}[build][file]]

    def wanted(self) -> dict[str, dict[str, bytes]]:
        """Return what must be staged in the end: build, image, content."""
        files = FILES
        return {
            BUILD: {i: OLD[files[i]] for i in ("test", "recovery")},
            OTHER: {i: SECOND[files[i]] for i in ("test", "base")},
        }

    def states(self, name: str) -> set[str]:
        """Return the states that the answer to a request may have."""
        return {"staged", "already_staged"} if name in self.answers else set()

    def is_done(self, lab: Lab) -> bool:
        """Whether all is answered."""
        results = set(os.listdir(lab.root / "results"))
        return {f"{name}.yaml" for name in self.answers} <= results

    def orders(self) -> dict[str, str]:
        """Return what orders are answered: the name meant, and how the answer begins."""
        return {}


def forget(lab: Lab) -> None:
    """Remove answered requests and their answers, as retention does."""
    for room in ("done", "failed", "cancelled"):
        for path in (lab.root / "spool" / room).iterdir():
            path.unlink()
    for path in (lab.root / "results").glob("*.yaml"):
        path.unlink()


class Force(Scene):
    """One of the requests stages again what the archive holds other content of now."""

    name: ClassVar[str] = "force"
    kept: ClassVar[tuple[str, ...]] = ()

    def prepare(self, lab: Lab) -> None:
        super().prepare(lab)
        lab.archive(BUILD, images=NEW)

    def begin(self, lab: Lab) -> None:
        lab.drop("a", BUILD, ["test"], force=True)
        lab.drop("b", OTHER, ["test"])

    def allowed(self, build: str, file: str) -> list[bytes]:
        return [OLD[file], NEW[file]] if build == BUILD else super().allowed(build, file)

    def wanted(self) -> dict[str, dict[str, bytes]]:
        return {
            BUILD: {"test": NEW[FILES["test"]]},
            OTHER: {"test": SECOND[FILES["test"]]},
        }


class Retention(Scene):
    """A build that nobody used for days is removed while another one is staged."""

    name: ClassVar[str] = "retention"
    kept: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[dict[str, Any]] = {"retention": {"builds": {"age": "1d"}}}

    def prepare(self, lab: Lab) -> None:
        lab.archive(BUILD, images=OLD)
        lab.archive(OTHER, images=SECOND)
        self.stage(lab, "earlier", BUILD, ["test", "base"])

    def begin(self, lab: Lab) -> None:
        records = (lab.root / "static/.stager/sidecars").iterdir()
        for path in (*records, *lab.target().iterdir()):
            os.utime(path, (time.time() - 2 * DAY,) * 2)
        lab.drop("a", OTHER, ["test"])
        lab.drop("b", OTHER, ["base"])

    def wanted(self) -> dict[str, dict[str, bytes]]:
        return {OTHER: {i: SECOND[FILES[i]] for i in ("test", "base")}}

    def is_done(self, lab: Lab) -> bool:
        # The records go last: killed before, they are what the next pass goes on by.
        key = parse_build(BUILD, frozenset(FILES.values())).key
        left = [*(lab.root / "static/.stager/sidecars").glob(f"{key}.*"), lab.target()]
        return super().is_done(lab) and not any(path.exists() for path in left)


class Orders(Scene):
    """One request that waits is cancelled, one that failed is retried."""

    name: ClassVar[str] = "orders"
    kept: ClassVar[tuple[str, ...]] = ()

    def prepare(self, lab: Lab) -> None:
        lab.archive(BUILD, images={k: v for k, v in OLD.items() if "recovery" not in k})
        lab.drop("b", BUILD, ["recovery"])
        lab.drop("a", OTHER, ["test"], wait="1h")
        with lab.running():
            assert lab.result("b")["state"] == "failed"
        assert len(lab.spool("waiting")) == 1
        lab.archive(BUILD, images=OLD)

    def begin(self, lab: Lab) -> None:
        paths = load_config(lab.config, {}).paths
        orders.send(paths, Order("cancel", ("a",)))
        orders.send(paths, Order("retry", ("b",)))

    def wanted(self) -> dict[str, dict[str, bytes]]:
        return {BUILD: {"recovery": OLD[FILES["recovery"]]}}

    def states(self, name: str) -> set[str]:
        return {"cancelled"} if name == "a" else super().states(name)

    def is_done(self, lab: Lab) -> bool:
        answered = len(list((lab.root / "spool/control").glob("*.answer"))) == 2
        retried = "state: failed" not in (lab.root / "results/b.yaml").read_text()
        return super().is_done(lab) and retried and answered

    def orders(self) -> dict[str, str]:
        return {"a": "cancelled", "b": "retried as "}


SCENES: dict[str, type[Scene]] = {s.name: s for s in (Scene, Force, Retention, Orders)}
