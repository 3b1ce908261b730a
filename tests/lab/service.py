"""One instance of the service on a machine of its own, seen from outside."""

import json
import os
import signal
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lab import BUILD, until
from lab.transcript import tell

if TYPE_CHECKING:
    from lab.machine import Machine


@dataclass
class Service:
    """One instance, seen from outside the machine."""

    machine: "Machine"
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
        """Stop it, as far as it runs; its journal goes into the transcript."""
        self.machine.systemctl("stop", self.unit)
        form = ["--no-hostname", "-o", "short-precise"]
        self.machine.run("journalctl", "-q", *form, "-u", self.unit)

    def send(self, number: signal.Signals) -> None:
        """Send its main process a signal."""
        tell(f"* {number.name} to {self.unit}")
        os.kill(self.host_pid, number)

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
        self.machine.run("journalctl", "--sync", told=False)
        command = ["journalctl", "-q", "-o", "json", "-u", self.unit]
        lines = self.machine.run(*command, told=False).stdout
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
        tell(f"* dropped {name}.yaml for {self.unit}: {', '.join(images)} of {build}")
        return name

    def result(self, name: str, seconds: float = 30) -> dict[str, Any]:
        """Wait for an answer and return it."""
        path = self.base / f"results/{name}.yaml"
        try:
            until(path.exists, f"an answer to {name}", seconds)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.log()}") from None
        tell(f"* answered {path.name}", path.read_text().rstrip())
        data: dict[str, Any] = yaml.load(path.read_bytes(), yaml.BaseLoader)
        return data

    def spool(self, room: str) -> list[str]:
        """List one of the spool's directories."""
        return sorted(os.listdir(self.base / "spool" / room))
