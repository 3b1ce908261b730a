"""A machine of one's own, whose PID 1 is a real systemd, with watcherd installed by `make install`.

It is made of namespaces over a throw-away copy of this machine's file tree (systemd-lab.sh); tests
look into it through /proc, and run its programs with nsenter.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from archives import make_archive, make_image
from cloud import Cloud

from lab import BUILD, FILES, ROOT, until

LIFE_SECONDS = 900
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CLONE_NEWNET = 0x40000000


class Machine:
    """A booted machine; a context."""

    def __init__(self) -> None:
        self.shared = Path(tempfile.mkdtemp(prefix="watcherd-machine-"))
        self.shared.chmod(0o755)
        os.mkfifo(self.shared / "hold")
        # It ends when the last writer is gone: with this process at the latest.
        self._hold = os.open(self.shared / "hold", os.O_RDWR | os.O_CLOEXEC)
        run = f"touch {self.shared}/up; exec cat {self.shared}/hold"
        script = Path(__file__).with_name("systemd-lab.sh")
        self._process = subprocess.Popen(
            ["bash", str(script), str(self.shared), str(LIFE_SECONDS), "sh", "-c", run]
        )
        try:
            until((self.shared / "up").exists, "the machine boots")
        except AssertionError as e:
            said = (self.shared / "console").read_text(errors="replace")
            self.end()
            raise AssertionError(f"{e}\n{said}") from None
        self.pid = int((self.shared / "pid").read_text())
        self.root = Path(f"/proc/{self.pid}/root")

    def end(self) -> None:
        """Switch it off."""
        os.close(self._hold)
        self._process.wait(60)
        shutil.rmtree(self.shared, ignore_errors=True)

    def run(
        self, *words: str, check: bool = True, seconds: float = 120, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in it, as root."""
        enter = ["nsenter", "-t", str(self.pid), "-m", "-p", "-i", "-n", "-u", "-C", "--"]
        done = subprocess.run(
            [*enter, *words], capture_output=True, text=True, check=False, timeout=seconds,
            env={"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", **env}, cwd="/",
        )  # fmt: skip
        if check and done.returncode != 0:
            raise AssertionError(f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def systemctl(self, *words: str, check: bool = True) -> str:
        """Run systemctl; return what it prints."""
        done = self.run("systemctl", *words, check=check)
        return done.stdout + done.stderr

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write one of its files."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    @contextmanager
    def network(self) -> Iterator[None]:
        """Have this thread's new sockets in the machine's network."""
        libc = ctypes.CDLL(None, use_errno=True)
        mine = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        its = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        try:
            assert libc.setns(its, CLONE_NEWNET) == 0
            yield
        finally:
            assert libc.setns(mine, CLONE_NEWNET) == 0
            os.close(mine)
            os.close(its)

    def archive(self, build: str = BUILD) -> Path:
        """Put a build's image.zip into /srv/archive; return where it is, from here."""
        path = self.root / "srv/archive" / build.removeprefix("gs://") / "image.zip"
        path.parent.mkdir(parents=True, exist_ok=True)
        images = {f: make_image(i, 300_000) for i, f in enumerate(FILES.values())}
        make_archive(path, images=images)
        return path

    @contextmanager
    def cloud(self) -> Iterator[Cloud]:
        """Have a Cloud Storage in its network, with one build, whose answers crawl."""
        with self.network(), Cloud() as cloud:
            bucket, _, rest = BUILD.removeprefix("gs://").partition("/")
            cloud.put(bucket, f"{rest}/image.zip", self.archive())
            cloud.slow(20_000)
            yield cloud

    @staticmethod
    def reading(cloud: Cloud) -> dict[str, Any]:
        """Return the settings of a service that reads from there."""
        return {
            "unit": f"Environment=STORAGE_EMULATOR_HOST={cloud.url}\n",
            "archive": {"source": "gcs", "connections": "1"},
        }

    # -- watcherd ------------------------------------------------------------------------------

    def deliver(self) -> None:
        """Bring in this checkout and the wheels that it needs."""
        skip = shutil.ignore_patterns(".git", ".*venv*", ".*_cache", "__pycache__", ".coverage*")
        shutil.copytree(ROOT, self.shared / "source", ignore=skip)
        pip = self.shared / "pip"
        subprocess.run(["/usr/bin/python3", "-m", "venv", str(pip)], check=True)
        index = os.environ.get("WHEELS")
        where = ["--no-index", "--find-links", index] if index else []
        subprocess.run(
            [pip / "bin/python", "-m", "pip", "wheel", "-q", "-w", self.shared / "wheels", *where,
             str(ROOT), "hatchling>=1.25,<2"],
            check=True, capture_output=True, timeout=300,
        )  # fmt: skip

    def make(
        self, target: str, check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `make TARGET` in the checkout there: no network, only wheels."""
        words = [f"{key}={value}" for key, value in variables.items()]
        return self.run(
            "make", "-C", f"{self.shared}/source", target, f"WHEELS={self.shared}/wheels", *words,
            seconds=300, check=check,
        )  # fmt: skip

    def service(self, name: str, unit: str = "", **settings: Any) -> "Service":
        """Set up an instance watcherd@NAME with a spool of its own; it is not started."""
        made = Service(self, name)
        made.settings |= settings
        made.write_config()
        made.drop_in(f"[Service]\nRestartSec=100ms\n{unit}")
        user = self.run("id", "-u", "stager").stdout.strip()
        self.run("install", "-d", "-o", user, str(made.inside))
        self.run("runuser", "-u", "stager", "--", "stager", "init", "--config", made.config)
        return made

    def disk(self, service: "Service") -> str:
        """Move a service's directories to a filesystem of their own; return its mount unit."""
        image, unit = f"/srv/{service.name}.img", f"srv-watcherd-{service.name}.mount"
        self.run("mke2fs", "-q", "-t", "ext4", "-d", str(service.inside), image, "48M")
        self.run("sh", "-c", f"rm -r {service.inside}/*")
        self.write(
            f"/run/systemd/system/{unit}",
            f"[Mount]\nWhat={image}\nWhere={service.inside}\nType=ext4\nOptions=loop\n",
        )
        self.systemctl("daemon-reload")
        return unit


@dataclass
class Service:
    """One instance, seen from outside the machine."""

    machine: Machine
    name: str

    def __post_init__(self) -> None:
        self.inside = Path("/srv/watcherd") / self.name
        self.base = self.machine.root / "srv/watcherd" / self.name
        self.unit, self.config = f"watcherd@{self.name}.service", f"/etc/stager/{self.name}.yaml"
        self.settings: dict[str, Any] = {
            "spool": f"{self.inside}/spool",
            "static": f"{self.inside}/static",
            "results": f"{self.inside}/results",
            "archive": {"source": "directory", "directory": "/srv/archive"},
            "settle": "0.1s",
            "rescan": "0.5s",
            "heartbeat": "0.5s",
            "lease": "3s",
            "min_free": "0",
        }

    def write_config(self, **changes: Any) -> None:
        """Write its configuration, with changes."""
        self.settings |= changes
        self.machine.write(self.config, yaml.safe_dump(self.settings))

    def drop_in(self, text: str) -> None:
        """Change its unit."""
        self.machine.write(f"/run/systemd/system/{self.unit}.d/50-test.conf", text)
        self.machine.systemctl("daemon-reload")

    def start(self) -> None:
        """Start it; it must become ready."""
        done = self.machine.run("systemctl", "start", self.unit, check=False)
        assert done.returncode == 0, done.stderr + self.log()

    def stop(self) -> None:
        """Stop it, as far as it runs."""
        self.machine.systemctl("stop", self.unit)

    @property
    def pid(self) -> int:
        """Its main process' number, in the machine."""
        return int(self.show("MainPID"))

    @property
    def host_pid(self) -> int:
        """The same from here."""
        group = self.machine.root / "sys/fs/cgroup" / self.show("ControlGroup").lstrip("/")
        return int((group / "cgroup.procs").read_text().split()[0])

    def show(self, field: str) -> str:
        """Return a property of the unit."""
        return self.machine.systemctl("show", "-p", field, "--value", self.unit).strip()

    def journal(self) -> list[dict[str, Any]]:
        """Return what it wrote, and what systemd wrote of it."""
        self.machine.run("journalctl", "--sync")
        lines = self.machine.run("journalctl", "-q", "-o", "json", "-u", self.unit).stdout
        return [json.loads(line) for line in lines.splitlines()]

    def log(self) -> str:
        """Return the messages of its journal."""
        return "\n".join(str(entry["MESSAGE"]) for entry in self.journal())

    def drop(self, images: Sequence[str] = ("test",), build: str = BUILD, **more: Any) -> str:
        """Drop a request; return its NAME."""
        name = f"r-{uuid.uuid4().hex[:8]}"
        tmp = self.base / f"spool/requests/.{name}"
        tmp.write_text(yaml.safe_dump({"build": build, "images": list(images), **more}))
        tmp.rename(tmp.with_name(f"{name}.yaml"))
        return name

    def result(self, name: str, seconds: float = 30) -> dict[str, Any]:
        """Wait for an answer and return it."""
        path = self.base / f"results/{name}.yaml"
        try:
            until(path.exists, f"an answer to {name}", seconds)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.log()}") from None
        data: dict[str, Any] = yaml.load(path.read_bytes(), yaml.BaseLoader)
        return data

    def spool(self, room: str) -> list[str]:
        """List one of the spool's directories."""
        return sorted(os.listdir(self.base / "spool" / room))


@contextmanager
def installed() -> Iterator[Machine]:
    """Have a machine with watcherd, put there by one `make install`."""
    machine = Machine()
    try:
        machine.deliver()
        done = machine.make("install")
        sys.stderr.write(done.stdout)
        yield machine
    finally:
        machine.end()
