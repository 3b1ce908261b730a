"""The parts of an instance, for whoever does the daemons' work beside them: a command or a thread.

A command appears in instances/ like a daemon, so that the tokens it takes are respected, and are
taken over if it dies.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from stager import durable, site
from stager.config import Config
from stager.instance import Heart
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
    try:
        yield Visit(
            config, heart, Spool(paths, heart), Locks(paths, heart), Marker(paths, config.images)
        )
    finally:
        with durable.storage():
            heart.leave()
