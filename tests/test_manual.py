"""The manual pages say all that the commands and models know; completion works in real shells."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import manpages
import pytest
from lab import ROOT

from stager.cli import cli
from stager.config import Config
from stager.request import Request

PAGES = sorted((ROOT / "man").iterdir())


def shown(name: str) -> str:
    """Return a page as `man` shows it."""
    done = subprocess.run(
        ["mandoc", "-T", "utf8", str(ROOT / "man" / name)], capture_output=True, check=True
    )
    return subprocess.run(
        ["col", "-bx"], input=done.stdout, capture_output=True, check=True
    ).stdout.decode()


def test_all_pages_are_there() -> None:
    assert {path.name for path in PAGES} == set(manpages.pages())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_is_sound(path: Path) -> None:
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = [line for line in done.stdout.splitlines() if "missing date" not in line]
    assert not said, "\n".join(said)


def test_every_command_and_option_is_explained() -> None:
    text = shown("stager.1")
    for name, command in cli.commands.items():
        assert f"stager {name}" in text
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert option in text
    daemon = shown("watcherd.8")
    assert all(option in daemon for option in ("--once", "--check-config", "--version"))


def test_every_key_is_explained() -> None:
    assert all(f" {key}" in shown("stager-request.5") for key in Request.model_fields)
    config = shown("watcherd.yaml.5")
    assert all(key in config for key in (*Config.model_fields, "retention.builds.keep"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_names_the_other_pages_and_not_itself(path: Path) -> None:
    named = path.read_text().partition(".SH SEE ALSO\n.BR ")[2].replace("\\-", "-").strip()
    others = [page.name.rpartition(".") for page in PAGES if page != path]
    assert sorted(named.split(", ")) == sorted(f"{name} ({number})" for name, _, number in others)


ASK = {
    "bash": 'source "$0"; COMP_WORDS=(stager sub); COMP_CWORD=1; '
    '_stager_completion stager; printf "%s\\n" "${COMPREPLY[@]}"',
    "zsh": 'autoload -U compinit; compinit -u; source "$0"; '
    'whence -w _stager_completion; COMP_WORDS="stager sub" COMP_CWORD=1 '
    "_STAGER_COMPLETE=zsh_complete stager",
    "fish": 'source $argv[1]; complete --do-complete "stager sub"',
}


@pytest.mark.parametrize("shell", list(ASK))
def test_a_shell_completes_a_command(shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    assert program, f"{shell} is not installed: see tests/debian.sh"
    bin_dir = Path(sys.executable).parent
    env = os.environ | {"PATH": f"{bin_dir}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    script = tmp_path / "completion"
    with script.open("wb") as out:
        subprocess.run(
            ["stager"], env=env | {"_STAGER_COMPLETE": f"{shell}_source"}, stdout=out, check=True
        )
    done = subprocess.run(
        [program, "-c", ASK[shell], str(script)],
        env=env, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert "submit" in done.stdout, done.stdout + done.stderr
