"""The commands that set up, steer and check a spool: init, orders, verify, doctor."""

import grp
import sys

import click

from stager import client, doctor, orders, site
from stager.command import cli, common, dump, load
from stager.config import Config
from stager.errors import SetupError
from stager.orders import Order

ORDER_SECONDS = 30.0


@cli.command()
@click.option("--group", help="Only members of this group may drop requests.")
@common
def init(group: str | None, option: str | None, as_json: bool) -> None:
    """Make the spool's, results' and static tree's directories, once."""
    config = load(option)
    try:
        gid = grp.getgrnam(group).gr_gid if group else None
    except KeyError:
        raise SetupError(f"there is no group {group}") from None
    layout = site.init(config, gid)
    paths = config.paths
    made = {"set": layout.set_id, "uid": layout.uid, "requests": str(paths.requests)}
    dump(made | {"static": str(paths.static), "results": str(paths.results)}, as_json)


@cli.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all", "everything", is_flag=True, help="All requests (daemon's user and root).")
@click.option("--state", default="", help="With --all: only waiting or active ones.")
@click.option("--code", default="", help="With --all: only those with this error code.")
@common
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
    _order(load(option, ruler=everything), order, as_json)


@cli.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all", "everything", is_flag=True, help="All that failed.")
@click.option("--state", default="", help="With --all: those in done, failed or cancelled.")
@click.option("--code", default="", help="With --all: only those with this error code.")
@common
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
    _order(load(option, ruler=everything), order, as_json)


def _selected(names: tuple[str, ...], everything: bool) -> None:
    if bool(names) == everything:
        raise click.UsageError("give NAMEs, or --all")


@cli.command()
@click.option("--host", default="", help="Only this machine.")
@common
def pause(host: str, option: str | None, as_json: bool) -> None:
    """Have the daemons claim nothing until `resume`; running work ends."""
    _order(load(option, ruler=True), Order("pause", host=host), as_json)


@cli.command()
@click.option("--host", default="", help="Only this machine.")
@common
def resume(host: str, option: str | None, as_json: bool) -> None:
    """Have the daemons claim again."""
    _order(load(option, ruler=True), Order("resume", host=host), as_json)


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
        dump(answer.outcome, True)
    else:
        for key, value in answer.outcome.items():
            click.echo(f"{key}: {value}")
    sys.exit(client.order_code(answer.outcome))


@cli.command()
@click.option("--repair", is_flag=True, help="Have damaged images staged again.")
@common
def verify(repair: bool, option: str | None, as_json: bool) -> None:
    """Read all staged images and compare them with what was staged."""
    config = load(option, ruler=True)
    found = []
    for url, image, damage in doctor.damaged(config):
        found.append({"build": url, "image": image, "damage": damage})
        click.echo(f"{url} {image}: {damage}", err=True)
        if repair:
            data = client.compose({"build": url, "images": [image], "force": "true"})
            name = client.make_name(url)
            client.drop(config.paths, name, data)
            found[-1]["repair"] = name
    dump({"damaged": found}, as_json)
    sys.exit(client.FAILED if found else 0)


@cli.command("doctor")
@common
def doctor_(option: str | None, as_json: bool) -> None:
    """Check that everything on disk is as it must be."""
    config = load(option, ruler=True)
    found = [{"rule": f.rule, "what": f.what, "hint": f.hint} for f in doctor.examine(config)]
    dump({"findings": found}, as_json)
    sys.exit(client.FAILED if found else 0)
