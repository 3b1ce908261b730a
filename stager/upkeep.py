"""The commands that look at what is there, and mend or remove some: verify, gc, adopt, doctor.

Each says on stderr what it looked at, so that an empty document tells something.
"""

import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import click

from stager import adopt, client, doctor, durable, gc, prune, repair, source
from stager.command import cli, common, dump, load
from stager.config import Config
from stager.layout import ROOMS
from stager.visit import Visit, visiting
from stager.words import counted, in_bytes

NO_RULES = "; builds stay: no rule of retention.builds is set"


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
    if found:
        names = " ".join(one.get("repair", "") for one in found)
        again = (
            f"`stager wait {names}`, then verify again" if repair else "`stager verify --repair`"
        )
        click.echo(f"to have what is damaged staged again: {again}", err=True)
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
        flagged = sum(1 for _ in adopt.flagged(visit))
    looked_at = f"{counted(flagged, 'flagged build')} below {config.paths.images}"
    what = f"older images without a record: {len(images) or 'none'}"
    click.echo(f"looked at {looked_at}; {what}", err=True)
    found = {"images": images, "owners": owners, "looked_at": {"builds": flagged}}
    dump({"dry_run": dry_run, **found}, as_json)
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
    numbers = f"broken: {broken or 'none'}, remarks: {len(found) - broken or 'none'}"
    click.echo(f"looked at {_examined(config)}; {numbers}", err=True)
    dump({"findings": found[:broken], "remarks": found[broken:]}, as_json)
    sys.exit(client.FAILED if left else 0)


def _examined(config: Config) -> str:
    """Say how much there is that was examined; nothing of what is not there."""
    paths = config.paths
    records = _listed(paths.sidecars)
    seen = {
        "request": sum(len(_listed(paths.spool / state)) for state in doctor.STATES),
        "answer": sum(name.endswith(".yaml") for name in _listed(paths.results)),
        "token": len(_listed(paths.locks)),
        "build": len({name.partition(".")[0] for name in records}),
        "image": len(records),
    }
    return ", ".join(counted(number, what) for what, number in seen.items())


def _listed(directory: Path) -> list[str]:
    try:
        return [name for name in durable.listing(directory, touch=False) if name[0] != "."]
    except OSError:
        return []
