"""Runs daemons, one at a time, each in a process forked from one that has imported everything.

What costs most of a short-lived daemon is Python's start and the imports: they are paid once here.
Nothing else is shared: each daemon is a process of its own, with its own start time, that runs
`watcherd.main` from the configuration on. Orders are lines of JSON on the standard input:
`{"argv": [...], "env": {...}, "log": PATH, "machine": ID or ""}`; the answers are two lines: the
process id, then, when it has ended, its wait status.

With `machine`, the daemon sees another /etc/machine-id (in a mount namespace of its own), as one of
another machine does.
"""

import ctypes
import json
import os
import signal
import sys
import tempfile
from typing import Any

import watcherd

CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 4096, 16384, 1 << 18
libc = ctypes.CDLL(None, use_errno=True)


def must(outcome: int) -> None:
    """Raise for a C call that failed."""
    if outcome:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def move_to(machine: str) -> None:
    """Have another machine id from here on."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(f"{machine}\n")
        file.flush()
        must(libc.unshare(CLONE_NEWNS))
        must(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
        must(libc.mount(file.name.encode(), b"/etc/machine-id", None, MS_BIND, None))


def run(order: dict[str, Any]) -> int:
    """Be the daemon; return its exit code."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((null, 0), (log, 1), (log, 2)):
        os.dup2(old, new)
    if order["machine"]:
        move_to(order["machine"])
    os.environ.update(order["env"])
    if "LD_PRELOAD" in os.environ:
        libc.crash_arm()
        libc.journal_arm()
    try:
        watcherd.main(order["argv"])
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else 1
    return 0


def main() -> None:
    """Obey the orders until there are no more."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            code = 1
            try:
                code = run(json.loads(line))
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
