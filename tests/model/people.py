"""What people do: they drop requests, take them back, replace archives, and read answers."""

import hashlib
import itertools
import os
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model import moods
from model.answers import Asked
from model.daemons import Instance
from model.fileserver import Disk
from model.network import Network
from model.plan import ABSENT, BUILDS, FILES, LEASE, NAMES, Plan, archive_bytes, configuration
from model.staged import FOREIGN
from model.turns import Scheduler
from model.witness import Witness
from stager.layout import FLAG, Build

TRACED = 250


class People:
    """A world, and the people in it."""

    def __init__(self, seed: int, root: Path, shape: Callable[[Plan], None] | None) -> None:
        self.seed, self.world = seed, Scheduler(seed)
        self.root = str(root)
        self.plan = Plan.draw(self.world)
        if shape:
            shape(self.plan)
        else:
            moods.shape(self.plan, moods.draw(self.world.rng))
        if self.plan.clones:
            # A listing that misses one for once makes it a newcomer, who was never seen to move.
            self.plan.odds.split_listing = 0.0
        self.trace: deque[tuple[Any, ...]] = deque(maxlen=TRACED)
        self.disk = Disk(self.root, lambda: self.world.now, self.plan.tick)
        self.network = Network(self.world, self.disk, self.plan.odds, trace=self.note)
        self.network.cached_seconds = self.plan.cached_seconds
        self.network.late_seconds = self.plan.late_seconds
        self.witness = Witness(self.root, FILES, lambda: self.world.now)
        self.instances: list[Instance] = []
        self._numbers = itertools.count(1)
        self._versions: Counter[str] = Counter()
        self.config = configuration(self.root, retention=self.plan.retention)
        self.witness.lease = LEASE
        self.witness.keep_seconds = 180.0 if self.plan.retention else 0.0

    def note(self, *what: Any) -> None:
        """Remember a call for the trace."""
        self.trace.append((self.world.now, *what))

    def _running(self) -> list[Instance]:
        return [i for i in self.instances if not i.dead]

    def _count(self, what: str, who: str) -> None:
        self.network.count(what)
        self.note("fate", what, who)

    def _do_drop(self, name: str = "", build: Build | None = None) -> None:
        witness, rng = self.witness, self.world.rng
        number = len(witness.asked) + 1
        if number > self.plan.drops and build is None:
            return
        build = build or rng.choice(BUILDS[: self.plan.builds])
        name = name or rng.choice(NAMES)
        images = rng.choice((["test"], ["test", "base"], ["base"]))
        if rng.random() < self.plan.absent:
            images = rng.choice(([*images, *ABSENT], [*ABSENT]))
        force = self.plan.force and rng.random() < 0.4
        text = f"build: {build.url}\nimages: [{', '.join(images)}]\nnote: number {number}\n"
        if force:
            text += "force: true\n"
        if rng.random() < 0.1:
            text += "fore: true\n"
        new = Path(f"{self.root}/home/{number}")
        new.parent.mkdir(exist_ok=True)
        new.write_text(text)
        new.chmod(0o644)
        inode = new.stat().st_ino
        self.disk.touch(inode)
        witness.asked[inode] = Asked(number, name, text.encode(), build, images, force)
        self.disk.rename("user", str(new), f"{self.root}/spool/requests/{name}")
        self._count("requests dropped", f"{number} {name} inode {inode}")
        for instance in self._running():
            if rng.random() < self.plan.woken:
                instance.wake.set()

    def _do_withdraw(self) -> None:
        names = sorted(os.listdir(f"{self.root}/spool/requests"))
        if names:
            name = self.world.rng.choice(names)
            self._count("requests withdrawn", name)
            self.disk.unlink("user", f"{self.root}/spool/requests/{name}")

    def _do_archive(self) -> None:
        if self.plan.force:
            build = self.world.rng.choice(BUILDS)
            self._count("archives replaced", build.short_build)
            self._archive(build)

    def _archive(self, build: Build) -> None:
        """Put an archive in place: the first, or a newer one with another test image."""
        path = Path(f"{self.root}.archive") / build.bucket / build.object_name
        path.parent.mkdir(parents=True, exist_ok=True)
        version = self._versions[build.key]
        self._versions[build.key] += 1
        data, images = archive_bytes(version, BUILDS.index(build))
        new = path.with_suffix(".new")
        new.write_bytes(data)
        os.utime(new, ns=(10**18 + version, 10**18 + version))
        new.rename(path)
        for image, file in FILES.items():
            known = self.witness.known.setdefault((build.key, image), set())
            known.add(hashlib.sha256(images[file]).hexdigest())

    def _settle(self, build: Build) -> None:
        """Leave somebody else's file in a build's directory."""
        target = Path(self.config.static, build.target)
        target.mkdir(parents=True)
        (target / FOREIGN).write_text("not ours")
        if self.world.rng.random() < 0.5:
            (target / FLAG).write_text(f"{FOREIGN}\n")
