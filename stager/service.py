"""The service manager's notify socket: one datagram per message, nothing where there is none."""

import os
import socket
import time

SEND_SECONDS = 5.0


def notify(*lines: str) -> bool:
    """Send lines such as READY=1 to systemd; False where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
            # A manager that does not listen must not stop the daemon.
            s.settimeout(SEND_SECONDS)
            s.connect(address)
            s.sendall("\n".join(lines).encode())
    except OSError:
        return False
    return True


def reloading() -> bool:
    """Say that the configuration is being read again."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_seconds() -> float:
    """Return how long systemd goes without a ping before it ends us; 0: for ever."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(usec) / 1e6
