"""The few disk verbs everything else is made of. Only this module syncs and touches.

Facts they rest on (sources in docs/design.md, "Shared filesystems"): after an error on NFS only a
listing of a directory that was just touched tells whether a rename happened; names are never
looked up to decide who owns what. So every source name is used once and every destination name
can be made by one caller only.
"""

import base64
import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from stager.errors import NoSpace, StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT}
STALE_PAUSES = (0.0, 0.01, 0.1)
"""Seconds between looks at a name whose cached file is gone from the server."""
Look = Callable[[Path], list[str]]
PASSING = _FULL | {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EROFS}
"""Errors that go away by themselves, or when somebody mends the filesystem or makes room."""


def nonce() -> str:
    """Return 8 letters or digits (40 random bits) for a name that is used once."""
    return base64.b32encode(secrets.token_bytes(5)).decode().lower()


@contextmanager
def storage() -> Iterator[None]:
    """Turn what the filesystem says into NoSpace or StorageError."""
    try:
        yield
    except OSError as e:
        where = f" ({e.filename})" if e.filename else ""
        kind = NoSpace if e.errno in _FULL else StorageError
        raise kind(f"{e.strerror or e}{where}") from e


@contextmanager
def at(path: Path) -> Iterator[None]:
    """Have an error tell the path also where the call knew only a descriptor, or tells none."""
    try:
        yield
    except OSError as e:
        e.filename = e.filename or str(path)
        raise


def listing(directory: Path, *, touch: bool = True) -> list[str]:
    """List a directory anew; `touch` it first where the answer decides something.

    On NFSv3 two changes within one tick of the server's clock look like one, so that even a fresh
    listing can be minutes old; a change of one's own (the touch) makes the client ask again.
    """
    if touch:
        set_time(directory)
    with at(directory):
        return os.listdir(directory)


def set_time(path: Path) -> None:
    """Set the time of a file or directory to the file server's now."""
    with at(path):
        os.utime(path)


def write_new(path: Path, data: bytes, mode: int = 0o644, *, sync: bool = True) -> None:
    """Create `path` (used-once name), write, sync and close it; the mode is set whatever the umask.

    Nothing stays behind where that fails.
    """
    with _made(path, data, mode) as fd:
        if sync:
            os.fsync(fd)


@contextmanager
def _made(path: Path, data: bytes, mode: int) -> Iterator[int]:
    """Have a file created and written, and closed at the end of a block; gone where that fails."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            with at(path):
                # Asked first: on NFS that is known from the creation, and setting it is a call.
                if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
                    os.fchmod(fd, mode)
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                yield fd
        finally:
            os.close(fd)
    except OSError:
        discard(path)
        raise


def replace(new: Path, target: Path, data: bytes) -> None:
    """Have `data` under a name of ours, for show: not synced, and whole; `new` is used once."""
    write_new(new, data, sync=False)
    try:
        os.rename(new, target)
    except OSError:
        discard(new)
        raise


def overwrite(path: Path, data: bytes) -> None:
    """Write over a file of ours in place, where a full disk lets us; never raises.

    Whoever reads meanwhile may find a mixture.
    """
    with suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.pwrite(fd, data, 0)
            os.ftruncate(fd, len(data))
        finally:
            os.close(fd)


def write_all_new(files: Iterable[tuple[Path, bytes]]) -> None:
    """Create and write files as `write_new` does; sync them once all are written.

    The first sync then takes most of the others' work with it.
    """
    with ExitStack() as made:
        for fd in [made.enter_context(_made(path, data, 0o644)) for path, data in files]:
            os.fsync(fd)


def discard(path: Path) -> None:
    """Unlink a file of our own if it is still there; never raises."""
    with suppress(OSError):
        os.unlink(path)


def move(source: Path, target: Path) -> bool:
    """Rename to a name that only this caller can make; False: somebody else had the source.

    A lost reply looks like a failure: so after any error the target's directory says what happened.
    """
    try:
        os.rename(source, target)
    except OSError as e:
        if target.name in listing(target.parent):
            return True
        # A stale handle of the directory is no proof that somebody else was faster.
        stale = e.errno == errno.ESTALE and source.name not in listing(source.parent)
        if e.errno == errno.ENOENT or stale:
            return False
        raise
    return True


def link(source: Path, target: Path) -> bool:
    """Publish without replacing; False: another file has that name.

    Either way a reply may have been lost: the same inode under both names is a success.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        mine = os.lstat(source)
        try:
            there = os.lstat(target)
        except FileNotFoundError:
            return False
        return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
    return True


def make_dir(path: Path) -> None:
    """Make a directory of a used-once name, 0755 whatever the umask.

    Nobody else makes one of that name: one that is there was made by a call whose reply was lost.
    """
    with suppress(FileExistsError):
        os.mkdir(path, 0o755)
    if stat.S_IMODE(os.lstat(path).st_mode) != 0o755:
        os.chmod(path, 0o755)


def make_dirs(path: Path, below: Path) -> None:
    """Make `path` and its parents down from `below` (which must be there), all 0755.

    Their names are synced too: what is synced into the last of them would else be lost with it.
    """
    if path == below or path.is_dir():
        return
    make_dirs(path.parent, below)
    try:
        os.mkdir(path)
    except FileExistsError:
        return
    os.chmod(path, 0o755)
    sync_dir(path.parent)


def sync_dir(path: Path) -> None:
    """Make the names in a directory durable. On NFS they are already, and opening it is a call."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with at(path):
            os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(path: Path, tries: int = 5) -> bool:
    """Empty and remove a directory of our own making; False: something keeps it (`.nfs*` files).

    Its disappearance is what fences a paused writer, so it only counts when rmdir succeeded.
    """
    for _ in range(tries):
        try:
            # By file descriptors: nobody can swap a link in underneath.
            shutil.rmtree(path)
        except FileNotFoundError:
            if path.name not in listing(path.parent):
                return True
        except RecursionError:
            return False
        except OSError as e:
            if e.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ESTALE, errno.EBUSY}:
                raise
        else:
            return True
    return False


def read_file(path: Path, limit: int = 1 << 20) -> bytes:
    """Read a file of ours (at most `limit` bytes), never through a symbolic link.

    A file that is replaced while another machine opens or reads it is stale there (NFS): its name
    is looked up again. FileNotFoundError: it has none any more.
    """
    for pause in STALE_PAUSES:
        try:
            return _read(path, limit)
        except OSError as e:
            if e.errno != errno.ESTALE:
                raise
            time.sleep(pause)
    if path.name not in listing(path.parent, touch=False):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return _read(path, limit)


def _read(path: Path, limit: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with os.fdopen(fd, "rb") as f, at(path):
        return f.read(limit)


def remove_known(path: Path, files: Iterable[Path]) -> bool:
    """Remove a directory of our own making that holds just these files; False as `remove_tree`.

    It is not listed, which would be several calls on NFS.
    """
    try:
        for file in files:
            os.unlink(file)
        os.rmdir(path)
    except OSError:
        return remove_tree(path)
    return True
