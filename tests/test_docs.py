"""Every command of the documents is run, here or by the test that a table names."""

import itertools
import re
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import BLOCKS, INLINE, lines, run, variants
from lab import BUILD, ROOT, Lab, serving, until

import benchmarks.__main__
import benchmarks.scaling
import watcherd
from stager.cli import cli
from stager.request import Request

TELL = "tell tests/test_docs.py how to run this"
MISSING = f"{BUILD}-missing"
PROGRAMS = re.compile(
    r"(sudo|sudoedit|make|git|stager|watcherd|systemctl|runuser|id|findmnt|python|usermod) \S"
)
_numbers = itertools.count()

# What needs a machine of its own: where it is run, and the words there that run it.
ELSEWHERE = {
    "git pull && sudo make install": ("systemd/test_install.py", 'machine.make("install"'),
    "sudo make install": ("lab/machine.py", 'machine.make("install")'),
    "sudoedit /etc/stager/config.yaml": ("systemd/test_install.py", '"etc/stager/config.yaml"'),
    "sudo -u stager stager init": ("systemd/test_install.py", '"stager", "--", "stager", "init"'),
    "sudo systemctl enable --now watcherd": ("systemd/test_install.py", '"--now", "watcherd"'),
    "systemctl start watcherd": ("systemd/test_install.py", '"--now", "watcherd"'),
    "systemctl status watcherd": ("systemd/test_install.py", '"status", "watcherd"'),
    "systemctl edit watcherd": ("lab/service.py", "def drop_in"),
    "systemctl reload watcherd": ("systemd/test_unit.py", '"reload", service.unit'),
    "watcherd --once": ("test_once.py", "lab.once()"),
    "watcherd --check-config": ("test_config.py", '"--check-config"'),
    "systemctl cat watcherd": ("systemd/test_unit.py", '"cat", "watcherd"'),
    "id -u stager": ("systemd/test_install.py", '"id", "-u", "stager"'),
    "make install INSTANCE=NAME": ("systemd/test_install.py", '"install", INSTANCE='),
    "make install SPOOL= STATIC= RESULTS=": ("systemd/test_nfs_mount.py", 'f"SPOOL={lab}/spool"'),
}  # fmt: skip


def commands() -> dict[str, str]:
    """Return every command of the documents, with the document that has it."""
    indented = [block for block in BLOCKS if block.kind == "indented"]
    found = {line: block.path.name for block in indented for line in lines(block)}
    for code, name in INLINE.items():
        word = code.split()[0]
        if PROGRAMS.match(code):
            found[code] = name
        elif word in cli.commands and word not in Request.model_fields:
            found[f"stager {code}"] = name
        elif code.startswith("--case "):
            found[f"python -m benchmarks {code}"] = name
        elif re.fullmatch(r"(test|soak|bench)-\w+", code):
            found[f"make {code}"] = name
    return {each: name for command, name in found.items() for each in variants(command)}


def of(*programs: str) -> list[str]:
    """Return the commands of these programs that are run here."""
    return sorted(c for c in COMMANDS if c not in ELSEWHERE and c.split()[0] in programs)


COMMANDS = commands()
RUN_HERE = ("stager", "make", "python", "findmnt")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with serving() as made:
        made.archive()
        yield made
        # A request that was retried may still look for its archive, once more.
        made.stager("cancel", "--all")
        until(made.is_clean, "an end of all requests")


def test_every_command_is_known() -> None:
    strange = [c for c in COMMANDS if c not in ELSEWHERE and c.split()[0] not in RUN_HERE]
    assert not strange, f"{TELL}: {strange}"
    assert not set(ELSEWHERE) - set(COMMANDS), "no document has these any more"


@pytest.mark.parametrize("command", ELSEWHERE)
def test_a_command_for_a_machine_of_its_own_is_run_there(command: str) -> None:
    name, words = ELSEWHERE[command]
    assert words in (ROOT / "tests" / name).read_text()


def asked(lab: Lab, word: str) -> str:
    """Return the NAME of a request that is as `stager WORD NAME` wants it."""
    name = f"{word}-{next(_numbers)}"
    if word == "cancel":
        lab.drop(name, MISSING, wait="1h")
        until(lambda: any(name in entry for entry in lab.spool("waiting")), "it waits")
    else:
        lab.drop(name, MISSING if word == "retry" else BUILD, wait="0")
        lab.result(name)
    return name


def filled(lab: Lab, command: str) -> list[str]:
    """Return a documented command's words, with real things in the places of its names."""
    _, word, *rest = shlex.split(command)
    host, needs = socket.gethostname(), any(p.required for p in cli.commands[word].params)
    if needs and not rest:
        return [word, "--help"]  # no more than named in a sentence
    (lab.root / "probed").mkdir(exist_ok=True)
    values = {
        "gs://BUCKET/PATH/BUILD": BUILD, "BUILD": BUILD, "CODE": "archive_not_found", "G": "root",
        "DIR": f"{lab.root}/probed",
    }  # fmt: skip
    words = [word]
    for given in rest:
        if given in {"NAME", "NAME..."}:
            words.append(host if words[-1] == "--host" else asked(lab, word))
        else:
            words.append(values.get(given, given))
    # Two probes of one machine are told apart (tests/test_probe.py): here is one that is alone.
    return [*words, "--machines", "1"] if word == "probe" else words


@pytest.mark.parametrize("command", of("stager"))
def test_a_client_command_does_what_its_document_says(
    lab: Lab, public_dir: Path, command: str
) -> None:
    words = filled(lab, command)
    place = Lab(public_dir) if words[0] == "init" else lab
    done = run(place, "stager", *words)
    if words[0] == "pause":
        assert run(lab, "stager", "resume", *words[1:]).returncode == 0
    assert done.returncode == 0, f"{COMMANDS[command]}: {words}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("command", sorted(c for c in COMMANDS if " make " in f" {c}"))
def test_a_make_target_is_there(command: str) -> None:
    words = shlex.split(command.rpartition("make ")[2])
    done = subprocess.run(
        ["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{COMMANDS[command]}: {done.stderr}"
    for variable, _, value in (word.partition("=") for word in words[1:]):
        text = (ROOT / "Makefile").read_text() + (ROOT / "systemd/install.sh").read_text()
        assert variable in text, f"nobody asks for {variable}"
        assert value in done.stdout or words[0] == "install"


@pytest.mark.parametrize("command", of("python"))
def test_a_benchmark_has_these_options(command: str) -> None:
    _, _, module, *options = command.split()
    main = {"benchmarks": benchmarks.__main__, "benchmarks.scaling": benchmarks.scaling}[
        module
    ].main
    assert main.make_context(module, options).command is main


@pytest.mark.parametrize("command", of("findmnt"))
def test_another_tool_takes_this(lab: Lab, command: str) -> None:
    done = run(lab, *command.replace("DIR", str(lab.root)).split())
    assert done.returncode == 0, done.stderr


def test_every_option_that_is_named_exists() -> None:
    known = [*cli.commands.values(), watcherd.main, benchmarks.__main__.main]
    options = {opt for command in known for param in command.params for opt in param.opts}
    for code, name in INLINE.items():
        option = re.match(r"--\w\S*", code)
        assert not option or option[0] in options, f"{name}: {code}"
    for command in cli.commands.values():
        assert {"--config", "--json"} <= {opt for param in command.params for opt in param.opts}
