"""What the matrix rests on: every call that changes something is counted, and each kill is one."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from lab import BUILD, ROOT, Lab
from matrix import finish
from scenes import OTHER, Scene
from strike import Nest, Step, build_killer, environment, nests, read_trace

from stager.layout import parse_build

READING = re.compile(
    "access|close|dup[23]?|faccessat2?|fadvise64|fcntl|[fl]?getxattr|flock|fstat|fstatfs|getdents64|"
    "inotify_add_watch|ioctl|lseek|lstat|newfstatat|p?readv?|pread64|readlink|readlinkat|select|"
    "stat|statfs|statx"
)
"""System calls that change nothing, whatever they are given."""
SYSTEM_CALL = {"open": "openat", "ftruncate64": "ftruncate", "unlink": "unlinkat"}
"""What a function asks the kernel for; unlink, by way of journal.c."""


@pytest.fixture
def scene(public_dir: Path) -> Scene:
    """Return two requests and what was there before them."""
    made = Scene(public_dir / "scene")
    made.root.mkdir()
    made.build()
    return made


def changes(log: Path, root: Path) -> Counter[str]:
    """Count the system calls in strace's log that may change something of ours, by their names."""
    ours = re.compile(re.escape(str(root)) + '/(spool|static|results)[/">]')
    found = Counter[str]()
    for line in log.read_text().splitlines():
        call = re.match(r"\d+ +(\w+)\(", line)
        if call is None or not ours.search(line) or READING.fullmatch(call[1]):
            continue
        reads = call[1] == "openat" and not re.search("O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", line)
        private = call[1] == "mmap" and ("PROT_WRITE" not in line or "MAP_PRIVATE" in line)
        if not reads and not private:
            found[call[1]] += 1
    return found


def test_the_killer_counts_what_strace_counts(scene: Scene, killer: str, tmp_path: Path) -> None:
    """So that no call that changes something is left out of the matrix, whoever makes it."""
    (tmp_path / "run").mkdir()
    lab = scene.copy(tmp_path / "run")
    log, env = tmp_path / "strace", environment(lab) | {"LD_PRELOAD": killer}
    command = ["strace", "-f", "-y", "-s", "0", "-o", str(log)]
    command += [word for name, value in env.items() for word in ("-E", f"{name}={value}")]
    command += [sys.executable, str(ROOT / "watcherd.py"), "--config", str(lab.config), "--once"]
    subprocess.run(command, check=True, capture_output=True, timeout=100, env=lab.environment())
    made = (step.function for step in read_trace(lab.root / "trace", lab.root))
    counted = Counter(SYSTEM_CALL.get(function, function) for function in made)
    seen = changes(log, lab.root)
    assert seen == counted
    assert seen.total() > 150


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the libraries that are preloaded into daemons."""
    return build_killer(tmp_path_factory.mktemp("killer"))


def strikes(nest: Nest, lab: Lab, at: Step) -> int:
    """Start daemons that die before a step, until one does not; return how many died."""
    for died in range(10):
        run = nest.run(lab, "--once", env=environment(lab, at))
        if not run.struck:
            return died
    raise AssertionError("it is never given up")


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_request_that_kills_every_daemon_is_given_up_and_the_others_are_staged(
    scene: Scene, killer: str, public_dir: Path, attempts: int
) -> None:
    (public_dir / "run").mkdir()
    lab = scene.copy(public_dir / "run")
    lab.write_config(attempts=attempts)
    key = parse_build(BUILD, frozenset()).key
    deadly = Step("pwrite64", f"static/.stager/work/{key}.*/*", 1)
    with nests(killer, 1) as [nest]:
        assert strikes(nest, lab, deadly) == attempts + 1
        poison, other = lab.result("a"), lab.result("b")
        finish(nest, scene, lab)
    assert (poison["state"], poison["error"]["code"]) == ("failed", "too_many_attempts")
    assert poison["attempts"] == str(attempts + 1)
    assert other["state"] == "staged"
    assert lab.image("base", OTHER).exists()
    assert lab.flag() == ["test"]
    assert not lab.image("recovery").exists()
