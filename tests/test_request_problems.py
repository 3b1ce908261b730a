"""The request contract: what is said of a file that can't be acted on, and where."""

import pytest
from lab import BUCKET, BUILD, FILES

from stager.errors import RequestError
from stager.request import MAX_BYTES, Request, Rules, parse_request

RULES = Rules(FILES, (BUCKET, "other-bucket"))
HEAD = f"build: {BUILD}\nimages: [test]\n"
DURATION = "a duration is a number of seconds, or a number with s, m, h or d"
PRIORITY = "a priority is high, normal, low, or 0 (first) to 9"
WHOLE_BUILD = "the build must be a URL gs://BUCKET/PATH/BUILD"


def parse(text: str | bytes, rules: Rules = RULES) -> Request:
    return parse_request(text if isinstance(text, bytes) else text.encode(), rules)


def problems(text: str | bytes, rules: Rules = RULES) -> list[tuple[int, int, str]]:
    """Return line, column and words of everything that is wrong with a text."""
    with pytest.raises(RequestError) as caught:
        parse(text, rules)
    return [(p.line, p.column, p.message) for p in caught.value.problems]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        pytest.param("", "empty list of image types", id="missing"),
        pytest.param("images:\n", "empty list of image types", id="no value"),
        pytest.param("images: ~\n", "empty list of image types", id="tilde"),
        pytest.param('"images": null\n', "empty list of image types", id="null"),
        pytest.param("images: []\n", "empty list of image types", id="empty list"),
        pytest.param("images: ''\n", "empty list of image types", id="empty text"),
        pytest.param("images: ' , '\n", "empty list of image types", id="only commas"),
        pytest.param("image_types: []\n", "empty list of image types", id="the seed's key"),
        pytest.param("images: [factory]\n", "invalid images requested: ['factory']", id="unknown"),
        pytest.param(
            "images: [z, test, a, z, test, b]\n",
            "invalid images requested: ['z', 'a', 'b']",
            id="all unknown ones in request order",
        ),
        pytest.param("images: no\n", "invalid images requested: ['no']", id="a word of YAML"),
        pytest.param("images: [1.10]\n", "invalid images requested: ['1.10']", id="a number"),
        pytest.param("images: [Test]\n", "invalid images requested: ['Test']", id="capitals"),
        pytest.param("images: ['']\n", "invalid images requested: ['']", id="an empty name"),
    ],
)
def test_images_are_checked_in_the_seeds_order_and_words(images: str, words: str) -> None:
    assert [message for _, _, message in problems(f"build: {BUILD}\n{images}")] == [words]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(f"{HEAD}priority: 10", (3, 1, f"`priority`: {PRIORITY}"), id="priority 10"),
        pytest.param(f"{HEAD}priority: -1", (3, 1, f"`priority`: {PRIORITY}"), id="priority -1"),
        pytest.param(f"{HEAD}priority: High!", (3, 1, f"`priority`: {PRIORITY}"), id="priority"),
        pytest.param(f"{HEAD}expires: 1h30m", (3, 1, f"`expires`: {DURATION}"), id="two units"),
        pytest.param(f"{HEAD}expires: -5", (3, 1, f"`expires`: {DURATION}"), id="negative"),
        pytest.param(f"{HEAD}wait: 10 weeks", (3, 1, f"`wait`: {DURATION}"), id="a strange unit"),
        pytest.param(f"{HEAD}wait: [1]", (3, 1, f"`wait`: {DURATION}"), id="a list"),
        pytest.param(f"{HEAD}wait: .inf", (3, 1, f"`wait`: {DURATION}"), id="infinite"),
        pytest.param(f"{HEAD}force: maybe", (3, 1, "`force`: say true or false"), id="maybe"),
        pytest.param(f"{HEAD}force: 1", (3, 1, "`force`: say true or false"), id="1"),
        pytest.param(
            f"{HEAD}note: {'x' * 201}",
            (3, 1, "`note`: a note is a text of at most 200 characters"),
            id="a long note",
        ),
        pytest.param(f"build: {BUILD}\nimages: [[test]]", (2, 9, "a list of words is wanted here"),
                     id="a list in the list"),
        pytest.param("images: [test]\nbuild: [a]", (2, 8, WHOLE_BUILD), id="a list of builds"),
        pytest.param("images: [test]\nbuild: http://a/b/c", (2, 8, WHOLE_BUILD), id="http"),
        pytest.param("archive_url:\n  'a'\nimages: test", (2, 3, WHOLE_BUILD), id="a line below"),
        pytest.param('{"build": "a", "images": ["test"]}', (1, 11, WHOLE_BUILD), id="in json"),
        pytest.param("build:\nimages: test",
                     (1, 1, "must specify the build: gs://BUCKET/PATH/BUILD"), id="no value"),
        pytest.param(f"{HEAD}priorty: 3",
                     (3, 1, "`priorty`: unknown key (did you mean `priority`?)"), id="a slip"),
        pytest.param(f"{HEAD}image_type: test",
                     (3, 1, "`image_type`: unknown key (did you mean `image_types`?)"), id="word"),
        pytest.param(f"{HEAD}frobnicate: 1", (3, 1, "`frobnicate`: unknown key"), id="no such key"),
        pytest.param(f"{HEAD}build: {BUILD}", (3, 1, "this key stands here a second time"),
                     id="repeated key"),
        pytest.param(f"{HEAD}archive_url: {BUILD}",
                     (3, 1, "`archive_url` is another word for `build`: give one"), id="both"),
        pytest.param(f"{HEAD}? [a]\n: b", (3, 3, "a key must be a plain word"), id="a list as key"),
        pytest.param(f"{HEAD}x-a: &b c", (3, 6, "anchors (&) are not read"), id="anchor"),
        pytest.param(f"{HEAD}x-a: *b", (3, 6, "aliases (*) are not read"), id="alias"),
        pytest.param(f"{HEAD}<<: {{}}", (3, 1, "merge keys (<<) are not read"), id="merge key"),
        pytest.param(f"{HEAD}note: !!str a", (3, 7, "tags (!) are not read"), id="tag"),
        pytest.param(f"{HEAD}note: !mine a", (3, 7, "tags (!) are not read"), id="own tag"),
        pytest.param(f"{HEAD}note: ! a", (3, 7, "tags (!) are not read"), id="bare tag"),
        pytest.param(f"--- !!map\n{HEAD}", (1, 5, "tags (!) are not read"), id="tag of the whole"),
        pytest.param(f"{HEAD}---\n{HEAD}", (3, 1, "only one document is read"), id="two documents"),
        pytest.param(f"{HEAD}---\n", (3, 1, "only one document is read"), id="an empty second"),
        pytest.param(f"{HEAD}note: \x07", (3, 7, "a character that YAML does not allow"), id="\\a"),
        pytest.param(f"{HEAD}note: üü\x07", (3, 9, "a character that YAML does not allow"),
                     id="bell after umlauts"),
        pytest.param(f"{HEAD}note: ".encode() + b"\xff", (3, 7, "not UTF-8 text"), id="not UTF-8"),
        pytest.param(HEAD.encode("utf-16"), (1, 1, "not UTF-8 text"), id="UTF-16"),
        pytest.param(b"\xef\xbb\xbfa\n\xff", (2, 1, "not UTF-8 text"), id="after a mark"),
        pytest.param("üü".encode() + b"\xff", (1, 3, "not UTF-8 text"), id="after umlauts"),
        pytest.param("- a\n", (1, 1, "keys with values are wanted: build: and images:"), id="list"),
        pytest.param("a\n", (1, 1, "keys with values are wanted: build: and images:"), id="a text"),
    ],
)  # fmt: skip
def test_a_problem_has_its_place_and_words(
    text: str | bytes, expected: tuple[int, int, str]
) -> None:
    assert problems(text) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"{HEAD}note: 'never closed\n", id="open quote"),
        pytest.param(f"{HEAD}note: [1\n", id="open list"),
        pytest.param("build: a: b\n", id="two colons"),
        pytest.param("build:\n\t- a\n", id="tab"),
        pytest.param(f"%YAML 9.9\n---\n{HEAD}", id="a future YAML"),
        pytest.param(f"{HEAD}x-a: {'[' * 5000}", id="deep lists"),
        pytest.param(f"{HEAD}x-a: {'{a: ' * 5000}", id="deep keys"),
        pytest.param(f"{HEAD}x-a: [{'1,' * 5000}]", id="long list"),
        pytest.param("", id="nothing"),
        pytest.param("\ufeff", id="only a byte order mark"),
        pytest.param("\0", id="a zero"),
    ],
)
def test_what_is_no_yaml_of_ours_is_rejected_with_a_place(text: str) -> None:
    found = problems(text)
    assert found
    assert all(line >= 1 and column >= 1 and message for line, column, message in found)


def test_all_problems_are_reported_together_in_the_texts_order() -> None:
    found = problems(
        "image_types: [factory]\nbuild: nowhere\npriorty: 3\npriority: 77\nexpires: soon\n"
        "wait: &a 1h\nforce: perhaps\nnote: [a]\nother: 1\nother: 2\n"
    )
    assert [line for line, _, _ in found] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert found[0][2] == "invalid images requested: ['factory']"
    assert "did you mean `priority`?" in found[2][2]


@pytest.mark.parametrize(
    ("text", "first", "then"),
    [
        pytest.param(
            f"build: {BUILD}\nimagse: [test]\n",
            (2, 1, "`imagse`: unknown key (did you mean `images`?)"),
            "empty list of image types",
            id="images",
        ),
        pytest.param(
            f"images: [test]\nbiuld: {BUILD}\n",
            (2, 1, "`biuld`: unknown key (did you mean `build`?)"),
            "must specify the build: gs://BUCKET/PATH/BUILD",
            id="build",
        ),
    ],
)
def test_a_misspelt_key_comes_before_what_is_missing_by_it(
    text: str, first: tuple[int, int, str], then: str
) -> None:
    found = problems(text)
    assert found[0] == first
    assert [message for _, _, message in found[1:]] == [then]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            f'{{"build": "{BUILD}", "note": "a", "note": "b", "images": ["factory"], "foo": 1}}',
            id="on one line",
        ),
        pytest.param(
            f"build: {BUILD}\nnote: a\nnote: b\nimages: [factory]\nfoo: 1\n", id="on several lines"
        ),
    ],
)
def test_a_repeated_key_hides_no_other_problem(text: str) -> None:
    words = " ".join(message for _, _, message in problems(text))
    for part in ("second time", "['factory']", "unknown key"):
        assert part in words


def test_a_bucket_that_is_not_allowed_has_a_code_of_its_own() -> None:
    text = "images: [test]\nbuild: gs://some-bucket/a/b\n"
    with pytest.raises(RequestError) as caught:
        parse(text)
    assert caught.value.code == "bucket_not_allowed"
    assert [p.line for p in caught.value.problems] == [2]
    assert BUCKET in str(caught.value)
    assert caught.value.hint


def test_a_forbidden_bucket_is_reported_beside_the_other_problems() -> None:
    found = problems("images: [factory]\nbuild: gs://some-bucket/a/b\n")
    assert [line for line, _, _ in found] == [1, 2]


def test_force_can_be_forbidden() -> None:
    rules = Rules(FILES, (BUCKET,), allow_force=False)
    assert parse(f"{HEAD}force: no\n", rules).force is False
    found = problems(f"{HEAD}priority: 77\nforce: yes\n", rules)
    assert [line for line, _, _ in found] == [3, 4]
    assert "allow_force" in found[1][2]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("s3cret\n", id="a text"),
        pytest.param("- s3cret\n", id="a list"),
        pytest.param("root:s3cret:0\nmore: [s3cret\n", id="a broken list"),
        pytest.param("password: s3cret\n", id="an unknown key's value"),
        pytest.param("build: s3cret\nnote: [s3cret]\n", id="wrong values"),
        pytest.param("build: gs://s3cret/a/b\nimages: [test]\n", id="the bucket"),
        pytest.param("priority: s3cret\nexpires: s3cret\nforce: s3cret\n", id="other values"),
        pytest.param("a: *s3cret\nb: !s3cret c\nc: &s3cret d\n", id="names of anchors"),
        pytest.param('a: "\\s3cret"\n', id="an escape"),
        pytest.param(f"{HEAD}s3cret: 1\n", id="a key that may be a token"),
        pytest.param(f"{HEAD}my s3cret: 1\n", id="a line with a colon"),
    ],
)
def test_a_files_values_are_never_quoted(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(text)
    said = [str(caught.value), caught.value.hint, *(p.message for p in caught.value.problems)]
    assert "s3cret" not in " ".join(said)


def test_a_file_may_have_64_kib_and_no_byte_more() -> None:
    full = HEAD.encode().ljust(MAX_BYTES, b"#")
    assert MAX_BYTES == 64 * 1024
    assert parse(full).build.url == BUILD
    assert problems(full + b"#") == [(0, 0, "the file is larger than 64 KiB")]


@pytest.mark.parametrize(
    ("images", "meant"),
    [
        pytest.param("tset", "did you mean `test`? ", id="a slip"),
        pytest.param("Test, BASE", "did you mean `test`, `base`? ", id="capitals"),
        pytest.param("test;base", "separate names by commas; ", id="semicolon"),
        pytest.param("Test recovery", "separate names by commas; ", id="blank"),
        pytest.param("test, recover, recovry", "did you mean `recovery`? ", id="one, twice"),
        pytest.param("factory", "", id="nothing like it"),
        pytest.param(",".join([*(f"x{n}" for n in range(20)), "tset"]), "", id="very many"),
    ],
)
def test_who_asks_for_an_unknown_image_is_told_which_there_are(images: str, meant: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(f"build: {BUILD}\nimages: {images}\n".encode(), RULES)
    assert caught.value.hint.endswith(f"; {meant}images here: test, base, recovery")
