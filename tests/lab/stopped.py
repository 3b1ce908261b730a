"""Stops single threads of other processes, as a debugger does."""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PTRACE_SEIZE, PTRACE_INTERRUPT, WALL = 0x4206, 0x4207, 0x40000000


def threads(host_pid: int) -> set[int]:
    """Return the numbers of a process' threads."""
    return {int(tid) for tid in os.listdir(f"/proc/{host_pid}/task")}


@contextmanager
def stopped_thread(tid: int) -> Iterator[None]:
    """Stop one thread of another process, as a debugger does, until the end of the block."""
    libc = ctypes.CDLL(None, use_errno=True)
    is_stopped, end = threading.Event(), threading.Event()

    def hold() -> None:
        # Only the thread that traces may ask, and what it traces goes on when it ends.
        assert libc.ptrace(PTRACE_SEIZE, tid, None, None) == 0, os.strerror(ctypes.get_errno())
        assert libc.ptrace(PTRACE_INTERRUPT, tid, None, None) == 0
        os.waitpid(tid, WALL)
        is_stopped.set()
        while not end.wait(0.05):
            # A traced thread that was killed must be waited for, else its process stays a zombie.
            with suppress(ChildProcessError):
                os.waitpid(tid, WALL | os.WNOHANG)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert is_stopped.wait(10)
        yield
    finally:
        end.set()
        holder.join()
