"""A machine of one's own, whose PID 1 is a real systemd, with watcherd installed by `make install`.

It is made of namespaces over a throw-away copy of a fresh Debian 12 (clean-root.sh,
systemd-lab.sh); tests look into it through /proc, and run its programs with nsenter. What is done
there is printed, with what came of it: `pytest -s` shows it as a transcript.
"""

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from archives import make_archive, make_image
from cloud import Cloud

from lab import BUILD, FILES, ROOT, until
from lab.service import Service
from lab.transcript import tell

LIFE_SECONDS = 1800
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
            ["bash", str(script), str(self.shared), str(LIFE_SECONDS), "sh", "-c", run],
            env=os.environ | {"LOWER": clean_root()},
        )
        self._told: dict[tuple[str, ...], str] = {}
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
        self, *words: str, check: bool = True, seconds: float = 120, told: bool = True, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in it, as root; `told`: it is part of the transcript."""
        enter = ["nsenter", "-t", str(self.pid), "-m", "-p", "-i", "-n", "-u", "-C", "--"]
        done = subprocess.run(
            [*enter, *words], capture_output=True, text=True, check=False, timeout=seconds,
            env={"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", **env}, cwd="/",
        )  # fmt: skip
        if told:
            self._tell(words, done)
        if check and done.returncode != 0:
            raise AssertionError(f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def _tell(self, words: tuple[str, ...], done: subprocess.CompletedProcess[str]) -> None:
        """Print a command and what it said; what is asked again and again, when that changes."""
        said = f"{done.stdout}{done.stderr}".rstrip() + f"\nexit {done.returncode}" * (
            done.returncode != 0
        )
        if self._told.get(words) != said:
            tell(f"# {shlex.join(words)}", said)
        self._told[words] = said

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

    def service(self, name: str, unit: str = "", **settings: Any) -> Service:
        """Set up an instance watcherd@NAME with a spool of its own; it is not started."""
        made = Service(self, name)
        made.settings |= settings
        made.write_config()
        made.drop_in(f"[Service]\nRestartSec=100ms\n{unit}")
        user = self.run("id", "-u", "stager").stdout.strip()
        self.run("install", "-d", "-o", user, str(made.inside))
        self.run("runuser", "-u", "stager", "--", "stager", "init", "--config", made.config)
        return made

    def disk(self, service: Service) -> str:
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


def clean_root() -> str:
    """Return where a fresh Debian is; the first time, it is made."""
    script = Path(__file__).with_name("clean-root.sh")
    done = subprocess.run(["sh", script], capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextmanager
def installed() -> Iterator[Machine]:
    """Have a machine with watcherd, put there by one `make install`."""
    machine = Machine()
    try:
        machine.deliver()
        machine.make("install")
        yield machine
    finally:
        machine.end()
