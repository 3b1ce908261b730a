"""Makes this checkout and its Python reachable for the other users that tests run programs as.

A Python or a checkout below a private home (root's, say) can't be run by anybody else. Where that
is so, and we are root, the private directories get an overlay in a mount namespace of our own,
with the one bit added: the machine itself stays as it is, and everything started from here inherits
the view.
"""

import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CLONE_NEWNS = 0x00020000


def closed_ancestors(path: Path) -> list[Path]:
    """Return the directories on the way to `path` that not everybody may pass, outermost first."""
    way = [*reversed(path.parents), path]
    return [d for d in way if d.is_dir() and not d.stat().st_mode & 0o001]


def open_the_way() -> None:
    """Let everybody reach our programs, in this thread's view of the filesystem and its heirs'."""
    needed = {Path(sys.base_prefix), Path(sys.prefix), Path(__file__).resolve().parent.parent}
    needed |= {path.resolve() for path in needed}
    if os.geteuid() != 0 or not any(closed_ancestors(path) for path in needed):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNS)")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    for path in needed:
        while closed := closed_ancestors(path):
            _overlay(closed[0])


def _overlay(directory: Path) -> None:
    upper = Path(tempfile.mkdtemp(prefix="watcherd-reach-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(upper)], check=True)
    for name in ("up", "work"):
        (upper / name).mkdir()
    options = f"lowerdir={directory},upperdir={upper}/up,workdir={upper}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", str(directory)], check=True)
    directory.chmod(0o755)
