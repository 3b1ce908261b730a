"""What a power loss takes back, and what it leaves: nothing less than what was synced."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lab import Lab
from loss import journal_environment, lose_power
from strike import build_killer

HEAD = """\
import ctypes, os
ctypes.CDLL(None).journal_arm()
def sync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
def new(path, synced=True):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, b"new")
    if synced:
        os.fsync(fd)
    os.close(fd)
def more(path):
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"er")
    os.close(fd)
"""
BEFORE = {"spool/a/old": "old", "spool/b/other": "other"}
LOST: dict[str, tuple[str, dict[str, str]]] = {
    "a new name": ("new('a/x')", BEFORE),
    "a new name that is synced": ("new('a/x'); sync('a')", BEFORE | {"spool/a/x": "new"}),
    "data": ("new('a/x', False); sync('a')", BEFORE | {"spool/a/x": ""}),
    "data after a sync": ("new('a/x'); sync('a'); more('a/x')", BEFORE | {"spool/a/x": "new"}),
    "a rename": ("os.rename('a/old', 'b/x')", BEFORE),
    "a rename that is synced": (
        "os.rename('a/old', 'b/x'); sync('b')", {"spool/b/x": "old", "spool/b/other": "other"},
    ),
    "a rename on its way": ("os.rename('a/old', 'b/x'); os.rename('b/x', 'c')", BEFORE),
    "the end of a way that is synced": (
        "os.rename('a/old', 'b/x'); os.rename('b/x', 'a/y'); sync('a')",
        {"spool/a/y": "old", "spool/b/other": "other"},
    ),
    "a replaced name": ("os.rename('a/old', 'b/other')", BEFORE),
    "a removed name": ("os.unlink('a/old')", BEFORE),
    "a removed name that is synced": ("os.unlink('a/old'); sync('a')", {"spool/b/other": "other"}),
    "a directory with what is in it": ("os.mkdir('d'); new('d/x'); sync('d')", BEFORE),
    "a removed directory": ("os.unlink('a/old'); os.rmdir('a')", BEFORE),
    "one of two names": (
        "new('a/x'); os.link('a/x', 'b/x'); sync('b'); os.unlink('a/x')",
        BEFORE | {"spool/a/x": "new", "spool/b/x": "new"},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the libraries that are preloaded."""
    return build_killer(tmp_path_factory.mktemp("killer"))


@pytest.mark.parametrize(("script", "left"), LOST.values(), ids=LOST)
def test_what_was_not_synced_is_taken_back(
    libraries: str, tmp_path: Path, script: str, left: dict[str, str]
) -> None:
    lab, spool = Lab(tmp_path), tmp_path / "spool"
    for name, text in BEFORE.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    env = journal_environment(lab) | {"LD_PRELOAD": libraries}
    subprocess.run(
        [sys.executable, "-c", HEAD + script], cwd=spool, env=os.environ | env, check=True
    )
    lose_power(lab)
    files = (path for path in spool.rglob("*") if path.is_file())
    assert {str(path.relative_to(tmp_path)): path.read_text() for path in files} == left
