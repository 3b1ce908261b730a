"""The parts of an instance, for whoever does the daemons' work beside them: a command or a thread.

A command appears in instances/ like a daemon, with a heartbeat, so that the tokens it takes are
respected, and are taken over if it dies.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from stager import durable, site
from stager.config import Config
from stager.instance import Buried, Heart
from stager.lock import Locks
from stager.marker import Marker
from stager.spool import Spool


@dataclass(frozen=True, slots=True)
class Visit:
    """Who we are, and the rooms we may work in."""

    config: Config
    heart: Heart
    spool: Spool
    locks: Locks
    marker: Marker


@contextmanager
def visiting(config: Config) -> Iterator[Visit]:
    """Be an instance for the length of a block; root goes on as the daemon's user."""
    paths = config.paths
    os.seteuid(site.Layout.read(paths.marks[0]).uid)
    heart = Heart(paths, config.heartbeat, config.lease)
    with durable.storage():
        heart.register()
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(config.heartbeat):
            with suppress(OSError, Buried):
                # Buried: what we hold was taken over, and every step we try fails by itself.
                heart.beat()

    pulse = threading.Thread(target=beat, name="heartbeat", daemon=True)
    pulse.start()
    try:
        yield Visit(
            config, heart, Spool(paths, heart), Locks(paths, heart), Marker(paths, config.images)
        )
    finally:
        ended.set()
        pulse.join()
        with durable.storage():
            heart.leave()
