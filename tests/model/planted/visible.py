"""What others see of a build: images, records, the flag."""

from pathlib import Path
from typing import Any

from model.planted import WORLD, leaves_out
from stager import durable, job
from stager.case import Case, Tools
from stager.lock import Work
from stager.marker import Marker
from stager.stage import Staging


@leaves_out("images are linked, never renamed over", "stager.durable.link", mood="zombies")
def replacing_rename(source: Path, target: Path) -> bool:
    WORLD.os.rename(source, target)
    return True


@leaves_out("an image that is there is adopted", "stager.stage.Staging._adopt",
            mood="half done", archive=0.0, force=False)  # fmt: skip
def never_adopted(_self: Staging, _image: str, _member: Any) -> bool:
    return False


@leaves_out("a failure takes nothing away", "stager.job._stage_missing", mood="failures",
            absent=0.5)  # fmt: skip
def destroyed_on_failure(tools: Tools, case: Case, work: Work, missing: list[str]) -> None:
    assert case.request is not None
    try:
        _STAGE(tools, case, work, missing)
    except Exception:
        durable.remove_tree(tools.marker.paths.target(case.request.build))
        raise
    if case.failures:
        durable.remove_tree(tools.marker.paths.target(case.request.build))


_STAGE = job._stage_missing


@leaves_out("force: flag without it, record away, then the image", "stager.stage.Staging._swap",
            mood="duplicate swaps", duplicate=0.0)  # fmt: skip
def swapped_at_once(_self: Staging, _image: str, file: Path, visible: Path) -> None:
    WORLD.os.rename(file, visible)


@leaves_out("a name that is used again is taken away through a grave", "stager.lock.Work.away",
            mood="duplicate swaps")  # fmt: skip
def no_grave(self: Work, path: Path) -> None:
    durable.move(path, self.file())


@leaves_out("what is visible is renamed away, never unlinked", "stager.lock.Work.away",
            mood="zombies", archive=6.0, ambush=0.8, ambushes=("static/images",),
            machines=2)  # fmt: skip
def unlinked(_self: Work, path: Path) -> None:
    durable.discard(path)


@leaves_out("the flag is replaced, not written in place", "stager.marker.Marker._replace_flag")
def flag_in_place(self: Marker, _work: Work, build: Any, lines: list[str]) -> None:
    target = self.paths.target(build) / "staged"
    durable.discard(target)
    durable.write_new(target, "".join(f"{line}\n" for line in lines).encode())


@leaves_out("flag and record are true again when nothing late can come", "stager.job._mend_flag",
            mood="half done", ambush=0.7, ambushes=("static/.stager/sidecars",), kill=4.0,
            retention=False, drops=8)  # fmt: skip
def never_mended(_tools: Any, _request: Any, _work: Work) -> None:
    return


@leaves_out(
    "what gets its name is on disk",
    "stager.durable.write_new",
    mood="power cuts",
    cut_power=2.0,
    kill=0.0,
    retention=False,
    machines=2,
    chaos_seconds=120.0,
)
def unsynced(path: Path, data: bytes, mode: int = 0o644, *, sync: bool = True) -> None:  # noqa: ARG001
    _WRITE_NEW(path, data, mode, sync=False)


_WRITE_NEW = durable.write_new


@leaves_out("whoever has the token asks for the names anew", "stager.marker.Marker.look_afresh",
            mood="old names", absent=0.4, cached_seconds=90.0, machines=2, force=False, builds=2,
            drops=10, redrop=0.0, slow=0.0, chaos_seconds=50.0)  # fmt: skip
def names_as_they_were(_self: Marker, _build: Any) -> None:
    return
