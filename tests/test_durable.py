"""The disk verbs: what they leave behind, whoever was faster and whatever failed."""

import errno
import os
import re
import resource
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from stager import durable
from stager.errors import NoSpace, StagerError, StorageError
from stager.scans import Scans


@pytest.fixture(params=[0o022, 0o077, 0o000], ids=["usual", "private", "open"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """Work under other umasks than ours."""
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


@pytest.fixture
def small_files() -> Iterator[int]:
    """Let the kernel refuse to make files larger than this."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield 4096
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# -- files and directories -------------------------------------------------------------------------


@pytest.mark.usefixtures("umask")
def test_a_new_file_has_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    durable.write_new(tmp_path / "a", b"text")
    durable.write_new(tmp_path / "b", b"", 0o600, sync=False)
    assert (tmp_path / "a").read_bytes() == b"text"
    assert (mode(tmp_path / "a"), mode(tmp_path / "b")) == (0o644, 0o600)


@pytest.mark.usefixtures("umask")
def test_directories_are_made_down_from_one_that_is_there(tmp_path: Path) -> None:
    durable.make_dirs(tmp_path / "a/b/c", tmp_path)
    (tmp_path / "a/b").chmod(0o711)
    durable.make_dirs(tmp_path / "a/b/d", tmp_path)
    durable.make_dirs(tmp_path, tmp_path)
    assert [mode(tmp_path / p) for p in ("a", "a/b", "a/b/c", "a/b/d")] == [
        0o755, 0o711, 0o755, 0o755,
    ]  # fmt: skip


def test_a_directory_that_vanished_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        durable.make_dirs(tmp_path / "mount/a/b", tmp_path / "mount")
    assert not list(tmp_path.iterdir())


def test_the_names_of_new_directories_are_synced_each_in_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    durable.make_dirs(tmp_path / "a/b", tmp_path)
    assert synced == [str(tmp_path), str(tmp_path / "a")]


def test_a_directory_whose_reply_was_lost_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "used-once").mkdir(0o700)
    durable.make_dir(tmp_path / "used-once")
    assert mode(tmp_path / "used-once") == 0o755


@pytest.mark.parametrize("times", [1, 2])
def test_a_file_that_is_stale_is_looked_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    (tmp_path / "flag").write_bytes(b"test\n")
    stale_reads(monkeypatch, times)
    assert durable.read_file(tmp_path / "flag") == b"test\n"


def test_a_stale_file_without_a_name_is_not_there_and_a_stale_mount_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale_reads(monkeypatch, 99)
    with pytest.raises(FileNotFoundError):
        durable.read_file(tmp_path / "flag")
    os.mknod(tmp_path / "flag")
    with pytest.raises(OSError) as caught:
        durable.read_file(tmp_path / "flag")
    assert caught.value.errno == errno.ESTALE


def stale_reads(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Have the kernel's open say ESTALE, as NFS does for a replaced file, some times."""
    real, left = os.open, [times]

    def stale(path: os.PathLike[str] | str, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith("flag") and left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", stale)


def test_a_name_that_is_taken_is_never_written_over(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "a", tmp_path / "elsewhere"
    path.symlink_to(elsewhere)
    with pytest.raises(FileExistsError):
        durable.write_new(path, b"new")
    assert path.is_symlink()
    assert not elsewhere.exists()


def test_nothing_stays_of_a_file_that_could_not_be_written(
    tmp_path: Path, small_files: int
) -> None:
    with pytest.raises(OSError) as caught:
        durable.write_new(tmp_path / "a", bytes(small_files + 1))
    assert caught.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())
    durable.write_new(tmp_path / "a", bytes(small_files))
    assert (tmp_path / "a").stat().st_size == small_files


def test_reading_follows_no_link_hangs_on_no_pipe_and_has_a_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "pipe")
    assert durable.read_file(tmp_path / "a", 4) == b"0123"
    assert durable.read_file(tmp_path / "pipe") == b""
    with pytest.raises(OSError) as caught:
        durable.read_file(tmp_path / "link")
    assert caught.value.errno == errno.ELOOP


def test_a_listing_touches_the_directory_where_it_decides_something(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.utime(tmp_path, (1, 1))
    assert durable.listing(tmp_path, touch=False) == ["a"]
    assert tmp_path.stat().st_mtime == 1
    assert durable.listing(tmp_path) == ["a"]
    assert tmp_path.stat().st_mtime > 1


@pytest.mark.parametrize(("kind", "again"), [("nfs", True), ("nfs4", False)])
def test_a_scan_touches_each_time_only_where_changes_are_not_counted(
    kind: str, again: bool, tmp_path: Path
) -> None:
    scans = Scans(kind)
    (tmp_path / "file").touch()
    for expected in (True, again):
        os.utime(tmp_path, (0, 0))
        assert scans.scan(tmp_path) == ["file"]
        assert (tmp_path.stat().st_mtime > 0) == expected


@pytest.mark.parametrize("more", [False, True])
def test_a_directory_whose_files_are_known_is_removed_with_what_else_came_into_it(
    more: bool, tmp_path: Path
) -> None:
    files = [tmp_path / "desk" / name for name in "ab"]
    files[0].parent.mkdir()
    files[0].touch()
    if more:
        (tmp_path / "desk/c").touch()
    assert durable.remove_known(tmp_path / "desk", files)
    assert os.listdir(tmp_path) == []
    assert durable.remove_known(tmp_path / "desk", files)


def test_discarding_what_is_not_there_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    for _ in range(2):
        durable.discard(tmp_path / "a")
    durable.discard(tmp_path)
    assert not list(tmp_path.iterdir())


# -- moving and linking ----------------------------------------------------------------------------


def test_of_two_movers_one_has_moved_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    moved = [durable.move(tmp_path / "a", tmp_path / name) for name in ("mine", "yours")]
    assert moved == [True, False]
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_move_whose_reply_was_lost_is_known_by_its_destination(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    os.rename(tmp_path / "a", tmp_path / "mine")
    assert durable.move(tmp_path / "a", tmp_path / "mine")


def test_a_move_that_is_not_possible_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dir").mkdir()
    with pytest.raises(NotADirectoryError):
        durable.move(tmp_path / "file", tmp_path / "file/inside")
    (tmp_path / "n").touch()
    with pytest.raises(OSError) as caught:
        durable.move(tmp_path / "n", tmp_path / ("n" * 256))
    assert caught.value.errno == errno.ENAMETOOLONG
    with pytest.raises(FileNotFoundError):
        durable.move(tmp_path / "n", tmp_path / "nowhere/n")
    assert (tmp_path / "n").exists()


def test_a_link_replaces_nothing_and_knows_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"x")
    (tmp_path / "yours").write_bytes(b"x")
    assert durable.link(tmp_path / "mine", tmp_path / "public")
    assert durable.link(tmp_path / "mine", tmp_path / "public"), "the reply was lost: still ours"
    assert not durable.link(tmp_path / "yours", tmp_path / "public")
    assert (tmp_path / "public").samefile(tmp_path / "mine")
    with pytest.raises(FileNotFoundError):
        durable.link(tmp_path / "gone", tmp_path / "other")


def test_a_tree_is_removed_without_following_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    tree = tmp_path / "tree"
    (tree / "deep/deeper").mkdir(parents=True)
    (tree / "deep/deeper/file").touch()
    (tree / "link").symlink_to(outside)
    os.mkfifo(tree / "deep/pipe")
    assert durable.remove_tree(tree)
    assert durable.remove_tree(tree), "removed by somebody else: removed"
    assert [p.name for p in tmp_path.iterdir()] == ["outside"]
    assert (outside / "kept").exists()


# -- what the filesystem says ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        pytest.param(errno.ENOSPC, NoSpace, id="full"),
        pytest.param(errno.EDQUOT, NoSpace, id="over quota"),
        pytest.param(errno.EIO, StorageError, id="broken"),
        pytest.param(errno.ESTALE, StorageError, id="gone away"),
        pytest.param(errno.EROFS, StorageError, id="read-only"),
        pytest.param(errno.ENOENT, StorageError, id="not there"),
        pytest.param(errno.EACCES, StorageError, id="not allowed"),
    ],
)
def test_errors_of_the_system_become_faults_of_the_machine(
    number: int, kind: type[StagerError]
) -> None:
    with pytest.raises(kind) as caught, durable.storage():
        raise OSError(number, os.strerror(number), "/some/where")
    assert type(caught.value) is kind
    assert caught.value.retryable
    assert os.strerror(number) in caught.value.message
    assert "/some/where" in caught.value.message


def test_other_errors_pass_storage_unchanged() -> None:
    with pytest.raises(ValueError, match="a fault of ours"), durable.storage():
        raise ValueError("a fault of ours")
    with pytest.raises(NoSpace, match="said before"), durable.storage():
        raise NoSpace("said before")


def test_names_that_are_used_once_are_made_of_letters_and_digits() -> None:
    names = {durable.nonce() for _ in range(2000)}
    assert len(names) == 2000
    assert all(re.fullmatch("[a-z2-7]{8}", name) for name in names)
