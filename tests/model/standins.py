"""What the product's modules get for `os`, `time`, `threading`, `random` while a model runs.

Only the world outside is replaced: calls to files below the model's root go through the calling
machine's NFS client, times are the model's, threads are its tasks. None of our own functions is.
"""

import importlib
import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import yaml

from model import turns
from model.calls import Os, rmtree, running
from model.clocks import Time
from model.turns import Scheduler

MODULES = (
    "answer", "backlog", "bulletin", "clerk", "dispatch", "dropbox", "dropped", "durable", "fetch",
    "finish", "gc", "inflate", "instance", "intake", "job", "keeper", "lock", "marker", "mounts",
    "orders", "outbox", "progress", "prune", "pulse", "result", "rounds", "scans", "server", "site",
    "spool", "stage", "stuck", "sweep", "tally", "watch",
)  # fmt: skip


class _FastYaml:
    """The `yaml` module, for LAYOUT files: they are read at every scan."""

    YAMLError = yaml.YAMLError

    @staticmethod
    def safe_load(data: bytes) -> Any:
        return yaml.load(data, yaml.CSafeLoader)


class _Proc:
    """What /proc and /etc say on the calling machine."""

    def __init__(self, path: str, living: Callable[[str, int], bool]) -> None:
        self._path, self._living = path, living

    def read_text(self) -> str:
        machine = running()
        assert machine is not None
        return machine.boot if "boot_id" in self._path else machine.machine_id

    def read_bytes(self) -> bytes:
        machine = running()
        assert machine is not None
        pid = int(self._path.split("/")[2])
        if not self._living(machine.boot, pid):
            raise FileNotFoundError(self._path)
        return b"%d (watcherd) S%s" % (pid, b" 7" * 25)


class _ProcOs:
    """The `os` module where processes are told apart."""

    environ: ClassVar[dict[str, str]] = {}

    @staticmethod
    def kill(pid: int, _signal: int) -> None:
        """Tell that a process which /proc does not show is not there."""
        raise ProcessLookupError(pid)

    @staticmethod
    def getpid() -> int:
        machine = running()
        return machine.pid if machine else 0

    @staticmethod
    def readlink(path: str) -> str:
        return path


class _Idle:
    """A thread that does nothing: the status page, on which nothing rests, is left out."""

    def __init__(self, **_: object) -> None:
        pass

    def start(self) -> None:
        """Do nothing."""

    def is_alive(self) -> bool:
        return False


@contextmanager
def installed(world: Scheduler, root: str, living: Callable[[str, int], bool]) -> Iterator[None]:
    """Give the product's modules this world for the length of a block."""
    osl, clock = Os(root), Time(world)
    threads = SimpleNamespace(
        get_native_id=lambda: 0,
        Lock=lambda: turns.Lock(world),
        Event=lambda: turns.Event(world),
        Thread=lambda target, args=(), name="", daemon=False: turns.Thread(  # noqa: ARG005
            world, target, args, name
        ),
    )

    def wait_for(futures: Any) -> None:
        while not all(future.done() for future in futures):
            world.sleep(0.1)

    replaced: dict[str, Any] = {
        "os": osl, "time": clock, "threading": threads, "random": world.rng, "wait_for": wait_for,
        "secrets": SimpleNamespace(token_bytes=world.rng.randbytes, token_hex=lambda n: "00" * n),
        "shutil": SimpleNamespace(rmtree=rmtree(osl)),
        "filesystem_kind": lambda _path: "nfs",
    }  # fmt: skip
    kept: list[tuple[ModuleType, str, Any]] = []
    identity = importlib.import_module("stager.identity")
    replaced_there: dict[str, Any] = {
        "os": _ProcOs(), "Path": lambda path: _Proc(str(path), living),
        "socket": SimpleNamespace(gethostname=lambda: (m := running()) and m.client.name),
    }  # fmt: skip
    site = importlib.import_module("stager.site")
    board = importlib.import_module("stager.board")
    idle = SimpleNamespace(Event=lambda: turns.Event(world), Thread=_Idle)
    wanted = [
        (identity, replaced_there), (site, {"yaml": _FastYaml}), (board, {"threading": idle}),
    ]  # fmt: skip
    for module in [*(importlib.import_module(f"stager.{name}") for name in MODULES), pathlib]:
        names = {"os"} if module is pathlib else replaced.keys() & vars(module).keys()
        wanted.append((module, {name: replaced[name] for name in names}))
    for module, stand_ins in wanted:
        for name, stand_in in stand_ins.items():
            kept.append((module, name, vars(module)[name]))
            setattr(module, name, stand_in)
    try:
        yield
    finally:
        for module, name, real in kept:
            setattr(module, name, real)
