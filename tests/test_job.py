"""A job whose images meet different errors: what its answer says, what is kept of it."""

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from archives import BASE, TEST
from lab import Lab
from test_archive import Memory, in_memory

from stager import job
from stager.ahead import Check
from stager.archive import Archive, GenerationGone, Pause
from stager.case import Case, Tools
from stager.config import load_config
from stager.errors import ArchiveNotFound, ArchiveUnavailable, StagerError
from stager.fetch import Room
from stager.hook import Hook
from stager.layout import Build
from stager.marker import Marker
from stager.outcome import _verdict
from stager.request import parse_request

CONTENT = bytes(range(256)) * 40
Looks = list[Archive | StagerError]


class Flawed(Memory):
    """An archive whose `base` can't be read."""

    def __init__(self, error: StagerError, *, names: tuple[str, ...] = (TEST, BASE)) -> None:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name in names:
                archive.writestr(name, CONTENT)
        super().__init__(file.getvalue())
        self.error = error
        self.base = self.data.rindex(BASE.encode(), 0, self.data.index(b"PK\1\2")) - 30

    def damaged(self) -> "Flawed":
        """Spoil the first member's data."""
        at = self.data.index(CONTENT)
        self.data = self.data[:at] + b"\xff" + self.data[at + 1 :]
        return self

    def read(self, start: int, end: int, check: Check, most: int) -> Iterator[bytes]:
        if start == self.base:
            raise self.error
        yield from super().read(start, end, check, most)


def unreadable() -> Archive:
    """Return an archive whose `test` is sound and whose `base` can't be read."""
    return in_memory(Flawed(ArchiveUnavailable("the connection broke")))


def damaged() -> Archive:
    """Return one whose `test` is damaged, too."""
    return in_memory(Flawed(ArchiveUnavailable("the connection broke")).damaged())


def without_test(error: StagerError) -> Archive:
    """Return one that holds only `base`, which can't be read."""
    return in_memory(Flawed(error, names=(BASE,)))


@dataclass
class Jobs:
    """Runs jobs in this process, each to its end; `looks` are what they find, one after the other.

    A request has one attempt.
    """

    lab: Lab
    looks: Looks = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lab.write_config(attempts=1)
        config, peer = load_config(self.lab.config, {}), self.lab.peer()
        self.tools = Tools(
            config, peer.heart, peer.spool, peer.locks, Marker(config.paths, config.images),
            self, Room(config.static, config), Hook([]),
        )  # fmt: skip

    def look(self, build: Build, pause: Pause) -> Archive:  # noqa: ARG002 (no part of it)
        found = self.looks.pop(0)
        if isinstance(found, StagerError):
            raise found
        found.url = build.archive_url
        return found

    def run(
        self, name: str, images: list[str], looks: Looks, *, after: Case | None = None, **more: Any
    ) -> Case:
        """Run a job; `after`: of a request that waited while that one's was worked on."""
        self.looks = looks
        claim = self.tools.spool.take(f"{self.lab.drop(name, images=images, **more)}.yaml")
        assert claim is not None
        dropped = self.tools.spool.read(claim)
        case = Case(claim, dropped, parse_request(dropped.data, self.tools.config.rules))
        case.verdict = _verdict(after) if after else {}
        job.run(self.tools, case)
        assert self.looks == []
        return case

    def answer(self, name: str) -> tuple[str, dict[str, str]]:
        """Return an answer's code, and each image's: or its state, where it is good."""
        result = self.lab.result(name)
        images = result["images"].items()
        return result["error"]["code"], {
            image: part["error"]["code"] if "error" in part else part["state"]
            for image, part in images
        }


@pytest.fixture
def jobs(lab: Lab) -> Iterator[Jobs]:
    made = Jobs(lab)
    yield made
    made.tools.hook.stop()


def test_each_image_has_its_own_error_and_the_answer_the_first_ones(jobs: Jobs) -> None:
    codes = {"test": "archive_corrupt", "base": "archive_unavailable"}
    jobs.run("one", ["test", "base"], [damaged()])
    assert jobs.answer("one") == ("archive_corrupt", codes)
    jobs.run("two", ["base", "test"], [damaged()])
    assert jobs.answer("two") == ("archive_unavailable", codes)


def test_who_waited_is_told_the_same_and_is_not_told_that_what_is_there_failed(
    jobs: Jobs,
) -> None:
    first = jobs.run("one", ["test", "base"], [damaged()])
    jobs.run("two", ["test", "base"], [], after=first)
    assert jobs.answer("two") == jobs.answer("one")
    first = jobs.run("three", ["test", "base"], [unreadable()])
    jobs.run("four", ["test", "base"], [], after=first)
    assert jobs.answer("four") == (
        "archive_unavailable", {"test": "already_staged", "base": "archive_unavailable"},
    )  # fmt: skip


def test_what_was_to_be_staged_again_and_was_not_has_failed_though_it_is_there(jobs: Jobs) -> None:
    whole = in_memory(Memory(Flawed(ArchiveUnavailable("never")).data))
    assert jobs.run("one", ["test", "base"], [whole]).state == "staged"
    error = ArchiveUnavailable("the connection broke")
    case = jobs.run("two", ["base", "test"], [without_test(error)], force=True)
    assert (case.state, case.code) == ("failed", "archive_unavailable")


def test_what_is_known_of_an_archive_that_is_gone_is_no_answer(jobs: Jobs) -> None:
    looks: Looks = [without_test(GenerationGone("replaced")), ArchiveNotFound("removed")]
    jobs.run("one", ["test", "base"], looks, wait=0)
    assert jobs.answer("one") == (
        "archive_not_found", dict.fromkeys(("test", "base"), "archive_not_found"),
    )  # fmt: skip


def test_an_error_that_is_kept_keeps_nothing_of_what_met_it(jobs: Jobs) -> None:
    """While others wait for its build it is kept: for an hour, and there may be hundreds."""
    case = jobs.run("one", ["test", "base"], [damaged()])
    for error in (case.error, *case.failures.values()):
        assert error is not None
        assert (error.__traceback__, error.__context__, error.__cause__) == (None, None, None)
