"""Which process of which machine an instance is, so that a neighbour can tell whether it ended."""

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells whether a process of this machine still runs."""

    host: str
    machine: str
    boot: str
    pid_namespace: str
    pid: int
    started: int

    @classmethod
    def mine(cls) -> "Identity":
        return cls(
            socket.gethostname(),
            _text("/etc/machine-id"),
            os.environ.get("WATCHERD_BOOT_ID") or _text("/proc/sys/kernel/random/boot_id"),
            _namespace(),
            os.getpid(),
            _start_time(os.getpid()),
        )

    def same_kernel(self, other: "Identity") -> bool:
        return bool(self.boot) and (self.boot, self.pid_namespace) == (
            other.boot,
            other.pid_namespace,
        )

    def process_gone(self) -> bool:
        """Whether this process has ended; only for one of the same kernel and namespace.

        The sandbox hides other users' processes in /proc (root's `stager gc`, say); that they are
        there is known all the same, and then the lease decides.
        """
        started = _start_time(self.pid)
        return started != self.started and not (started == 0 and _is_hidden(self.pid))


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_time(pid: int) -> int:
    """Return when a process started (clock ticks since boot); 0: there is none, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in {b"Z", b"X"} else int(fields[19])


def _is_hidden(pid: int) -> bool:
    """Whether there is a process of somebody else that /proc does not show us."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not os.path.exists(f"/proc/{pid}")
    except OSError:
        return False
    return False


def host_slug(host: str) -> str:
    """Return the part of an instance's name that people read."""
    return re.sub(r"[^A-Za-z0-9-]+", "-", host.split(".", maxsplit=1)[0])[:16].strip("-") or "host"
