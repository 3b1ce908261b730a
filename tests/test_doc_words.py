"""What the documents name exists: links, files, rooms, keys and codes."""

import re
from pathlib import Path

import pytest
from documents import DOCUMENTS, INLINE, anchors, inline, links, prose, table
from lab import ROOT

from stager import client, probe
from stager.config import Config
from stager.errors import StagerError
from stager.request import Request

README = ROOT / "README.md"
FILE = re.compile(r"(tests|examples|docs|stager|nginx|contrib|schema|systemd)/[\w./-]*")
WORDS = {"yes": "`yes`", "no": "`no`", "unknown": "can't tell"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for link in links(path):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), f"{path.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{path.name}: {link}"
    for code in inline(path):
        if FILE.fullmatch(code):
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
    assert set(verdicts) == {str(code) for code in probe.CODES.values()}
    for verdict, code in probe.CODES.items():
        assert WORDS[verdict] in verdicts[str(code)]


def test_the_design_knows_every_room() -> None:
    story = prose(ROOT / "docs/design.md").partition("## The story")[2].partition("## On disk")[0]
    named = set(re.findall(r"`(\w+\.py)`", story))
    assert named == {path.name for path in (ROOT / "stager").glob("[!_]*.py")}


def test_the_readme_has_every_key_of_a_request() -> None:
    named = set(re.findall(r"`(\w+):`", " ".join(table(README, "key"))))
    assert named == {*Request.model_fields, "archive_url", "image_types"}
