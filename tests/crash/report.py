"""`make test-crash`: the whole matrix, as a table. Words given choose the scenes.

It runs what the tests run, and what takes too long for them: each scene taken over after the next
boot and by another machine, and the stop of a daemon at many moments.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from judge import COLUMNS
from matrix import (
    BEATING,
    NEXT_BOOT,
    POWER_LOST,
    RESTARTED,
    TAKEN_OVER,
    Manner,
    Row,
    stopped,
    sweep,
)
from scenes import SCENES, Scene
from strike import build_killer, nests

STOPS = range(20, 190, 20)
"""Calls before which a daemon is told to stop: all of its work, from the first look on."""


def manners(scene: Scene) -> Iterator[Manner]:
    """Yield the manners in which a scene is played."""
    yield from (RESTARTED, POWER_LOST, NEXT_BOOT, TAKEN_OVER)
    if type(scene) is Scene:
        yield from map(stopped, STOPS)
        yield BEATING


def rows(root: Path, names: list[str]) -> Iterator[Row]:
    """Play everything."""
    with nests(build_killer(root), 2 * (os.cpu_count() or 2)) as made:
        for name in names:
            scene = SCENES[name](root / name.replace(" ", "-"))
            scene.root.mkdir()
            scene.build()
            for manner in manners(scene):
                yield sweep(made, scene, manner)


def main() -> int:
    """Print the table; return 1 if anything went wrong."""
    root = Path(tempfile.mkdtemp(prefix="watcherd-crash-"))
    root.chmod(0o755)
    faults, missed = [], set()
    head = ["scenario", "kills", "requests", *COLUMNS, "other faults"]
    head += ["time to recover: median, longest"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    try:
        for row in rows(root, sys.argv[1:] or list(SCENES)):
            print(f"| {' | '.join(row.cells())} |", flush=True)
            print("\n\n".join([f"  {row}", *row.faults]), file=sys.stderr, flush=True)
            faults += row.faults
            missed |= row.missed
    finally:
        shutil.rmtree(root)
    print(f"\n{len(missed)} calls that depend on the time did not come again in three runs each")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
