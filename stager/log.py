"""The daemon's log: one line an event, on stderr; text, journal levels or JSON."""

import io
import logging
import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2, "exception": 3}


def set_up(form: str, level: str) -> None:
    """Log to stderr in the given form: `auto` is text, with levels for the journal under it."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _clean,
    ]
    journal = form == "auto" and _under_journal()
    if form == "json":
        shared += [
            structlog.processors.TimeStamper("iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(sort_keys=True),
        ]
    elif journal:
        shared += [structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0), _priority]
    else:
        shared += [
            structlog.processors.TimeStamper("%Y-%m-%d %H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0),
        ]
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Stderr())),
        cache_logger_on_first_use=False,
    )


class _Stderr(io.TextIOBase):
    """stderr that never fails: a full disk below the log must not stop the daemon."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            return sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def _under_journal() -> bool:
    """Whether stderr is the journal's stream, as systemd tells it in JOURNAL_STREAM."""
    try:
        info = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{info.st_dev}:{info.st_ino}"


def _clean(_: Any, __: str, event: Any) -> Any:
    """Keep control and escape characters of file names out of terminals and logs."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable() and key != "exception":
            event[key] = value.encode("unicode_escape", "backslashreplace").decode("ascii")
    return event


def _priority(_: Any, name: str, event: Any) -> Any:
    """Put the level before each line as journald wants it: <6>."""
    mark = f"<{_PRIORITIES.get(name, 6)}>"
    return "\n".join(mark + line for line in str(event).splitlines())
