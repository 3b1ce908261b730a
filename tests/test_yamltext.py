"""YAML read as text: plain data, a place for everything, and nothing that can expand."""

import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stager.yamltext import MAX_DEPTH, MAX_NODES, Document, TextError, parse_text

many = settings(max_examples=200, deadline=None, database=None)


def read(text: str) -> Document:
    return parse_text(text.encode())


@pytest.mark.parametrize(
    ("text", "data"),
    [
        pytest.param("", None, id="nothing"),
        pytest.param("# only a comment\n", None, id="comment"),
        pytest.param("1.10", "1.10", id="number"),
        pytest.param("no", "no", id="a word of YAML 1.1"),
        pytest.param("a: 0x1F\nb: 012\nc: 1e3\n", {"a": "0x1F", "b": "012", "c": "1e3"}, id="hex"),
        pytest.param("2026-11-23: 12:30:45", {"2026-11-23": "12:30:45"}, id="times"),
        pytest.param("- [a, {b: [c]}]\n- ''\n", [["a", {"b": ["c"]}], ""], id="nested"),
        pytest.param("a:\nb: ~\nc: null\n", {"a": None, "b": None, "c": None}, id="no values"),
        pytest.param("a: ''\nb: '~'\nc: 'null'\n", {"a": "", "b": "~", "c": "null"}, id="quoted"),
        pytest.param("a: >\n  two\n  lines\n", {"a": "two lines\n"}, id="folded"),
        pytest.param('{"a":"b\\u00fc\\/","c":[]}', {"a": "bü/", "c": []}, id="json"),
    ],
)  # fmt: skip
def test_everything_is_text(text: str, data: Any) -> None:
    document = read(text)
    assert document.data == data
    assert document.problems == []


def test_every_key_and_item_has_its_place() -> None:
    document = read("\ufeff# x\na:\n  ü: [b, c,\n    d]\n  e:\n  - f\n")
    assert document.places == {
        (): (1, 1),
        ("a",): (2, 1),
        ("a", "ü"): (3, 3),
        ("a", "ü", 0): (3, 7),
        ("a", "ü", 1): (3, 10),
        ("a", "ü", 2): (4, 5),
        ("a", "e"): (5, 3),
        ("a", "e", 0): (6, 5),
    }
    assert document.place(("a", "ü", 1, "nothing", "there")) == (3, 10)
    assert document.place(("nothing",)) == (1, 1)


def test_of_a_repeated_key_the_first_value_stays_with_its_place() -> None:
    document = read("a: 1\nb: 2\na: 3\n")
    assert document.data == {"a": "1", "b": "2"}
    assert document.place(("a",)) == (1, 1)
    assert [(p.line, p.column) for p in document.problems] == [(3, 1)]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        pytest.param("a: &x b\nc: *x\n", [1, 2], id="anchor and alias"),
        pytest.param("&x a: b\n*x : c\n", [1, 2, 2], id="in keys"),
        pytest.param("a: &x\n- *x\n", [1, 2], id="a loop"),
        pytest.param("a: !!int 5\nb: !c d\ne: ! f\n", [1, 2, 3], id="tags"),
        pytest.param("!!python/object/apply:os.system ['id']\n", [1], id="python"),
        pytest.param("a:\n  <<: {b: c}\n", [2], id="merge key"),
        pytest.param("a: 1\n---\nb: 2\n---\nc: 3\n", [2], id="documents"),
        pytest.param("{a: b}: c\n? [d]\n: e\n", [1, 2], id="keys that are no words"),
    ],
)
def test_what_is_not_allowed_is_noted_and_reading_goes_on(text: str, lines: list[int]) -> None:
    assert [problem.line for problem in read(text).problems] == lines


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[" * (MAX_DEPTH + 1), id="too deep a list"),
        pytest.param("{a: " * (MAX_DEPTH + 1), id="too deep keys"),
        pytest.param("- " * 10_000, id="ten thousand levels"),
        pytest.param("[" + "a," * MAX_NODES + "]", id="too many items"),
        pytest.param("a: 'b", id="no end"),
        pytest.param("a: b\n c: d\n", id="bad indentation"),
    ],
)
def test_what_cant_be_read_to_its_end_is_an_error_with_a_place(text: str) -> None:
    with pytest.raises(TextError) as caught:
        read(text)
    assert all(problem.line >= 1 and problem.column >= 1 for problem in caught.value.problems)
    assert caught.value.problems


def test_deep_and_long_texts_within_the_limits_are_read() -> None:
    deep = read("[" * MAX_DEPTH + "]" * MAX_DEPTH).data
    for _ in range(MAX_DEPTH - 1):
        (deep,) = deep
    assert deep == []
    assert len(read("[" + "a," * (MAX_NODES - 1) + "]").data) == MAX_NODES - 1


def test_an_error_comes_after_what_was_found_before_it() -> None:
    with pytest.raises(TextError) as caught:
        read("a: &x 1\nb: 'c\n")
    assert [p.line for p in caught.value.problems] == [1, 3]


WORD = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cn", "Cc", "Co"]))
DATA = st.recursive(
    WORD,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORD, inner, max_size=4),
    max_leaves=12,
)


@many
@given(
    DATA.filter(lambda data: "<<" not in str(data)), st.sampled_from([yaml.safe_dump, json.dumps])
)
def test_texts_come_back_as_they_were_written(data: Any, write: Any) -> None:
    document = parse_text(write([data]).encode())
    assert document.data == [data]
    assert document.problems == []


SIGNS = st.text("abc:-[]{}&*!<>|'\"#%?,\n\t ", max_size=60)


@many
@given(st.binary(max_size=200) | SIGNS.map(str.encode))
def test_arbitrary_bytes_give_a_document_or_an_error_with_places(data: bytes) -> None:
    try:
        problems = parse_text(data).problems
    except TextError as e:
        problems = e.problems
        assert problems
    lines = 2 + sum(map(data.count, (b"\n", b"\r", b"\x85", b"\xe2\x80")))
    assert all(1 <= p.line <= lines and 1 <= p.column <= len(data) + 1 for p in problems)
