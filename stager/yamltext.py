"""YAML read as text: nothing is typed by YAML's rules, everything has a line and a column.

`1.10` stays `1.10` and `no` stays `no`; who asks for a number converts the text itself. Refused:
anchors, aliases, tags, merge keys, repeated keys, several documents, more than 16 levels or
2,000 nodes, and anything that is not UTF-8. Reading is by events, so nothing can expand.
"""

import re
from collections.abc import Iterator
from typing import Any, TypeAlias

import yaml

from stager.errors import Problem

Place: TypeAlias = tuple[int, int]
Path: TypeAlias = tuple[str | int, ...]
NULLS = {"", "~", "null", "Null", "NULL"}
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

BYTE_ORDER_MARK = "\ufeff"
MAX_DEPTH = 16
MAX_NODES = 2_000


class TextError(Exception):
    """The text is no YAML that we read; `problems` says what and where."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


class Document:
    """One document: `data` (dict, list, str or None) and the place of every key and item in it."""

    def __init__(self) -> None:
        self.data: Any = None
        self.places: dict[Path, Place] = {(): (1, 1)}
        self.values: dict[Place, Place] = {}
        """By the place of a key: where its value begins, if it has one."""
        self.problems: list[Problem] = []
        self.unread: set[Path] = set()
        """Where something stands that was refused: nothing follows from its value."""

    def place(self, path: Path) -> Place:
        """Return line and column of `path`, or of the nearest thing around it that is there."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]

    def value_place(self, path: Path) -> Place:
        """Return where the value of a key begins; the key's place where it has none."""
        place = self.place(path)
        return self.values.get(place, place) if path in self.places else place


def parse_text(data: bytes) -> Document:
    """Parse UTF-8 text; raise TextError where it can't be read to its end.

    What is merely not allowed (anchors, repeated keys, ...) stands in the document's `problems`.
    """
    try:
        text = data.decode().removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError as e:
        head = data[: e.start].decode().removeprefix(BYTE_ORDER_MARK)
        raise TextError([Problem("not UTF-8 text", *_end(head))]) from None
    if m := yaml.reader.Reader.NON_PRINTABLE.search(text):
        message = "a character that YAML does not allow"
        raise TextError([Problem(message, *_end(text[: m.start()]))])
    reader = _Reader(_joined_pairs(text) if text.lstrip().startswith(("{", "[")) else text)
    try:
        document = reader.read()
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        at = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise TextError([*reader.problems, Problem(_words(e), *at)]) from None
    return document


def _end(head: str) -> Place:
    """Return line and column of what follows `head`."""
    return head.count("\n") + 1, len(head) - head.rfind("\n")


def _joined_pairs(text: str) -> str:
    """Write JSON's pairs of surrogate escapes as the one escape that YAML knows."""

    def join(m: re.Match[str]) -> str:
        code = 0x10000 + ((int(m[2], 16) & 0x3FF) << 10) + (int(m[3], 16) & 0x3FF)
        return f"{m[1]}\\U{code:08x}"

    pair = r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})"
    return re.sub(pair, join, text)


def _words(error: yaml.MarkedYAMLError) -> str:
    """Say what is wrong without quoting the text."""
    problem = (error.problem or "not YAML").split(", but ")[0]
    return f"not valid YAML: {problem}" if "'" not in problem else "not valid YAML here"


class _Reader:
    """Builds plain data from the parser's events."""

    def __init__(self, text: str) -> None:
        self.events: Iterator[Any] = yaml.parse(text, Loader=Loader)
        self.document = Document()
        self.problems = self.document.problems
        self.nodes = 0

    def read(self) -> Document:
        next(self.events)
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                self.document.data = self._node(next(self.events), ())
                next(self.events)
                break
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                self._problem("only one document is read", event)
                break
        return self.document

    def _problem(self, message: str, event: Any) -> None:
        mark = event.start_mark
        self.problems.append(Problem(message, mark.line + 1, mark.column + 1))

    def _node(self, event: Any, path: Path) -> Any:
        self.nodes += 1
        if len(path) > MAX_DEPTH or self.nodes > MAX_NODES:
            what = f"more than {MAX_DEPTH} levels" if len(path) > MAX_DEPTH else "too many values"
            self._problem(f"{what}: this is no such file", event)
            raise TextError(self.problems)
        self.document.places.setdefault(
            path, (event.start_mark.line + 1, event.start_mark.column + 1)
        )
        if isinstance(event, yaml.AliasEvent):
            self._problem("aliases (*) are not read", event)
            self.document.unread.add(path)
            return None
        if event.anchor:
            self._problem("anchors (&) are not read", event)
        if event.tag:
            self._problem("tags (!) are not read", event)
        if isinstance(event, yaml.ScalarEvent):
            # Plain, which is to say: neither quoted nor tagged.
            return None if event.implicit[0] and event.value in NULLS else event.value
        return self._list(path) if isinstance(event, yaml.SequenceStartEvent) else self._dict(path)

    def _list(self, path: Path) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self._node(event, (*path, len(items))))
        return items

    def _dict(self, path: Path) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            at = (event.start_mark.line + 1, event.start_mark.column + 1)
            key = self._node(event, (*path, "\0key"))
            self.document.places.pop((*path, "\0key"), None)
            if not isinstance(key, str):
                self._problem("a key must be a plain word", event)
            elif key == "<<":
                self._problem("merge keys (<<) are not read", event)
            elif key in items:
                self._problem("this key stands here a second time", event)
            else:
                self.document.places[(*path, key)] = at
                value = next(self.events)
                items[key] = self._node(value, (*path, key))
                if items[key] is not None:
                    mark = value.start_mark
                    self.document.values[at] = (mark.line + 1, mark.column + 1)
                continue
            self._node(next(self.events), (*path, f"\0{len(self.document.places)}"))
        return items
