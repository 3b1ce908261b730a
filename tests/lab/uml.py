"""Throw-away machines with kernels of their own (User Mode Linux), driven from the host.

A guest sees the host's files under an overlay that vanishes with it; its directory `lab` is shared
both ways, and an agent in it runs the scripts that `Guest.run` hands over. Everything a `Network`
or a guest makes has a name of this process's own, and is gone when it is closed.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import ROOT

SCRIPTS = ROOT / "tests/lab"
BOOT_SECONDS = 120.0
POLL_SECONDS = 0.02
_numbers = itertools.count()


class ScriptFailed(AssertionError):
    """A script in a guest ended badly, or not in time."""


class Guest:
    """One User Mode Linux machine; `lab` is its directory on the host, its disk lies there too."""

    def __init__(
        self, lab: Path, setup: str, *, disk_mb: int = 0, memory_mb: int = 512,
        life_seconds: int = 900, network: "Network | None" = None,
    ) -> None:  # fmt: skip
        self.lab, self.disk_mb, self.memory_mb = lab, disk_mb, memory_mb
        self.life_seconds, self.network = life_seconds, network
        lab.mkdir(exist_ok=True)
        (lab / "setup.sh").write_text(setup)
        self._process: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """Switch it on; what its disk holds is kept."""
        for name in ("up", "rc"):
            (self.lab / name).unlink(missing_ok=True)
        shutil.rmtree(self.lab / "q", ignore_errors=True)
        shutil.copy(SCRIPTS / "uml-node.sh", self.lab)
        command = [str(SCRIPTS / "uml-run.sh"), "-t", str(self.life_seconds)]
        command += ["-m", f"{self.memory_mb}M", "-d", str(self.disk_mb)]
        if self.network:
            command = [*self.network.inside, *command, "-n", self.network.card(self.lab.name)]
        command += ["--", "bash", str(self.lab / "uml-node.sh")]
        keep = ("PATH", "TMPDIR")
        env = {name: os.environ[name] for name in keep if name in os.environ}
        with (self.lab / "console").open("ab") as console:
            self._process = subprocess.Popen(
                command, env=env | {"LAB": str(self.lab)}, stdin=subprocess.DEVNULL,
                stdout=console, stderr=console, start_new_session=True,
            )  # fmt: skip

    def await_up(self) -> None:
        """Wait until it has set itself up."""
        self._await(self.lab / "up", BOOT_SECONDS, "the set-up")

    def run(self, script: str, seconds: float = 60.0) -> str:
        """Run a bash script (what nfs-lab.sh defines is at hand); return what it wrote."""
        stem = self.lab / "q" / f"{next(_numbers):06}"
        stem.with_suffix(".new").write_text(script + "\n")
        stem.with_suffix(".new").rename(stem.with_suffix(".sh"))
        self._await(stem.with_suffix(".rc"), seconds, script)
        output = stem.with_suffix(".out").read_text(errors="replace")
        if code := int(stem.with_suffix(".rc").read_text()):
            raise ScriptFailed(f"exit code {code}: {script}\n{output}")
        return output.rstrip("\n")

    def cut_power(self) -> None:
        """Switch it off in the middle of whatever it does: nothing is synced."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(OSError):
            order = self.lab / "q" / "power.new"
            order.write_text("echo o > /proc/sysrq-trigger\n")
            order.rename(order.with_suffix(".sh"))
            process.wait(10)
        self._kill()

    def close(self) -> None:
        """End it, and every process that belongs to it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.cut_power()
        self._kill()

    def _await(self, path: Path, seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not path.exists():
            ended = self._process is None or self._process.poll() is not None
            if ended or time.monotonic() > end:
                tail = (self.lab / "console").read_text(errors="replace")[-2000:]
                why = "the machine has ended" if ended else f"not within {seconds:.0f} s"
                raise ScriptFailed(f"{self.lab.name}: {why}: {what}\n{tail}")
            time.sleep(POLL_SECONDS)

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for pid in [*_heirs(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(10)


def _heirs(pid: int) -> Iterator[int]:
    """Yield the processes that a process started, and those that they started."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    unseen = [pid]
    while unseen:
        for child in children.get(unseen.pop(), []):
            unseen.append(child)
            yield child


class Network:
    """A bridge in a network namespace of its own, with a plug for each guest."""

    def __init__(self, names: list[str]) -> None:
        self.name, self.names = f"watcherd-{os.getpid()}-{next(_numbers)}", names
        self.inside = ["ip", "netns", "exec", self.name]

    def card(self, guest: str) -> str:
        """Return the kernel argument that gives a guest its network card."""
        mac = f"02:00:00:00:00:{self.names.index(guest) + 1:02x}"
        return f"vec0:transport=tap,ifname=t{guest},depth=128,gro=0,mac={mac}"

    def make(self) -> None:
        """Make the namespace, the bridge and the plugs."""
        self._ip("netns", "add", self.name)
        self._link("add", "br0", "type", "bridge")
        self._link("set", "br0", "up")
        for name in self.names:
            self._ip("-n", self.name, "tuntap", "add", "dev", f"t{name}", "mode", "tap")
            self._link("set", f"t{name}", "master", "br0", "up")

    def cut(self, name: str) -> None:
        """Unplug a guest. (A tap that is set down breaks its card for good.)"""
        self._link("set", f"t{name}", "nomaster")

    def heal(self, name: str) -> None:
        """Plug it in again."""
        self._link("set", f"t{name}", "master", "br0")

    def remove(self) -> None:
        """Remove all of it; only once the guests have ended."""
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)

    def _link(self, *words: str) -> None:
        self._ip("-n", self.name, "link", *words)

    @staticmethod
    def _ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)


@contextmanager
def closing(guests: list[Guest], network: Network | None = None) -> Iterator[None]:
    """Have guests and their network for the length of a block."""
    try:
        yield
    finally:
        for guest in guests:
            guest.close()
        if network:
            network.remove()
