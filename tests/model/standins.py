"""What the product's modules get for `os`, `time`, `threading`, `random` while a model runs.

Only the world outside is replaced: calls to files below the model's root go through the calling
machine's NFS client, times are the model's, threads are its tasks. None of our own functions is.
"""

import importlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, cast

import yaml

from model import turns
from model.fileserver import EPOCH
from model.nfsclient import Client
from model.turns import Process, Scheduler, current

MODULES = (
    "answer", "backlog", "dispatch", "dropbox", "durable", "fetch", "finish", "gc", "inflate",
    "instance",
    "intake", "job",
    "keeper", "lock", "marker", "orders", "clerk", "progress", "prune", "pulse", "result",
    "rounds", "server", "site",
    "spool", "stage", "sweep", "watch",
)  # fmt: skip


class Machine(Process):
    """A process, and the machine it runs on."""

    def __init__(self, client: Client, boot: str, pid: int) -> None:
        super().__init__(f"{client.name}.{pid}")
        self.client, self.boot, self.pid = client, boot, pid
        self.clock_offset = self.wall_offset = 0.0


def _machine() -> Machine | None:
    task = current()
    return cast("Machine", task.process) if task else None


class Os:
    """The `os` module, for paths below a root by way of the caller's NFS client."""

    def __init__(self, root: str) -> None:
        self._root = f"{root}/"

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _client(self, path: Any) -> tuple[Client | None, Any]:
        machine = _machine()
        if machine is None or isinstance(path, int):
            return None, path
        text = os.fspath(path)
        if not text.startswith(self._root):
            return None, path
        if machine.dead:
            raise turns.Killed
        return machine.client, text

    def rename(self, source: Any, target: Any) -> None:
        client, source = self._client(source)
        return client.rename(source, os.fspath(target)) if client else os.rename(source, target)

    replace = rename

    def link(self, source: Any, target: Any, *, follow_symlinks: bool = True) -> None:  # noqa: ARG002
        client, source = self._client(source)
        return client.link(source, os.fspath(target)) if client else os.link(source, target)

    def unlink(self, path: Any) -> None:
        client, path = self._client(path)
        return client.unlink(path) if client else os.unlink(path)

    def mkdir(self, path: Any, mode: int = 0o777) -> None:
        client, path = self._client(path)
        return client.mkdir(path) if client else os.mkdir(path, mode)

    def rmdir(self, path: Any) -> None:
        client, path = self._client(path)
        return client.rmdir(path) if client else os.rmdir(path)

    def utime(self, path: Any, times: Any = None) -> None:
        client, path = self._client(path)
        return client.utime(path) if client else os.utime(path, times)

    def listdir(self, path: Any) -> list[str]:
        client, path = self._client(path)
        return client.listdir(path) if client else os.listdir(path)

    @contextmanager
    def scandir(self, path: Any) -> Iterator[Any]:
        client, path = self._client(path)
        assert client is not None
        found = [SimpleNamespace(name=n, inode=lambda i=i: i) for n, i in client.inodes(path)]
        yield found

    def lstat(self, path: Any) -> os.stat_result:
        client, path = self._client(path)
        return client.lstat(path) if client else os.lstat(path)

    def stat(self, path: Any, *, follow_symlinks: bool = True) -> os.stat_result:
        client, path = self._client(path)
        if client is None:
            return os.stat(path, follow_symlinks=follow_symlinks)
        return client.lstat(path)

    def chmod(self, path: Any, mode: int, *, follow_symlinks: bool = True) -> None:
        self._client(path)
        os.chmod(path, mode, follow_symlinks=follow_symlinks)

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        client, path = self._client(path)
        return client.open(path, flags, mode) if client else os.open(path, flags, mode)

    def _alive(self, fd: int) -> Client | None:
        machine = _machine()
        if machine is None or fd not in machine.client.files:
            return None
        if machine.dead:
            raise turns.Killed
        return machine.client

    def write(self, fd: int, data: Any) -> int:
        if client := self._alive(fd):
            client.written(fd)
        return os.write(fd, data)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        if client := self._alive(fd):
            client.written(fd)
        return os.pwrite(fd, data, offset)

    def ftruncate(self, fd: int, size: int) -> None:
        self._alive(fd)
        os.ftruncate(fd, size)

    def fsync(self, fd: int) -> None:
        # What is synced was written at the server; a directory is nothing to sync on NFS.
        if client := self._alive(fd):
            client.synced(fd)

    def fstat(self, fd: int) -> os.stat_result:
        client = self._alive(fd)
        return client.disk.stat(fd) if client else os.fstat(fd)

    def fdopen(self, fd: int, mode: str) -> Any:
        if client := self._alive(fd):
            del client.files[fd]
        return os.fdopen(fd, mode)

    def close(self, fd: int) -> None:
        if machine := _machine():
            machine.client.files.pop(fd, None)
        os.close(fd)


class Time:
    """The `time` module, by the calling machine's clocks."""

    def __init__(self, world: Scheduler) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def monotonic(self) -> float:
        machine = _machine()
        return self._world.now + (machine.clock_offset if machine else 0.0)

    def monotonic_ns(self) -> int:
        return int(self.monotonic() * 1e9)

    def time(self) -> float:
        machine = _machine()
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
        machine = _machine()
        assert machine is not None
        return machine.boot if "boot_id" in self._path else machine.client.name

    def read_bytes(self) -> bytes:
        machine = _machine()
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
        machine = _machine()
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


def rmtree(osl: Os) -> Callable[[Any], None]:
    """Return shutil.rmtree, call by call."""

    def remove(path: Any) -> None:
        for name in osl.listdir(path):
            inner = f"{os.fspath(path)}/{name}"
            if os.path.isdir(inner):
                remove(inner)
            else:
                osl.unlink(inner)
        osl.rmdir(path)

    return remove


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
        "socket": SimpleNamespace(gethostname=lambda: (m := _machine()) and m.client.name),
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
