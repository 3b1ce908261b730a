"""Wake-ups: what the kernel tells of a local drop box, and polling where it tells nothing."""

import ctypes
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import until
from pyfakefs.fake_filesystem import FakeFilesystem
from watchdog.observers import inotify_c
from watchdog.observers.api import EventEmitter

from stager.layout import is_request_name
from stager.mounts import NETWORK_FILESYSTEMS, filesystem_kind, is_nfs
from stager.watch import LOCAL_RESCAN_SECONDS, NETWORK_RESCAN_SECONDS, Watch

Hints = list[tuple[str, str]]


@pytest.fixture
def box(tmp_path: Path) -> Path:
    path = tmp_path / "requests"
    path.mkdir()
    return path


@pytest.fixture
def hints() -> Hints:
    return []


@pytest.fixture
def watch(box: Path, hints: Hints) -> Iterator[Watch]:
    """Return an armed watch that notes what it is told."""

    def note(kind: str, name: str) -> bool:
        hints.append((kind, name))
        return kind != "opened" and is_request_name(name)

    armed = Watch(box, "inotify", None, note)
    armed.arm()
    yield armed
    armed.disarm()


def test_other_directories_wake_by_their_own_rules(box: Path, hints: Hints) -> None:
    def note(kind: str, name: str) -> bool:
        hints.append((kind, name))
        return True

    other = box.parent / "waiting"
    other.mkdir()
    watch = Watch(box, "inotify", None, note)
    watch.also = {other: lambda kind, name: kind == "moved" and name == "for-us"}
    watch.arm()
    try:
        for name in ("for-others", "for-us"):
            (box.parent / name).write_text("x")
            (box.parent / name).rename(other / name)
            assert watch.wait(30 if name == "for-us" else 0.05) == (name == "for-us")
        (other / "for-us").unlink()
        assert not watch.wait(0.05)
        assert hints == []
    finally:
        watch.disarm()


# -- events -------------------------------------------------------------------------------------


def move_in(box: Path) -> None:
    (box.parent / "new").write_text("x")
    (box.parent / "new").rename(box / "a.yaml")


def link_in(box: Path) -> None:
    (box.parent / "new").write_text("x")
    os.link(box.parent / "new", box / "a.yaml")


def write(box: Path) -> None:
    (box / "a.yaml").write_text("x")


def rename_inside(box: Path) -> None:
    (box / ".a.tmp").write_text("x")
    (box / ".a.tmp").rename(box / "a.yaml")


@pytest.mark.parametrize(
    ("drop", "told"),
    [
        pytest.param(move_in, ["moved"], id="mv"),
        pytest.param(rename_inside, ["moved"], id="mv inside the drop box"),
        pytest.param(link_in, ["created"], id="ln"),
        pytest.param(write, ["created", "opened", "closed"], id="cp"),
    ],
)
def test_the_kernel_tells_how_a_file_came(
    box: Path, watch: Watch, hints: Hints, drop: Callable[[Path], None], told: list[str]
) -> None:
    drop(box)
    assert watch.wait(30)
    until(
        lambda: [kind for kind, name in hints if name == "a.yaml"] == told, f"{told}, not {hints}"
    )


def test_a_claim_tells_nothing_and_holds_nothing_up(box: Path, watch: Watch, hints: Hints) -> None:
    write(box)
    until(lambda: ("closed", "a.yaml") in hints)
    watch.wait(30)
    hints.clear()
    start = time.monotonic()
    for _ in range(20):
        (box / "a.yaml").rename(box.parent / "claimed")
        assert hints == []
        (box.parent / "claimed").rename(box / "a.yaml")
        until(lambda: hints)
        assert hints == [("moved", "a.yaml")]
        hints.clear()
    assert time.monotonic() - start < 20 * 0.4, "events were held back"


def test_names_that_are_not_taken_wake_nobody(box: Path, watch: Watch, hints: Hints) -> None:
    (box / ".hidden").write_text("x")
    (box / "notes.txt").write_text("x")
    until(lambda: ("closed", "notes.txt") in hints)
    assert not watch.wait(0.05)


def test_a_name_that_is_not_utf_8_is_told_too(box: Path, watch: Watch, hints: Hints) -> None:
    name = os.fsdecode(b"caf\xe9.yaml")
    (box / name).write_text("x")
    assert watch.wait(30)
    until(lambda: ("closed", name) in hints)


def test_a_drop_box_that_was_replaced_is_watched_from_the_next_look_on(
    box: Path, watch: Watch, hints: Hints
) -> None:
    box.rename(box.with_name("old"))
    with pytest.raises(FileNotFoundError):
        watch.arm()
    box.mkdir()
    watch.arm()
    watch.arm()
    write(box)
    until(lambda: hints.count(("closed", "a.yaml")) == 1)


def test_a_drop_box_that_was_away_is_watched_again(box: Path, watch: Watch, hints: Hints) -> None:
    away = box.rename(box.with_name("away"))
    away.rename(box)
    watch.arm()
    write(box)
    until(lambda: hints.count(("closed", "a.yaml")) == 1)


def test_another_directory_that_was_replaced_is_watched_from_the_next_look_on(box: Path) -> None:
    other, outside = box.parent / "waiting", box.parent / "outside"
    other.mkdir()
    watch = Watch(box, "inotify", None, lambda *_: False)
    watch.also = {other: lambda kind, _: kind == "moved"}
    watch.arm()
    try:
        other.rename(other.with_name("old"))
        with pytest.raises(FileNotFoundError):
            watch.arm()
        assert watch.mode == "inotify"
        other.mkdir()
        watch.arm()
        outside.touch()
        outside.rename(other / "new")
        assert watch.wait(10)
    finally:
        watch.disarm()


def test_where_watches_are_used_up_those_that_were_had_are_given_back(
    box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_watch, had = inotify_c.inotify_add_watch, list[int]()

    def up_to_two(fd: int, path: bytes, mask: int) -> int:
        if len(had) == 2:
            ctypes.set_errno(errno.ENOSPC)
            return -1
        had.append(add_watch(fd, path, mask))
        return had[-1]

    monkeypatch.setattr(inotify_c, "inotify_add_watch", up_to_two)
    watch = Watch(box, "inotify", None, lambda *_: True)
    watch.also = dict.fromkeys((box.parent / "control", box.parent / "waiting"), lambda *_: True)
    for other in watch.also:
        other.mkdir()
    watch.arm()
    assert (watch.mode, len(had)) == ("poll", 2)
    assert not [thread for thread in threading.enumerate() if isinstance(thread, EventEmitter)]


def test_anybody_may_wake_the_loop_and_the_timer_does_when_nobody_did(box: Path) -> None:
    watch = Watch(box, "poll", None, lambda *_: True)
    assert not watch.wait(0.01)
    watch.wake.set()
    assert watch.wait(30)
    assert not watch.wait(0)


# -- polling ------------------------------------------------------------------------------------

MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /srv rw shared:2 - xfs /dev/vdb rw
31 30 0:45 / /srv/spool rw shared:3 - KIND filer:/export/spool rw,vers=3
32 31 0:46 / /srv/spool/with\\040blank rw - tmpfs none rw
33 22 0:47 / /srv/spool2 rw - btrfs /dev/vdc rw
"""


def mount(fs: FakeFilesystem, kind: str) -> Path:
    """Have /srv/spool on a filesystem of some kind; return the drop box in it."""
    fs.create_file("/proc/self/mountinfo", contents=MOUNTS.replace("KIND", kind))
    box = Path("/srv/spool/requests")
    box.mkdir(parents=True)
    return box


@pytest.mark.parametrize("kind", sorted(NETWORK_FILESYSTEMS))
def test_a_network_filesystem_is_polled_without_being_told(fs: FakeFilesystem, kind: str) -> None:
    box = mount(fs, kind)
    watch = Watch(box, "auto", None, lambda *_: True)
    assert (watch.mode, watch.kind, watch.rescan) == ("poll", kind, NETWORK_RESCAN_SECONDS)
    watch.arm()
    assert not watch.wait(0)
    assert is_nfs(box) == kind.startswith("nfs")


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "unknown"])
def test_a_local_filesystem_is_watched(fs: FakeFilesystem, kind: str) -> None:
    watch = Watch(mount(fs, kind), "auto", None, lambda *_: True)
    assert (watch.mode, watch.kind, watch.rescan) == ("inotify", kind, LOCAL_RESCAN_SECONDS)


@pytest.mark.parametrize("mode", ["inotify", "poll"])
@pytest.mark.parametrize("kind", ["ext4", "nfs4"])
def test_what_the_configuration_says_counts_more(fs: FakeFilesystem, mode: str, kind: str) -> None:
    watch = Watch(mount(fs, kind), mode, 7.0, lambda *_: True)
    assert (watch.mode, watch.rescan) == (mode, 7.0)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/etc", "ext4"),
        ("/srv/static", "xfs"),
        ("/srv/spool", "nfs4"),
        ("/srv/spool/a/b", "nfs4"),
        ("/srv/spool/with blank/a", "tmpfs"),
        ("/srv/spool2/a", "btrfs"),
        ("/srv/spool-old", "xfs"),
    ],
)
def test_the_innermost_mount_point_tells_the_filesystem(
    fs: FakeFilesystem, path: str, kind: str
) -> None:
    mount(fs, "nfs4")
    assert filesystem_kind(Path(path)) == kind


def test_machines_do_not_scan_in_step(box: Path) -> None:
    watch = Watch(box, "poll", 10.0, lambda *_: True)
    waits = {watch.jittered_rescan() for _ in range(200)}
    assert len(waits) > 100
    assert 8.0 <= min(waits) < 9.0
    assert 11.0 < max(waits) <= 12.0
