"""A spool of our own, the daemons on it, and what people do with them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import measure
from benchmarks.served import BUCKET

BINARIES = Path(sys.executable).parent


class Site:
    """A spool, a static tree and results below one directory."""

    def __init__(self, root: Path, endpoint: str = "", **settings: str | int) -> None:
        root.mkdir(parents=True)
        self.root, self.endpoint = root, endpoint
        self.requests, self.results = root / "spool/requests", root / "results"
        self.config = root / "config.yaml"
        archive = settings.pop("archive", "{source: gcs}")
        lines = [f"{key}: {value}" for key, value in settings.items()]
        self.config.write_text(
            f"spool: {root}/spool\nstatic: {root}/static\nresults: {root}/results\n"
            f"archive: {archive}\nmin_free: 1M\n" + "".join(f"{line}\n" for line in lines)
        )
        subprocess.run([BINARIES / "stager", "init", "--config", self.config], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip

    @property
    def env(self) -> dict[str, str]:
        """The environment of its daemons."""
        return {"STORAGE_EMULATOR_HOST": self.endpoint} if self.endpoint else {}

    def command(self, *options: str) -> list[str | Path]:
        """Return the daemon's command line."""
        return [BINARIES / "watcherd", "--config", self.config, *options]

    @contextmanager
    def daemon(
        self, name: str = "daemon", *, one_core: bool = False
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a daemon for the length of a block; on one core it does all with one thread."""
        core = str(max(os.sched_getaffinity(0)))
        confined = ["taskset", "--cpu-list", core] if one_core else []
        log = self.root / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*confined, *self.command()], stdout=out, stderr=out, env={**os.environ, **self.env}
            )
        try:
            measure.until(lambda: b"watching the drop box" in log.read_bytes(), 120)
            yield process
        finally:
            measure.end(process)

    def drop(self, name: str, build: str, images: str) -> None:
        """Ask as a script does: write beside, move in."""
        tmp = self.root / f"{name}.tmp"
        tmp.write_text(f"build: gs://{BUCKET}/{build}\nimages: [{images}]\n")
        tmp.rename(self.requests / f"{name}.yaml")

    def state(self, name: str) -> str:
        """Return an answer's state; empty while there is none."""
        try:
            with (self.results / f"{name}.yaml").open() as f:
                return f.readline().split()[1]
        except FileNotFoundError:
            return ""

    def await_state(self, name: str, state: str, seconds: float) -> None:
        """Wait for an answer, which must be this one."""
        measure.until(lambda: bool(self.state(name)), seconds)
        if self.state(name) != state:
            raise RuntimeError(f"{name} is {self.state(name)}, not {state}; see {self.root}")
