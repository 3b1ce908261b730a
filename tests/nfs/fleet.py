"""One spool on the file server, real daemons on its clients, and everything that watches them."""

import itertools
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from lab import ROOT
from network import EXPORT, Machines
from traffic import Ask

HERE = Path(__file__).resolve().parent
OWNER, PEOPLE = 1500, 1001
LEASE, HEARTBEAT = 6.0, 1.0
POLL_SECONDS = 0.3
_numbers = itertools.count()


def until(condition: Callable[[], Any], what: str, seconds: float) -> float:
    """Wait until `condition` is true; return the seconds that took."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(POLL_SECONDS)
    return time.monotonic() - start


@dataclass
class Fleet:
    """The daemons of one spool; `name` tells it from others on the same machines."""

    machines: Machines
    name: str
    hosts: tuple[str, ...] = ("a", "b")
    ids: dict[str, str] = field(default_factory=dict)
    """Machine ids that are not the machine's own."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What differs from these tests' configuration."""
    asks: list[Ask] = field(default_factory=list)
    pids: dict[str, int] = field(default_factory=dict)
    watchers: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def lab(self) -> Path:
        return self.machines.lab

    @property
    def root(self) -> str:
        """Its place on the server's own disk."""
        return f"{EXPORT}/{self.name}"

    def run(self, machine: str, script: str, seconds: float = 60.0) -> str:
        """Run a script on a machine."""
        return self.machines.run(machine, script, seconds)

    # -- setting up ----------------------------------------------------------------------------

    def make(self) -> None:
        """Make the spool as an administrator does, and have it watched."""
        self.run("srv", f"mkdir -p {self.root}; chown {OWNER}:{OWNER} {self.root}")
        for host in (*self.hosts, "r"):
            here = f"/run/{self.name}"
            config = shlex.quote(yaml.safe_dump(self._settings(host)))
            self.run(
                host, f"mkdir -p {here}; chmod 777 {here}; echo {config} > {self.config(host)}"
            )
        self.stager(self.hosts[0], "init")
        self.watch("srv")
        self.read("r")

    def watch(self, machine: str) -> None:
        """Have the server's disk watched."""
        out = self.lab / f"{self.name}.events"
        before = out.read_text().count('"watching"') if out.exists() else 0
        pid = self._background(machine, "guest_watch.py", self.root, str(out))
        self.watchers["watch"] = (machine, pid)
        until(lambda: out.exists() and out.read_text().count('"watching"') > before, "watching", 30)

    def read(self, machine: str) -> None:
        """Have flags and images read all the time."""
        static = f"/mnt/{machine}/{self.name}/static"
        known = self.machines.home / "known.json"
        out = f"/run/{self.name}/reader.json"
        pid = self._background(machine, "guest_read.py", static, str(known), out)
        self.watchers["read"] = (machine, pid)

    def _background(self, machine: str, script: str, *words: str) -> int:
        command = shlex.join([sys.executable, str(HERE / script), *words])
        log = f"/run/{self.name}.{script}.log"
        return int(self.run(machine, f"{command} > {log} 2>&1 < /dev/null & echo $!"))

    def _settings(self, host: str) -> dict[str, Any]:
        there = f"/mnt/{host}/{self.name}"
        return {
            **{name: f"{there}/{name}" for name in ("spool", "static", "results")},
            "archive": {"source": "directory", "directory": str(self.machines.home / "archive")},
            "settle": "0.5s", "min_free": "0", "heartbeat": HEARTBEAT, "lease": LEASE,
            **self.settings,
        }  # fmt: skip

    def config(self, host: str) -> str:
        """Return a machine's configuration file."""
        return f"/run/{self.name}/{host}.yaml"

    # -- daemons -------------------------------------------------------------------------------

    def start(self, host: str, steps: Sequence[str] = ()) -> None:
        """Start a daemon; it stops itself before each of `steps`, in turn."""
        here = f"/run/{self.name}"
        program = [sys.executable]
        if steps:
            program += [str(HERE / "guest_stop.py"), here, ",".join(steps)]
        program += [str(ROOT / "watcherd.py"), "--config", self.config(host)]
        boot = f"boot-of-{host}-{next(_numbers)}"
        command = shlex.join(["machine", host, self.ids.get(host, f"id-of-{host}"), boot])
        user = f"setpriv --reuid {OWNER} --regid {OWNER} --clear-groups"
        env = f"cd /; export PYTHONPATH={ROOT} PYTHONUNBUFFERED=1"
        log = f"{here}/{host}.log"
        script = (
            f"{env}; {command} {user} {shlex.join(program)} >> {log} 2>&1 < /dev/null & echo $!"
        )
        self.pids[host] = int(self.run(host, script))
        self.await_log(host, "watching the drop box", 60)

    def await_log(self, host: str, text: str, seconds: float = 30.0) -> None:
        """Wait until a daemon has logged a text."""
        log = f"/run/{self.name}/{host}.log"
        script = f"""for i in $(seq {int(seconds * 5)})
            do grep -q {shlex.quote(text)} {log} && exit 0
            kill -0 {self.pids[host]} || break; sleep .2; done; tail -20 {log}; exit 1"""
        self.run(host, script, seconds * 3 + 30)

    def log(self, host: str) -> str:
        """Return what a machine's daemons have logged."""
        return self.run(host, f"cat /run/{self.name}/{host}.log")

    def say_all(self) -> None:
        """Print what may explain a failure."""
        with suppress(AssertionError):
            print(self.run("srv", f"cd {self.root}; ls -A spool/* static/.stager/*", 10))
        for host in self.hosts:
            with suppress(AssertionError):
                print(f"-- {host}\n" + self.run(host, f"tail -40 /run/{self.name}/{host}.log", 10))

    def signal(self, host: str, name: str) -> None:
        """Send a daemon a signal."""
        self.run(host, f"kill -{name} {self.pids[host]}")

    def pause(self, host: str) -> None:
        """Have a machine claim nothing; return once it knows."""
        count = f"grep -c ' paused$' /run/{self.name}/{host}.log; true"
        before = int(self.run(host, count))
        self.stager(host, "pause", "--host", f"lab-{host}")
        until(lambda: int(self.run(host, count)) > before, f"{host} pauses", 30)

    def resume(self, host: str) -> None:
        """Have it claim again."""
        self.stager(host, "resume", "--host", f"lab-{host}")

    def state(self, host: str) -> str:
        """Return the states of a daemon's threads, as /proc tells them: `DSS`."""
        stat = f"/proc/{self.pids[host]}/task/*/stat"
        return self.run(host, f"sed 's/.*) \\(.\\) .*/\\1/' {stat} 2>/dev/null | tr -d '\\n'; true")

    def stop(self, host: str) -> None:
        """End a daemon as systemd would; it must end well."""
        pid = self.pids.pop(host)
        script = f"""kill -TERM {pid}
            for i in $(seq 300); do kill -0 {pid} 2>/dev/null || exit 0; sleep .1; done
            tail -20 /run/{self.name}/{host}.log; exit 1"""
        self.run(host, script, 120)

    def stager(self, host: str, *words: str, seconds: float = 60.0) -> str:
        """Run a client command as the daemons' user."""
        command = [sys.executable, "-m", "stager.cli", words[0], "--config", self.config(host)]
        user = f"setpriv --reuid {OWNER} --regid {OWNER} --clear-groups"
        script = f"cd /; PYTHONPATH={ROOT} {user} {shlex.join([*command, *words[1:]])}"
        return self.run(host, script, seconds)

    # -- traffic -------------------------------------------------------------------------------

    def drop(self, asks: Sequence[Ask], seconds: float = 0.0) -> None:
        """Have requests dropped, each side's by a process of its own; goes on meanwhile."""
        self.asks.extend(asks)
        listed = f"/run/{self.name}-{next(_numbers)}.json"
        text = shlex.quote(json.dumps([asdict(ask) | {"text": ask.text} for ask in asks]))
        for side in sorted({ask.side for ask in asks}):
            home = self.root if side == "srv" else f"/mnt/{side}/{self.name}"
            words = [sys.executable, str(HERE / "guest_drop.py"), f"{home}/spool/requests"]
            words += [listed, side, str(seconds)]
            user = f"setpriv --reuid {PEOPLE} --regid {PEOPLE} --clear-groups"
            log = f"/run/{self.name}.drop.{side}.log"
            self.run(
                side,
                f"echo {text} > {listed}; {user} {shlex.join(words)} >> {log} 2>&1 < /dev/null &",
            )

    def answered(self) -> int:
        """Return how many answers there are, as the server's disk has it."""
        return int(self.run("srv", f"ls {self.root}/results | grep -c yaml$; true"))

    def await_answers(self, seconds: float) -> float:
        """Wait until everything that was asked is answered; return how long that took."""
        return until(lambda: self.answered() >= len(self.asks), "all answers", seconds)

    def clock(self) -> float:
        """Return the server's monotonic clock, as its watcher tells it."""
        return float(self.run("srv", "cut -d' ' -f1 /proc/uptime"))

    def beats(self) -> dict[str, int]:
        """Return every instance's counter, as the server's disk has it."""
        names = self.run("srv", f"ls {self.root}/spool/instances").split()
        pairs = (name.rpartition(".") for name in names)
        return {inst: int(count) for inst, _, count in pairs if count.isdigit()}

    # -- the end -------------------------------------------------------------------------------

    def examine(self) -> dict[str, str]:
        """Run `stager doctor` on every machine; return what it says where it is not content."""
        said = {}
        for host in self.hosts:
            text = self.stager(host, "doctor")
            said[host] = text.strip()
        return said

    def take_home(self) -> Path:
        """End what watches, and copy everything to the host; return where it is."""
        for machine, pid in self.watchers.values():
            self.run(
                machine, f"kill -TERM {pid}; while kill -0 {pid} 2>/dev/null; do sleep .1; done"
            )
        self.run("srv", f"tar -C {EXPORT} -cf {self.lab}/{self.name}.tar {self.name}")
        subprocess.run(["tar", "-C", self.lab, "-xf", f"{self.lab}/{self.name}.tar"], check=True)
        home = self.lab / self.name
        shutil.copy(self.machines.home / "known.json", home)
        (home / "reader.json").write_text(self.run("r", f"cat /run/{self.name}/reader.json"))
        for host in self.hosts:
            (home / f"{host}.log").write_text(self.log(host))
        return home


@contextmanager
def fleet(machines: Machines, name: str, hosts: tuple[str, ...] = ("a", "b"),
          ids: dict[str, str] | None = None,
          settings: dict[str, Any] | None = None) -> Iterator[Fleet]:  # fmt: skip
    """Have a spool for the length of a block; its daemons are killed where it fails."""
    made = Fleet(machines, name, hosts, ids or {}, settings or {})
    made.make()
    try:
        yield made
    except BaseException:
        made.say_all()
        raise
    finally:
        for host, pid in made.pids.items():
            made.run(host, f"kill -KILL {pid}; true")
