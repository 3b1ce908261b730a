"""What several machines see of each other's changes: whole files, fresh listings, times, events.

The other half of duet.py: there they compete, here one acts and the others look.
"""

import ctypes
import os
import select
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stager import durable
from stager.meeting import Meeting, open_dir
from stager.trial import Trial, no, told, warning, yes

LINES = 4096
BURST = 30
BURST_SECONDS = 0.15
TRIALS = 40
IN_CREATE, IN_MOVED_TO = 0x100, 0x80
EVENT_SECONDS = 1.0
NOT_SHARED = "don't share this filesystem among machines; give each its own spool"


# -- whole files -------------------------------------------------------------------------------


def _whole(name: str, meeting: Meeting, place: Path, seconds: float) -> Iterator[Trial]:
    """Have one replace a file by renames, fast, and the others read it all the time."""
    seen: Counter[str] = Counter()
    turn = max(0.5, seconds / 3 / len(meeting.members))
    for member in meeting.members:
        file = place / f"{member}.flag"
        if meeting.me == member:
            _replace(file, 0)
        meeting.together(f"{name}: {member} begins")
        end, version = time.monotonic() + turn, 0
        while time.monotonic() < end:
            if meeting.me == member:
                version += 1
                _replace(file, version)
                seen["written"] += 1
            else:
                version = _look(file, version, seen)
        meeting.together(f"{name}: {member} ends")
    words = meeting.together(f"{name}: ran", dict(seen))
    total = sum((Counter(word) for word in words.values()), Counter())
    figures: dict[str, Any] = dict(total)
    said = f"{total['reads']} reads of a file replaced {total['written']} times"
    if total["partial"] or total["mixed"]:
        what = f"{said}: {total['partial']} saw a part, {total['mixed']} a mixture"
        yield no(name, what, NOT_SHARED, **figures)
    elif not total["changes"]:
        hint = f"others see what was there before: {NOT_SHARED}"
        yield no(name, f"{said}: no reader ever saw a new one", hint, **figures)
    elif total["missing"] or total["back"]:
        what = (
            f"{said}: {total['missing']} found none (or a stale one), {total['back']} an older one"
        )
        hint = "watcherd looks again; your own readers of flags and results must do so too"
        yield warning(name, what, hint, **figures)
    else:
        yield yes(name, f"{said}: all whole, {total['changes']} new ones seen", **figures)


def _replace(file: Path, version: int) -> None:
    tmp = file.with_name(f"{durable.nonce()}.tmp")
    durable.write_new(tmp, f"{version:08d}\n".encode() * LINES, sync=False)
    tmp.replace(file)


def _look(file: Path, last: int, seen: Counter[str]) -> int:
    """Read a file once and judge what was seen; return its version."""
    seen["reads"] += 1
    try:
        lines = durable.read_file(file).splitlines()
    except OSError:
        seen["missing"] += 1
        return last
    if len(lines) != LINES:
        seen["partial"] += 1
        return last
    if len(set(lines)) != 1 or not lines[0].isdigit():
        seen["mixed"] += 1
        return last
    version = int(lines[0])
    seen["changes"] += version > last
    seen["back"] += version < last
    return version


# -- fresh listings ----------------------------------------------------------------------------


def _fresh(name: str, meeting: Meeting, place: Path, seconds: float) -> Iterator[Trial]:
    """See what a new listing shows after one renamed in bursts while the others listed."""
    plain = touched = trials = 0
    often = min(TRIALS, max(5, int(seconds)))
    for number in range(often):
        writer = meeting.members[number % len(meeting.members)]
        directory = place / str(number)
        if meeting.me == writer:
            open_dir(directory)
            durable.write_new(directory / "0", b"", sync=False)
        meeting.together(f"{name}: {number} begins")
        if meeting.me == writer:
            _burst(directory)
        else:
            end = time.monotonic() + BURST_SECONDS
            while time.monotonic() < end:
                os.listdir(directory)
        meeting.together(f"{name}: {number} ends")
        if meeting.me != writer:
            trials += 1
            plain += os.listdir(directory) != [str(BURST)]
            touched += durable.listing(directory) != [str(BURST)]
    words = meeting.together(f"{name}: ran", [trials, plain, touched])
    trials, plain, touched = (sum(word[i] for word in words.values()) for i in range(3))
    figures = {"listings": trials, "old": plain, "old_after_touch": touched}
    if touched:
        what = f"{touched} of {trials} listings were old even after the directory was touched"
        yield no(name, what, f"see that `nocto` is off, or: {NOT_SHARED}", **figures)
    elif plain:
        what = f"{plain} of {trials} listings were old, none after a touch (so watcherd looks)"
        yield yes(name, what, **figures)
    else:
        yield yes(name, f"{trials} listings during changes, none old", **figures)


def _burst(directory: Path) -> None:
    """Change a directory several times within each tick of any server's clock."""
    pause = BURST_SECONDS / BURST / 4
    for n in range(BURST):
        os.rename(directory / str(n), directory / str(n + 1))
        if n % 3 == 0:
            time.sleep(pause)


# -- one view ----------------------------------------------------------------------------------


def _one_view(name: str, meeting: Meeting, place: Path, _: float) -> Iterator[Trial]:
    """See that a file's owner, number, size and time are the same from everywhere."""
    file = place / "file"
    if meeting.leads:
        durable.write_new(file, b"seen by all")
    meeting.together(f"{name}: made")
    info = file.stat()
    view = [info.st_uid, info.st_ino, info.st_size, info.st_ctime_ns]
    words = meeting.together(f"{name}: ran", {"view": view, "uid": os.geteuid()})
    views = [word["view"] for word in words.values()]
    uids = {meeting.label(member): word["uid"] for member, word in words.items()}
    if len({v[0] for v in views}) > 1:
        said = f"one file belongs to uid {', '.join(str(v[0]) for v in views)}, by machine"
        hint = "give the daemon's user one number everywhere, and switch id mapping off"
        yield no(name, said, hint, views=views)
    elif len({tuple(v) for v in views}) > 1:
        said = "a file has another number, size or time on another machine"
        yield warning(name, said, f"check the mount options; else: {NOT_SHARED}", views=views)
    elif len(set(uids.values())) > 1:
        said = "; ".join(f"uid {uid} on {host}" for host, uid in uids.items())
        hint = "run the probe as the daemon's user on all machines: one number"
        yield warning(name, f"the probes ran as {said}", hint, uids=uids)
    else:
        yield yes(name, "a file's owner, number, size and time are the same everywhere")


def _clocks(name: str, meeting: Meeting, place: Path, _: float) -> Iterator[Trial]:
    """See that change times are of one clock, the server's: they rise, whoever makes them."""
    file, times, offsets = place / "file", [], []
    if meeting.leads:
        durable.write_new(file, b"")
    for number in range(3):
        for member in meeting.members:
            meeting.together(f"{name}: {number} {member}")
            if meeting.me == member:
                before = time.time_ns()
                # As the daemon asks the server for its time: a change of one's own, then a look.
                os.utime(file)
                stamp = os.stat(file).st_ctime_ns
                times.append([number, meeting.members.index(member), stamp])
                offsets.append((stamp - (before + time.time_ns()) // 2) / 1e9)
    words = meeting.together(f"{name}: ran", [times, statistics.median(offsets)])
    ordered = [stamp for *_, stamp in sorted(t for word in words.values() for t in word[0])]
    ahead = {meeting.label(member): round(word[1], 3) for member, word in words.items()}
    said = "server ahead by " + ", ".join(f"{s:+.3f} s of {host}" for host, s in ahead.items())
    figures = {"server_ahead_seconds": ahead}
    if ordered != sorted(ordered):
        hint = "ages (expires, retention, order of arrival) will be off: set the clocks by NTP"
        yield warning(name, f"times come from each machine's own clock; {said}", hint, **figures)
    elif max(ahead.values()) - min(ahead.values()) > 1 or max(map(abs, ahead.values())) > 1:
        hint = "watcherd does not mind; logs and people do: set the clocks by NTP"
        yield warning(name, said, hint, **figures)
    else:
        yield yes(name, f"times are the server's; {said}", **figures)


def _events(name: str, meeting: Meeting, place: Path, _: float) -> Iterator[Trial]:
    """See whether the kernel tells what other machines do (network filesystems don't)."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    libc.inotify_add_watch(watch, os.fsencode(place), IN_CREATE | IN_MOVED_TO)
    try:
        meeting.together(f"{name}: watching")
        durable.write_new(place / meeting.me, b"", sync=False)
        meeting.together(f"{name}: made")
        heard = _heard(watch, {m for m in meeting.members if m != meeting.me})
    finally:
        os.close(watch)
    words = meeting.together(f"{name}: ran", heard)
    if all(words.values()):
        yield told(name, "events of the others arrive: requests are noticed at once", heard=True)
    else:
        said = "no events of other machines, as on any network filesystem: `watch: auto` polls"
        yield told(name, said, heard=False)


def _heard(watch: int, wanted: set[str]) -> bool:
    end = time.monotonic() + EVENT_SECONDS
    heard = b""
    while (left := end - time.monotonic()) > 0:
        if select.select([watch], [], [], left)[0]:
            heard += os.read(watch, 1 << 16)
        if all(member.encode() in heard for member in wanted):
            return True
    return False


Question = Callable[[str, Meeting, Path, float], Iterator[Trial]]
QUESTIONS: dict[str, Question] = {
    "whole files": _whole,
    "fresh listings": _fresh,
    "one view": _one_view,
    "clocks": _clocks,
    "events": _events,
}
