"""The contestants: what people would use instead, the floor, and watcherd."""

import hashlib
import importlib.util
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from benchmarks import material, measure
from benchmarks.daemon import Site
from benchmarks.material import Archive
from benchmarks.measure import Cost
from benchmarks.names import IN_MOVED_TO, names
from benchmarks.served import BUCKET, OBJECT, Served

PROGRAMS = Path(__file__).parent / "programs"
IMAGES = dict(zip(material.MEMBERS, ("test", "base", "recovery"), strict=True))
Run = Callable[[Path, list[str]], Cost]
"""Puts these members into an empty directory."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Somebody who can put members of the archive into a directory."""

    name: str
    run: Run


def peers(served: Served) -> Iterator[Peer]:
    """Yield those that can run here."""
    media = f"{served.url}/download/storage/v1/b/{BUCKET}/o/{quote(OBJECT, safe='')}?alt=media"
    if shutil.which("gcloud"):
        yield Peer("gcloud + unzip", _shell(
            f"gcloud storage cp -q gs://{BUCKET}/{OBJECT} {{zip}}",
            CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE=f"{served.url}/storage/v1/",
            CLOUDSDK_AUTH_DISABLE_CREDENTIALS="true",
            CLOUDSDK_CORE_DISABLE_USAGE_REPORTING="true",
            CLOUDSDK_CONFIG=str(served.root / "gcloud"),
        ))  # fmt: skip
    if shutil.which("rclone"):
        yield Peer("rclone + unzip", _shell(
            "rclone copyto --config=/dev/null --gcs-anonymous "
            f"--gcs-endpoint={served.url}/storage/v1/ :gcs:{BUCKET}/{OBJECT} {{zip}}"
        ))  # fmt: skip
    object_ = (served.url, BUCKET, OBJECT)
    yield Peer("client + zipfile", _program("client.py", "whole", *object_))
    yield Peer("BlobReader + zipfile", _program("client.py", "reader", *object_))
    if importlib.util.find_spec("remotezip"):
        yield Peer("remotezip", _program("remote.py", media))
    for kind, module in (("isal", "isal"), ("zlib-ng", "zlib_ng")):
        if importlib.util.find_spec(module):
            yield Peer(f"floor, {kind}", _program("floor.py", kind, media))


def _shell(fetch: str, **env: str) -> Run:
    def run(target: Path, members: list[str]) -> Cost:
        archive = target / "image.zip"
        unzip = shlex.join(["unzip", "-q", "-o", str(archive), *members, "-d", str(target)])
        script = f"{fetch.format(zip=archive)} && {unzip} && rm {archive}"
        return measure.run(["sh", "-c", script], env, target.parent / "peers.log")

    return run


def _program(name: str, *arguments: str) -> Run:
    def run(target: Path, members: list[str]) -> Cost:
        command = [sys.executable, str(PROGRAMS / name), *arguments, str(target), *members]
        return measure.run(command, {}, target.parent / "peers.log")

    return run


@contextmanager
def watcherd(site: Site, name: str = "watcherd", *, one_core: bool = False) -> Iterator[Peer]:
    """Run a daemon that is asked for a build of its own each time."""
    with site.daemon(one_core=one_core) as process:

        def run(_: Path, members: list[str]) -> Cost:
            asked = f"{name}-{time.monotonic_ns()}".replace(" ", "-").replace(",", "")
            measure.forget_peak(process.pid)
            images = ", ".join(IMAGES[m] for m in members)
            with names(site.results, IN_MOVED_TO) as came:
                cpu, began = measure.cpu_seconds(process.pid), time.monotonic()
                site.drop(asked, f"board-release/{asked}", images)
                # Not by looking: that would take one of the cores that it works on.
                came.wait_for(f"{asked}.yaml", 600)
                wall = time.monotonic() - began
            site.await_state(asked, "staged", 1)
            return Cost(wall, measure.cpu_seconds(process.pid) - cpu, measure.memory(process.pid))

        yield Peer(name, run)


def one_by_one(daemon: Peer) -> Peer:
    """Return a daemon's way with each member asked for alone, the next when one is there.

    Each has both threads of a single image then: one inflates, one hashes and writes.
    """

    def run(target: Path, members: list[str]) -> Cost:
        costs = [daemon.run(target, [member]) for member in members]
        memory = max(cost.memory for cost in costs)
        return Cost(sum(c.wall for c in costs), sum(c.cpu for c in costs), memory)

    return Peer("one by one", run)


def once(site: Site) -> Peer:
    """Return `watcherd --once`, start of the daemon and all."""

    def run(_: Path, members: list[str]) -> Cost:
        asked = f"once-{time.monotonic_ns()}"
        site.drop(asked, f"board-release/{asked}", ", ".join(IMAGES[m] for m in members))
        cost = measure.run(site.command("--once"), site.env, site.root / "once.log")
        site.await_state(asked, "staged", 1)
        return cost

    return Peer("watcherd --once", run)


def check(directory: Path, archive: Archive, members: list[str]) -> None:
    """Raise where a member that was just made is not what it must be; remove them all."""
    for content in archive.images:
        for path in directory.rglob(content.name):
            with path.open("rb") as f:
                digest = hashlib.file_digest(f, "sha256").hexdigest()
            if digest != content.sha256:
                raise RuntimeError(f"{path} is not what it must be")
            path.unlink()
            members = [member for member in members if member != content.name]
    if members:
        raise RuntimeError(f"{members} not made in {directory}")


def settle() -> None:
    """Have what earlier runs left in memory written, so that it weighs on nobody."""
    subprocess.run(["sync"], check=True)
