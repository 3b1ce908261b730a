"""Real filesystems that are full, read-only, shut down, unmounted or closed under a daemon."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from archives import make_image
from cloud import Cloud
from lab import BUCKET, BUILD, FILES, NOBODY, Daemon, Lab, until
from lab.disks import Disk, disk, run

from stager.watch import Watch

QUEUE, SPOOL = "the queue waits", "the spool does not work"
ENDS = ("work goes on", "the spool answers again", "nobody waits any more")
IMAGE_BYTES = 8 << 20


@contextmanager
def lab_on(root: Path, spool: Disk | None = None, static: Disk | None = None) -> Iterator[Lab]:
    """Have a lab whose spool (with its results) or static tree is on a disk of its own."""
    settings: dict[str, Any] = {}
    if spool:
        settings |= {"spool": str(spool.place / "spool"), "results": str(spool.place / "results")}
    if static:
        settings |= {"static": str(static.place / "static")}
    lab = Lab(root, settings)
    for name in ("spool", "results", "static"):
        if name in settings:
            (root / name).symlink_to(settings[name])
    try:
        yield lab.init()
    finally:
        lab.end()


def said_once(daemon: Daemon, lab: Lab) -> None:
    """See that the fault and its end were each said once, and that nothing is left."""
    until(lambda: sum(daemon.log.count(end) for end in ENDS) == 1, daemon.log)
    assert daemon.log.count(QUEUE) + daemon.log.count(SPOOL) == 1, daemon.log
    until(lab.is_clean, "nothing left over")


def answered_well(lab: Lab, *names: str, attempts: int = 1) -> None:
    for name in names:
        result = lab.result(name)
        assert result["state"] in {"staged", "already_staged"}, result
        assert int(result["attempts"]) <= attempts
        assert len(lab.ended(name)) == 1


def waiting_for_archive(lab: Lab, daemon: Daemon, name: str = "waits") -> str:
    """Have a request that waits in the spool until its archive is there."""
    lab.drop(name, wait="1h")
    until(lambda: lab.spool("waiting"), "a waiting request")
    assert daemon.process.poll() is None
    return name


@pytest.mark.parametrize("what", ["blocks", "inodes"])
def test_a_disk_that_fills_in_the_middle_of_an_image_counts_no_attempt(
    public_dir: Path, what: str
) -> None:
    options = ("-N", "64") if what == "inodes" else ()
    with ExitStack() as stack:
        static = stack.enter_context(disk(public_dir / "disk", options=options))
        cloud = stack.enter_context(Cloud())
        lab = stack.enter_context(lab_on(public_dir, static=static))
        lab.env["STORAGE_EMULATOR_HOST"] = cloud.url
        lab.write_config(archive={"source": "gcs"})
        image = make_image(1, IMAGE_BYTES)
        lab.upload(cloud, images={FILES["test"]: image, FILES["base"]: image[: 1 << 20]})
        with lab.running() as daemon:
            cloud.slow(2_000_000)
            name = lab.drop("one", images=["test", "base"])
            work = lab.root / "static/.stager/work"
            until(lambda: any(p.stat().st_blocks > 512 for p in work.glob("*/*")), "bytes on disk")
            fill = static.fill if what == "blocks" else static.fill_inodes
            fill()
            assert 0 in static.free()
            cloud.slow(None)
            daemon.await_log(QUEUE)
            assert "code=no_space" in daemon.log
            until(lambda: lab.spool("waiting"), "the request waits")
            told = lab.stager("status", "--check")
            assert told.returncode == 1
            assert "no space" in told.stdout
            static.empty()
            answered_well(lab, name)
            assert lab.image("test").read_bytes() == image
            # Side by side: the small one may have been staged before the disk was full.
            assert sorted(lab.flag()) == ["base", "test"]
            said_once(daemon, lab)


def test_a_full_spool_keeps_its_requests_and_answers_them_when_there_is_room(
    public_dir: Path,
) -> None:
    with ExitStack() as stack:
        spool = stack.enter_context(disk(public_dir / "disk", "tmpfs", "1m"))
        lab = stack.enter_context(lab_on(public_dir, spool=spool))
        lab.archive()
        with lab.running() as daemon:
            for number in range(20):
                (lab.requests / f".{number}").write_text(f"build: {BUILD}\nimages: [test]\n")
            beats = lab.root / "spool/instances"
            until(lambda: [*beats.glob("*.status")], "a first status, which can be overwritten")
            spool.fill()
            assert spool.free()[0] == 0
            for number in range(20):
                os.rename(lab.requests / f".{number}", lab.requests / f"r{number}.yaml")
            until(lambda: SPOOL in daemon.log or QUEUE in daemon.log, daemon.log)
            until(lambda: "No space left" in lab.stager("status", "--json").stdout, "status")
            spool.empty()
            answered_well(lab, *(f"r{number}" for number in range(20)))
            said_once(daemon, lab)


def test_a_static_tree_that_becomes_read_only_is_waited_for(public_dir: Path) -> None:
    with ExitStack() as stack:
        static = stack.enter_context(disk(public_dir / "disk"))
        lab = stack.enter_context(lab_on(public_dir, static=static))
        lab.archive()
        with lab.running() as daemon:
            static.remount("ro")
            name = lab.drop("one")
            until(lambda: "Read-only file system" in daemon.log, "said")
            assert "read-only" in lab.stager("status", "--check").stderr
            static.remount("rw")
            answered_well(lab, name)
            said_once(daemon, lab)


Fault = Callable[[Disk, Lab], Callable[[], None]]


def read_only(disk: Disk, _lab: Lab) -> Callable[[], None]:
    disk.remount("ro")
    return lambda: disk.remount("rw")


def unmounted(disk: Disk, _lab: Lab) -> Callable[[], None]:
    until(disk.is_unmounted, "nobody uses the disk")

    def back() -> None:
        assert os.listdir(disk.place) == [], "something was made in the empty mount point"
        disk.mount()

    return back


def shut_down(disk: Disk, lab: Lab) -> Callable[[], None]:
    os.sync()
    run("xfs_io", "-x", "-c", "shutdown -f", disk.place)

    def back() -> None:
        unmounted(disk, lab)()

    return back


@pytest.mark.parametrize(
    ("kind", "size", "fault", "said"),
    [
        pytest.param("ext4", "48M", read_only, "Read-only file system", id="read-only"),
        pytest.param("ext4", "48M", unmounted, "not mounted", id="unmounted"),
        pytest.param("xfs", "320M", shut_down, "Input/output error", id="xfs-shut-down"),
    ],
)
@pytest.mark.parametrize("where", ["spool", "static"])
def test_a_disk_that_goes_away_is_waited_for(
    public_dir: Path, where: str, kind: str, size: str, fault: Fault, said: str
) -> None:
    with ExitStack() as stack:
        place = stack.enter_context(disk(public_dir / "disk", kind, size))
        lab = stack.enter_context(lab_on(public_dir, **{where: place}))
        with lab.running() as daemon:
            name = waiting_for_archive(lab, daemon)
            back = fault(place, lab)
            until(lambda: said in daemon.log, f"{said}: {daemon.log}")
            lab.archive()
            assert lab.stager("status", "--check").returncode != 0
            back()
            answered_well(lab, name)
            answered_well(lab, lab.drop("another", images=["base"]))
            said_once(daemon, lab)
            assert len(lab.instances()) == 1


def test_a_static_tree_unmounted_under_an_image_gets_nothing_into_its_mount_point(
    public_dir: Path,
) -> None:
    """A lazy unmount: the files that are open go on, the names are gone."""
    with ExitStack() as stack:
        static = stack.enter_context(disk(public_dir / "disk"))
        cloud = stack.enter_context(Cloud())
        lab = stack.enter_context(lab_on(public_dir, static=static))
        lab.env["STORAGE_EMULATOR_HOST"] = cloud.url
        lab.write_config(archive={"source": "gcs"})
        image = lab.upload(cloud, images={FILES["test"]: make_image(1, IMAGE_BYTES)})
        with lab.running() as daemon:
            cloud.slow(2_000_000)
            name = lab.drop("one")
            work = lab.root / "static/.stager/work"
            until(lambda: any(p.stat().st_blocks > 512 for p in work.glob("*/*")), "bytes on disk")
            static.unmount("-l")
            cloud.slow(None)
            until(lambda: SPOOL in daemon.log or QUEUE in daemon.log, "said")
            until(lambda: cloud.sent() >= lab.archive_path().stat().st_size * 0.9, "all fetched")
            end = time.monotonic() + 2
            until(lambda: time.monotonic() > end, "time to publish it, were that possible")
            assert os.listdir(static.place) == []
            static.mount()
            answered_well(lab, name)
            assert lab.image("test").read_bytes() == image[FILES["test"]]
            said_once(daemon, lab)


ROOMS = [
    *(f"spool/{room}" for room in ("requests", "active", "waiting", "private", "tmp", "done")),
    *("spool/instances", "spool/control", "spool", "results", "static", "static/images"),
    *(f"static/.stager/{room}" for room in ("locks", "work", "sidecars", "tmp")),
]


@pytest.mark.timeout(300)
def test_permission_taken_away_and_given_back(public_dir: Path) -> None:
    lab = Lab(public_dir, user=NOBODY).init()
    try:
        for number, room in enumerate(ROOMS):
            with lab.running() as daemon:
                build = f"gs://{BUCKET}/board-release/R{number}-1.0"
                lab.archive(build)
                path = lab.root / room
                mode = path.stat().st_mode & 0o7777
                path.chmod(0)
                names = [lab.drop(f"r{number}-{i}", build) for i in range(10)]
                until(lambda: "Permission denied" in daemon.log, f"{room}: {daemon.log}")
                path.chmod(mode)
                answered_well(lab, *names)
                said_once(daemon, lab)
    finally:
        lab.end()


@pytest.mark.parametrize("mark", ["static/.stager/LAYOUT", "results/.layout"])
def test_the_mark_of_another_set_stops_it_until_its_own_is_back(lab: Lab, mark: str) -> None:
    lab.archive()
    path = lab.root / mark
    own = path.read_text()

    def mark_as(text: str) -> None:
        # Whole at every moment: a mark that is half written is another fault.
        (lab.root / "mark").write_text(text)
        (lab.root / "mark").replace(path)

    with lab.running() as daemon:
        mark_as(own.replace("set: ", "set: 0"))
        daemon.await_log("not of one set")
        name = lab.drop("one")
        until(lambda: "not of one set" in lab.stager("status").stdout, "status")
        assert lab.spool("requests") == ["one.yaml"]
        mark_as(own)
        answered_well(lab, name)
        said_once(daemon, lab)


def test_a_daemon_that_is_stopped_while_its_spool_is_away_ends_well(public_dir: Path) -> None:
    with ExitStack() as stack:
        spool = stack.enter_context(disk(public_dir / "disk"))
        lab = stack.enter_context(lab_on(public_dir, spool=spool))
        daemon = lab.start()
        name = waiting_for_archive(lab, daemon)
        back = unmounted(spool, lab)
        daemon.await_log(SPOOL)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log
        back()
        lab.archive()
        with lab.running():
            answered_well(lab, name)


def test_a_drop_box_that_was_unmounted_between_two_looks_is_watched_again(
    public_dir: Path,
) -> None:
    with ExitStack() as stack:
        spool = stack.enter_context(disk(public_dir / "disk"))
        box = spool.place / "requests"
        box.mkdir()
        watch = Watch(box, "inotify", None, lambda *_: True)
        stack.callback(watch.disarm)
        watch.arm()
        before = box.stat()
        unmounted(spool, Lab(public_dir))()
        assert (box.stat().st_dev, box.stat().st_ino) == (before.st_dev, before.st_ino)

        def is_told() -> bool:
            watch.arm()
            (box / "a.yaml").write_text("x\n")
            return watch.wait(0.1)

        until(is_told, "an event")
