"""Takes the spool's snapshot, from its directories' names and what each instance tells of itself.

A queue of 100,000 costs a listing and no look at most of its files: names tell who waits longest.
"""

import heapq
import os
import time
from pathlib import Path

from stager import __version__, durable, pins, roster
from stager.errors import REASONS
from stager.lately import Lately, arrival, room_entries
from stager.layout import Claim, Paths, Waiting, is_request_name
from stager.result import stamp
from stager.roster import GLANCE, Look, Told
from stager.snapshot import START, ActivePart, DiskPart, Snapshot, WaitingPart, printable

MOST = 1000
MOST_OTHERS = 10
ALL_MACHINES = "all machines"


def take(
    paths: Paths,
    how: Look = GLANCE,
    *,
    now: float | None = None,
    most: int = MOST,
    lately: Lately | None = None,
) -> Snapshot:
    """Look at everything once.

    `lately`: reads answers; without it answered requests are told by their names alone.
    """
    now = time.time() if now is None else now
    snapshot = Snapshot(time=stamp(now), version=__version__)
    told = roster.call(paths, snapshot, how, now)
    _notices(paths, snapshot, most)
    _waiting(paths, snapshot, told, now, most)
    _dropped(paths, snapshot, now, most)
    snapshot.waiting.sort(key=lambda entry: -entry.age)
    del snapshot.waiting[most:]
    _active(paths, snapshot, told, now, most)
    if lately is None:
        snapshot.answered = room_entries(paths, snapshot.counts, now, most)
    else:
        snapshot.answered = lately.look(snapshot.counts, now)
    snapshot.disks = _disks(paths)
    snapshot.troubles = snapshot.find_troubles()
    return snapshot


def _notices(paths: Paths, snapshot: Snapshot, most: int) -> None:
    """Say who is paused and which builds are pinned, and how many orders nobody has obeyed yet."""
    names = durable.listing(paths.spool, touch=False)
    for name in names:
        if name == "paused" or name.startswith("paused."):
            snapshot.paused.append(printable(name.partition(".")[2]) or ALL_MACHINES)
    pinned = pins.keys(names)
    snapshot.pinned_builds = len(pinned)
    snapshot.pinned = [printable(pins.url(paths, key)) for key in pinned[:most]]
    orders = durable.listing(paths.control, touch=False)
    snapshot.orders = sum(name.endswith(".order") and name[0] != "." for name in orders)


def _waiting(paths: Paths, snapshot: Snapshot, told: Told, now: float, most: int) -> None:
    names = [n for n in durable.listing(paths.waiting, touch=False) if "~" in n]
    snapshot.counts.waiting += len(names)
    snapshot.counts.deferred = sum(_is_deferred(name, now) for name in names)
    for waiting in filter(None, map(Waiting.parse, heapq.nsmallest(most, names, key=arrival))):
        reason, hint = _reason(waiting, snapshot, told, now)
        entry = WaitingPart(
            request=printable(waiting.file),
            request_id=waiting.request_id,
            priority=waiting.priority,
            submitter=waiting.uid,
            age=_age(waiting.arrived_ns, now),
            reason=reason,
            hint=hint,
            due=stamp(waiting.due) if waiting.due > now + 1 else None,
            **told.wanted.get(waiting.request_id, {}),
        )
        snapshot.waiting.append(entry)
        snapshot.oldest_seconds = max(snapshot.oldest_seconds, entry.age)


def _is_deferred(name: str, now: float) -> bool:
    """Whether a request waits after an attempt that failed: cheaper than `Waiting.parse`."""
    due, starts = name.split(".", 2)[1], name.rsplit(".", 2)[-2]
    return starts != "a0" and due.isdigit() and int(due) > now + 1


def _reason(waiting: Waiting, snapshot: Snapshot, told: Told, now: float) -> tuple[str, str]:
    """Return why a request waits, and what to do about it, if anything."""
    if reason := told.reasons.get(waiting.request_id, ""):
        return reason, told.hints.get(waiting.request_id, "")
    if snapshot.faults:
        fault = snapshot.faults[0]
        return REASONS.get(fault.code, fault.message), fault.hint
    turn = "its turn has not come"
    if told.alone:
        turn = f"{printable(told.alone)}, on which a daemon died, is worked on alone"
    reason, hint = _idle(snapshot) or (turn, "")
    if waiting.due > now + 1:
        reason = f"retry at {time.strftime('%H:%M:%S', time.localtime(waiting.due))}"
    return reason, hint


def _idle(snapshot: Snapshot) -> tuple[str, str] | None:
    """Return why nothing at all is begun, and what to do; None: something is."""
    if nobody := snapshot.nobody:
        return nobody, START
    if ALL_MACHINES in snapshot.paused:
        return "paused", "let it go on: stager resume"
    if all(instance.paused for instance in snapshot.instances):
        return "paused", "let it go on: stager resume --host HOST"
    return None


def _dropped(paths: Paths, snapshot: Snapshot, now: float, most: int) -> None:
    """Look at what is in the drop box; of a crowd, only at some."""
    names = durable.listing(paths.requests, touch=False)
    dropped = [name for name in names if is_request_name(name)]
    others = [name for name in names if not is_request_name(name)]
    snapshot.other_files = len(others)
    snapshot.others = [printable(n) for n in sorted(others) if n[0] != "."][:MOST_OTHERS]
    snapshot.counts.waiting += len(dropped)
    for name in dropped[:most]:
        try:
            info = os.lstat(paths.requests / name)
        except OSError:
            continue
        shown = printable(name)
        reason, hint = _idle(snapshot) or ("not claimed yet", "")
        entry = WaitingPart(
            request=shown,
            request_id="",
            submitter=info.st_uid,
            age=_age(info.st_ctime_ns, now),
            reason=snapshot.unclaimable.get(shown, reason),
            hint=hint,
        )
        snapshot.waiting.append(entry)
        snapshot.oldest_seconds = max(snapshot.oldest_seconds, entry.age)


def _active(paths: Paths, snapshot: Snapshot, told: Told, now: float, most: int) -> None:
    claims = filter(None, map(Claim.parse, durable.listing(paths.active, touch=False)))
    entries = [
        ActivePart(
            request=printable(claim.file),
            request_id=claim.request_id,
            host=told.hosts.get(claim.inst, claim.inst),
            age=_age(claim.arrived_ns, now),
            attempt=claim.a,
            **told.progress.get(claim.request_id, {}),
        )
        for claim in claims
    ]
    snapshot.counts.active = len(entries)
    snapshot.active = sorted(entries, key=lambda entry: -entry.age)[:most]


def _disks(paths: Paths) -> list[DiskPart]:
    found: dict[int, DiskPart] = {}
    for tree in ("spool", "static"):
        path: Path = getattr(paths, tree)
        try:
            device, fs = path.stat().st_dev, os.statvfs(path)
        except OSError:
            continue
        free, total = fs.f_bavail * fs.f_frsize, fs.f_blocks * fs.f_frsize
        if device in found:
            found[device].tree += f" and {tree}"
        else:
            found[device] = DiskPart(tree=tree, free_bytes=free, total_bytes=total)
    return list(found.values())


def _age(arrived_ns: int, now: float) -> float:
    return round(max(0.0, now - arrived_ns / 1e9), 1)
