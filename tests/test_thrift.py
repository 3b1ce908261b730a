"""What would be a needless call to a file server, and what its caches may say wrongly."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from archives import make_image
from lab import BUILD, FILES, Lab, until

from stager import durable
from stager.archive import DirectorySource
from stager.config import load_config
from stager.doctor import examine
from stager.dropped import StaleOpen
from stager.fetch import Room
from stager.layout import parse_build
from stager.marker import Marker
from stager.progress import Progress
from stager.stage import Staging


def counter(lab: Lab) -> int:
    """Return the daemon's heartbeat counter."""
    (count,) = (n.rpartition(".")[2] for n in lab.spool("instances") if n[-1].isdigit())
    return int(count)


def test_a_status_that_says_nothing_new_is_not_written_again(lab: Lab) -> None:
    lab.write_config(watch="poll")
    with lab.running():
        lab.ask("gs://chromeos-image-archive/a/absent", wait=0)
        (path,) = until(lambda: list((lab.root / "spool/instances").glob("*.status")))
        until(lambda: '"bad": 1' in path.read_text(), "the answer in the status")
        inode, beats = path.stat().st_ino, counter(lab)
        until(lambda: counter(lab) > beats + 4, "some beats")
        assert path.stat().st_ino == inode


def test_between_scans_a_daemon_that_polls_does_not_list_what_waits(lab: Lab) -> None:
    lab.write_config(watch="poll", rescan="1h", settle="1s")
    lab.archive()
    name, waiting = lab.drop("one"), lab.root / "spool/waiting"
    os.utime(waiting, (0, 0))
    with lab.running():
        until(lambda: waiting.stat().st_mtime, "the first scan")
        os.utime(waiting, (0, 0))
        assert lab.result(name)["state"] == "staged"
        assert waiting.stat().st_mtime == 0


def test_orders_are_found_where_no_event_tells_of_them(lab: Lab) -> None:
    lab.write_config(watch="poll")
    with lab.running():
        assert lab.stager("pause").returncode == 0
        assert lab.stager("resume").returncode == 0


def test_a_listing_tells_of_several_claims_which_file_each_must_be(lab: Lab) -> None:
    spool = lab.peer().spool
    spool.nfs = True
    names = [lab.drop(name) for name in ("a", "b")]
    first, second = (spool.take(f"{name}.yaml") for name in names)
    assert first
    assert second
    seen = spool.inodes()
    assert seen is not None
    assert [spool.read(claim, seen).data for claim in (first, second)] == [
        spool.read(claim).data for claim in (first, second)
    ]
    seen[str(first)], seen[str(second)] = seen[str(second)], seen[str(first)]
    for claim in (first, second):
        with pytest.raises(StaleOpen):
            spool.read(claim, seen)


def test_a_name_that_leads_to_a_replaced_file_is_looked_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flag").write_bytes(b"test\n")
    real, stale = os.open, [errno.ESTALE, errno.ESTALE]

    def open_stale(*args: Any, **options: Any) -> int:
        if stale:
            raise OSError(stale.pop(), "Stale file handle")
        return real(*args, **options)

    monkeypatch.setattr(os, "open", open_stale)
    assert durable.read_file(tmp_path / "flag") == b"test\n"
    stale[:] = [errno.ESTALE] * 9
    with pytest.raises(OSError, match="Stale"):
        durable.read_file(tmp_path / "flag")


def test_an_image_that_a_cache_hid_is_not_replaced(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    visible, build = lab.image("test"), parse_build(BUILD, frozenset(FILES.values()))
    visible.parent.mkdir(parents=True)
    visible.write_bytes(lab.archive()[FILES["test"]])
    inode, peer, config = visible.stat().st_ino, lab.peer(), load_config(lab.config, {})
    real, hidden = os.open, [True]

    def open_hidden(path: Any, *args: Any, **options: Any) -> int:
        if hidden and path == visible:
            hidden.clear()
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return real(path, *args, **options)

    archive = DirectorySource(lab.root / "archive").look(build, lambda _: None)
    marker, room = Marker(config.paths, config.images), Room(config.paths.static, config)
    with peer.locks.take(build.key) as work:
        staging = Staging(build, work, archive, marker, room, peer.heart, Progress(), "1-a")
        monkeypatch.setattr(os, "open", open_hidden)
        staging.stage(["test"])
    assert not hidden
    assert (visible.stat().st_ino, lab.flag()) == (inode, ["test"])


def test_an_image_never_gets_the_record_of_one_that_is_gone(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = ({FILES["test"]: make_image(seed, 100_000)} for seed in (1, 2))
    lab.archive(images=old)
    lab.drop("a")
    lab.once()
    lab.image("test").unlink()
    lab.archive(images=new)
    real, peer, config = os.link, lab.peer(), load_config(lab.config, {})
    build = parse_build(BUILD, frozenset(FILES.values()))

    def link_and_die(source: Any, target: Any, **options: Any) -> None:
        real(source, target, **options)
        raise OSError(errno.EIO, "the end")

    archive = DirectorySource(lab.root / "archive").look(build, lambda _: None)
    marker, room = Marker(config.paths, config.images), Room(config.paths.static, config)
    with peer.locks.take(build.key) as work:
        staging = Staging(build, work, archive, marker, room, peer.heart, Progress(), "1-a")
        monkeypatch.setattr(os, "link", link_and_die)
        with pytest.raises(OSError, match="the end"):
            staging.stage(["test"])
    assert lab.image("test").read_bytes() == new[FILES["test"]]
    assert marker.good(build, "test") is None


def test_the_doctor_knows_the_files_of_an_nfs_client(lab: Lab) -> None:
    (lab.root / "spool/active/.nfs00000000000a4c1200000001").touch()
    assert examine(load_config(lab.config, {}), 0) == []
