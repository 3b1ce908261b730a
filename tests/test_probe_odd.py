"""`stager probe` on filesystems that do not keep what the protocol needs: each is found out."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from lab import ROOT, until
from machines import Machine, outcome, said

pytestmark = pytest.mark.timeout(240)


@contextmanager
def odd_mount(backing: Path, mount: Path, oddity: str) -> Iterator[None]:
    """Have `backing` under `mount` too, with an oddity; it ends with the block."""
    mount.mkdir()
    command = [sys.executable, "-W", "ignore", str(ROOT / "tests/oddfs.py")]
    process = subprocess.Popen([*command, str(backing), str(mount), oddity])
    try:
        until(lambda: os.path.ismount(mount), "the filesystem is mounted")
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True, timeout=30)
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="watcherd-odd-", dir="/var/tmp") as path:
        for name in ("backing", "attic"):
            (Path(path) / name).mkdir()
        yield Path(path)


def two(root: Path, oddity: str, *options: str) -> tuple[Machine, Machine]:
    """Probe one backing through two mounts at once, as two machines do."""
    with ExitStack() as stack:
        for name in "ab":
            stack.enter_context(odd_mount(root / "backing", root / name, oddity))
        machines = [Machine(root / name, "--seconds", "3", *options, boot=name) for name in "ab"]
        for machine in machines:
            stack.callback(machine.end)
        for machine in machines:
            machine.verdict = machine.found
    return machines[0], machines[1]


@pytest.mark.parametrize(
    ("oddity", "question", "words"),
    [
        ("copies", "one winner", "were won by two machines"),
        ("links replace", "links at once", "were won by two machines"),
        ("torn", "whole files", "saw a part"),
        ("old listings", "fresh listings", "old even after the directory was touched"),
        ("attic", "fences", "could still move what was taken from it: an image"),
        ("no links", "hard links", "no hard links (Operation not permitted)"),
    ],
)
def test_what_a_filesystem_does_not_keep_is_named_by_both_machines(
    root: Path, oddity: str, question: str, words: str
) -> None:
    for machine in two(root, oddity):
        assert machine.code == 1, machine.said
        assert outcome(machine.verdict, question) == "no"
        assert words in said(machine.verdict, question)
        assert machine.verdict["words"].startswith("no: ")
        assert words in machine.verdict["words"]
    # Where listings lie, what was put there can't be found again to be removed.
    assert os.listdir(root / "backing") == [] or oddity == "old listings"


def test_a_true_one_of_the_same_kind_is_not_refused(root: Path) -> None:
    for machine in two(root, "none"):
        assert machine.code == 0, machine.verdict["words"]
        assert "keeps rules of its own" in said(machine.verdict, "mount")


def mounted(root: Path, *mount: str) -> Machine:
    """Probe alone what a mount command makes, in a mount namespace of its own."""
    target = root / "mnt"
    target.mkdir()
    script = f'mount {" ".join(mount)} {target} && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", script, "-")
    machine = Machine(target, "--machines", "1", prefix=prefix)
    machine.verdict = machine.found
    return machine


def overlay(root: Path) -> tuple[str, ...]:
    for name in ("lower", "upper", "work"):
        (root / name).mkdir()
    layers = f"lowerdir={root}/lower,upperdir={root}/upper,workdir={root}/work"
    return ("-t", "overlay", "-o", layers, "none")


def test_a_stick_is_refused_with_all_that_it_lacks(root: Path) -> None:
    with odd_mount(root / "backing", root / "stick", "stick"):
        machine = Machine(root / "stick", "--machines", "1")
        found = machine.found
    assert machine.code == 1, machine.said
    assert {"no hard links", "upper and lower case are one name", "modes don't stay"} <= {
        row["said"].partition(" (")[0].partition(":")[0]
        for row in found["results"]
        if row["outcome"] == "no"
    }
    assert "use ext4, XFS" in str(found["results"])


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (lambda _: ("-t", "tmpfs", "none"), "(tmpfs) is memory"),
        (overlay, "(overlay) is a container's or live system's layer"),
    ],
    ids=["tmpfs", "overlay"],
)
def test_what_a_reboot_takes_away_is_warned_of(
    root: Path, mount: Callable[[Path], tuple[str, ...]], words: str
) -> None:
    machine = mounted(root, *mount(root))
    assert machine.code == 0, machine.said
    assert words in said(machine.verdict, "mount")
    assert machine.verdict["words"].startswith("yes, but see the ")
