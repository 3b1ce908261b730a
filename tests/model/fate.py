"""What happens to machines and files: power cuts, pauses, people."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from model.daemons import Instance
from model.fileserver import Change
from model.nfsclient import Client
from model.people import People
from model.plan import LEASE, Plan
from model.sharing import Sharing
from model.turns import Task, current


class Fate(People):
    """A world, and what is done to it."""

    def __init__(self, seed: int, root: Path, shape: Callable[[Plan], None] | None) -> None:
        super().__init__(seed, root, shape)
        self.disk.watch = self._see
        self.witness.lives, self.witness.sound = self._fit, self._sound
        self.sharing = Sharing(self.plan, self.witness, self._sound)
        self.witness.clones = self.plan.clones
        self.witness.slack_seconds = 30.0 if self.plan.odds.slow else 1.0
        self._overtaken: set[Instance] = set()
        self.chaotic = True
        self._later: list[tuple[float, Callable[[], None]]] = []

    def _at(self, seconds: float, call: Callable[[], None]) -> None:
        self._later.append((self.world.now + seconds, call))

    def _see(self, change: Change) -> None:
        self.witness.see(change)
        self.sharing.see(change, self._running())
        if self.plan.held_up:
            self._hold_up(change)
        if self.chaotic and change.verb == "rename" and not change.late:
            self._spring(change)
        if "/.stager/locks/" in change.path and 0.0 < self.plan.just_then > self.world.rng.random():
            for late in self.network.late:
                if "/.stager/work/" in late.sent.paths[-1] and late.sent.who != change.who:
                    late.due = self.world.now + self.world.rng.random()
        for instance in list(self._overtaken):
            taken = change.who != instance.client.name and any(
                inst in os.path.basename(change.source) for inst in instance.insts
            )
            # Its claim is taken first; its token, and its work, when somebody stages again.
            if taken and ("/locks/" in change.source or self.world.rng.random() < 0.3):
                self._overtaken.discard(instance)
                wait = self.world.rng.choice((0.0, 0.05, 0.3, 1.0, 3.0, 6.0))
                self._at(wait, partial(self._resume, instance))

    def _hold_up(self, change: Change) -> None:
        """Stop the thread that has just made something."""
        made = f"{change.verb} {os.path.relpath(change.path, self.root)}"
        if (
            made.startswith(self.plan.held_up_at)
            and (task := current())
            and self.world.rng.random() < self.plan.held_up
        ):
            task.stalled_until = self.world.now + self.plan.hung_seconds

    def _spring(self, change: Change) -> None:
        """Strike where it hurts: just after a step that others see."""
        rng, place = self.world.rng, os.path.relpath(os.path.dirname(change.path), self.root)
        if place == "spool/active" and "/requests/" in change.source:
            if rng.random() < self.plan.redrop:
                name = os.path.basename(change.source)
                self._at(rng.expovariate(50.0), lambda: self._do_drop(name))
        elif (task := current()) and task.name == "keeper":
            self._watch(change, task)
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

    def _watch(self, change: Change, keeper: Task) -> None:
        """Have somebody use what retention is about to remove."""
        rng, place = self.world.rng, os.path.dirname(change.path)
        if self.plan.watched < 0:
            return
        for build in self.witness.builds.values():
            is_token = place.endswith(f"/locks/{build.key}")
            if is_token or (place.endswith(build.target) and rng.random() < self.plan.watched):
                self._at(0.0, partial(self._do_drop, build=build))
                late = self.world.now + rng.random() * self.plan.watched
                if not is_token and 0.0 < self.plan.looked_at > rng.random():
                    for task in [t for i in self._running() for t in i.tasks]:
                        if task.name in {"loop", "worker"}:
                            task.stalled_until = late
                else:
                    keeper.stalled_until = late

    def _fit(self, inst: str) -> bool:
        return any(inst in i.insts and not i.stopping for i in self.instances)

    def _sound(self, inst: str) -> bool:
        """Whether nothing has kept an instance from its heartbeat for longer than a lease."""
        now, ailed = self.world.now, self._last_outage()
        if self.plan.odds.slow > 0.05:
            # Beats may come late by themselves.
            return False
        return any(
            inst in i.insts
            and not (i.stopping or i.paused)
            and now - max(ailed, i.ailing_until, i.client.cut_until) > 1.5 * LEASE
            for i in self.instances
        )

    def _last_outage(self) -> float:
        return max((until for _, until in self.witness.outages), default=0.0)

    def _lives(self, boot: str, pid: int) -> bool:
        return any(i.boot == boot and i.pid == pid and not i.dead for i in self.instances)

    def _boot(self, client: Client, boot: str = "") -> None:
        client.cut_until = max(client.cut_until, self._last_outage())
        number = next(self._numbers)
        instance = Instance(
            self.world, self.config, self._ended, client, boot or f"boot{number}", number,
            "of a clone" if self.plan.clones else "",
        )  # fmt: skip
        self.instances.append(instance)
        self.world.spawn(instance, "loop", instance.serve)

    def _victim(self) -> Instance | None:
        running = [i for i in self._running() if not i.paused]
        return self.world.rng.choice(running) if running else None

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
            instance.client.lose_power()
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
            self._resume(instance)

        self._at(seconds, go_on)

    def _resume(self, instance: Instance) -> None:
        """Let a paused machine go on."""
        if not instance.dead:
            instance.ailing_until = max(instance.ailing_until, self.world.now)
            self.world.resume(instance)

    def _do_stall(self, name: str = "") -> None:
        instance, rng = self._victim(), self.world.rng
        tasks = [t for t in instance.tasks if t.name.startswith(name)] if instance else []
        if instance and tasks:
            task, seconds = rng.choice(tasks), rng.choice((1.0, 10.0, 45.0))
            if rng.random() < self.plan.hung:
                working = [task for task in tasks if task.name == "worker"]
                task, seconds = rng.choice(working or [task]), self.plan.hung_seconds
            self._count("stalled threads", f"{instance.name} {task.name}")
            task.stalled_until = self.world.now + seconds
            instance.ailing_until = max(instance.ailing_until, task.stalled_until)

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
        began, ends = max(self.world.now, self._last_outage()), self.world.now + seconds
        if began < ends:
            self.witness.outages.append((began, ends))

    def _do_clock(self) -> None:
        if instance := self._victim():
            self._count("clock jumps", instance.name)
            instance.wall_offset += self.world.rng.choice((-3600.0, 3600.0))
