"""Every command and sample of the documents is run, here or by the test that a table names."""

import itertools
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import benchmarks.__main__
import benchmarks.scaling
import pytest
import yaml
from documents import (
    DOCUMENTS, Block, anchors, blocks, inline, lines, links, prose, table, variants,
)  # fmt: skip
from lab import BUILD, ROOT, Lab, serving, until
from machines import Machine

from stager import client, mounts, probing
from stager.cli import cli
from stager.config import Config, parse_config
from stager.errors import RequestError, SetupError, StagerError
from stager.request import Request, Rules, parse_request
from stager.result import ImagePart, Result, State

TELL = "tell tests/test_docs.py how to run this"
README = ROOT / "README.md"
MISSING = f"{BUILD}-missing"
RULES = Rules(Config().images, Config().archive.buckets)
BLOCKS = [block for path in DOCUMENTS for block in blocks(path)]
INLINE = {code: path.name for path in DOCUMENTS for code in inline(path)}
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
    "systemctl edit watcherd": ("lab/machine.py", "def drop_in"),
    "systemctl cat watcherd": ("systemd/test_unit.py", '"cat", "watcherd"'),
    "id -u stager": ("systemd/test_install.py", '"id", "-u", "stager"'),
    "make install INSTANCE=NAME": ("systemd/test_install.py", '"install", INSTANCE='),
    "make install SPOOL= STATIC= RESULTS=": ("systemd/test_nfs_mount.py", '"make", "-s", "install"'),
}  # fmt: skip


def commands() -> dict[str, str]:
    """Return every command of the documents, with the document that has it."""
    found = {
        line: block.path.name for block in BLOCKS if block.kind == "indented" for line in lines(block)
    }  # fmt: skip
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


def run(lab: Lab, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command where `stager` and `watcherd` are installed, as on a lab server."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        command, env=lab.environment() | {"PATH": path, "STAGER_CONFIG": str(lab.config)} | more,
        timeout=90, capture_output=True, text=True, check=False,
    )  # fmt: skip


# -- commands ---------------------------------------------------------------------------------------


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
    main = {"benchmarks": benchmarks.__main__, "benchmarks.scaling": benchmarks.scaling}[module].main
    assert main.make_context(module, options).command is main


@pytest.mark.parametrize("command", of("findmnt"))
def test_another_tool_takes_this(lab: Lab, command: str) -> None:
    done = run(lab, *command.replace("DIR", str(lab.root)).split())
    assert done.returncode == 0, done.stderr


# -- blocks -----------------------------------------------------------------------------------------


def dropping(lab: Lab, block: Block) -> None:
    """Run the lines that drop a request."""
    text = block.text.replace("/srv/watcherd", str(lab.root))
    done = run(lab, "sh", "-euc", f'{text}printf %s "$name"')
    assert done.returncode == 0, done.stderr
    answer = lab.result(done.stdout)
    assert answer["state"] in {"staged", "already_staged"}
    (sample,) = (b.text for b in BLOCKS if b.text.startswith("state:"))
    shown = yaml.safe_load(sample.replace(", ...}", "}"))
    assert [key for key in answer if key in shown] == list(shown), "the order, and no other keys"
    assert list(shown["images"]) == list(answer["images"])


def answer_shown(_: Lab, block: Block) -> None:
    """Have an answer, shortened by `...`, read as a client does."""
    shown = yaml.safe_load(block.text.replace(", ...}", "}"))
    always = {"host": "lab-7", "attempts": 1, "received": "x", "finished": "x"}
    result = Result.model_validate({**always, **shown})
    assert result.state is State.STAGED
    assert set(shown) <= set(Result.model_fields)
    for image in shown["images"].values():
        assert set(image) <= set(ImagePart.model_fields)
        assert image.get("path", result.target).startswith(f"{result.target}")
    states = block.text.splitlines()[0].partition("# ")[2].split(", ")
    assert states == [state.value for state in State]


def probes(lab: Lab, block: Block) -> None:
    """Run the lines of two machines at the same time."""
    place = lab.root / "shared"
    place.mkdir()
    typed = [line.partition("$ ")[2] for line in block.text.splitlines()]
    assert set(typed) == {"runuser -u stager -- stager probe /srv/watcherd"}
    machines = [Machine(place, "--seconds", "1", boot=boot) for boot in "ab"]
    try:
        assert {machine.found["verdict"] for machine in machines} == {"yes"}
        assert [machine.code for machine in machines] == [0, 0]
    finally:
        for machine in machines:
            machine.end()


def export(_: Lab, block: Block) -> None:
    """The export's options are those that the tests on real NFS have."""
    options = block.text.partition("(")[2].partition(")")[0]
    assert f"({options}," in (ROOT / "tests/lab/nfs-lab.sh").read_text()


def mount(lab: Lab, block: Block) -> None:
    """`mount` reads the line, and a mount with these options is not spoken of at start."""
    line = lab.root / "fstab"
    line.write_text(block.text)
    told = run(lab, "findmnt", "--fstab", "-F", str(line), "-no", "FSTYPE,OPTIONS").stdout.split()
    assert told == block.text.split()[2:4]
    info = lab.root / "mountinfo"
    info.write_text(f"41 22 0:40 / {lab.root} rw - nfs4 server:/ rw,{told[1]}\n")
    assert mounts.notices([lab.root / "spool"], mounts.mounts(info)) == []


def simulated(lab: Lab, block: Block) -> None:
    """The simulation prints what the document shows."""
    done = run(lab, sys.executable, "-m", "benchmarks.scaling", PYTHONPATH=str(ROOT))
    assert done.stdout == block.text, done.stderr


def on_disk(lab: Lab, block: Block) -> None:
    """Every directory is there, and those that are there are shown."""
    text = block.text
    shown = {
        f"spool/{room}" for names in re.findall(r"^spool/(\S+)/ ", text, re.MULTILINE)
        for room in names.strip("{}").split(",")
    }  # fmt: skip
    assert shown == {f"spool/{p.name}" for p in (lab.root / "spool").iterdir() if p.is_dir()}
    shown = set(re.findall(r"^static/\.stager/(\w+)/", text, re.MULTILINE))
    assert shown == {p.name for p in (lab.root / "static/.stager").iterdir() if p.is_dir()}
    marks = ("spool/LAYOUT", "static/.stager/LAYOUT", "results/.layout")
    assert all((lab.root / mark).is_file() and mark in text for mark in marks)


SHOWN = {
    "sh name=": dropping,
    "yaml state:": answer_shown,
    " lab-1$ runuser": probes,
    " /srv/watcherd  10.": export,
    " server:/srv/watcherd": mount,
    " servers rescan": simulated,
    " spool/LAYOUT": on_disk,
}


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind != "indented"], ids=str)
def test_a_block_is_as_it_is(lab: Lab, block: Block) -> None:
    head = f"{block.kind} {block.text}"
    ways = [way for start, way in SHOWN.items() if head.startswith(start)]
    assert len(ways) == 1, f"{TELL}: {block}"
    ways[0](lab, block)


def takes(code: str) -> bool:
    """Whether the daemon takes a line as a request's, a configuration's or an answer's."""
    request = f"{code}\n"
    request += "" if code.startswith(("build:", "archive_url:")) else f"build: {BUILD}\n"
    request += "" if code.startswith(("images:", "image_types:")) else "images: test\n"
    try:
        return bool(parse_request(request.encode(), RULES))
    except RequestError:
        pass
    for text in (code, f"archive: {{{code}}}"):
        try:
            return bool(parse_config(text.encode(), "inline", {}))
        except SetupError:
            pass
    return code in {f"state: {state}" for state in State}


@pytest.mark.parametrize("code", sorted(c for c in INLINE if re.match(r"[a-z_]+: \S", c)))
def test_a_line_of_yaml_in_a_sentence_is_taken(code: str) -> None:
    assert takes(code), f"{INLINE[code]}: {code}"


# -- what is said -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for link in links(path):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), f"{path.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{path.name}: {link}"
    for code in inline(path):
        if re.fullmatch(r"(tests|examples|docs|stager|nginx|contrib|schema|systemd)/[\w./-]*", code):
            assert (ROOT / code).exists(), f"{path.name}: {code}"


def test_the_readme_is_two_screens() -> None:
    assert len(README.read_text().splitlines()) <= 115


def codes() -> set[str]:
    """Return every error's code."""
    todo, found = [StagerError], set()
    while todo:
        error = todo.pop()
        todo += error.__subclasses__()
        found.add(error.code)
    return found


def test_error_codes_are_the_programs() -> None:
    assert set(table(ROOT / "docs/reference.md", "code")) == {f"`{code}`" for code in codes()}
    likes = {code.split("_")[0] for code in codes() if "_" in code}
    for code, name in INLINE.items():
        if re.fullmatch(r"[a-z]+(_[a-z]+)+", code) and code.split("_")[0] in likes:
            known = codes() | set(Config.model_fields) | {"archive_url", "image_types"}
            assert code in known, f"{name}: {code}"


def test_exit_codes_are_the_programs() -> None:
    shown = table(README, "exit code")
    used = {
        *client.EXIT.values(), client.USAGE, client.FAILED, client.REJECTED, client.TIMED_OUT,
        client.NOT_FOUND, client.CANCELLED, client.INTERRUPTED,
    }  # fmt: skip
    assert set(shown) == {str(code) for code in used}
    for state, code in client.EXIT.items():
        assert state.replace("_", " ") in shown[str(code)]
    assert shown[str(client.TIMED_OUT)].startswith("timed out")
    assert shown[str(client.NOT_FOUND)].startswith("no such request")
    assert shown[str(client.USAGE)].startswith("usage")
    assert shown[str(client.INTERRUPTED)].startswith("interrupted")
    verdicts = table(ROOT / "docs/nfs.md", "exit code")
    assert set(verdicts) == {str(code) for code in probing.CODES.values()}
    for verdict, code in probing.CODES.items():
        assert verdict.replace("not", "n't") in verdicts[str(code)] or verdict in verdicts[str(code)]


def test_the_design_knows_every_room() -> None:
    story = prose(ROOT / "docs/design.md").partition("## The story")[2].partition("## On disk")[0]
    named = set(re.findall(r"`(\w+\.py)`", story))
    assert named == {path.name for path in (ROOT / "stager").glob("[!_]*.py")}
