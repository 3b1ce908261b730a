"""The service manager's notify socket: one datagram per message, nothing where there is none."""

import os
import socket
import time


def notify(*lines: str) -> bool:
    """Send lines such as READY=1 to systemd; False where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
        try:
            s.connect(address)
            s.sendall("\n".join(lines).encode())
        except OSError:
            return False
    return True


def reloading() -> bool:
    """Say that the configuration is being read again."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
