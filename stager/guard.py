"""Whether the directories are still the one set we began in; an unmounted disk is no spool."""

from stager import site
from stager.config import Config
from stager.errors import NotNow, SetupError


class Guard:
    """Looks at the set again and again, reading only what is not as it was."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._marks: list[tuple[int, int, int]] = []

    def check(self) -> None:
        """Raise SetupError or NotNow where it is not our set, or can't be read."""
        seen = site.marks(self._config.paths)
        if not seen or seen != self._marks:
            site.check(self._config)
        self._marks = seen

    def trouble(self) -> str:
        """Say what is wrong with the set, looking anew; empty: nothing."""
        try:
            site.check(self._config)
        except (SetupError, NotNow) as e:
            return str(e)
        return ""

    def is_ours(self) -> bool:
        """Whether what is missed there is missed in our own set, not in another in its place."""
        return not self.trouble()
