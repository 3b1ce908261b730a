"""The status page: what it says, and that nothing a submitter wrote can change what it is."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from stager import page
from stager.plot import SLICE_SECONDS, draw
from stager.snapshot import (
    ActivePart,
    AnsweredPart,
    Board,
    Counts,
    DiskPart,
    FaultPart,
    InstancePart,
    InstanceState,
    SamplePart,
    WaitingPart,
)
from stager.words import in_bytes, in_seconds

NOW = 1_800_000_000.0
HOSTILE = "<img src=x onerror=alert(1)>'\"{{ 7*7 }}</script><script>alert(2)</script>"
VOID = {"meta", "link", "br", "line", "path", "img"}


class Tree(HTMLParser):
    """Reads a page as strictly as a person who wrote it by hand should have."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def board(**parts: Any) -> Board:
    return Board(time="2027-01-15T08:00:00Z", version="1", slice_seconds=SLICE_SECONDS, **parts)


def full_board(name: str = "nightly.yaml") -> Board:
    """Return a board with something of everything, all of it called `name`."""
    return board(
        counts=Counts(waiting=100_000, deferred=3, active=1, done=2, failed=1),
        oldest_seconds=7200,
        active=[ActivePart(request=name, request_id="1", host=name, age=3, attempt=2, build=name,
                           images=[name], phase=name, image=name, bytes=50, total_bytes=100,
                           bytes_per_second=10, seconds_left=5)],
        waiting=[WaitingPart(request=name, request_id="2", priority=0, submitter=0, age=61.5,
                             reason=name, due="2027-01-15T08:01:00Z")] * 100,
        answered=[
            AnsweredPart(request=name, request_id="3", room="done", age=9, state="staged",
                         finished="2027-01-15T07:59:00Z", host=name, seconds=4),
            AnsweredPart(request=name, request_id="4", room="failed", age=9, state="failed",
                         finished="2027-01-15T07:59:00Z", host=name, seconds=4, code="no_space",
                         message=name, hint=name),
            AnsweredPart(request="", request_id="5-id", room="cancelled", age=9),
        ],
        instances=[InstancePart(name="a", host=name, alive=True, beat_age=1, mode="poll"),
                   InstancePart(name="b", host="lab-8", alive=False)],
        faults=[FaultPart(host=name, code="no_space", message=name, hint=name)],
        paused=[name], unclaimable={name: name}, other_files=2,
        disks=[DiskPart(tree="spool and static", free_bytes=10**12, total_bytes=4 * 10**12)],
        troubles=[f"{name}: {name}", f"the oldest {name}"],
        history=[SamplePart(time=int(NOW) - 3600, waiting=7, fetched_bytes=3 * 10**9, good=2)],
    )  # fmt: skip


def test_everything_is_said() -> None:
    text = Tree(page.render(full_board(), NOW)).text
    for words in (
        "Needs attention", "Active 1 on 1 of 1 machines", "Waiting 100,000", "oldest 2 h",
        "3 deferred", "3 GB fetched", "1 TB", "25 % of 4 TB", "50 B of 100 B", "10 B/s, 5 s left",
        "attempt 2",
        "in 1 min", "1 min 2 s", "and 99,950 more", "no_space", "1 min ago", "5-id", "cancelled",
        "Entries of the drop box that can't be claimed", "not seen to live", "2 other files",
        "the oldest nightly.yaml",
    ):  # fmt: skip
        assert words in text, f"{words}\n{text}"


def test_an_empty_spool_is_said_too() -> None:
    alive = InstancePart(name="a", host="lab-7", alive=True, state=InstanceState.ALIVE)
    text = Tree(page.render(board(instances=[alive]), NOW)).text
    for words in ("Healthy", "Nothing waits.", "Nothing is being staged.", "the queue is empty",
                  "Nothing failed.", "nothing in the last day"):  # fmt: skip
        assert words in text, f"{words}\n{text}"


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ([], "No watcherd runs"),
        (["ended"], "No watcherd runs"),
        (["ended", "silent"], "No watcherd seems to run"),
        (["unseen"], "Healthy"),
    ],
    ids=str,
)
def test_a_page_of_nobody_says_so_in_its_head(states: list[str], words: str) -> None:
    instances = [
        InstancePart(name=state, host="lab-7", alive=False, state=InstanceState(state), beat_age=90)
        for state in states
    ]
    page_of = board(instances=instances)
    page_of.troubles = page_of.find_troubles()
    tree = Tree(page.render(page_of, NOW))
    head = tree.text.partition("As of")[0]
    assert head.endswith(f"watcherd {words} "), head
    assert (words == "Healthy") == ("(!)" not in tree.text)
    assert ("lab-7 ended without signing off, last heartbeat 1 min 30 s ago" in tree.text) == (
        "ended" in states
    )


@pytest.mark.parametrize(
    ("told", "is_paused", "words"),
    [("all machines", False, "Paused"), ("lab-7", True, "Paused"), ("lab-9", False, "Healthy")],
    ids=["all", "one that is there", "one that is not"],
)
def test_a_pause_is_in_the_head_where_it_means_somebody(
    told: str, is_paused: bool, words: str
) -> None:
    alive = InstancePart(name="a", host="lab-7", alive=True, paused=is_paused)
    text = Tree(page.render(board(instances=[alive], paused=[told]), NOW)).text
    assert text.partition("As of")[0].endswith(f"watcherd {words} ")
    assert f"Told to start nothing: {told}." in text


def test_pinned_builds_and_orders_are_said() -> None:
    pinned = [f"gs://bucket/board/R{number}" for number in range(30)]
    text = Tree(page.render(board(pinned=pinned, pinned_builds=3000, orders=2), NOW)).text
    assert "Pinned 3,000, kept whatever retention says" in text
    assert pinned[19] in text
    assert "and 2,980 more" in text
    assert "Orders that no watcherd has obeyed yet: 2." in text


def test_hostile_names_stay_text() -> None:
    good, bad = (Tree(page.render(full_board(name), NOW)) for name in ("nightly.yaml", HOSTILE))
    assert [tag for tag, _ in bad.tags] == [tag for tag, _ in good.tags]
    assert HOSTILE in bad.text
    for tag, attributes in bad.tags:
        assert not any(name.startswith("on") for name in attributes), tag


def test_the_page_allows_nothing_but_its_own_style_and_script() -> None:
    text = page.render(full_board(), NOW)
    tags = Tree(text).tags
    policy = next(a["content"] for t, a in tags if t == "meta" and "http-equiv" in a)
    assert policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not [a for _, a in tags if "style" in a], "the policy forbids style attributes"
    sources = [a[key] for _, a in tags for key in ("src", "href") if key in a]
    assert all(s == "status.json" or (s or "").startswith("data:") for s in sources), sources


def test_the_content_needs_no_script() -> None:
    text = re.sub(r"<script>.*?</script>", "", page.render(full_board(), NOW), flags=re.DOTALL)
    assert 'http-equiv="refresh"' in text
    assert "nightly.yaml" in Tree(text).text


def test_a_day_is_drawn_with_its_peak() -> None:
    samples = [SamplePart(time=int(NOW) - ago, waiting=n) for ago, n in ((7200, 5), (3600, 10))]
    plot = draw(samples, NOW, lambda sample: sample.waiting)
    assert (plot.peak, plot.peak_time, plot.total) == (10, int(NOW) - 3600, 15)
    points = [tuple(map(float, point.split(","))) for point in plot.line[1:].split(" L")]
    assert points[0] == (0, 58)
    assert points[-1] == (288, 58)
    assert sorted({y for _, y in points}) == [2, 30, 58], "the peak is at the top"


def test_what_is_older_than_a_day_is_not_drawn() -> None:
    samples = [SamplePart(time=int(NOW) - 90_000, waiting=5)]
    assert draw(samples, NOW, lambda sample: sample.waiting).peak == 0


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1536, "1.54 kB"), (999_499, "999 kB"),
     (999_600, "1 MB"), (104_857_600, "105 MB"), (1.5e9, "1.5 GB"), (4e12, "4 TB"),
     (9e17, "900 PB")],
)  # fmt: skip
def test_sizes_are_short(count: float, words: str) -> None:
    assert in_bytes(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "?"), (0, "0 s"), (-3, "0 s"), (59.6, "1 min"), (61, "1 min 1 s"), (659, "10 min"),
     (3600, "1 h"),     (7500, "2 h 5 min"), (90_061, "1 d 1 h")],
)  # fmt: skip
def test_durations_are_short(seconds: float | None, words: str) -> None:
    assert in_seconds(seconds) == words
