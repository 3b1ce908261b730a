"""The scheduler of the model: one task runs at a time, and every file call is a point to switch.

Simulated time only: a call takes a random while, a wait takes what it says, and the next task to
run is the one whose time has come. All chance is drawn from one seeded generator, so a seed is a
whole history of several machines.
"""

import heapq
import itertools
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from greenlet import getcurrent, greenlet

MOST_STEPS = 400_000


class Killed(BaseException):
    """The task's process has ended: nothing it still tries has an effect."""


class Process:
    """What is killed and paused as one: the tasks of one run of the daemon."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tasks: list[Task] = []
        self.dead = False
        self.paused = False
        self.held: list[Task] = []
        """Tasks whose time came while it was paused."""


class Task(greenlet):
    """One thread of a process."""

    def __init__(self, world: "Scheduler", process: Process, name: str, call: Callable[[], Any]):
        super().__init__(self._main, world.main)
        self.world, self.process, self.name, self.call = world, process, name, call
        self.ticket = 0
        self.stalled_until = 0.0
        self.ended = False

    def _main(self) -> None:
        try:
            self.call()
        except Killed:
            pass
        finally:
            self.ended = True
            if not self.process.dead:
                self.process.tasks.remove(self)


def current() -> Task | None:
    """Return the running task; None: the model itself runs."""
    task = getcurrent()
    return task if isinstance(task, Task) else None


class Scheduler:
    """Runs tasks in the order of simulated time."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.main = getcurrent()
        self.now = 0.0
        self.steps = 0
        self._heap: list[tuple[float, int, int, Task]] = []
        self._numbers = itertools.count()

    def spawn(self, process: Process, name: str, call: Callable[[], Any]) -> Task:
        """Start a task of a process."""
        task = Task(self, process, name, call)
        process.tasks.append(task)
        self.due(task, 0.0)
        return task

    def due(self, task: Task, seconds: float) -> None:
        """Have a task go on after some time, whatever it waited for."""
        task.ticket += 1
        entry = (self.now + seconds, next(self._numbers), task.ticket, task)
        heapq.heappush(self._heap, entry)

    def sleep(self, seconds: float) -> None:
        """Let others run; returns after some simulated time, or raises Killed."""
        task = current()
        if task is None:
            return
        if task.process.dead:
            raise Killed
        self.due(task, seconds)
        self.main.switch()

    def is_dying(self) -> bool:
        """Whether the running task's process is being killed in the call it is at."""
        return self._dying

    _dying = False

    def kill(self, process: Process) -> None:
        """End a process where it is; its cleaning up reaches nothing any more."""
        process.dead = True
        for task in list(process.tasks):
            if not task.ended:
                # The first call it tries after this one finds it dead.
                self._dying = True
                with suppress(Killed):
                    task.throw(Killed)
                self._dying = False
        process.tasks.clear()

    def resume(self, process: Process) -> None:
        """Let a paused process go on."""
        process.paused = False
        held, process.held = process.held, []
        for task in held:
            self.due(task, 0.0)

    def step(self, until: float) -> bool:
        """Run one task up to its next call; False: nobody has anything to do before `until`."""
        while self._heap and self._heap[0][0] <= until:
            time, _, ticket, task = heapq.heappop(self._heap)
            if ticket != task.ticket or task.ended or task.process.dead:
                continue
            if task.process.paused:
                task.process.held.append(task)
                continue
            if task.stalled_until > max(time, self.now):
                self.due(task, task.stalled_until - self.now)
                continue
            self.now = max(self.now, time)
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise RuntimeError(f"more than {MOST_STEPS} steps")
            task.switch()
            return True
        return False


class Lock:
    """threading.Lock, for tasks."""

    def __init__(self, world: Scheduler) -> None:
        self._world, self._taken = world, False

    def __enter__(self) -> None:
        while self._taken:
            self._world.sleep(0.01)
        self._taken = True

    def __exit__(self, *_: object) -> None:
        self._taken = False


class Event:
    """threading.Event, for tasks; as a Wake, a wait takes the ring."""

    def __init__(self, world: Scheduler, *, once: bool = False) -> None:
        self._world, self._once, self._set = world, once, False
        self._waiting: list[Task] = []

    def set(self) -> None:
        self._set = True
        for task in self._waiting:
            self._world.due(task, 0.0)
        self._waiting.clear()

    def is_set(self) -> bool:
        return self._set

    def wait(self, seconds: float = 1e9) -> bool:
        task = current()
        if not self._set and task is not None:
            self._waiting.append(task)
            self._world.sleep(seconds)
            if task in self._waiting:
                self._waiting.remove(task)
        was = self._set
        if self._once:
            self._set = False
        return was


class Thread:
    """threading.Thread, as a task of the process that starts it."""

    def __init__(
        self,
        world: Scheduler,
        target: Callable[..., Any],
        args: tuple[Any, ...] = (),
        name: str = "thread",
    ) -> None:
        self._world, self._call, self._name = world, lambda: target(*args), name
        self._task: Task | None = None

    def start(self) -> None:
        parent = current()
        assert parent is not None
        self._task = self._world.spawn(parent.process, self._name, self._call)

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.ended

    def join(self, seconds: float = 1e9) -> None:
        end = self._world.now + seconds
        while self.is_alive() and self._world.now < end:
            self._world.sleep(0.05)
