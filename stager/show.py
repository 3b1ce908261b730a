"""What people see of the client commands: tables, explanations, progress bars."""

import json
import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import click

from stager import client, detail, plain, status
from stager.client import Pending
from stager.config import Config
from stager.lately import Lately
from stager.layout import Paths
from stager.result import Result, to_json
from stager.roster import Look
from stager.snapshot import WaitingPart

MOST_SHOWN = 20
MOST_LISTED = 1000
LISTED = {"counts", "waiting", "active", "answered", "pinned", "pinned_builds"}


def explain(result: Result) -> None:
    """Say on stderr what went wrong, where, and what to do next."""
    if result.error is None:
        return
    click.echo(f"{result.state}: {result.error.message} ({result.error.code})", err=True)
    if result.error.hint:
        click.echo(f"hint: {result.error.hint}", err=True)


class Bars:
    """Progress bars on stderr while waiting, where it is a terminal; called with each look."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich import progress  # noqa: PLC0415 (only a terminal needs it)
            from rich.console import Console  # noqa: PLC0415

            self._progress = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.DownloadColumn(),
                progress.TransferSpeedColumn(),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress:
            self._progress.stop()

    def warn(self, message: str) -> None:
        """Say something above the bars."""
        if self._progress:
            self._progress.console.print(message)
        else:
            click.echo(message, err=True)

    def __call__(self, name: str, found: Pending | None) -> None:
        """Show how one request is."""
        if self._progress is None:
            return
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=None)
        view = client.progress(self.paths, found) if found and found.inst else {}
        words = " ".join(filter(None, [view.get("phase"), view.get("image")]))
        state = words or (found.state if found else "answered")
        self._progress.update(
            self._tasks[name],
            description=f"{name}: {state}",
            completed=view.get("bytes", 0),
            total=view.get("total_bytes") or None,
        )


def print_status(config: Config, name: str | None, watch: bool, check: bool, as_json: bool) -> int:
    """Print the spool's or one request's status; return the exit code."""
    if watch and name is None and not as_json and sys.stdout.isatty():
        return _watch(config)
    while True:
        code = _print_once(config, name, check, as_json)
        if not watch:
            return code
        sys.stdout.flush()
        time.sleep(1)
        if sys.stdout.isatty():
            click.clear()


def _watch(config: Config) -> int:
    """Show the spool anew every second, in place, until interrupted."""
    from rich.console import Console  # noqa: PLC0415 (only a terminal needs it)
    from rich.live import Live  # noqa: PLC0415

    from stager import tables  # noqa: PLC0415

    lately, console = Lately(config.paths, MOST_SHOWN), Console()
    how = Look(lease=config.lease)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            snapshot = status.take(config.paths, how, most=MOST_LISTED, lately=lately)
            live.update(tables.overview(snapshot, max(3, console.height // 5)), refresh=True)
            time.sleep(1)


def _print_once(config: Config, name: str | None, check: bool, as_json: bool) -> int:
    if name is not None:
        return _print_one(config, name, as_json)
    lately = Lately(config.paths, MOST_SHOWN)
    how = Look(1.5 * config.heartbeat if check else 0.0, lease=config.lease)
    snapshot = status.take(config.paths, how, lately=lately)
    if as_json:
        click.echo(json.dumps(snapshot.as_dict(), indent=2))
    elif sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415 (only a terminal needs it)

        from stager import tables  # noqa: PLC0415

        Console().print(tables.overview(snapshot, MOST_SHOWN))
    else:
        _echo(plain.overview(snapshot, MOST_SHOWN))
    if not check:
        return 0
    for trouble in snapshot.troubles:
        click.echo(trouble, err=True)
    return client.FAILED if snapshot.troubles else 0


def _print_one(config: Config, name: str, as_json: bool) -> int:
    found = client.pending(config.paths, name)
    if found is not None:
        click.echo(_pending_words(config, found, as_json))
        return 0
    result = client.read_result(config.paths, name)
    if result is None:
        click.echo(f"{name}: no such request", err=True)
        return client.NOT_FOUND
    click.echo(json.dumps(to_json(result), indent=2) if as_json else str(result.state))
    return 0


def _pending_words(config: Config, found: Pending, as_json: bool) -> str:
    entry = detail.find_entry(status.take(config.paths, Look(lease=config.lease)), found)
    if as_json:
        data = entry.model_dump(mode="json") if entry else {}
        return json.dumps({"state": found.state, **data}, indent=2)
    if entry is None:
        return f"{found.state}: {detail.NO_WORDS}"
    words = entry.reason if isinstance(entry, WaitingPart) else plain.progress(entry)
    return f"{found.state}: {words}"


def print_list(config: Config, as_json: bool) -> None:
    """Print all requests that the spool still knows, up to MOST_LISTED in each state."""
    lately = Lately(config.paths, MOST_LISTED)
    snapshot = status.take(config.paths, Look(lease=config.lease), most=MOST_LISTED, lately=lately)
    if as_json:
        data = snapshot.model_dump(mode="json", include=LISTED)
        click.echo(json.dumps(data, indent=2))
    elif sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415 (only a terminal needs it)

        from stager import tables  # noqa: PLC0415

        Console().print(tables.listed(snapshot))
    else:
        _echo(plain.listed(snapshot))


def _echo(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)
