"""The daemon's log: one line an event, on stderr; text, journal levels or JSON.

What went wrong inside is told by where and what kind, never by an exception's own words or by the
values of variables: those may hold a key, a token or what somebody dropped.
"""

import faulthandler
import io
import logging
import os
import sys
import threading
import traceback
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, TextIO, cast

import structlog

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2, "exception": 3}
_HARMLESS = (AttributeError, NameError, ImportError, TypeError)
"""Their words are made of names in code."""


def set_up(form: str, level: str) -> None:
    """Log to stderr in the given form: `auto` is text; all have levels where the journal reads."""
    journal = under_journal()
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _trace,
        _clean,
    ]
    if form == "json":
        shared += [
            structlog.processors.TimeStamper("iso", utc=True),
            structlog.processors.JSONRenderer(sort_keys=True),
        ]
    else:
        colors = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        console = structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=0)
        time = [] if journal else [structlog.processors.TimeStamper("%Y-%m-%d %H:%M:%S", utc=False)]
        shared += [*time, console]
    structlog.configure(
        processors=[*shared, _priority] if journal else shared,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Stderr())),
        cache_logger_on_first_use=False,
    )
    _take_the_rest()


def last_words(text: str) -> None:
    """Say why the program ends, before or without a log: plain lines, errors in the journal."""
    mark = f"<{_PRIORITIES['error']}>" if under_journal() else ""
    _Stderr().write("".join(f"{mark}{line}\n" for line in text.splitlines()))


def under_journal() -> bool:
    """Whether stderr is the journal's stream, as systemd tells it in JOURNAL_STREAM."""
    try:
        info = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{info.st_dev}:{info.st_ino}"


def frames_of(frame: FrameType | None) -> str:
    """Return where a thread is, outermost call first, on one line."""
    return _places(traceback.walk_stack(frame), reverse=True)


def _places(walk: Any, *, reverse: bool = False) -> str:
    places = [
        f"{os.path.basename(frame.f_code.co_filename)}:{line} {frame.f_code.co_name}"
        for frame, line in walk
    ]
    return " > ".join(reversed(places) if reverse else places)


def _told(error: BaseException) -> str:
    """Say what an exception is: its kind, and its words only where they hold no data."""
    kind = type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        return f"{kind}: {error.strerror}"
    return f"{kind}: {error}" if isinstance(error, _HARMLESS) else kind


def _trace(_: Any, __: str, event: Any) -> Any:
    """Put the exception that is being handled on the event's own line."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    parts: list[str] = []
    while isinstance(error, BaseException):
        parts.append(f"{_places(traceback.walk_tb(error.__traceback__))}: {_told(error)}")
        hidden = error.__suppress_context__
        error = error.__cause__ or (None if hidden else error.__context__)
    if parts:
        event["traceback"] = "Traceback: " + ", after ".join(parts)
    return event


def _clean(_: Any, __: str, event: Any) -> Any:
    """Keep control and escape characters of file names out of terminals and logs."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = value.encode("unicode_escape", "backslashreplace").decode("ascii")
    return event


def _priority(_: Any, name: str, event: Any) -> Any:
    """Put the level before the line as journald wants it: <6>."""
    return f"<{_PRIORITIES.get(name, 6)}>{event}"


class _Stderr(io.TextIOBase):
    """stderr that never fails: a full disk below the log must not stop the daemon."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            return sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


class _Libraries(logging.Handler):
    """What libraries log from a warning on becomes an event of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(Exception):
            said = " ".join(record.getMessage().split())
            structlog.get_logger().warning(said, library=record.name)


def _take_the_rest() -> None:
    """Give everything else that would write to stderr our form, too."""
    logging.captureWarnings(capture=True)
    root = logging.getLogger()
    root.handlers = [_Libraries(logging.WARNING)]
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    with suppress(OSError, ValueError, io.UnsupportedOperation):
        # What the service manager's SIGABRT finds: where each thread is, without values.
        faulthandler.enable()


def _uncaught(
    _: type[BaseException], error: BaseException | None, __: TracebackType | None
) -> None:
    structlog.get_logger().critical("a fault of ours that nobody caught", exc_info=error)
