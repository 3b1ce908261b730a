"""A spool, a static tree and real daemons in a temporary directory, for the tests.

Nothing is simulated: daemons and client commands are processes, started with this checkout's
code; every wait has a deadline and fails with what the daemon said.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from archives import make_archive, make_image
from cloud import Cloud

from stager import site
from stager.config import load_config
from stager.instance import Heart
from stager.layout import Claim
from stager.lock import Locks
from stager.spool import Spool

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "chromeos-image-archive"
BUILD = f"gs://{BUCKET}/x86-alex-release/R23-2811.0.0"
FILES = {
    "test": "chromiumos_test_image.bin",
    "base": "chromiumos_base_image.bin",
    "recovery": "recovery_image.bin",
}
NOBODY = 65534
DEADLINE = 30.0
_numbers = itertools.count()
T = TypeVar("T")


def until(condition: Callable[[], T], what: str = "", seconds: float = DEADLINE) -> T:
    """Wait until `condition` is true and return its value; fail after a deadline."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        time.sleep(0.01)
    return value


@dataclass
class Daemon:
    """One running watcherd."""

    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        """Everything it has logged."""
        return self.log_path.read_text()

    def await_log(self, text: str, seconds: float = DEADLINE) -> None:
        """Wait until it has logged `text`."""
        end = time.monotonic() + seconds
        while text not in self.log:
            if time.monotonic() > end or self.process.poll() is not None:
                raise AssertionError(f"{text!r} was not logged:\n{self.log}")
            time.sleep(0.01)

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        self.process.kill()
        self.process.wait(DEADLINE)

    def stop(self) -> int:
        """End it as systemd would (SIGTERM); return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


@dataclass
class Peer:
    """An instance without a daemon: its steps are the test's."""

    heart: Heart
    spool: Spool
    locks: Locks

    @property
    def inst(self) -> str:
        """Its name."""
        return self.heart.inst


@dataclass
class Lab:
    """One set of directories with its configuration."""

    root: Path
    settings: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    user: int | None = None
    """The uid that daemons and `init` run as (None: ours)."""
    daemons: list[Daemon] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.settings = {
            "spool": str(self.root / "spool"),
            "static": str(self.root / "static"),
            "results": str(self.root / "results"),
            "archive": {"source": "directory", "directory": str(self.root / "archive")},
            "settle": "0.1s",
            "rescan": "0.2s",
            "heartbeat": "0.5s",
            "lease": "2s",
            "min_free": "0",
            **self.settings,
        }
        (self.root / "archive").mkdir(exist_ok=True)
        self.write_config()

    # -- setting up ----------------------------------------------------------------------------

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def requests(self) -> Path:
        return self.root / "spool/requests"

    def spool(self, room: str) -> list[str]:
        """List one of the spool's directories."""
        return sorted(os.listdir(self.root / "spool" / room))

    def write_config(self, **changes: Any) -> None:
        """Write the configuration file, with changes."""
        self.settings |= changes
        self.config.write_text(yaml.safe_dump(self.settings))
        self.config.chmod(0o644)

    def init(self) -> "Lab":
        """Do as `stager init`, as the daemons' user."""
        if self.user is None:
            site.init(load_config(self.config, {}))
            return self
        os.chown(self.root, self.user, -1)
        done = self.stager("init", user=self.user)
        assert done.returncode == 0, done.stderr
        return self

    def archive(self, build: str = BUILD, **options: Any) -> dict[str, bytes]:
        """Put an image.zip for a build into the archive directory; return its images."""
        path = self.archive_path(build)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        if "images" not in options:
            chance = sum(build.encode())
            options["images"] = {
                name: make_image(chance + i, 300_000) for i, name in enumerate(FILES.values())
            }
        contents = make_archive(new, **options)
        new.rename(path)
        return contents

    def archive_path(self, build: str = BUILD) -> Path:
        """Return where a build's image.zip is in the archive directory."""
        return self.root / "archive" / build.removeprefix("gs://") / "image.zip"

    def upload(self, cloud: Cloud, build: str = BUILD, **options: Any) -> dict[str, bytes]:
        """Put an image.zip for a build into a Cloud Storage double; return its images."""
        contents = self.archive(build, **options)
        bucket, _, path = build.removeprefix("gs://").partition("/")
        cloud.put(bucket, f"{path}/image.zip", self.archive_path(build))
        return contents

    def peer(self, *, machine: str = "", boot: str = "", dead: bool = False) -> Peer:
        """Register an instance of this machine or another one; a dead one's process is gone."""
        config = load_config(self.config, {})
        heart = Heart(config.paths, config.heartbeat, config.lease)
        mine = heart.identity
        boot = boot or (f"boot-of-{machine}" if machine else mine.boot)
        started = 1 if dead else mine.started
        heart.identity = replace(mine, machine=machine or mine.machine, boot=boot, started=started)
        heart.register()
        return Peer(heart, Spool(config.paths, heart), Locks(config.paths, heart))

    # -- programs ------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """Return the environment of every process: this checkout, no configuration of ours."""
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("STAGER_", "STORAGE_"))}
        return keep | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | self.env

    def start(self, *options: str, wait: bool = True, config: Path | None = None) -> Daemon:
        """Start a watcherd; wait until it watches."""
        log_path = self.root / f"daemon-{len(self.daemons) + 1}.log"
        command = [sys.executable, str(ROOT / "watcherd.py"), "--config"]
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [*command, str(config or self.config), *options],
                stderr=log, stdout=log, env=self.environment(), user=self.user,
            )  # fmt: skip
        daemon = Daemon(process, log_path)
        self.daemons.append(daemon)
        if wait:
            daemon.await_log("watching the drop box")
        return daemon

    def end(self) -> None:
        """Kill the daemons that are still there."""
        for daemon in self.daemons:
            if daemon.process.poll() is None:
                daemon.kill()

    @contextmanager
    def running(self, *options: str) -> Iterator[Daemon]:
        """Have a watcherd for the length of a block; it must end well."""
        daemon = self.start(*options)
        try:
            yield daemon
        finally:
            code = daemon.stop()
        assert code == 0, daemon.log
        assert "Traceback" not in daemon.log, daemon.log

    def once(self, *options: str, seconds: float = DEADLINE) -> subprocess.CompletedProcess[str]:
        """Run `watcherd --once`."""
        command = [sys.executable, str(ROOT / "watcherd.py"), "--config", str(self.config)]
        return subprocess.run(
            [*command, "--once", *options], capture_output=True, text=True, check=False,
            timeout=seconds, env=self.environment(), user=self.user,
        )  # fmt: skip

    def stager(
        self, *words: str, user: int | None = None, seconds: float = DEADLINE, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a client command, as another user if told so."""
        command = [sys.executable, "-m", "stager.cli", words[0], "--config", str(self.config)]
        return subprocess.run(
            [*command, *words[1:]], capture_output=True, text=True, check=False,
            timeout=seconds, env=self.environment(), user=user, cwd="/", **options,
        )  # fmt: skip

    # -- requests ------------------------------------------------------------------------------

    def drop(
        self, name: str, build: str = BUILD, images: Sequence[str] = ("test",), **more: Any
    ) -> str:
        """Drop a request as a careful script does (write, then mv); return its NAME."""
        return self.drop_text(
            name, yaml.safe_dump({"build": build, "images": list(images), **more})
        )

    def drop_text(self, name: str, text: str | bytes, suffix: str = ".yaml") -> str:
        """Drop a file with this content; return its NAME."""
        tmp = self.requests / f".{name}.tmp"
        tmp.write_bytes(text if isinstance(text, bytes) else text.encode())
        tmp.rename(self.requests / f"{name}{suffix}")
        return name

    def ask(
        self, build: str = BUILD, images: Sequence[str] = ("test",), **more: Any
    ) -> dict[str, Any]:
        """Drop a request under a NAME of its own and return the answer."""
        return self.result(self.drop(f"ask-{next(_numbers)}", build, images, **more))

    def result(self, name: str, seconds: float = DEADLINE) -> dict[str, Any]:
        """Wait for the answer to NAME and return it."""
        path = self.root / "results" / f"{name}.yaml"
        try:
            until(path.exists, f"an answer to {name}", seconds)
        except AssertionError as e:
            logs = "\n".join(p.read_text() for p in sorted(self.root.glob("daemon-*.log")))
            raise AssertionError(f"{e}\n{logs}\n{self.listing()}") from None
        data: dict[str, Any] = yaml.load(path.read_bytes(), yaml.BaseLoader)
        return data

    def ended(self, name: str) -> list[Claim]:
        """Return the committed requests that were dropped as NAME.yaml: one for each answer."""
        rooms = ("done", "failed", "cancelled")
        claims = [Claim.parse(entry) for room in rooms for entry in self.spool(room)]
        return [claim for claim in claims if claim and claim.file == f"{name}.yaml"]

    def instances(self) -> list[str]:
        """Return the names of the instances that have a heartbeat file."""
        beats = [name.rpartition(".") for name in self.spool("instances")]
        return sorted(inst for inst, _, count in beats if count.isdigit())

    def bury(self, inst: str) -> None:
        """Take an instance's heartbeat file away, as one that takes it for dead does."""
        room = self.root / "spool/instances"

        def taken() -> bool:
            for beat in self.spool("instances"):
                name, _, count = beat.rpartition(".")
                if name == inst and count.isdigit():
                    with suppress(FileNotFoundError):  # it beat meanwhile
                        (room / beat).unlink()
                        return True
            return False

        until(taken, f"the heartbeat file of {inst}")

    def listing(self) -> str:
        """Say what stands in the spool, for failures."""
        rooms = ("requests", "active", "waiting", "done", "failed", "cancelled", "private", "tmp")
        return json.dumps({room: self.spool(room) for room in rooms}, indent=1)

    def image(self, image: str, build: str = BUILD) -> Path:
        """Return where an image is served."""
        return self.target(build) / FILES[image]

    def target(self, build: str = BUILD) -> Path:
        """Return a build's directory in the static tree."""
        return self.root / "static/images" / build.removeprefix("gs://").partition("/")[2]

    def flag(self, build: str = BUILD) -> list[str]:
        """Return the flag file's lines."""
        path = self.target(build) / "staged"
        return path.read_text().splitlines() if path.exists() else []

    def is_clean(self) -> bool:
        """Whether nothing is under way and nothing is left over."""
        rooms = [self.root / "spool" / r for r in ("active", "waiting", "private", "tmp")]
        rooms += [self.root / "static/.stager" / r for r in ("work", "tmp")]
        return not any(os.listdir(room) for room in rooms)


@contextmanager
def serving(**settings: Any) -> Iterator[Lab]:
    """Have a lab with one daemon for many tests, each with a build of its own."""
    root = Path(tempfile.mkdtemp(prefix="watcherd-test-"))
    root.chmod(0o755)
    lab = Lab(root, settings).init()
    try:
        with lab.running():
            yield lab
        assert lab.is_clean(), lab.listing()
    finally:
        lab.end()
        shutil.rmtree(root)
