"""After an error, and before a decision: what a directory's listing must tell."""

import errno
from pathlib import Path
from types import SimpleNamespace

from model.planted import WORLD, leaves_out
from model.planted.tokens import open_unchecked as _no_check
from stager import durable
from stager.errors import TakenOver
from stager.lock import Work
from stager.outbox import Outbox
from stager.scans import Scans


@leaves_out("touch a directory before a listing that decides", "stager.durable.listing",
            mood="old listings")  # fmt: skip
def no_touch(directory: Path, *, touch: bool = True) -> list[str]:  # noqa: ARG001
    names: list[str] = WORLD.os.listdir(directory)
    return names


def _list_untouched(directory: Path, *, touch: bool = True) -> list[str]:
    return durable.listing(directory, touch=touch and directory.name != "requests")


class _Untouched(Scans):
    def scan(self, directory: Path) -> list[str]:
        return _list_untouched(directory)


_UNTOUCHED = SimpleNamespace(**vars(durable) | {"listing": _list_untouched})


# The sweeper, which lists the drop box too, now and then, is a second defence.
@leaves_out("touch the drop box before a scan of it", mood="old listings", tick=30.0, also={
    "stager.dropbox.durable": _UNTOUCHED, "stager.dropbox.Scans": _Untouched,
    "stager.sweep.durable": _UNTOUCHED,
})  # fmt: skip
def drop_box_untouched() -> None:
    pass


@leaves_out("touch again what others read", "stager.outbox.Outbox.touch_again",
            mood="old listings", tick=30.0)  # fmt: skip
def not_touched_again(_self: Outbox) -> None:
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


@leaves_out("a name that is there proves nothing", "stager.lock.Work.open", mood="zombies",
            stale_name=1.0, cached_seconds=90.0, ambushes=("static/.stager/locks",))  # fmt: skip
def checked_by_name(self: Work) -> None:
    token = self.paths.locks / self.key / str(self.token)
    try:
        WORLD.os.lstat(token)
        _no_check(self)
        WORLD.os.lstat(token)
    except FileNotFoundError:
        raise TakenOver(f"the token of {self.key} is no longer ours") from None
