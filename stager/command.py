"""What all client commands share: their options, the configuration, how documents are printed."""

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click
import yaml

from stager import __version__, site
from stager.config import Config, find_config, load_config
from stager.errors import SetupError
from stager.models import duration

Command = TypeVar("Command", bound=Callable[..., Any])


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            return float(duration(value))
        except ValueError as e:
            self.fail(str(e), param, ctx)


DURATION = _Duration()


def common(command: Command) -> Command:
    """Add the options that every command has."""
    command = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)
    return click.option("--config", "option", metavar="FILE", help="The configuration.")(command)


def load(option: str | None, *, ruler: bool = False, spool: bool = True) -> Config:
    """Load the configuration; `ruler`: for the daemon's user and root; `spool`: it is there."""
    config = load_config(find_config(option))
    if spool:
        uid = site.Layout.read(config.paths.marks[0]).uid
        if ruler and os.geteuid() not in {0, uid}:
            raise SetupError(f"this is for root and the daemon's user (uid {uid})")
    return config


def dump(data: Any, as_json: bool) -> None:
    """Print a document on stdout."""
    if as_json:
        click.echo(json.dumps(data, indent=2))
    else:
        click.echo(yaml.safe_dump(data, sort_keys=False, width=1000), nl=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version=__version__, message="stager %(version)s")
@click.option("--config", "misplaced", hidden=True)
def cli(misplaced: str | None) -> None:
    """Ask for build images, and look after the spool they are asked for in."""
    if misplaced is not None:
        raise click.UsageError(f"the command comes first: `stager COMMAND --config {misplaced}`")
