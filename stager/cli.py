"""The client commands. Documents go to stdout, all else to stderr; exit codes are the contract's.

Nothing here imports Google's client or watchdog: a command starts in a tenth of a second.
"""

import json
import sys
from typing import Any, NoReturn

import click

from stager import admin, client, complete, detail, probing, upkeep, waiting
from stager.command import DURATION, cli, common, dump, load
from stager.config import Config
from stager.errors import BucketNotAllowed, NotNow, RequestError, SetupError
from stager.request import UNKNOWN_IMAGES, images_hint, parse_request
from stager.result import to_json
from stager.show import Bars, explain, print_list, print_status

__all__ = ["admin", "cli", "main", "probing", "upkeep"]

OPTIONS = {
    "`priority`": "--priority",
    "`expires`": "--expires",
    "`wait`": "--wait-archive",
    "`note`": "--note",
    "`force`": "--force",
}
NO_ANSWER_YET = "no answer yet; the request goes on. `stager show {}` says what it waits for"


@cli.command()
@click.argument("build")
@click.argument(
    "images", nargs=-1, required=True, metavar="IMAGE...", shell_complete=complete.images
)
@click.option("--name", help="The request's NAME (default: one that nobody else uses).")
@click.option("--priority", help="high, normal, low, or 0 (first) to 9.")
@click.option("--expires", help="Give up if not finished this long after it was taken in.")
@click.option("--wait-archive", help="How long to wait for an archive not there yet.")
@click.option("--force", is_flag=True, help="Stage again what is staged already.")
@click.option("--note", help="Repeated in the result.")
@click.option("--wait", is_flag=True, help="Wait for the answer and print it.")
@click.option("--timeout", type=DURATION, help="With --wait: no longer than this.")
@click.option("--dry-run", is_flag=True, help="Check and print the request; drop nothing.")
@common
def submit(
    build: str,
    images: tuple[str, ...],
    name: str | None,
    priority: str | None,
    expires: str | None,
    wait_archive: str | None,
    force: bool,
    note: str | None,
    wait: bool,
    timeout: float | None,
    dry_run: bool,
    option: str | None,
    as_json: bool,
) -> None:
    """Ask for IMAGEs of BUILD (gs://BUCKET/PATH/BUILD)."""
    if timeout is not None and not wait:
        raise click.UsageError("--timeout goes with --wait")
    config = load(option, spool=not dry_run)
    wanted = [name for words in images for name in words.split(",") if name]
    fields: dict[str, Any] = {"build": build, "images": wanted}
    given = {"priority": priority, "expires": expires, "wait": wait_archive, "note": note}
    fields |= {key: value for key, value in given.items() if value is not None}
    fields |= {"force": "true"} if force else {}
    data = client.compose(fields)
    try:
        parse_request(data, config.rules)
    except RequestError as e:
        _refuse(config, wanted, e)
    if dry_run:
        click.echo(json.dumps(fields, indent=2) + "\n" if as_json else data.decode(), nl=False)
        return
    name = name or client.make_name(build)
    client.drop(config.paths, name, data)
    if not wait:
        dump({"name": name}, True) if as_json else click.echo(name)
        return
    click.echo(name, err=True)
    _wait(config, [name], timeout, as_json, data)


def _refuse(config: Config, wanted: list[str], error: RequestError) -> NoReturn:
    """Say what is wrong with a request, in the words of its options."""
    for problem in error.problems:
        key, _, words = problem.message.partition(": ")
        message = f"{OPTIONS[key]}: {words}" if key in OPTIONS else problem.message
        click.echo(f"rejected: {message}", err=True)
    hint = "nothing was dropped; correct it and ask again"
    if any(problem.message.startswith(UNKNOWN_IMAGES) for problem in error.problems):
        hint += f"; {images_hint(wanted, config.rules)}"
    elif isinstance(error, BucketNotAllowed):
        hint += f"; {error.hint}"
    click.echo(f"hint: {hint}", err=True)
    sys.exit(client.REJECTED)


@cli.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete.known)
@click.option("--timeout", type=DURATION, help="No longer than this.")
@common
def wait(names: tuple[str, ...], timeout: float | None, option: str | None, as_json: bool) -> None:
    """Wait for the answers to requests, and print them."""
    _wait(load(option), list(names), timeout, as_json, None)


def _wait(
    config: Config, names: list[str], timeout: float | None, as_json: bool, data: bytes | None
) -> None:
    with Bars(config.paths) as bars:
        outcomes = waiting.wait(config.paths, names, timeout, bars, bars.warn, data)
    found = {o.name: to_json(o.result) for o in outcomes if o.result}
    if found:
        one = next(iter(found.values())) if len(names) == 1 else found
        dump(one, as_json)
    for outcome in outcomes:
        if outcome.code == client.TIMED_OUT:
            click.echo(f"{outcome.name}: {NO_ANSWER_YET.format(outcome.name)}", err=True)
        elif outcome.code == client.NOT_FOUND:
            click.echo(f"{outcome.name}: no such request", err=True)
        elif outcome.result:
            explain(outcome.result)
    sys.exit(client.exit_code([outcome.code for outcome in outcomes]))


@cli.command()
@click.argument("name", required=False, shell_complete=complete.known)
@click.option("--watch", is_flag=True, help="Show it anew every second.")
@click.option("--check", is_flag=True, help="Exit 1 where somebody should look after it.")
@common
def status(name: str | None, watch: bool, check: bool, option: str | None, as_json: bool) -> None:
    """Show the spool at a glance, or how NAME is."""
    sys.exit(print_status(load(option), name, watch, check, as_json))


@cli.command("list")
@common
def list_(option: str | None, as_json: bool) -> None:
    """List waiting, active and answered requests, and the pinned builds."""
    print_list(load(option), as_json)


@cli.command()
@click.argument("name", shell_complete=complete.known)
@common
def show(name: str, option: str | None, as_json: bool) -> None:
    """Show all that is known of a request."""
    config = load(option)
    found, result = client.pending(config.paths, name), client.read_result(config.paths, name)
    if found is not None:
        dump(detail.describe(config, found), as_json)
    elif result is not None:
        dump(to_json(result), as_json)
    else:
        click.echo(f"{name}: no such request", err=True)
        sys.exit(client.NOT_FOUND)


def main() -> None:
    """Run a command; usage and configuration errors end with 2, ^C with 130."""
    stdout = sys.stdout
    try:
        cli(standalone_mode=False)
    except SystemExit:
        # click replaces stdout where its reader has gone (`stager list | head -1`): no fault.
        if sys.stdout is not stdout:
            sys.exit(0)
        raise
    except click.exceptions.Abort:
        sys.exit(client.INTERRUPTED)
    except KeyboardInterrupt:
        sys.exit(client.INTERRUPTED)
    except click.ClickException as e:
        e.show()
        sys.exit(client.USAGE)
    except SetupError as e:
        click.echo(f"stager: {e}", err=True)
        sys.exit(client.USAGE)
    except (NotNow, OSError) as e:
        click.echo(f"stager: the spool does not answer properly: {e}", err=True)
        sys.exit(client.FAILED)


if __name__ == "__main__":
    main()
