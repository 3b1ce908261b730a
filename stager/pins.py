"""The builds that retention leaves: for each a file in the spool's own directory, with its URL."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from stager import durable
from stager.layout import PIN_PREFIX, Paths

MOST_BYTES = 2048


def keys(names: Iterable[str]) -> list[str]:
    """Return the keys of the pinned builds, from the names in the spool's own directory."""
    return sorted(n.removeprefix(PIN_PREFIX) for n in names if n.startswith(PIN_PREFIX))


def url(paths: Paths, key: str) -> str:
    """Return the URL that a build was pinned by; the key where that can't be read."""
    path: Path = paths.spool / f"{PIN_PREFIX}{key}"
    try:
        info = path.lstat()
        return _read(path, info.st_ino, info.st_mtime_ns) or key
    except OSError:
        return key


@lru_cache(maxsize=1000)
def _read(path: Path, _inode: int, _mtime_ns: int) -> str:
    """Read a pin once: one that is made anew is another file."""
    return durable.read_file(path, MOST_BYTES).decode(errors="replace").strip()
