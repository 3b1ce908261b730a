"""What the product gets for the `os` module: its machine's NFS client, for files of the model."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

from model import turns
from model.nfsclient import Client
from model.turns import Process, current


class Machine(Process):
    """A process, and the machine it runs on."""

    def __init__(self, client: Client, boot: str, pid: int, machine_id: str = "") -> None:
        super().__init__(f"{client.name}.{pid}")
        self.client, self.boot, self.pid = client, boot, pid
        self.machine_id = machine_id or client.name
        self.clock_offset = self.wall_offset = 0.0


def running() -> Machine | None:
    """Return the machine whose task runs; None: the model itself does."""
    task = current()
    return cast("Machine", task.process) if task else None


class Os:
    """The `os` module, for paths below a root by way of the caller's NFS client."""

    def __init__(self, root: str) -> None:
        self._root = f"{root}/"

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _client(self, path: Any) -> tuple[Client | None, Any]:
        machine = running()
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
        machine = running()
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
        if machine := running():
            machine.client.files.pop(fd, None)
        os.close(fd)


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
