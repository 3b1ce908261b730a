"""The command `stager probe`: its options, and how what it found is shown."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import click

from stager.command import DURATION, cli, common
from stager.errors import SetupError
from stager.probe import CODES, Survey, survey
from stager.trial import Outcome

STYLES = {Outcome.YES: "green", Outcome.TOLD: "dim", Outcome.WARNING: "yellow", Outcome.NO: "red"}


@cli.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--machines", type=click.IntRange(1, 16), default=2, help="How many take part.")
@click.option("--seconds", type=DURATION, default="20s", help="How long to try together.")
@click.option("--timeout", type=DURATION, default="2m", help="How long to wait for the others.")
@common
def probe(
    directory: Path,
    machines: int,
    seconds: float,
    timeout: float,
    option: str | None,
    as_json: bool,
) -> None:
    """Measure whether machines may share a spool on DIR; run it on two at the same time.

    Needs no spool and no configuration; leaves nothing behind. With --machines 1: what one machine
    can tell. Exit code 0: yes, 1: no, 2: can't tell.
    """
    del option
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        found = survey(directory.resolve(strict=True), machines, seconds, timeout, _say)
    except FileNotFoundError:
        raise SetupError(f"there is no {directory}") from None
    except OSError as e:
        raise SetupError(f"can't work in {directory}: {e.strerror} ({e.filename})") from None
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    elif sys.stdout.isatty():
        _show(found)
    else:
        _print(found)
    sys.exit(CODES[found.verdict])


def _interrupt(_: int, __: Any) -> None:
    raise KeyboardInterrupt


def _say(word: str) -> None:
    click.echo(word, err=True)


def _print(found: Survey) -> None:
    """Print lines for a file or a pipe, the verdict first."""
    click.echo(found.words)
    for row in found.rows:
        click.echo(f"  {row.outcome:8} {row.name}: {row.said}")
        if row.hint:
            click.echo(f"{'':11}what to do: {row.hint}")
    for what, by_host in _paces(found).items():
        figures = (f"{host} {_pace(pace)}" for host, pace in by_host)
        click.echo(f"  {'speed':8} {what}: {', '.join(figures)}")


def _show(found: Survey) -> None:
    """Draw tables on a terminal, the verdict last: there it stays in sight."""
    from rich.console import Console  # noqa: PLC0415 (only a terminal needs it)
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console()
    table = Table("", "what was asked", "what was found", title=str(found.directory))
    for row in found.rows:
        text = Text(row.said)
        if row.hint:
            text.append(f"\n→ {row.hint}", style="bold")
        table.add_row(Text(str(row.outcome), style=STYLES[row.outcome]), row.name, text)
    console.print(table)
    hosts = [report.host for report in found.reports]
    paces = Table("speed", *hosts)
    for what, by_host in _paces(found).items():
        paces.add_row(what, *(_pace(pace) for _, pace in by_host))
    console.print(paces)
    style = {"yes": "bold green", "no": "bold red"}.get(found.verdict, "bold yellow")
    console.print(Text(found.words, style=style))


def _pace(pace: dict[str, Any]) -> str:
    """Say how fast it is on average, and how fast mostly: slow ones make the two differ."""
    rate, median = pace["per_second"], pace["median_ms"]
    return f"{rate:g} a second on average (half took at most {median:g} ms)"


def _paces(found: Survey) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    paces: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for report in found.reports:
        for what, pace in report.pace.items():
            paces.setdefault(what, []).append((report.host, pace))
    return paces
