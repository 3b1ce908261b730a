"""Whether the directories are still the one set we began in; an unmounted disk is no spool."""

import os
from collections.abc import Callable
from functools import partial

from stager import site
from stager.config import Config
from stager.errors import NotNow, SetupError


class Guard:
    """Looks at the set again and again, reading only what is not as it was."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._marks: list[tuple[int, int, int]] = []

    def check(self) -> None:
        """Raise SetupError or NotNow where it is not our set, or can't be read."""
        seen = site.marks(self.config.paths)
        if not seen or seen != self._marks:
            site.check(self.config)
        self._marks = seen

    def places(self) -> dict[str, Callable[[], object]]:
        """Return for each place of storage a question that its server must answer."""
        paths = self.config.paths
        places: dict[str, Callable[[], object]] = {
            "spool": partial(os.utime, paths.tmp),
            "static tree": partial(os.utime, paths.static_tmp),
        }
        if directory := self.config.archive.directory:
            places["archive directory"] = partial(os.statvfs, directory)
        return places

    def trouble(self) -> str:
        """Say what is wrong with the set, looking anew; empty: nothing."""
        try:
            site.check(self.config)
        except (SetupError, NotNow) as e:
            return str(e)
        return ""

    def is_ours(self) -> bool:
        """Whether what is missed there is missed in our own set, not in another in its place."""
        return not self.trouble()
