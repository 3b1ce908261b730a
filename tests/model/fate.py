"""What happens to machines and files: power cuts, pauses, people."""

import hashlib
import itertools
import os
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from model.answers import Asked
from model.daemons import Instance
from model.fileserver import Change, Disk
from model.network import Network
from model.nfsclient import Client
from model.plan import BUILDS, FILES, LEASE, NAMES, Plan, archive_bytes, configuration
from model.turns import Scheduler, current
from model.witness import Witness
from stager.layout import Build

TRACED = 250


class Fate:
    """A world, and what is done to it."""

    def __init__(self, seed: int, root: Path, shape: Callable[[Plan], None]) -> None:
        self.seed, self.world = seed, Scheduler(seed)
        self.root = str(root)
        self.plan = Plan.draw(self.world)
        shape(self.plan)
        self.trace: deque[tuple[Any, ...]] = deque(maxlen=TRACED)
        self.disk = Disk(self.root, lambda: self.world.now, self.plan.tick)
        self.network = Network(self.world, self.disk, self.plan.odds, trace=self.note)
        self.witness = Witness(self.root, FILES, lambda: self.world.now)
        self.disk.watch = self._see
        self.witness.lives = self._fit
        self.instances: list[Instance] = []
        self._numbers = itertools.count(1)
        self._overtaken: set[Instance] = set()
        self.chaotic = True
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._versions: Counter[str] = Counter()
        self.config = configuration(self.root, retention=self.plan.retention)
        self.witness.lease = LEASE
        self.witness.keep_seconds = 200.0 if self.plan.retention else 0.0

    def note(self, *what: Any) -> None:
        """Remember a call for the trace."""
        self.trace.append((self.world.now, *what))

    def _at(self, seconds: float, call: Callable[[], None]) -> None:
        self._later.append((self.world.now + seconds, call))

    def _see(self, change: Change) -> None:
        self.witness.see(change)
        if self.chaotic and change.verb == "rename" and not change.late:
            self._spring(change)
        for instance in list(self._overtaken):
            taken = change.who != instance.client.name and any(
                inst in os.path.basename(change.source) for inst in instance.insts
            )
            # Its claim is taken first; its token, and its work, when somebody stages again.
            if taken and ("/locks/" in change.source or self.world.rng.random() < 0.3):
                self._overtaken.discard(instance)
                wait = self.world.rng.choice((0.0, 0.02, 0.1, 0.3, 1.0, 5.0))
                self._at(wait, partial(self.world.resume, instance))

    def _spring(self, change: Change) -> None:
        """Strike where it hurts: just after a step that others see."""
        rng, place = self.world.rng, os.path.relpath(os.path.dirname(change.path), self.root)
        if place == "spool/active" and "/requests/" in change.source:
            if rng.random() < self.plan.redrop:
                name = os.path.basename(change.source)
                self._at(rng.expovariate(50.0), lambda: self._do_drop(name))
        elif "/.stager/locks/" in change.path and (task := current()) and task.name == "keeper":
            # A use of what retention is about to remove.
            key = os.path.basename(os.path.dirname(change.path))
            self._at(0.0, lambda: self._do_drop(build=self.witness.builds[key]))
            task.stalled_until = self.world.now + rng.random() * self.plan.watched
        striking = place.startswith(self.plan.ambushes)
        if change.who == "user" or not striking or rng.random() >= self.plan.ambush:
            return
        victims = [i for i in self._running() if i.client.name == change.who and not i.paused]
        if victims:
            kinds = ("kill", "cut power", "pause", "pause")
            weights = [self.plan.events[kind] + 0.01 for kind in kinds]
            strikes = (self._do_kill, self._do_cut_power, self._do_pause, self._do_pause)
            strike = rng.choices(strikes, weights)[0]
            self._count("ambushes", change.who)
            self._at(rng.choice((0.0, 0.1, 1.0)) * rng.expovariate(3.0), lambda: strike(victims[0]))

    def _fit(self, inst: str) -> bool:
        return any(inst in i.insts and not i.stopping for i in self.instances)

    def _lives(self, boot: str, pid: int) -> bool:
        return any(i.boot == boot and i.pid == pid and not i.dead for i in self.instances)

    def _boot(self, client: Client, boot: str = "") -> None:
        if self.witness.outages:
            client.cut_until = max(client.cut_until, self.witness.outages[-1][1])
        number = next(self._numbers)
        instance = Instance(
            self.world, self.config, self._ended, client, boot or f"boot{number}", number
        )
        self.instances.append(instance)
        self.world.spawn(instance, "loop", instance.serve)

    def _running(self) -> list[Instance]:
        return [i for i in self.instances if not i.dead]

    def _victim(self) -> Instance | None:
        running = [i for i in self._running() if not i.paused]
        return self.world.rng.choice(running) if running else None

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
            if rng.random() < 0.5:
                instance.wake.set()

    def _do_withdraw(self) -> None:
        names = sorted(os.listdir(f"{self.root}/spool/requests"))
        if names:
            name = self.world.rng.choice(names)
            self._count("requests withdrawn", name)
            self.disk.unlink("user", f"{self.root}/spool/requests/{name}")

    def _end(self, instance: Instance) -> None:
        self._overtaken.discard(instance)
        self.world.kill(instance)

    def _ended(self, instance: Instance, failed: bool) -> None:
        """Have a process end that came to its end; one that could not start begins again."""
        self._at(0.0, lambda: self._end(instance))
        if failed:
            self._at(5.0, lambda: self._boot(instance.client, instance.boot))

    def _do_kill(self, victim: Instance | None = None) -> None:
        instance = victim or self._victim()
        if instance and not instance.dead:
            self._count("kills", instance.name)
            self._end(instance)
            wait = self.world.rng.choice((0.1, 2.0, 40.0))
            self._at(wait, lambda: self._boot(instance.client, instance.boot))

    def _do_cut_power(self, victim: Instance | None = None) -> None:
        instance = victim or self._victim()
        if instance and not instance.dead:
            self._count("power cuts", instance.name)
            self._end(instance)
            instance.client.shut()
            wait = self.world.rng.choice((2.0, 20.0, 60.0))
            self._at(wait, lambda: self._boot(Client(self.network, instance.client.name)))

    def _do_stop(self) -> None:
        if instance := self._victim():
            self._count("stops", instance.name)
            instance.stopping = True
            instance.wake.set()
            self._at(10.0, lambda: self._boot(instance.client, instance.boot))

    def _do_pause(self, victim: Instance | None = None) -> None:
        instance, rng = victim or self._victim(), self.world.rng
        if instance is None or instance.dead or instance.paused:
            return
        if all(other.paused for other in self._running() if other is not instance):
            # Somebody must be there to take over.
            return
        self._count("pauses", instance.name)
        instance.paused = True
        if rng.random() < self.plan.zombies:
            self._overtaken.add(instance)
            seconds = 200.0
        else:
            seconds = rng.choice((3.0, 20.0, 60.0))

        def go_on() -> None:
            self._overtaken.discard(instance)
            self.note("fate", "goes on", instance.name)
            if not instance.dead:
                self.world.resume(instance)

        self._at(seconds, go_on)

    def _do_stall(self, name: str = "") -> None:
        instance, rng = self._victim(), self.world.rng
        tasks = [t for t in instance.tasks if t.name.startswith(name)] if instance else []
        if instance and tasks:
            task = rng.choice(tasks)
            self._count("stalled threads", f"{instance.name} {task.name}")
            task.stalled_until = self.world.now + rng.choice((1.0, 10.0, 45.0))

    def _do_stall_heart(self) -> None:
        self._do_stall("heartbeat")

    def _do_cut(self) -> None:
        if instance := self._victim():
            self._count("cuts", instance.name)
            until = self.world.now + self.world.rng.choice((2.0, 10.0, 50.0))
            instance.client.cut_until = max(instance.client.cut_until, until)

    def _do_server_away(self) -> None:
        seconds = self.world.rng.choice((10.0, 45.0))
        self._count("server away", f"{seconds}")
        for instance in self._running():
            client = instance.client
            client.cut_until = max(client.cut_until, self.world.now + seconds)
        before = self.witness.outages[-1][1] if self.witness.outages else 0.0
        self.witness.outages.append((max(self.world.now, before), self.world.now + seconds))

    def _do_clock(self) -> None:
        if instance := self._victim():
            self._count("clock jumps", instance.name)
            instance.wall_offset += self.world.rng.choice((-3600.0, 3600.0))

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
