"""What comes next: priority, then turns among submitters, then arrival; and why something waits."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from lab import BUCKET, FILES

from stager.backlog import (
    FIRST_LOOK_SECONDS,
    FIRST_PROBE_SECONDS,
    LONGEST_LOOK_SECONDS,
    LONGEST_PROBE_SECONDS,
    Backlog,
    Entry,
)
from stager.errors import (
    ArchiveDenied,
    ArchiveNotFound,
    ArchivesAway,
    BuildBusy,
    CredentialsRefused,
    ImageNotInArchive,
    NoSpace,
)
from stager.job import FIRST_DEFERRAL_SECONDS, LONGEST_DEFERRAL_SECONDS, deferral_seconds
from stager.layout import Waiting
from stager.request import Request, Rules, parse_request

RULES = Rules(FILES, (BUCKET,))
SECOND = 1_000_000_000


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def request(build: str = "R1", **more: str) -> Request:
    lines = [f"build: gs://{BUCKET}/x86-alex-release/{build}", "images: test"]
    lines += [f"{key}: {value}" for key, value in more.items()]
    return parse_request("\n".join(lines).encode(), RULES)


def waiting(
    name: str, priority: int = 5, uid: int = 1, arrived: float = 1, due: int = 0
) -> Waiting:
    request_id = f"{int(arrived * SECOND)}-{name}"
    return Waiting(priority, due, uid, f"{name}.yaml", request_id, 1, 0, "abcdefgh")


def served(backlog: Backlog, entries: list[Waiting]) -> str:
    """Serve all as the daemon does, one free worker after the other; return their names."""

    def one_by_one() -> Iterator[str]:
        left = [Entry(w, request()) for w in entries]
        while left:
            entry = next(backlog.in_order(left))
            left.remove(entry)
            backlog.served(entry.waiting.uid)
            yield entry.waiting.file.removesuffix(".yaml")

    return " ".join(one_by_one())


def queue(text: str) -> list[Waiting]:
    """Make a queue from words such as `a1.5`: submitter a, its first, priority 5; as they came."""
    return [
        waiting(word, int(word.partition(".")[2] or 5), ord(word[0]), arrived)
        for arrived, word in enumerate(text.split())
    ]


@pytest.mark.parametrize(
    ("arriving", "leaving"),
    [
        pytest.param("a1 a2 a3", "a1 a2 a3", id="as they came"),
        pytest.param("a1.8 a2.5 a3.2 a4.9 a5.0", "a5.0 a3.2 a2.5 a1.8 a4.9", id="by priority"),
        pytest.param("a1 a2 a3 b1 b2", "a1 b1 a2 b2 a3", id="in turns"),
        pytest.param("a1 a2 b1 c1 c2 c3", "a1 b1 c1 a2 c2 c3", id="three in turns"),
        pytest.param("a1 a2 a3.2 b1 b2.2", "a3.2 b2.2 a1 b1 a2", id="turns within a priority"),
        pytest.param("b1.2 b2.2 a1 b3", "b1.2 b2.2 a1 b3", id="who was served goes last"),
    ],
)
def test_requests_are_served(arriving: str, leaving: str) -> None:
    assert served(Backlog(), queue(arriving)) == leaving
    listed_otherwise = queue(arriving)[::-1]
    assert served(Backlog(), listed_otherwise) == leaving


def test_turns_are_remembered_from_one_look_to_the_next() -> None:
    backlog = Backlog()
    assert served(backlog, queue("a1 b1")) == "a1 b1"
    assert served(backlog, queue("b2 a2")) == "a2 b2"


# -- what is known of what waits ----------------------------------------------------------------


def test_each_request_is_read_once_however_often_it_is_listed() -> None:
    backlog, read = Backlog(), []

    def peek(waiting: Waiting) -> Request:
        read.append(waiting.id)
        return request()

    backlog.update([waiting("a")], peek)
    backlog.update([waiting("a", due=99), waiting("b")], peek)
    assert read == [waiting("a").id, waiting("b").id]
    assert backlog.entries[waiting("a").id].waiting.due == 99
    backlog.update([], peek)
    assert not backlog.entries


@pytest.mark.parametrize(
    ("more", "expired"),
    [
        pytest.param({}, [], id="no expires"),
        pytest.param({"expires": "5s"}, [15.0, 16.0], id="after five seconds"),
        pytest.param({"expires": "0"}, [10.0, 14.9, 15.0, 16.0], id="at once"),
    ],
)
def test_a_request_expires_so_long_after_it_was_dropped(
    more: dict[str, str], expired: list[float]
) -> None:
    entry = Entry(waiting("a", arrived=10), request(**more))
    assert [now for now in (10.0, 14.9, 15.0, 16.0) if entry.expired(now)] == expired


@pytest.mark.parametrize(
    ("more", "over"),
    [
        pytest.param({}, [20.0], id="the servers wait_for_archive"),
        pytest.param({"wait": "5s"}, [15.0, 20.0], id="its own wait"),
        pytest.param({"wait": "0"}, [10.0, 15.0, 20.0], id="one look"),
    ],
)
def test_it_waits_for_its_archive_so_long(more: dict[str, str], over: list[float]) -> None:
    entry = Entry(waiting("a", arrived=10), request(**more))
    assert [now for now in (10.0, 15.0, 20.0) if entry.patience_over(now, 10)] == over


def test_what_was_learnt_about_a_build_is_told_to_its_requests_only_without_force() -> None:
    backlog, error = Backlog(), ImageNotInArchive("no such member")
    requests = {"a": request("R1"), "b": request("R2"), "c": request("R1", force="true")}
    backlog.update([waiting(n) for n in requests], lambda w: requests[w.file.removesuffix(".yaml")])
    backlog.judge(requests["a"].build.archive_url, {"test": error}, float("inf"))
    told = {e.waiting.file: e.verdict for e in backlog.entries.values()}
    assert told == {"a.yaml": {"test": error}, "b.yaml": {}, "c.yaml": {}}


# -- lulls and holds ----------------------------------------------------------------------------


@pytest.mark.parametrize("attribute", ["key", "archive_url"], ids=["its target", "its archive"])
def test_a_build_that_waits_says_why_until_its_time_is_over(attribute: str) -> None:
    clock = Clock()
    backlog, entry = Backlog(clock), Entry(waiting("a"), request("R1"))
    backlog.set_lull(getattr(entry, attribute), BuildBusy("lab-3"), 2.0)
    lull = backlog.lull(entry)
    assert lull is not None
    assert lull.reason == "build busy on lab-3"
    assert backlog.lull(Entry(waiting("b"), request("R2"))) is None
    assert backlog.next_wake(0) == 2.0
    clock.now += 2.0
    assert backlog.lull(entry) is None


@pytest.mark.parametrize("error", [ArchiveNotFound("404"), ArchiveDenied("403")])
def test_looks_for_a_missing_archive_become_rarer_but_not_rare(error: ArchiveNotFound) -> None:
    clock, looks = Clock(), []
    backlog = Backlog(clock)
    for _ in range(8):
        looks.append(backlog.look_seconds("key"))
        backlog.set_lull("key", error, looks[-1])
        clock.now += looks[-1]
    assert looks[0] == FIRST_LOOK_SECONDS
    assert looks == sorted(looks)
    assert looks[-1] == LONGEST_LOOK_SECONDS
    backlog.set_lull("key", BuildBusy("lab-3"), 1.0)
    assert backlog.look_seconds("key") == FIRST_LOOK_SECONDS


def probe(backlog: Backlog) -> None:
    """Start the one job that may start while there is a hold."""
    assert backlog.may_start()
    assert backlog.hold
    backlog.hold.probing = True
    assert not backlog.may_start(), "one probe at a time"


def test_a_fault_of_the_machine_is_said_once_and_probed_ever_more_rarely() -> None:
    clock, probes = Clock(), []
    backlog = Backlog(clock)
    assert backlog.may_start()
    assert backlog.met_fault("one", NoSpace("full"), is_probe=False)
    assert not backlog.met_fault("two", NoSpace("full"), is_probe=False), "said again"
    for n in range(8):
        assert not backlog.may_start()
        assert backlog.hold
        probes.append(backlog.hold.next_probe - clock.now)
        clock.now = backlog.hold.next_probe
        probe(backlog)
        assert not backlog.met_fault(f"build {n}", NoSpace("full"), is_probe=True), "said again"
    assert probes[0] == FIRST_PROBE_SECONDS
    assert probes == sorted(probes)
    assert probes[-1] == LONGEST_PROBE_SECONDS
    assert backlog.met_fault("one", CredentialsRefused("another fault"), is_probe=True)


def test_a_proof_by_which_nothing_was_staged_makes_nobodys_fault_his_own() -> None:
    backlog = Backlog(Clock())
    backlog.met_fault("one", ArchivesAway("away"), is_probe=False)
    assert backlog.went_well("two", is_sure=False)
    assert backlog.met_fault("one", ArchivesAway("away"), is_probe=False), "it holds all again"
    assert backlog.hold


def test_work_goes_on_for_all_when_a_probe_went_well() -> None:
    clock = Clock()
    backlog = Backlog(clock)
    backlog.met_fault("one", NoSpace("full"), is_probe=False)
    clock.now += FIRST_PROBE_SECONDS
    probe(backlog)
    assert backlog.went_well("two")
    assert backlog.may_start()


def test_a_probe_that_told_nothing_is_made_again() -> None:
    clock = Clock()
    backlog = Backlog(clock)
    backlog.met_fault("one", NoSpace("full"), is_probe=False)
    clock.now += FIRST_PROBE_SECONDS
    probe(backlog)
    backlog.put_off_probe()
    assert not backlog.may_start()
    clock.now += FIRST_PROBE_SECONDS
    assert backlog.may_start()


def test_the_next_wake_is_the_first_thing_due() -> None:
    backlog = Backlog(Clock())
    assert backlog.next_wake(100.0) == float("inf")
    backlog.looked_at = 95.0
    backlog.update([waiting("a", due=130), waiting("b", due=90)], lambda _: request())
    assert backlog.next_wake(100.0) == 30.0


@pytest.mark.parametrize("starts", range(1, 12))
def test_deferrals_back_off(starts: int) -> None:
    middle = min(FIRST_DEFERRAL_SECONDS * 2 ** (starts - 1), LONGEST_DEFERRAL_SECONDS)
    seconds = {deferral_seconds(starts) for _ in range(100)}
    assert middle * 0.8 <= min(seconds) < max(seconds) <= middle * 1.2


def test_a_suspect_whose_probe_fails_leaves_the_probing_to_others() -> None:
    backlog = Backlog(lambda: 100.0)
    backlog.suspects.add("too-large")
    backlog.met_fault("another", NoSpace("full"), is_probe=False)
    hold = backlog.hold
    assert hold
    hold.probing = True
    assert backlog.met_fault("too-large", NoSpace("full"), is_probe=True) is False
    assert not hold.probing, "else nothing would ever be started again"
    assert backlog.may_start()
