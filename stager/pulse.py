"""The heartbeat thread: raises our counter, looks at the others', and hears that we were buried."""

import random
import threading
from collections.abc import Callable

from stager.instance import Buried, Heart
from stager.progress import Sign


class Pulse:
    """Beats until it is told to end, or until the others took this instance for dead.

    `is_ours`: whether the directories are still the ones we registered in. `buried` and `trouble`
    are for the daemon's loop, which is woken by `wake` when they change.
    """

    def __init__(self, heart: Heart, is_ours: Callable[[], bool], wake: Callable[[], None]) -> None:
        self.heart, self._is_ours, self._wake = heart, is_ours, wake
        self.buried = False
        self.trouble = ""
        """Why the counter can't be raised; empty: it is raised."""
        self.sign = Sign("the heartbeat")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Appear among the instances and begin to beat."""
        self.heart.register()
        self._thread.start()

    def end(self) -> None:
        """Beat no more."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(self.heart.heartbeat)

    def _beat(self) -> None:
        while not self._ended.wait(self._until_next_beat()):
            self.sign.step()
            try:
                self.heart.beat()
                self.heart.observe()
                self.trouble = ""
            except Buried:
                if not self._is_ours():
                    self.heart.bad_sample()
                    continue
                self.buried = True
                self._wake()
                return
            except OSError as e:
                self.heart.bad_sample()
                if not self.trouble:
                    self._wake()
                self.trouble = f"no heartbeat, the others may take this machine for dead: {e}"

    def _until_next_beat(self) -> float:
        seconds = self.heart.heartbeat * random.uniform(0.9, 1.0)
        self.sign.rest(seconds)
        return seconds
