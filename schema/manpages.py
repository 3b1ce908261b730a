"""The manual pages, from the commands and the models: part of `make schema`."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import click
import generate
from pydantic import BaseModel

import watcherd
from stager import client
from stager.cli import cli
from stager.config import Config
from stager.request import Request
from stager.result import Result

EXIT_CODES = {
    0: "good: staged, or already staged",
    client.FAILED: "failed",
    client.USAGE: "usage or configuration",
    client.REJECTED: "rejected",
    client.TIMED_OUT: "timed out waiting (the request goes on)",
    client.NOT_FOUND: "no such request",
    client.CANCELLED: "cancelled",
    client.INTERRUPTED: "interrupted (the request goes on)",
}
FIRST_SENTENCE = re.compile(r"(.*?)\.(\s|$)", re.DOTALL)


def escaped(text: str) -> str:
    """Return text as roff shows it; words in backquotes are bold."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", text)
    return "\n".join("\\&" + line if line[:1] in ".'" else line for line in text.splitlines())


def page(name: str, section: int, what: str, parts: dict[str, str]) -> str:
    """Return a manual page."""
    # A page's date would change with each day it is written on.
    head = f'.TH "{name.upper()}" {section} "" watcherd "watcherd manual"'
    lines = [head, ".SH NAME", f"{escaped(name)} \\- {escaped(what)}"]
    for title, text in parts.items():
        lines += [f".SH {title}", text]
    return "\n".join(lines) + "\n"


def tagged(pairs: Iterator[tuple[str, str]]) -> str:
    """Return a list of terms and what they mean."""
    return "\n".join(f".TP\n.B {escaped(term)}\n{escaped(text)}" for term, text in pairs)


def options(command: click.Command) -> Iterator[tuple[str, str]]:
    """Yield a command's options with their help."""
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            names = ", ".join(parameter.opts)
            wants = "" if parameter.is_flag else f" {parameter.metavar or parameter.name.upper()}"
            yield names + wants, parameter.help or "Show the version and exit."


def usage(command: click.Command, name: str) -> str:
    """Return how a command is called."""
    context = click.Context(command, info_name=name)
    return f".B {escaped(name)}\n" + escaped(" ".join(command.collect_usage_pieces(context)))


def commands() -> str:
    """Return all of stager's commands."""
    lines = []
    for name, command in sorted(cli.commands.items()):
        lines += [f".SS stager {escaped(name)}", usage(command, f"stager {name}"), ".PP"]
        told = inspect.cleandoc(command.help or "").split("\n\n")
        lines += ["\n.PP\n".join(map(escaped, told)), tagged(options(command))]
    return "\n".join(lines)


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the keys of a model with their meaning and default."""
    texts = generate.meanings(model)
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from keys(type(field.default), f"{prefix}{name}.")
            continue
        shown = generate.default_text(field)
        yield f"{prefix}{name}", texts[name] + (f" Default: {shown}." if shown else "")


def codes() -> Iterator[tuple[str, str]]:
    """Yield the exit codes."""
    for code, meaning in EXIT_CODES.items():
        yield str(code), meaning


PAGES = {"stager": 1, "stager-request": 5, "watcherd.yaml": 5, "watcherd": 8}


def see_also(name: str) -> str:
    """Return the other pages."""
    others = [f"{escaped(other)} ({number})" for other, number in PAGES.items() if other != name]
    return f".BR {', '.join(others)}"


def pages() -> dict[str, str]:
    """Return all manual pages by the name of their file."""
    example = (
        ".nf\nbuild: gs://chromeos\\-image\\-archive/x86\\-alex\\-release/R23\\-2811.0.0\n"
        "images: [test, recovery]\n.fi"
    )
    main: Any = watcherd.main
    return {
        "watcherd.8": page("watcherd", 8, "stage build images that are asked for in a spool", {
            "SYNOPSIS": usage(main, "watcherd"),
            "DESCRIPTION": escaped(
                "Claims request files from a spool directory, takes just the wanted images out of "
                "the builds' image.zip in Google Cloud Storage, puts them whole and verified into "
                "a static tree, and writes an answer for each request. Several daemons, on one "
                "machine or on many, may share one spool."
            ),
            "SIGNALS": tagged(iter([
                ("SIGTERM, SIGINT", "gives back what is unfinished, for others to do, and ends"),
                ("SIGHUP", "reads the configuration again; one that is not good changes nothing"),
            ])),
            "OPTIONS": tagged(options(main)),
            "EXIT STATUS": tagged(iter([
                ("0", "ended as told"),
                ("1", "can't start now, or with --once: a request failed or was rejected"),
                ("2", "usage, configuration, or directories that were not set up"),
            ])),
            "FILES": tagged(iter([("/etc/stager/config.yaml", "the configuration")])),
            "SEE ALSO": see_also("watcherd"),
        }),
        "stager.1": page("stager", 1, "ask for build images, and look after their spool", {
            "SYNOPSIS": ".B stager\nCOMMAND [OPTIONS] [ARGS]...",
            "DESCRIPTION": escaped(
                "Documents go to standard output, all else to standard error. Every command takes "
                "`--config` FILE and `--json`. The configuration is looked for at `--config`, "
                "$STAGER_CONFIG, /etc/stager/config.yaml."
            ),
            "COMMANDS": commands(),
            "SHELL COMPLETION": escaped(
                'eval "$(_STAGER_COMPLETE=bash_source stager)"; also zsh_source, fish_source. '
                "Commands, options, images, and names of requests, pinned builds and machines are "
                "offered."
            ),
            "EXIT STATUS": tagged(codes()),
            "SEE ALSO": see_also("stager"),
        }),
        "stager-request.5": page("stager-request", 5, "requests to watcherd, and its answers", {
            "DESCRIPTION": escaped(
                "A request is a YAML or JSON file, UTF-8, 64 KiB at most, moved or linked as "
                "NAME.yaml into requests/ of the spool. Give every request a NAME of its own. "
                "Keys that start with `x-` are yours; archive_url is another word for build, "
                "image_types for images."
            ),
            "REQUEST": tagged(keys(Request)),
            "ANSWER": escaped("results/NAME.yaml; `state` is its first line.\n")
            + "\n" + tagged(keys(Result)),
            "EXAMPLE": example,
            "SEE ALSO": see_also("stager-request"),
        }),
        "watcherd.yaml.5": page("watcherd.yaml", 5, "the configuration of watcherd", {
            "DESCRIPTION": escaped(
                "YAML. Durations are seconds, or a number with s, m, h or d; sizes are bytes, or "
                "a number with K, M, G or T. STAGER_<KEY> in the environment overrides a key, "
                "with __ between levels. `watcherd --check-config` says what is wrong, and where, "
                "also where lease and heartbeat are not those of the spool."
            ),
            "KEYS": tagged(keys(Config)),
            "SEE ALSO": see_also("watcherd.yaml"),
        }),
    }  # fmt: skip
