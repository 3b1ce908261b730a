"""The commands that set up, steer and check a spool: init, orders, verify, doctor."""

import grp
import sys
from collections import Counter
from dataclasses import asdict
from typing import Any

import click

from stager import adopt, client, doctor, durable, gc, orders, prune, repair, site, source, status
from stager.command import Command, cli, common, dump, load
from stager.config import Config
from stager.errors import SetupError
from stager.layout import ROOMS, parse_build
from stager.orders import Order
from stager.visit import Visit, visiting
from stager.words import counted, in_bytes

ORDER_SECONDS = 30.0
NO_RULES = "; builds stay: no rule of retention.builds is set"


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


def selection(command: Command) -> Command:
    """Add what chooses requests: NAMEs, or --all with --state and --code."""
    option = click.option
    command = option("--code", default="", help="With --all: only those with this code.")(command)
    command = option("--state", default="", help="With --all: only those in this state.")(command)
    every = "All requests; cancel: pending, retry: failed ones (daemon's user and root)."
    command = option("--all", "everything", is_flag=True, help=every)(command)
    return click.argument("names", nargs=-1, metavar="NAME...")(command)


@cli.command()
@selection
@common
def cancel(option: str | None, as_json: bool, **chosen: Any) -> None:
    """Cancel requests of one's own."""
    _order_for(Order("cancel", **chosen), option, as_json)


@cli.command()
@selection
@common
def retry(option: str | None, as_json: bool, **chosen: Any) -> None:
    """Make new requests of answered ones."""
    _order_for(Order("retry", **chosen), option, as_json)


def _order_for(order: Order, option: str | None, as_json: bool) -> None:
    if bool(order.names) == order.everything:
        raise click.UsageError("give NAMEs, or --all")
    if (order.state or order.code) and not order.everything:
        raise click.UsageError("--state and --code go with --all")
    _order(load(option, ruler=order.everything), order, as_json)


@cli.command()
@click.option("--host", default="", help="Only this machine.")
@common
def pause(host: str, option: str | None, as_json: bool) -> None:
    """Have the daemons claim nothing until `resume`; running work ends."""
    config = load(option, ruler=True)
    known = sorted({instance.host for instance in status.take(config.paths).instances})
    if host and host not in known and host not in {name.split(".")[0] for name in known}:
        here = ", ".join(known) or "none"
        click.echo(f"no machine {host} is known here now (known: {here})", err=True)
    _order(config, Order("pause", host=host), as_json)


@cli.command()
@click.option("--host", default="", help="Only this machine.")
@common
def resume(host: str, option: str | None, as_json: bool) -> None:
    """Have the daemons claim again."""
    config = load(option, ruler=True)
    paused = status.take(config.paths).paused
    if (host or status.ALL_MACHINES) not in paused:
        what = f"{host} itself" if host else "the whole spool"
        click.echo(f"{what} was not paused (paused: {', '.join(paused) or 'none'})", err=True)
    _order(config, Order("resume", host=host), as_json)


@cli.command()
@click.argument("builds", nargs=-1, required=True, metavar="BUILD...")
@common
def pin(builds: tuple[str, ...], option: str | None, as_json: bool) -> None:
    """Keep builds from retention."""
    _order_builds(Order("pin", builds), option, as_json)


@cli.command()
@click.argument("builds", nargs=-1, required=True, metavar="BUILD...")
@common
def unpin(builds: tuple[str, ...], option: str | None, as_json: bool) -> None:
    """Let retention have builds again."""
    _order_builds(Order("unpin", builds), option, as_json)


def _order_builds(order: Order, option: str | None, as_json: bool) -> None:
    config = load(option, ruler=True)
    for build in order.names:
        try:
            parse_build(build, frozenset(config.images.values()))
        except ValueError as e:
            raise click.UsageError(f"{build}: {e}") from None
    _order(config, order, as_json)


def _order(config: Config, order: Order, as_json: bool) -> None:
    """Drop an order, wait for its answer, print it."""
    try:
        name = orders.send(config.paths, order)
    except OSError as e:
        raise SetupError(f"can't drop an order: {e.strerror} ({e.filename})") from None
    client.Pulse(config.paths, lambda words: click.echo(words, err=True)).look()
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
    sys.exit(client.order_code(answer.outcome))


@cli.command()
@click.option("--repair", is_flag=True, help="Have damaged images staged again.")
@common
def verify(repair: bool, option: str | None, as_json: bool) -> None:
    """Read all staged images and compare them with what was staged."""
    config = load(option, ruler=True)
    found, images, size = [], 0, 0
    for read in doctor.reread(config):
        images, size = images + 1, size + read.bytes
        if not read.damage:
            continue
        found.append({"build": read.url, "image": read.image, "damage": read.damage})
        click.echo(f"{read.url} {read.image}: {read.damage}", err=True)
        if repair:
            data = client.compose({"build": read.url, "images": [read.image], "force": "true"})
            name = client.make_name(read.url)
            client.drop(config.paths, name, data)
            found[-1]["repair"] = name
    looked_at = {"images": images, "bytes": size}
    where = f"{counted(images, 'staged image')} ({in_bytes(size)}) below {config.static}"
    click.echo(f"read {where}; damaged: {len(found) or 'none'}", err=True)
    dump({"damaged": found, "looked_at": looked_at}, as_json)
    sys.exit(client.FAILED if found else 0)


@cli.command("gc")
@click.option("--dry-run", is_flag=True, help="Only say what would go, and why.")
@common
def gc_(dry_run: bool, option: str | None, as_json: bool) -> None:
    """Remove the builds, requests and answers that `retention` lets go, now."""
    config = load(option, ruler=True)
    with visiting(config) as visit:
        survey = gc.survey(config, visit.heart.server_now())
        looked_at = _looked_at(visit, survey)
        kept = dict(Counter(staged.spared for staged in survey if staged.spared))
        builds = [
            {"build": r.build.url, "why": r.why, "bytes": r.bytes, "spared": r.spared}
            for r in gc.collect(visit, dry_run=dry_run)
        ]
        files = [str(path) for path in prune.prune(visit, dry_run=dry_run)]
    goes = "would go" if dry_run else "went"
    gone = sum(not build["spared"] for build in builds)
    what = f"{counted(gone, 'build')}, {counted(len(files), 'file')}"
    off = "" if any(config.retention.builds.model_dump().values()) else NO_RULES
    stays = ", ".join(f"{number} {why}" for why, number in kept.items())
    stays = f"; kept whatever the rules say: {stays}" if stays and not off else ""
    click.echo(f"looked at {_in_words(looked_at)}; {goes}: {what}{off}{stays}", err=True)
    found = {"builds": builds, "files": files, "looked_at": looked_at, "kept": kept}
    dump({"dry_run": dry_run, **found}, as_json)


def _looked_at(visit: Visit, staged: list[gc.Staged]) -> dict[str, int]:
    """Return what retention looks at."""
    paths = visit.config.paths
    answers = [n for n in durable.listing(paths.results, touch=False) if n.endswith(".yaml")]
    requests = [n for room in ROOMS for n in durable.listing(paths.spool / room, touch=False)]
    return {
        "builds": len(staged),
        "bytes": sum(build.bytes for build in staged),
        "requests": len(requests),
        "answers": len(answers),
    }


def _in_words(looked_at: dict[str, int]) -> str:
    builds, size = counted(looked_at["builds"], "build"), in_bytes(looked_at["bytes"])
    requests = counted(looked_at["requests"], "answered request")
    return f"{builds} ({size}), {requests} and {counted(looked_at['answers'], 'answer')}"


@cli.command("adopt")
@click.option("--dry-run", is_flag=True, help="Only say which images there are to check.")
@common
def adopt_(dry_run: bool, option: str | None, as_json: bool) -> None:
    """Take over the images of an older devserver: check each, and record it."""
    config = load(option, ruler=True)
    with visiting(config) as visit:
        opened = source.open_source(config)
        images = [asdict(a) for a in adopt.adopt(visit, opened, dry_run=dry_run)]
        owners = [misfit.command for misfit in adopt.foreign(visit)]
    dump({"dry_run": dry_run, "images": images, "owners": owners}, as_json)
    left = any(image["outcome"].startswith("left") for image in images)
    sys.exit(client.FAILED if left or owners else 0)


@cli.command("doctor")
@click.option("--repair", "mends", is_flag=True, help="Mend what can be mended without harm.")
@common
def doctor_(mends: bool, option: str | None, as_json: bool) -> None:
    """Check that everything on disk is as it must be."""
    config = load(option, ruler=True)
    findings = doctor.examine(config)
    found = [{"rule": f.rule, "what": f.what, "hint": f.hint, "broken": f.broken} for f in findings]
    if mends and findings:
        outcomes = dict(repair.repair(config, findings))
        found = [f | {"repair": outcomes[which]} for f, which in zip(found, findings, strict=True)]
    left = [f for f in found if f.pop("broken") and f.get("repair") != repair.MENDED]
    broken = sum(f.broken for f in findings)
    dump({"findings": found[:broken], "remarks": found[broken:]}, as_json)
    sys.exit(client.FAILED if left else 0)
