"""Killed at any of its calls, the daemon leaves nothing undone, done twice, torn or left over."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from matrix import POWER_LOST, RESTARTED, Manner, sweep
from scenes import Force, Orders, Retention, Scene
from strike import Nest, build_killer, nests

SHARES = {Scene: 4, Force: 4, Retention: 4, Orders: 2}
IN_EACH = 3
"""Daemons at once: mostly they wait for a disk or a lease."""


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the libraries that are preloaded into daemons."""
    return build_killer(tmp_path_factory.mktemp("killer"))


@pytest.fixture(scope="module")
def nursery(killer: str) -> Iterator[list[Nest]]:
    """Return the processes that fork daemons."""
    with nests(killer, IN_EACH) as made:
        yield made


@pytest.fixture(scope="module")
def stages() -> Iterator[Path]:
    """Return a directory for what is copied for every run."""
    path = Path(tempfile.mkdtemp(prefix="watcherd-crash-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def prepared(kind: type[Scene], root: Path) -> Scene:
    """Return a scene, built once."""
    scene = kind(root)
    if not scene.is_built:
        shutil.rmtree(root, ignore_errors=True)
        scene.build()
    return scene


@pytest.mark.timeout(600)
@pytest.mark.parametrize("manner", [RESTARTED, POWER_LOST], ids=str)
@pytest.mark.parametrize(
    ("kind", "share"),
    [
        pytest.param(kind, share, id=f"{kind.name} {share + 1} of {shares}")
        for kind, shares in SHARES.items()
        for share in range(shares)
    ],
)
def test_killed_at_any_call_all_is_done_once_and_nothing_is_left(
    nursery: list[Nest],
    stages: Path,
    counted: Counter[str],
    kind: type[Scene],
    share: int,
    manner: Manner,
) -> None:
    scene = prepared(kind, stages / kind.__name__)
    row = sweep(nursery, scene, manner, share, SHARES[kind])
    for what in (row.scene, "all scenes"):
        counted[f"killed before each of its calls, {what}, {manner}"] += len(row.struck)
    assert not row.faults, "\n\n".join(row.faults[:3])
    # What is not met again is a touch or a status file that depends on the time.
    assert len(row.missed) <= len(row.struck) / 10, sorted(map(str, row.missed))
    assert len(row.struck) > 20
