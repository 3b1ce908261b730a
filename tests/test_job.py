"""A job whose images meet different errors: what its answer says, what is kept of it."""

import io
import zipfile
from collections.abc import Callable, Iterator

import pytest
from archives import BASE, TEST
from lab import Lab
from test_archive import Memory, in_memory

from stager import job
from stager.ahead import Check
from stager.archive import Archive
from stager.case import Case, Tools
from stager.config import load_config
from stager.errors import ArchiveUnavailable
from stager.fetch import Room
from stager.hook import Hook
from stager.layout import Build
from stager.marker import Marker
from stager.request import parse_request

CONTENT = bytes(range(256)) * 40


class Flawed(Memory):
    """An archive whose `test` is damaged and whose `base` can't be read."""

    def __init__(self) -> None:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name in (TEST, BASE):
                archive.writestr(name, CONTENT)
        data = bytearray(file.getvalue())
        data[data.index(CONTENT)] ^= 1
        super().__init__(bytes(data))
        self.base = self.data.rindex(BASE.encode(), 0, self.data.index(b"PK\1\2")) - 30

    def read(self, start: int, end: int, check: Check, most: int) -> Iterator[bytes]:
        if start == self.base:
            raise ArchiveUnavailable("the connection broke")
        yield from super().read(start, end, check, most)


class InMemory:
    """A source of one archive."""

    def look(self, build: Build, pause: Callable[[float], None]) -> Archive:  # noqa: ARG002
        return in_memory(Flawed())


@pytest.fixture
def run(lab: Lab) -> Iterator[Callable[..., Case]]:
    """Return what runs a job for these images to its end, in this process."""
    lab.write_config(attempts=1)
    config, peer = load_config(lab.config, {}), lab.peer()
    tools = Tools(
        config, peer.heart, peer.spool, peer.locks, Marker(config.paths, config.images),
        InMemory(), Room(config.static, config), Hook([]),
    )  # fmt: skip

    def run(*images: str) -> Case:
        claim = peer.spool.take(f"{lab.drop('one', images=images)}.yaml")
        assert claim is not None
        dropped = peer.spool.read(claim)
        case = Case(claim, dropped, parse_request(dropped.data, config.rules))
        job.run(tools, case)
        return case

    yield run
    tools.hook.stop()


def test_the_error_is_that_of_the_first_failed_image_whatever_ended_the_others(
    lab: Lab, run: Callable[..., Case]
) -> None:
    run("test", "base")
    result = lab.result("one")
    assert result["state"] == "failed"
    codes = {image: part["error"]["code"] for image, part in result["images"].items()}
    assert codes == {"test": "archive_corrupt", "base": "archive_unavailable"}
    assert result["error"]["code"] == "archive_corrupt"


def test_an_error_that_ended_a_job_comes_first_where_its_image_does(
    lab: Lab, run: Callable[..., Case]
) -> None:
    run("base", "test")
    assert lab.result("one")["error"]["code"] == "archive_unavailable"


def test_an_error_that_is_kept_keeps_nothing_of_what_met_it(run: Callable[..., Case]) -> None:
    """While others wait for its build it is kept: for an hour, and there may be hundreds."""
    case = run("test", "base")
    for error in (case.error, *case.failures.values()):
        assert error is not None
        assert (error.__traceback__, error.__context__, error.__cause__) == (None, None, None)
