"""What retention may take away."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from model.planted import WORLD, leaves_out
from stager import durable, gc
from stager.case import Case, Tools
from stager.config import Config
from stager.lock import Work
from stager.marker import Marker, Sidecar
from stager.visit import Visit


@leaves_out("an answer from what is there touches it", "stager.marker.Marker._touch",
            mood="retention")  # fmt: skip
def untouched(self: Marker, build: Any, image: str) -> bool:
    return self.paths.sidecar(build.key, image).name in durable.listing(self.paths.sidecars)


@leaves_out("touch, then read the flag", "stager.marker.Marker.staged", mood="last uses",
            watched=0.7, looked_at=0.7, chaos_seconds=1200.0)  # fmt: skip
def flag_before_touch(self: Marker, build: Any, images: list[str]) -> dict[str, Sidecar]:
    flagged = set(self.read_flag(build))
    found = {image: self.good(build, image) for image in images if image in flagged}
    return {
        image: sidecar
        for image, sidecar in found.items()
        if sidecar and sidecar.archive_url == build.archive_url and self._touch(build, image)
    }


def _nothing(_config: Config) -> set[str]:
    return set()


# What a request asks for that is claimed or waits is spared as well.
@leaves_out(
    "an answer that took long is looked at again",
    "stager.job.is_true",
    mood="retention",
    held_up=0.3,
    hung_seconds=600.0,
    watched=-1.0,
    drops=6,
    drop=20.0,
    also={"stager.gc._wanted": _nothing},
)
def not_looked_at_again(_tools: Tools, _case: Case) -> bool:
    return True


@leaves_out("retention looks at the uses again after the flag", "stager.gc.remove",
            mood="last uses")  # fmt: skip
def uses_not_looked_at_again(
    work: Work, marker: Marker, staged: gc.Staged, now: float  # noqa: ARG001
) -> str:  # fmt: skip
    build, paths = staged.build, marker.paths
    marker.write_flag(work, build, without=staged.images)
    for image in staged.images:
        work.away(marker.image_path(build, image))
        work.away(paths.sidecar(build.key, image))
    return ""


def _as_before(_self: Marker, _build: Any) -> None:
    return


# That the names are asked for anew once the token is there makes them young: a second defence.
@leaves_out("a use is looked for behind the cache", "stager.gc._touched", mood="last uses",
            stale_name=1.0, also={"stager.marker.Marker.look_afresh": _as_before})  # fmt: skip
def cached_uses(sidecar: Path) -> float:
    try:
        return float(WORLD.os.lstat(sidecar).st_mtime)
    except FileNotFoundError:
        return 0.0


@leaves_out("retention takes the flag's line first", "stager.gc.remove", mood="retention")
def image_first(work: Work, marker: Marker, staged: gc.Staged, now: float) -> str:  # noqa: ARG001
    build, paths = staged.build, marker.paths
    for image in staged.images:
        work.away(marker.image_path(build, image))
        work.away(paths.sidecar(build.key, image))
    marker.write_flag(work, build)
    return ""


@leaves_out("retention has the build's token", "stager.gc._remove_build", mood="last uses")
def without_the_token(visit: Visit, staged: gc.Staged) -> str:
    build, paths, marker = staged.build, visit.config.paths, visit.marker
    target = paths.target(build)
    lines = [line for line in marker.read_flag(build) if line not in staged.images]
    new = paths.static_tmp / f"{visit.heart.inst}.{durable.nonce()}"
    durable.write_new(new, "".join(f"{line}\n" for line in lines).encode())
    durable.move(new, target / "staged")
    used = max(gc._touched(paths.sidecar(build.key, image)) for image in staged.images)
    if visit.heart.server_now() - used < gc.LATELY_SECONDS:
        return "used meanwhile"
    for image in staged.images:
        for path in (marker.image_path(build, image), paths.sidecar(build.key, image)):
            grave = paths.static_tmp / f"{visit.heart.inst}.{durable.nonce()}"
            durable.move(path, grave)
            durable.discard(grave)
    return ""


@leaves_out("retention takes only what is ours", "stager.gc._remove_target", mood="retention",
            foreign=True, drops=8)  # fmt: skip
def whatever_is_there(work: Work, target: Path) -> None:
    for name in durable.listing(target):
        work.away(target / name)
    with suppress(OSError):
        WORLD.os.rmdir(target)
