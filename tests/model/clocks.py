"""What the product gets for the `time` module and for thread pools."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from model import turns
from model.calls import running
from model.fileserver import EPOCH
from model.turns import Scheduler


class Time:
    """The `time` module, by the calling machine's clocks."""

    def __init__(self, world: Scheduler) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def monotonic(self) -> float:
        machine = running()
        return self._world.now + (machine.clock_offset if machine else 0.0)

    def monotonic_ns(self) -> int:
        return int(self.monotonic() * 1e9)

    def time(self) -> float:
        machine = running()
        return EPOCH + self._world.now + (machine.wall_offset if machine else 0.0)

    def clock_gettime(self, _clock: int) -> float:
        return self.monotonic()

    def sleep(self, seconds: float) -> None:
        self._world.sleep(seconds)


class Pool:
    """ThreadPoolExecutor: a task for each job."""

    def __init__(self, world: Scheduler, process: turns.Process) -> None:
        self._world, self._process = world, process

    def submit(self, call: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                outcome = call(*args)
            except Exception as e:  # noqa: BLE001
                future.set_exception(e)
            else:
                future.set_result(outcome)

        self._world.spawn(self._process, "worker", run)
        return future

    def shutdown(self, *, wait: bool = True) -> None:
        """Do nothing: tasks end by themselves."""
