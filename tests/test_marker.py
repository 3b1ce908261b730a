"""The flag and the sidecars: what counts as staged, and what rewriting keeps.

One thread and only files: so the disk is pyfakefs's; the classes are the real ones.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import pytest
from lab import BUCKET, FILES
from pyfakefs.fake_filesystem import FakeFilesystem

from stager import site
from stager.config import Config
from stager.errors import TakenOver
from stager.instance import Heart
from stager.layout import Build, Paths
from stager.lock import Locks
from stager.marker import Marker, Sidecar

BUILD = Build(BUCKET, "x86-alex-release", "R23-2811.0.0")
CONTENT = b"a disk image"
RECORD = Sidecar(
    BUILD.archive_url, 1700000000000000, len(CONTENT), "8c1f0000", "0" * 64, 4096, "17-abcdef",
    "2026-11-23T15:25:15Z", "lab-7",
)  # fmt: skip


@dataclass
class Desk:
    """A static tree without a daemon."""

    paths: Paths
    locks: Locks
    marker: Marker

    def flag(self, data: bytes) -> None:
        (self.paths.target(BUILD) / "staged").write_bytes(data)

    def image(self, image: str, content: bytes = CONTENT) -> None:
        (self.paths.target(BUILD) / FILES[image]).write_bytes(content)

    def record(self, image: str, record: Sidecar = RECORD) -> None:
        self.paths.sidecar(BUILD.key, image).write_text(json.dumps(asdict(record)))

    def staged(self) -> set[str]:
        return set(self.marker.staged(BUILD, FILES))

    def rewrite(self, *without: str) -> bytes:
        """Write the flag anew; return its bytes."""
        with self.locks.take(BUILD.key) as work:
            self.marker.write_flag(work, BUILD, without)
        path = self.paths.target(BUILD) / "staged"
        return path.read_bytes() if path.exists() else b""


@pytest.fixture
def desk(fs: FakeFilesystem) -> Desk:  # noqa: ARG001 (its being there is what counts)
    config = Config()
    site.init(config)
    config.paths.target(BUILD).mkdir(parents=True)
    heart = Heart(config.paths, config.heartbeat, config.lease)
    heart.register()
    return Desk(config.paths, Locks(config.paths, heart), Marker(config.paths, config.images))


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        pytest.param(b"", [], id="empty"),
        pytest.param(b"test\n", ["test"], id="one"),
        pytest.param(b"test\nbase", ["test", "base"], id="no newline at the end"),
        pytest.param(b" test \n\n\tbase\r\n\n", ["test", "base"], id="blanks"),
        pytest.param(b"test\nbase\ntest\n", ["test", "base"], id="doubles, as the seed appends"),
        pytest.param(b"recovery\nx y\n# z\n", ["recovery", "x y", "# z"], id="other lines"),
        pytest.param(b"test\x0cbase\n", ["test\x0cbase"], id="only a newline ends a line"),
    ],
)
def test_the_flag_is_read_as_the_seed_reads_it(desk: Desk, data: bytes, lines: list[str]) -> None:
    desk.flag(data)
    assert desk.marker.read_flag(BUILD) == lines


def test_a_build_that_was_never_staged_has_no_flag_and_nothing_staged(desk: Desk) -> None:
    other = replace(BUILD, short_build="R24")
    assert desk.marker.read_flag(other) == []
    assert desk.marker.staged(other, FILES) == {}
    assert desk.marker.is_true(other)


@pytest.mark.parametrize(
    ("break_it", "staged"),
    [
        pytest.param(lambda desk: desk.flag(b"base\n"), False, id="not in the flag"),
        pytest.param(
            lambda desk: (desk.paths.target(BUILD) / "staged").unlink(), False, id="no flag"
        ),
        pytest.param(
            lambda desk: desk.paths.sidecar(BUILD.key, "test").unlink(), False, id="no record"
        ),
        pytest.param(
            lambda desk: desk.paths.sidecar(BUILD.key, "test").write_text("{"), False, id="half"
        ),
        pytest.param(
            lambda desk: desk.paths.sidecar(BUILD.key, "test").write_text('{"size": 12}'),
            False,
            id="a record of something else",
        ),
        pytest.param(lambda desk: desk.image("test", b"short"), False, id="another size"),
        pytest.param(lambda desk: desk.image("test", b""), False, id="empty"),
        pytest.param(
            lambda desk: (desk.paths.target(BUILD) / FILES["test"]).unlink(), False, id="no image"
        ),
        pytest.param(
            lambda desk: desk.record("test", replace(RECORD, archive_url="gs://x/a/b/image.zip")),
            False,
            id="another archive",
        ),
        pytest.param(
            lambda desk: desk.record("test", replace(RECORD, generation=5)), True,
            id="another generation",
        ),
    ],
)  # fmt: skip
def test_an_image_counts_as_staged_when_flag_record_and_size_agree(
    desk: Desk, break_it: Callable[[Desk], object], staged: bool
) -> None:
    desk.image("test")
    desk.record("test")
    desk.flag(b"test\n")
    assert desk.staged() == {"test"}
    break_it(desk)
    assert desk.staged() == ({"test"} if staged else set())


def test_asking_marks_the_record_as_used(desk: Desk, fs: FakeFilesystem) -> None:
    desk.image("test")
    desk.record("test")
    desk.flag(b"test\n")
    path = str(desk.paths.sidecar(BUILD.key, "test"))
    fs.utime(path, times=(1, 1))
    assert desk.staged() == {"test"}
    assert fs.stat(path).st_mtime > 1


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"5", b"{}", b"\xff", b'{"size": 1}', b'{"a": 1, "b": 2}'],
    ids=repr,
)
def test_rubbish_is_no_record(desk: Desk, data: bytes) -> None:
    path = desk.paths.sidecar(BUILD.key, "test")
    path.write_bytes(data)
    assert Sidecar.read(path) is None
    path.unlink()
    assert Sidecar.read(path) is None


# -- writing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "good", "older", "new"),
    [
        pytest.param(b"", "", "", b"", id="nothing"),
        pytest.param(b"", "test", "", b"test\n", id="the first"),
        pytest.param(b"test\n", "test recovery", "", b"test\nrecovery\n", id="one more"),
        pytest.param(b"recovery\n", "test recovery", "", b"recovery\ntest\n", id="order is kept"),
        pytest.param(b"", "recovery base test", "", b"test\nbase\nrecovery\n", id="all at once"),
        pytest.param(b"test\nbase\n", "test", "", b"test\n", id="one that is not there"),
        pytest.param(b"base\n", "test", "base", b"base\ntest\n", id="an older devserver's"),
        pytest.param(b"", "test", "base", b"test\n", id="a file that nobody listed"),
        pytest.param(b"mine\ntest\n# x\n", "test base", "", b"mine\ntest\n# x\nbase\n",
                     id="unknown lines"),
        pytest.param(b" test\ntest\n\nmine", "test base", "", b"test\nmine\nbase\n", id="untidy"),
        pytest.param(b"caf\xe9 \xff\ntest\n", "test base", "", b"caf\xe9 \xff\ntest\nbase\n",
                     id="lines that are not UTF-8"),
        pytest.param(b"x\x0cy\x1cz\xe2\x80\xa8\n", "test", "", b"x\x0cy\x1cz\xe2\x80\xa8\ntest\n",
                     id="lines with odd white space"),
    ],
)  # fmt: skip
def test_rewriting_keeps_what_is_true_and_what_is_not_ours(
    desk: Desk, old: bytes, good: str, older: str, new: bytes
) -> None:
    for image in (*good.split(), *older.split()):
        desk.image(image)
    for image in good.split():
        desk.record(image)
    if old:
        desk.flag(old)
    assert desk.rewrite() == new
    assert desk.marker.is_true(BUILD)


@pytest.mark.parametrize(
    ("content", "record"),
    [
        pytest.param(b"", None, id="an older devserver's empty file"),
        pytest.param(b"short", RECORD, id="another size than recorded"),
        pytest.param(None, RECORD, id="only a record"),
    ],
)
def test_the_flag_loses_what_is_not_there(
    desk: Desk, content: bytes | None, record: Sidecar | None
) -> None:
    if content is not None:
        desk.image("test", content)
    if record is not None:
        desk.record("test", record)
    desk.flag(b"test\nmine\n")
    assert not desk.marker.is_true(BUILD)
    assert desk.rewrite() == b"mine\n"


def test_an_image_can_be_left_out_before_it_is_swapped(desk: Desk) -> None:
    for image in ("test", "base"):
        desk.image(image)
        desk.record(image)
    assert desk.rewrite() == b"test\nbase\n"
    assert desk.rewrite("test") == b"base\n"
    assert desk.rewrite("test", "base") == b""


def test_the_flag_is_replaced_whole_and_only_when_it_changes(desk: Desk) -> None:
    path = desk.paths.target(BUILD) / "staged"
    desk.image("test")
    desk.record("test")
    desk.rewrite()
    first = path.stat()
    desk.rewrite()
    assert path.stat().st_ino == first.st_ino
    desk.image("base")
    desk.record("base")
    desk.rewrite()
    assert path.stat().st_ino != first.st_ino
    assert not list(desk.paths.work.iterdir())
    assert not list(desk.paths.static_tmp.iterdir())


def test_a_record_is_written_as_it_is_read(desk: Desk) -> None:
    with desk.locks.take(BUILD.key) as work:
        desk.marker.write_sidecar(work, BUILD, "test", RECORD)
    path = desk.paths.sidecar(BUILD.key, "test")
    assert Sidecar.read(path) == RECORD
    assert json.loads(path.read_text()) == asdict(RECORD)


def test_whoever_lost_the_token_changes_neither_flag_nor_record(desk: Desk) -> None:
    desk.flag(b"base\n")
    desk.image("test")
    desk.record("test")
    with desk.locks.take(BUILD.key) as work:
        token = next((desk.paths.locks / BUILD.key).iterdir())
        token.rename(token.with_name(f"{work.token.n + 1}.other-aaaaaa.abcdefgh"))
        with pytest.raises(TakenOver):
            desk.marker.write_flag(work, BUILD)
    assert desk.marker.read_flag(BUILD) == ["base"]


def test_whoever_was_fenced_finds_nothing_to_publish_from(desk: Desk) -> None:
    desk.flag(b"base\n")
    desk.image("test")
    desk.record("test", replace(RECORD, size=5))
    with desk.locks.take(BUILD.key) as work:
        work.dir.rmdir()
        with pytest.raises(FileNotFoundError):
            desk.marker.write_sidecar(work, BUILD, "test", RECORD)
        desk.record("test")
        with pytest.raises(FileNotFoundError):
            desk.marker.write_flag(work, BUILD)
    assert desk.marker.read_flag(BUILD) == ["base"]
