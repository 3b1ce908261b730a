"""What the documents hold: blocks, commands, links, tables; for the tests that run them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab import ROOT, Lab

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)(?:    .*\n)+")
CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
OPTION = re.compile(r"\s*\[([^\]]+)\]")


@dataclass(frozen=True)
class Block:
    """A block of code: what it is in (`sh`, `yaml`, `indented`, or nothing), and its text."""

    path: Path
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.path.name}: {self.text.strip().splitlines()[0]}"


def blocks(path: Path) -> Iterator[Block]:
    """Yield all fenced and indented blocks of a document."""
    text = path.read_text()
    for kind, body in FENCED.findall(text):
        yield Block(path, kind, body)
    for body in INDENTED.findall(FENCED.sub("", text)):
        yield Block(path, "indented", body)


def prose(path: Path) -> str:
    """Return a document without its blocks."""
    return INDENTED.sub("", FENCED.sub("", path.read_text()))


def inline(path: Path) -> list[str]:
    """Return the pieces of code in a document's sentences and tables, each on one line."""
    return [" ".join(code.split()) for code in CODE.findall(prose(path))]


def links(path: Path) -> list[str]:
    """Return where a document's links lead."""
    return LINK.findall(prose(path))


def anchors(path: Path) -> set[str]:
    """Return the names that a document's headings can be linked by."""
    heads = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def lines(block: Block) -> Iterator[str]:
    """Yield the commands of a block: no remarks; three blanks part commands on one line."""
    for line in block.text.strip().splitlines():
        yield from re.split(r"\s{3,}", re.sub(r"\s+# .*$", "", line.strip()))


def variants(command: str) -> list[str]:
    """Return a command without and with each `[OPTION]` that it shows."""
    found = OPTION.search(command)
    if not found:
        return [command]
    head, tail = command[: found.start()], command[found.end() :]
    return [*variants(head + tail), *variants(f"{head} {found[1]}{tail}")]


def table(path: Path, head: str) -> dict[str, str]:
    """Return the first two columns of the table whose first column is called so."""
    _, found, body = path.read_text().partition(f"\n| {head} |")
    assert found, f"{path.name} has no table of {head}"
    rows = body.partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {row[0]: row[1] for row in cells}


def run(lab: Lab, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command where `stager` and `watcherd` are installed, as on a lab server."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        command, env=lab.environment() | {"PATH": path, "STAGER_CONFIG": str(lab.config)} | more,
        timeout=90, capture_output=True, text=True, check=False,
    )  # fmt: skip


BLOCKS = [block for path in DOCUMENTS for block in blocks(path)]
INLINE = {code: path.name for path in DOCUMENTS for code in inline(path)}
"""Each piece of code in the sentences, with one of the documents that have it."""
