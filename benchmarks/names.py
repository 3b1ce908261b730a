"""What comes into a directory or leaves it, told by the kernel (inotify)."""

import os
import select
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CDLL, get_errno
from pathlib import Path

IN_MOVED_FROM, IN_MOVED_TO = 0x40, 0x80
EVENT = struct.Struct("iIII")
_libc = CDLL(None, use_errno=True)


class Names:
    """Names that come into or leave a directory, and when: told by the kernel."""

    def __init__(self, directory: Path, mask: int) -> None:
        self._fd = _libc.inotify_init1(os.O_CLOEXEC)
        if _libc.inotify_add_watch(self._fd, os.fsencode(directory), mask) < 0:
            raise OSError(get_errno(), str(directory))

    def __iter__(self) -> Iterator[tuple[str, float]]:
        """Yield names and the monotonic time at which they were told, without end."""
        while True:
            yield from self._told()

    def wait_for(self, name: str, seconds: float) -> None:
        """Wait for a name, at no cost; raise TimeoutError where nothing comes for so long."""
        ready = select.poll()
        ready.register(self._fd, select.POLLIN)
        while ready.poll(1000 * seconds):
            if name in dict(self._told()):
                return
        raise TimeoutError(f"no {name} after {seconds:.0f} s")

    def _told(self) -> Iterator[tuple[str, float]]:
        data, now = os.read(self._fd, 1 << 16), time.monotonic()
        while data:
            *_, size = EVENT.unpack_from(data)
            yield os.fsdecode(data[EVENT.size : EVENT.size + size].rstrip(b"\0")), now
            data = data[EVENT.size + size :]

    def close(self) -> None:
        """Watch no more."""
        os.close(self._fd)


@contextmanager
def names(directory: Path, mask: int) -> Iterator[Names]:
    """Watch a directory for the length of a block."""
    watched = Names(directory, mask)
    try:
        yield watched
    finally:
        watched.close()
