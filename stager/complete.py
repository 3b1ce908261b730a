"""What the shell offers behind a command: names of requests, images, builds, machines.

A key press must neither wait nor print: a look that fails, or takes longer than a moment (a mount
whose server is away), offers nothing.
"""

import heapq
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import click

from stager import durable, pins, roster
from stager.config import Config, find_config, load_config
from stager.lately import arrival
from stager.layout import ROOMS, Paths, is_request_name, request_name

SECONDS = 1.0
MOST = 100
PLAIN = re.compile(r"[A-Za-z0-9._+@%:=/~-]+")
"""What a shell takes as it stands; other names are not offered."""

Completer = Callable[[click.Context, click.Parameter, str], list[str]]


def _offer(look: Callable[[Config], Iterable[str]]) -> Completer:
    """Return what click asks for the words that may stand at a place."""

    def complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        found: list[str] = []

        def work() -> None:
            with suppress(Exception):
                config = load_config(find_config(context.params.get("option")))
                words = (word for word in look(config) if word.startswith(incomplete))
                found.extend(dict.fromkeys(filter(PLAIN.fullmatch, words)))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(SECONDS)
        given = context.params.get("names") or ()
        return [word for word in found if word not in given][:MOST]

    return complete


def _dropped(paths: Paths) -> Iterator[str]:
    names = durable.listing(paths.requests, touch=False)
    yield from map(request_name, filter(is_request_name, names))


def _in_room(paths: Paths, room: str) -> Iterator[str]:
    """Yield the names of the requests in a room that were dropped last, from names alone."""
    entries = (n for n in durable.listing(paths.spool / room, touch=False) if "~" in n)
    for entry in heapq.nlargest(MOST, entries, key=arrival):
        file = entry.rpartition("~")[0]
        yield request_name(file.split(".", 3)[-1] if room == "waiting" else file)


def _pending(config: Config) -> Iterator[str]:
    yield from _dropped(config.paths)
    for room in ("waiting", "active"):
        yield from _in_room(config.paths, room)


def _answered(config: Config) -> Iterator[str]:
    for room in ROOMS:
        yield from _in_room(config.paths, room)


def _known(config: Config) -> Iterator[str]:
    yield from _pending(config)
    yield from _answered(config)


def _images(config: Config) -> Iterator[str]:
    yield from config.images


def _pinned(config: Config) -> Iterator[str]:
    names = durable.listing(config.spool, touch=False)
    yield from (pins.url(config.paths, key) for key in pins.keys(names)[:MOST])


def _hosts(config: Config) -> Iterator[str]:
    for inst in list(roster.counters(config.paths))[:MOST]:
        yield str(roster.load_told(config.paths, inst).get("host", inst))


def _paused(config: Config) -> Iterator[str]:
    names = durable.listing(config.spool, touch=False)
    yield from (name.partition(".")[2] for name in names if name.startswith("paused."))


pending, answered, known = _offer(_pending), _offer(_answered), _offer(_known)
images, pinned, hosts, paused = _offer(_images), _offer(_pinned), _offer(_hosts), _offer(_paused)
