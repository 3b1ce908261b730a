"""The client commands. Documents go to stdout, all else to stderr; exit codes are the contract's.

Nothing here imports Google's client or watchdog: a command starts in a tenth of a second.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
import yaml

from stager import __version__, client, orders, site
from stager.config import Config, find_config, load_config
from stager.errors import RequestError, SetupError
from stager.models import duration
from stager.orders import Order
from stager.request import parse_request
from stager.result import to_json
from stager.show import Bars, explain, print_list, print_status

ORDER_SECONDS = 30.0
Command = TypeVar("Command", bound=Callable[..., Any])


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            return float(duration(value))
        except ValueError as e:
            self.fail(str(e), param, ctx)


DURATION = _Duration()


def _common(command: Command) -> Command:
    """Add the options that every command has."""
    command = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)
    return click.option("--config", "option", metavar="FILE", help="The configuration.")(command)


def _config(option: str | None, *, ruler: bool = False) -> Config:
    """Load the configuration; `ruler`: only for the daemon's user and root."""
    config = load_config(find_config(option))
    if ruler:
        uid = site.Layout.read(config.paths.marks[0]).uid
        if os.geteuid() not in {0, uid}:
            raise SetupError(f"this is for root and the daemon's user (uid {uid})")
    return config


def _dump(data: Any, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(data, indent=2))
    else:
        click.echo(yaml.safe_dump(data, sort_keys=False, width=1000), nl=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version=__version__, message="stager %(version)s")
def cli() -> None:
    """Ask for build images, and look after the spool they are asked for in."""


@cli.command()
@click.option("--group", help="Only members of this group may drop requests.")
@_common
def init(group: str | None, option: str | None, as_json: bool) -> None:
    """Make the spool's, results' and static tree's directories, once."""
    import grp  # noqa: PLC0415

    config = _config(option)
    try:
        gid = grp.getgrnam(group).gr_gid if group else None
    except KeyError:
        raise SetupError(f"there is no group {group}") from None
    layout = site.init(config, gid)
    paths = config.paths
    made = {"set": layout.set_id, "uid": layout.uid, "requests": str(paths.requests)}
    _dump(made | {"static": str(paths.static), "results": str(paths.results)}, as_json)


@cli.command()
@click.argument("build")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--name", help="The request's NAME (default: one that nobody else uses).")
@click.option("--priority", help="high, normal, low, or 0 (first) to 9.")
@click.option("--expires", help="Give up if not finished this long after it was dropped.")
@click.option("--wait-archive", help="How long to wait for an archive not there yet.")
@click.option("--force", is_flag=True, help="Stage again what is staged already.")
@click.option("--note", help="Repeated in the result.")
@click.option("--wait", is_flag=True, help="Wait for the answer and print it.")
@click.option("--timeout", type=DURATION, help="With --wait: no longer than this.")
@click.option("--dry-run", is_flag=True, help="Check and print the request; drop nothing.")
@_common
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
    config = _config(option)
    fields: dict[str, Any] = {"build": build, "images": list(images)}
    given = {"priority": priority, "expires": expires, "wait": wait_archive, "note": note}
    fields |= {key: value for key, value in given.items() if value is not None}
    fields |= {"force": "true"} if force else {}
    data = client.compose(fields)
    try:
        parse_request(data, config.rules)
    except RequestError as e:
        for problem in e.problems:
            click.echo(f"rejected: {problem.message}", err=True)
        click.echo(f"hint: {e.hint}", err=True)
        sys.exit(client.REJECTED)
    if dry_run:
        click.echo(data.decode(), nl=False)
        return
    name = name or client.make_name(build)
    site.Layout.read(config.paths.marks[0])
    client.drop(config.paths, name, data)
    if not wait:
        _dump({"name": name}, True) if as_json else click.echo(name)
        return
    click.echo(name, err=True)
    _wait(config, [name], timeout, as_json, data)


@cli.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--timeout", type=DURATION, help="No longer than this.")
@_common
def wait(names: tuple[str, ...], timeout: float | None, option: str | None, as_json: bool) -> None:
    """Wait for the answers to requests, and print them."""
    _wait(_config(option), list(names), timeout, as_json, None)


def _wait(
    config: Config, names: list[str], timeout: float | None, as_json: bool, data: bytes | None
) -> None:
    with Bars(config.paths) as bars:
        outcomes = client.wait(config.paths, names, timeout, bars, data)
    found = {o.name: to_json(o.result) for o in outcomes if o.result}
    if found:
        one = next(iter(found.values())) if len(names) == 1 else found
        _dump(one, as_json)
    for outcome in outcomes:
        if outcome.code == client.TIMED_OUT:
            click.echo(f"{outcome.name}: no answer yet; the request goes on", err=True)
        elif outcome.code == client.NOT_FOUND:
            click.echo(f"{outcome.name}: no such request", err=True)
        elif outcome.result:
            explain(outcome.result)
    sys.exit(client.exit_code([outcome.code for outcome in outcomes]))


@cli.command()
@click.argument("name", required=False)
@click.option("--watch", is_flag=True, help="Show it anew every second.")
@click.option("--check", is_flag=True, help="Exit 1 where somebody should look after it.")
@_common
def status(name: str | None, watch: bool, check: bool, option: str | None, as_json: bool) -> None:
    """Show the spool at a glance, or how NAME is."""
    sys.exit(print_status(_config(option), name, watch, check, as_json))


@cli.command("list")
@_common
def list_(option: str | None, as_json: bool) -> None:
    """List waiting, active and answered requests."""
    print_list(_config(option), as_json)


@cli.command()
@click.argument("name")
@_common
def show(name: str, option: str | None, as_json: bool) -> None:
    """Show all that is known of a request."""
    config = _config(option)
    found, result = client.pending(config.paths, name), client.read_result(config.paths, name)
    if found is not None:
        data: dict[str, Any] = {
            "state": found.state,
            "request": found.file,
            "request_id": found.request_id,
        }
        data |= {"attempts": found.starts, **client.progress(config.paths, found)}
        _dump({key: value for key, value in data.items() if value not in ("", None)}, as_json)
    elif result is not None:
        _dump(to_json(result), as_json)
    else:
        click.echo(f"{name}: no such request", err=True)
        sys.exit(client.NOT_FOUND)


@cli.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all", "everything", is_flag=True, help="All requests (daemon's user and root).")
@click.option("--state", default="", help="With --all: only waiting or active ones.")
@click.option("--code", default="", help="With --all: only those with this error code.")
@_common
def cancel(
    names: tuple[str, ...],
    everything: bool,
    state: str,
    code: str,
    option: str | None,
    as_json: bool,
) -> None:
    """Cancel requests of one's own."""
    _selected(names, everything)
    order = Order("cancel", names, everything, state, code)
    _order(_config(option, ruler=everything), order, as_json)


@cli.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all", "everything", is_flag=True, help="All that failed.")
@click.option("--state", default="", help="With --all: those in done, failed or cancelled.")
@click.option("--code", default="", help="With --all: only those with this error code.")
@_common
def retry(
    names: tuple[str, ...],
    everything: bool,
    state: str,
    code: str,
    option: str | None,
    as_json: bool,
) -> None:
    """Make new requests of answered ones."""
    _selected(names, everything)
    order = Order("retry", names, everything, state, code)
    _order(_config(option, ruler=everything), order, as_json)


def _selected(names: tuple[str, ...], everything: bool) -> None:
    if bool(names) == everything:
        raise click.UsageError("give NAMEs, or --all")


@cli.command()
@click.option("--host", default="", help="Only this machine.")
@_common
def pause(host: str, option: str | None, as_json: bool) -> None:
    """Have the daemons claim nothing until `resume`; running work ends."""
    _order(_config(option, ruler=True), Order("pause", host=host), as_json)


@cli.command()
@click.option("--host", default="", help="Only this machine.")
@_common
def resume(host: str, option: str | None, as_json: bool) -> None:
    """Have the daemons claim again."""
    _order(_config(option, ruler=True), Order("resume", host=host), as_json)


def _order(config: Config, order: Order, as_json: bool) -> None:
    """Drop an order, wait for its answer, print it."""
    site.Layout.read(config.paths.marks[0])
    try:
        name = orders.send(config.paths, order)
    except OSError as e:
        raise SetupError(f"can't drop an order: {e.strerror} ({e.filename})") from None
    answer = client.await_answer(config.paths, name, ORDER_SECONDS)
    if answer is None:
        click.echo("no watcherd has obeyed yet; the order stays and will be", err=True)
        sys.exit(client.TIMED_OUT)
    if answer.problem:
        click.echo(answer.problem, err=True)
        sys.exit(client.FAILED)
    if as_json:
        _dump(answer.outcome, True)
    else:
        for key, value in answer.outcome.items():
            click.echo(f"{key}: {value}")
    sys.exit(client.order_code(answer.outcome))


@cli.command()
@click.option("--repair", is_flag=True, help="Have damaged images staged again.")
@_common
def verify(repair: bool, option: str | None, as_json: bool) -> None:
    """Read all staged images and compare them with what was staged."""
    from stager import doctor  # noqa: PLC0415

    config = _config(option, ruler=True)
    found = []
    for url, image, damage in doctor.damaged(config):
        found.append({"build": url, "image": image, "damage": damage})
        click.echo(f"{url} {image}: {damage}", err=True)
        if repair:
            data = client.compose({"build": url, "images": [image], "force": "true"})
            name = client.make_name(url)
            client.drop(config.paths, name, data)
            found[-1]["repair"] = name
    _dump({"damaged": found}, as_json)
    sys.exit(client.FAILED if found else 0)


@cli.command("doctor")
@_common
def doctor_(option: str | None, as_json: bool) -> None:
    """Check that everything on disk is as it must be."""
    from stager import doctor  # noqa: PLC0415

    config = _config(option, ruler=True)
    found = [{"rule": f.rule, "what": f.what, "hint": f.hint} for f in doctor.examine(config)]
    _dump({"findings": found}, as_json)
    sys.exit(client.FAILED if found else 0)


def main() -> None:
    """Run a command; usage and configuration errors end with 2, ^C with 130."""
    try:
        cli(standalone_mode=False)
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
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
