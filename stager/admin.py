"""The commands that set up and steer a spool: init, and what is ordered of the daemons."""

import difflib
import grp
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from stager import client, complete, durable, errors, orders, pins, site, status, waiting
from stager.command import Command, cli, common, dump, load
from stager.config import Config
from stager.errors import SetupError
from stager.layout import ROOMS, parse_build
from stager.orders import Order
from stager.result import State

ORDER_SECONDS = 30.0
PENDING = ("waiting", "active")
MOST_NAMED = 10
AS_IT_STANDS = (
    "rejected before, and again unless the configuration has changed, as the bytes are the same: "
    "correct the file and drop it under a new name"
)


@cli.command()
@click.option("--group", help="Only members of this group may drop requests.")
@common
def init(group: str | None, option: str | None, as_json: bool) -> None:
    """Make the spool's, results' and static tree's directories, once."""
    config = load(option, spool=False)
    try:
        gid = grp.getgrnam(group).gr_gid if group else None
    except KeyError:
        raise SetupError(f"there is no group {group}") from None
    layout = site.init(config, gid)
    paths = config.paths
    made = {"set": layout.set_id, "uid": layout.uid, "requests": str(paths.requests)}
    dump(made | {"static": str(paths.static), "results": str(paths.results)}, as_json)


def selection(states: tuple[str, ...], offered: complete.Completer) -> Callable[[Command], Command]:
    """Add what chooses requests: NAMEs, or --all with --state and --code."""

    def add(command: Command) -> Command:
        option, codes = click.option, click.Choice(errors.codes())
        code = "With --all: only those with this error code."
        command = option("--code", type=codes, metavar="CODE", default=None, help=code)(command)
        state = f"With --all: only those in this state: {', '.join(states)}."
        command = option(
            "--state", type=click.Choice(states), metavar="STATE", default=None, help=state
        )(command)
        every = "All requests; cancel: pending, retry: failed ones (daemon's user and root)."
        command = option("--all", "everything", is_flag=True, help=every)(command)
        return click.argument("names", nargs=-1, metavar="NAME...", shell_complete=offered)(command)

    return add


@cli.command()
@selection(PENDING, complete.pending)
@common
def cancel(option: str | None, as_json: bool, **chosen: Any) -> None:
    """Cancel requests of one's own."""
    _end(_order_for("cancel", chosen, option, as_json)[1])


@cli.command()
@selection(ROOMS, complete.answered)
@common
def retry(option: str | None, as_json: bool, **chosen: Any) -> None:
    """Make new requests of answered ones: of the same bytes."""
    config, outcome = _order_for("retry", chosen, option, as_json)
    fresh = [name for name, became in outcome.items() if became.startswith("retried")]
    answers = {name: client.read_result(config.paths, name) for name in fresh[:MOST_NAMED]}
    rejected = [name for name, a in answers.items() if a and a.state is State.REJECTED]
    if rejected:
        click.echo(f"{', '.join(rejected)}: {AS_IT_STANDS}", err=True)
    _end(outcome)


def _order_for(
    verb: str, chosen: dict[str, Any], option: str | None, as_json: bool
) -> tuple[Config, dict[str, str]]:
    order = Order(verb, **{key: value for key, value in chosen.items() if value is not None})
    if bool(order.names) == order.everything:
        raise click.UsageError("give NAMEs, or --all")
    if (order.state or order.code) and not order.everything:
        raise click.UsageError("--state and --code go with --all")
    config = load(option, ruler=order.everything)
    return config, _order(config, order, as_json)


@cli.command()
@click.option("--host", default="", help="Only this machine.", shell_complete=complete.hosts)
@common
def pause(host: str, option: str | None, as_json: bool) -> None:
    """Have the daemons claim nothing until `resume`; what they are at goes on to its end.

    A machine that has no daemon now is paused for when it has one.
    """
    config = load(option, ruler=True)
    known = sorted({instance.host for instance in status.take(config.paths).instances})
    short = {name.split(".")[0]: name for name in known}
    if host and host not in {*known, *short}:
        close = difflib.get_close_matches(host, [*known, *short], 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        click.echo(
            f"no machine {host} is known here now (known: {', '.join(known) or 'none'}{meant}): "
            f"it is paused for when it comes; stager resume --host {host} takes that back",
            err=True,
        )
    _end(_order(config, Order("pause", host=host), as_json))


@cli.command()
@click.option("--host", default="", help="Only this machine.", shell_complete=complete.paused)
@common
def resume(host: str, option: str | None, as_json: bool) -> None:
    """Have the daemons claim again."""
    config = load(option, ruler=True)
    paused = status.take(config.paths).paused
    if (host or status.ALL_MACHINES) not in paused:
        what = f"{host} itself" if host else "the whole spool"
        click.echo(f"{what} was not paused (paused: {', '.join(paused) or 'none'})", err=True)
    _end(_order(config, Order("resume", host=host), as_json))


@cli.command()
@click.argument("builds", nargs=-1, required=True, metavar="BUILD...")
@common
def pin(builds: tuple[str, ...], option: str | None, as_json: bool) -> None:
    """Keep builds from retention; `stager list` shows which are kept."""
    config = load(option, ruler=True)
    _keys(config, builds)
    _end(_order(config, Order("pin", builds), as_json))


@cli.command()
@click.argument(
    "builds", nargs=-1, required=True, metavar="BUILD...", shell_complete=complete.pinned
)
@common
def unpin(builds: tuple[str, ...], option: str | None, as_json: bool) -> None:
    """Let retention have builds again."""
    config = load(option, ruler=True)
    pinned = pins.keys(durable.listing(config.spool, touch=False))
    for build, key in _keys(config, builds).items():
        if key not in pinned:
            click.echo(f"{build} was not pinned", err=True)
    _end(_order(config, Order("unpin", builds), as_json))


def _keys(config: Config, builds: tuple[str, ...]) -> dict[str, str]:
    """Return the key of each build; a usage error where one is none."""
    files, keys = frozenset(config.images.values()), {}
    for build in builds:
        try:
            keys[build] = parse_build(build, files).key
        except ValueError as e:
            raise click.UsageError(f"{build}: {e}") from None
    return keys


def _order(config: Config, order: Order, as_json: bool) -> dict[str, str]:
    """Drop an order, wait for its answer, print it; return what became of what it names."""
    try:
        name = orders.send(config.paths, order)
    except OSError as e:
        raise SetupError(f"can't drop an order: {e.strerror} ({e.filename})") from None
    waiting.Pulse(config.paths, lambda words: click.echo(words, err=True)).look()
    answer = client.await_answer(config.paths, name, ORDER_SECONDS)
    if answer is None:
        click.echo(
            "no watcherd has obeyed yet: is one running? The order stays until one does", err=True
        )
        sys.exit(client.TIMED_OUT)
    if answer.problem:
        click.echo(answer.problem, err=True)
        sys.exit(client.FAILED)
    if as_json:
        dump(answer.outcome, True)
    else:
        for key, value in answer.outcome.items():
            click.echo(f"{key}: {value}")
    return answer.outcome


def _end(outcome: dict[str, str]) -> NoReturn:
    sys.exit(client.order_code(outcome))
