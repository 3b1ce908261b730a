"""An instance in the tests' own process that does nothing by itself: its turns are the test's."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from lab import Lab

from stager.config import load_config
from stager.server import Server
from stager.watch import Wake


@contextmanager
def by_hand(lab: Lab) -> Iterator[Server]:
    """Have a registered instance for the length of a block."""
    server = Server(load_config(lab.config, {}), Wake())
    server.heart.register()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """Be another user for the kernel, for the length of a block."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
