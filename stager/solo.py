"""What one machine alone can ask a filesystem: the verbs, names and modes of a spool."""

import errno
import os
import stat
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from stager import durable, mounts
from stager.meeting import open_dir
from stager.trial import Trial, attempt, no, told, warning, yes

HOLE_BYTES = 16 << 20
DATA_BYTES = 64 << 10
QUICK_SYNC_MS = {False: 0.03, True: 0.15}
"""A sync that is faster than this reached no disk; on a network filesystem: no server's disk."""
OTHER_FILESYSTEM = "use ext4, XFS, btrfs or ZFS on the server, and NFS between the machines"


def ask(room: Path) -> Iterator[Trial]:
    """Ask everything, in a directory of one's own; what the filesystem refuses is an answer."""
    for name, question in QUESTIONS.items():
        place = room / name.replace(" ", "-")
        try:
            open_dir(place)
            yield from question(name, place)
        except OSError as e:
            yield no(name, e.strerror or str(e), OTHER_FILESYSTEM)
        finally:
            with suppress(OSError):
                durable.remove_tree(place)


def _mounted(name: str, place: Path) -> Iterator[Trial]:
    mount = mounts.mount_of(place)
    options = sorted(mount.options - {"relatime"})
    figures = {"kind": mount.kind, "point": mount.point, "options": options}
    version = f" {vers}" if (vers := mount.value("vers")) else ""
    found = mounts.notices([place])
    if not found:
        yield yes(name, f"{mount.kind}{version}, nothing against it", **figures)
    for notice in found:
        yield warning(name, notice.what, notice.hint, **figures)


def _renames(name: str, place: Path) -> Iterator[Trial]:
    """Rename as requests go: across directories, once, and never over a full directory."""
    source, target = place / "active", place / "done"
    for directory in (source, target):
        open_dir(directory)
    durable.write_new(source / "a", b"a", sync=False)
    (source / "a").rename(target / "b")
    if attempt(lambda: (source / "a").rename(target / "c")) == "":
        yield no(name, "a file that was moved away could be moved once more", OTHER_FILESYSTEM)
        return
    durable.write_new(source / "d", b"d", sync=False)
    (source / "d").rename(target / "b")
    if durable.read_file(target / "b") != b"d" or os.listdir(target) != ["b"]:
        yield no(name, "a rename over a file did not replace it", OTHER_FILESYSTEM)
    elif attempt(lambda: source.rename(target)) == "":
        said = "a directory was replaced by another although it held a file"
        yield no(name, f"{said}: two machines could make one build's token", OTHER_FILESYSTEM)
    else:
        yield yes(name, "across directories too; a name moved away has no second winner")


def _links(name: str, place: Path) -> Iterator[Trial]:
    file, twin = place / "file", place / "twin"
    durable.write_new(file, b"one", sync=False)
    if problem := attempt(lambda: os.link(file, twin)):
        yield no(
            name,
            f"no hard links ({problem}): images could not be published without replacing others",
            OTHER_FILESYSTEM,
        )
        return
    durable.write_new(place / "other", b"two", sync=False)
    if attempt(lambda: os.link(place / "other", twin)) == "" or durable.read_file(twin) != b"one":
        yield no(name, "a link replaced a file that had the name", OTHER_FILESYSTEM)
        return
    with file.open("ab") as f:
        f.write(b", and more")
    if durable.read_file(twin) != b"one, and more":
        yield no(name, "a hard link became a file of its own", OTHER_FILESYSTEM)
    else:
        yield yes(name, "they work, and never replace")


def _fences(name: str, place: Path) -> Iterator[Trial]:
    """See that a removed directory lets nothing out and nothing in, whoever has it open."""
    work, out = place / "work", place / "out"
    open_dir(work)
    durable.write_new(work / "image", b"image", sync=False)
    directory = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not durable.remove_tree(work):
            yield no(name, "a directory of one's own can't be removed", OTHER_FILESYSTEM)
            return
        flags = os.O_CREAT | os.O_WRONLY
        escapes = {
            "a link out of it": lambda: os.link(work / "image", out),
            "a rename out of it": lambda: (work / "image").rename(out),
            "a new file in it": lambda: os.close(os.open("new", flags, dir_fd=directory)),
        }
        went = [what for what, call in escapes.items() if attempt(call) == ""]
        if went or out.exists():
            yield no(name, f"a removed directory still allowed {', '.join(went)}", OTHER_FILESYSTEM)
        else:
            yield yes(name, "a removed directory lets nothing out")
    finally:
        os.close(directory)


def _syncs(name: str, place: Path) -> Iterator[Trial]:
    """See, as far as it shows, that a sync takes the time that a disk needs."""
    times, data = [], os.urandom(DATA_BYTES)
    for number in range(15):
        fd = os.open(place / str(number), os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            os.write(fd, data)
            start = time.perf_counter()
            os.fsync(fd)
            times.append((time.perf_counter() - start) * 1000)
        finally:
            os.close(fd)
    durable.sync_dir(place)
    median = statistics.median(times)
    said = f"a sync of {DATA_BYTES >> 10} KiB takes {median:.3g} ms"
    if median < QUICK_SYNC_MS[mounts.is_network(place)]:
        yield warning(
            name,
            f"{said}: too fast for a disk",
            "see that it is no memory, the export not `async`, the disk's cache safe "
            "(battery, or off): else a power loss takes back what was answered",
            sync_ms=median,
        )
    else:
        yield yes(name, said, sync_ms=median)


def _holes(name: str, place: Path) -> Iterator[Trial]:
    with (place / "sparse").open("wb") as f:
        f.seek(HOLE_BYTES)
        f.write(b"end")
        f.flush()
        os.fsync(f.fileno())
    allocated = (place / "sparse").stat().st_blocks * 512
    if allocated < HOLE_BYTES // 2:
        yield yes(name, f"{HOLE_BYTES >> 20} MiB of nothing take {allocated >> 10} KiB")
    else:
        hint = "nothing breaks, but images take their full size; plan for that"
        yield warning(name, "zeros take room like data", hint, allocated=allocated)


def _names(name: str, place: Path) -> Iterator[Trial]:
    """Try 255 bytes, upper and lower case, and the characters of states and builds."""
    wanted = ["x" * 255, "nightly", "Nightly", "a~1-b.g1.a0.lab-7-x.y", "R23+2811._0"]
    for each in wanted:
        with suppress(FileExistsError):
            durable.write_new(place / each, b"", sync=False)
    found = set(os.listdir(place))
    missing = [each for each in wanted if each not in found]
    if missing:
        same = {"nightly", "Nightly"} & set(missing)
        what = (
            "upper and lower case are one name" if same else f"{missing[0][:30]!a} became another"
        )
        yield no(name, what, f"two requests or builds could become one: {OTHER_FILESYSTEM}")
    else:
        yield yes(name, "255 bytes long, upper and lower case apart")


def _owners(name: str, place: Path) -> Iterator[Trial]:
    file, uid = place / "file", os.geteuid()
    durable.write_new(file, b"", 0o600, sync=False)
    owner = file.stat().st_uid
    wrong = []
    for mode in (0o644, 0o600):
        file.chmod(mode)
        wrong += [f"{mode:o}"] if stat.S_IMODE(file.stat().st_mode) != mode else []
    for mode in (0o700, 0o755, 0o1777):
        place.chmod(mode)
        wrong += [f"{mode:o}"] if stat.S_IMODE(place.stat().st_mode) != mode else []
    place.chmod(0o700)
    if wrong:
        hint = "requests and answers of all would be open to all, or closed to all: mount with "
        yield no(name, f"modes don't stay: {', '.join(wrong)}", hint + "unix modes")
    elif owner == uid:
        yield yes(name, f"files belong to who made them (uid {uid}); modes stay")
    elif uid == 0:
        hint = (
            "right so; run the daemon and this probe as another user: `runuser -u watcherd -- ...`"
        )
        yield warning(name, f"root's files belong to uid {owner} (root_squash)", hint)
    else:
        hint = "all machines and the server need one number for the daemon's user (no id mapping)"
        yield no(name, f"files of uid {uid} belong to uid {owner}", hint)


def _numbers(name: str, place: Path) -> Iterator[Trial]:
    """See that listings have the files' own numbers (asked on NFS after each claim)."""
    durable.write_new(place / "file", b"", sync=False)
    before = (place / "file").stat()
    time.sleep(0.02)
    (place / "file").rename(place / "moved")
    with os.scandir(place) as entries:
        listed = {entry.name: entry.inode() for entry in entries}
    after = (place / "moved").stat()
    if listed.get("moved") != after.st_ino or before.st_ino != after.st_ino:
        said = "the number of a file changes with its name or in listings"
        if mounts.is_nfs(place):
            yield no(name, said, OTHER_FILESYSTEM)
        else:
            yield warning(name, said, "harmless on one machine; over NFS requests would not start")
    else:
        kept = "" if after.st_ctime_ns > before.st_ctime_ns else "; a rename leaves the change time"
        yield yes(name, f"a file keeps its number{kept}")


def _exclusive(name: str, place: Path) -> Iterator[Trial]:
    """See that a name is given to one file only, and how much room there is."""
    durable.write_new(place / "file", b"", sync=False)
    try:
        durable.write_new(place / "file", b"", sync=False)
    except FileExistsError:
        free = os.statvfs(place)
        room = free.f_bavail * free.f_frsize
        yield told(name, f"{room / (1 << 30):.1f} GiB free", free_bytes=room)
    except OSError as e:
        yield no(name, f"a second file of one name: {errno.errorcode.get(e.errno or 0)}", "")
    else:
        yield no(name, "two files could be made under one name", OTHER_FILESYSTEM)


Question = Callable[[str, Path], Iterator[Trial]]
QUESTIONS: dict[str, Question] = {
    "mount": _mounted,
    "renames": _renames,
    "hard links": _links,
    "removed directories": _fences,
    "sync": _syncs,
    "holes": _holes,
    "names": _names,
    "owners and modes": _owners,
    "file numbers": _numbers,
    "room": _exclusive,
}
