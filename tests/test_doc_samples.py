"""Every sample of the documents is what the programs take, do or print."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from documents import BLOCKS, DOCUMENTS, INLINE, Block, prose, run
from lab import BUILD, ROOT, Lab, serving
from machines import Machine

from stager import mounts
from stager.config import Config, parse_config
from stager.errors import RequestError, SetupError
from stager.request import Rules, parse_request
from stager.result import ImagePart, Result, State

TELL = "tell tests/test_doc_samples.py how to run this"
RULES = Rules(Config().images, Config().archive.buckets)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with serving() as made:
        made.archive()
        yield made


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


def from_a_checkout(lab: Lab, block: Block) -> None:
    """Run the lines where a checkout would be, with archives from a directory."""
    place = lab.root / "checkout"
    place.mkdir()
    (place / ".venv").symlink_to(sys.prefix)
    text = block.text.replace("make venv\n", f"make -n -C {ROOT} venv\n")
    text = text.replace("gs://BUCKET/PATH/BUILD", BUILD)
    archive = {"SOURCE": "directory", "DIRECTORY": str(lab.root / "archive")}
    more = {f"STAGER_ARCHIVE__{key}": value for key, value in archive.items()}
    done = run(lab, "sh", "-euc", f"cd {place}\n{text}", TMPDIR=str(place), **more)
    assert done.returncode == 0, done.stderr
    assert "\nstate: staged\n" in done.stdout


SHOWN = {
    "sh make venv": from_a_checkout,
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


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_block_hides(path: Path) -> None:
    rest = prose(path)
    assert "```" not in rest, "a block in a list: move it out, or tell tests/documents.py"
    assert "~~~" not in rest
