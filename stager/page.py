"""results/status.html: the board for people, from a template that escapes whatever it is given."""

import base64
import calendar
import hashlib
import time
from functools import cache
from importlib import resources

from jinja2 import Environment, StrictUndefined, Template

from stager.plot import DAY_SECONDS, SLICE_SECONDS, Plot, draw
from stager.result import stamp
from stager.snapshot import Board
from stager.words import in_bytes, in_seconds

REFRESH_SECONDS = 10
STALE_SECONDS = 120
LATELY = 25
STATES = {
    "staged": "good", "already_staged": "good", "done": "good",
    "failed": "bad", "rejected": "bad", "cancelled": "dull",
}  # fmt: skip


def render(board: Board, now: float) -> str:
    """Return the page; `now` by the file server's clock."""
    style, script = _part("page.css"), _part("page.js")
    return _template().render(
        board=board,
        now=now,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        refresh_seconds=REFRESH_SECONDS,
        stale_seconds=STALE_SECONDS,
        good=[a for a in reversed(board.answered) if a.room == "done"][:LATELY],
        bad=[a for a in reversed(board.answered) if a.room != "done"][:LATELY],
        rates=draw(board.history, now, lambda sample: sample.fetched_bytes / SLICE_SECONDS),
        queue=draw(board.history, now, lambda sample: sample.waiting + sample.active),
        day={
            "bytes": sum(sample.fetched_bytes for sample in board.history),
            "good": sum(sample.good for sample in board.history),
            "bad": sum(sample.bad for sample in board.history),
        },
        day_ago=now - DAY_SECONDS,
        states=STATES,
    )


@cache
def _template() -> Template:
    env = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters |= {"bytes": in_bytes, "seconds": in_seconds, "clock": clock, "stamp": stamp}
    env.filters |= {"utc": utc}
    env.globals["peak_words"] = peak_words
    return env.from_string(_part("page.html"))


@cache
def _part(name: str) -> str:
    return resources.files("stager").joinpath(name).read_text("utf-8")


@cache
def _hash(text: str) -> str:
    """Return what the page's own policy knows its style and script by."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def clock(seconds: float) -> str:
    """Return a time of day where the daemon is."""
    return time.strftime("%H:%M", time.localtime(seconds))


def utc(text: str) -> float:
    """Return the seconds since 1970 of a time as results show it."""
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))


def peak_words(plot: Plot, value: str) -> str:
    """Say of a plot what its shape tells those who see it."""
    return f"most: {value} at {clock(plot.peak_time)}" if plot.peak else "nothing in the last day"
