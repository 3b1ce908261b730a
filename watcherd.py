#!/usr/bin/env python3
"""The daemon: options, wiring, signals and the loop; nothing about files or clouds.

    watcherd [--config FILE] [--once] [--check-config] [--version]

Exit codes: 0 good; 1 it can't start now, or with --once, a request it answered failed or was
rejected; 2 the configuration or the directories are not right.
"""

import gc
import sys
from pathlib import Path

if gc.isenabled():  # What is imported stays: to look for garbage in it is a fifth of the start.
    gc.disable()
if __name__ == "__main__":  # ./watcherd.py from a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import ctypes
import os
import platform
import signal
from contextlib import suppress
from importlib import metadata
from types import FrameType

import click
import structlog

from stager import __version__, durable, log, service, site
from stager.config import Config, find_config, load_config
from stager.errors import MachineFault, NotNow, SetupError
from stager.once import is_done
from stager.server import Server
from stager.vigil import Vigil
from stager.watch import Wake

gc.freeze()
gc.enable()
logger = structlog.get_logger()

BEGIN_SECONDS = 1.0
M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -8, -3, -1
"""mallopt(3), malloc.h"""
KEPT_BYTES = 24 << 20
"""So much of what is free for the moment is not given back: to get it again costs page faults."""


class Signals:
    """What the process was told; handlers only set flags, the loop does the work."""

    def __init__(self) -> None:
        self.stop = self.reload = False
        self.wake = Wake()

    def install(self) -> None:
        """Take SIGTERM and SIGINT as stop, SIGHUP as reload."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._reload)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stop = True
        self.wake.set()

    def _reload(self, _number: int, _frame: FrameType | None) -> None:
        self.reload = True
        self.wake.set()


def serve(path: Path, config: Config, *, once: bool) -> int:
    """Run until told to stop (or, once, until nothing is left to do); return the exit code."""
    signals = Signals()
    signals.install()
    share_one_heap()
    bad = 0
    server = begin(config, signals)
    while True:
        with Vigil(server.guard.places, server.signs, server.summary) as vigil:
            vigil.tell("READY=1")
            while not signals.stop and not server.buried:
                if signals.reload:
                    signals.reload = False
                    config = reload(path, config, server)
                    vigil.tell("READY=1")
                server.turn()
                if once and is_done(server):
                    break
                vigil.tell()
                server.wait()
            # As it is now: what signs off misses its heartbeat file as one that was buried does.
            buried = server.buried
            if not buried:
                vigil.tell("STOPPING=1")
            else:
                logger.warning("the other machines took this instance for dead: it begins anew")
            server.stop()
        bad += server.tally.bad
        if not buried:
            return 1 if once and bad else 0
        try:
            server = begin_anew(config, signals)
        except InterruptedError:
            return 1


def share_one_heap() -> None:
    """Have the threads to come share one heap (glibc): each would keep what it no longer uses."""
    with suppress(AttributeError):  # another C library
        tune = ctypes.CDLL(None).mallopt
        tune(M_ARENA_MAX, 1)
        # Set to nothing, both would follow the largest piece ever freed.
        tune(M_MMAP_THRESHOLD, KEPT_BYTES // 4)
        tune(M_TRIM_THRESHOLD, KEPT_BYTES)


def begin(config: Config, signals: Signals) -> Server:
    """Return an instance that watches; NotNow where the spool does not work."""
    server = Server(config, signals.wake)
    try:
        with durable.storage():
            server.start()
    except MachineFault as e:
        server.abandon()
        raise NotNow(f"the spool does not work: {e}") from None
    return server


def begin_anew(config: Config, signals: Signals) -> Server:
    """Return the next instance, as soon as the spool works; InterruptedError: told to stop."""
    said = False
    while not signals.stop:
        try:
            return begin(config, signals)
        except NotNow as e:
            if not said:
                logger.error(f"{e}; requests wait")
            said = True
            service.notify("WATCHDOG=1", f"STATUS={e}")
            signals.wake.wait(BEGIN_SECONDS)
    raise InterruptedError


def reload(path: Path, config: Config, server: Server) -> Config:
    """Read the configuration again; a bad one changes nothing."""
    service.reloading()
    try:
        new = load_config(path)
        if new.paths.marks != config.paths.marks:
            raise SetupError("spool, static and results can't change while the daemon runs")
        site.check(new)
    except (SetupError, NotNow) as e:
        server.note = "the configuration file is not good: the old settings stay"
        logger.error(f"the configuration stays as it was: {'; '.join(str(e).splitlines())}")
        return config
    log.set_up(new.log.format, new.log.level)
    server.note = ""
    server.reconfigure(new)
    logger.info("the configuration was read again")
    return new


def compared(config: Config) -> str:
    """Compare a configuration with the spool's LAYOUT, where there is one; say so."""
    mark = config.paths.marks[0]
    if not os.path.exists(mark):
        return ""
    site.compare(config, site.Layout.read(mark))
    return f"; lease and heartbeat are those of {mark}"


def version() -> str:
    """Return what a bug report needs."""
    names = ("watchdog", "google-cloud-storage")
    parts = [f"{name} {metadata.version(name)}" for name in names]
    return ", ".join([f"watcherd {__version__}", f"Python {platform.python_version()}", *parts])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "option", metavar="FILE", help="The configuration file.")
@click.option("--once", is_flag=True, help="End when nothing is left to do.")
@click.option("--check-config", is_flag=True, help="Say what is wrong with it, and end.")
@click.version_option(version=__version__, message=version())
def main(option: str | None, once: bool, check_config: bool) -> None:
    """Stage build images that are asked for in a spool directory."""
    path = find_config(option)
    log.set_up("auto", "info")
    try:
        config = load_config(path)
        if check_config:
            click.echo(f"{path}: good{compared(config)}")
            return
        log.set_up(config.log.format, config.log.level)
        site.check(config)
        site.check_links(config.paths)
        code = serve(path, config, once=once)
    except SetupError as e:
        log.last_words(str(e))
        sys.exit(2)
    except (NotNow, MachineFault) as e:
        log.last_words(str(e))
        sys.exit(1)
    sys.exit(code)


if __name__ == "__main__":
    main()
