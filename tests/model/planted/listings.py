"""After an error, and before a decision: what a directory's listing must tell."""

import errno
from pathlib import Path
from types import SimpleNamespace

from model.planted import WORLD, leaves_out
from stager import durable
from stager.errors import TakenOver
from stager.lock import Work
from stager.spool import Spool


@leaves_out("touch a directory before a listing that decides", "stager.durable.listing",
            mood="old listings")  # fmt: skip
def no_touch(directory: Path, *, touch: bool = True) -> list[str]:  # noqa: ARG001
    names: list[str] = WORLD.os.listdir(directory)
    return names


@leaves_out("touch the drop box before a scan of it", mood="old listings", also={
    "stager.dropbox.durable": SimpleNamespace(
        listing=lambda path, **_: durable.listing(path, touch=False), is_nfs=durable.is_nfs
    )
})  # fmt: skip
def drop_box_untouched() -> None:
    pass


@leaves_out("touch again what others read", "stager.spool.Spool.touch_published",
            mood="old listings")  # fmt: skip
def not_touched_again(_self: Spool) -> None:
    pass


@leaves_out("after an error, look for one's own destination", "stager.durable.move",
            mood="lost replies")  # fmt: skip
def no_look_after_an_error(source: Path, target: Path) -> bool:
    try:
        WORLD.os.rename(source, target)
    except OSError as e:
        if e.errno in {errno.ENOENT, errno.ESTALE}:
            return False
        raise
    return True


@leaves_out("a name that is there proves nothing", "stager.lock.Work.check", mood="zombies",
            stale_name=1.0)  # fmt: skip
def checked_by_name(self: Work) -> None:
    try:
        WORLD.os.lstat(self.paths.locks / self.key / str(self.token))
    except FileNotFoundError:
        raise TakenOver(f"the token of {self.key} is no longer ours") from None
