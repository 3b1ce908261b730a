"""The spool's snapshot as lines of text, where there is no terminal: what scripts and mails get."""

import sys
from collections.abc import Iterator

from stager.snapshot import START, ActivePart, AnsweredPart, Snapshot, WaitingPart
from stager.words import in_bytes

Entry = WaitingPart | ActivePart | AnsweredPart


def overview(snapshot: Snapshot, most: int) -> Iterator[str]:
    """Yield the spool at a glance, with at most `most` lines of each kind."""
    yield f"machines: {'; '.join(_machines(snapshot))}"
    if snapshot.paused:
        yield f"paused: {', '.join(snapshot.paused)}"
    for fault in snapshot.faults:
        yield f"fault on {fault.host}: {fault.message} ({fault.code})"
        if fault.hint:
            yield f"  what to do: {fault.hint}"
    for disk in snapshot.disks:
        yield f"free: {in_bytes(disk.free_bytes)} of {in_bytes(disk.total_bytes)} for {disk.tree}"
    counts = snapshot.counts
    yield f"{counts.active} active, {counts.waiting} waiting, {counts.answered} answered"
    if snapshot.orders:
        yield f"orders that no watcherd has obeyed yet: {snapshot.orders}"
    yield from _requests(snapshot, most)
    for name, reason in snapshot.unclaimable.items():
        yield f"can't be claimed: {name}: {reason}"
    if others := snapshot.left_alone():
        yield others
    yield from _pinned(snapshot, most)


def listed(snapshot: Snapshot) -> Iterator[str]:
    """Yield all requests and pinned builds that the snapshot holds."""
    yield from _requests(snapshot)
    yield from _pinned(snapshot)


def _machines(snapshot: Snapshot) -> Iterator[str]:
    if live := [instance.host for instance in snapshot.instances if instance.alive]:
        yield ", ".join(live)
    for instance in snapshot.instances:
        if not instance.alive:
            yield f"{instance.host} {instance.last_heard}"
    if snapshot.nobody:
        yield f"{snapshot.nobody} ({START})"


def _requests(snapshot: Snapshot, most: int = sys.maxsize) -> Iterator[str]:
    for active in snapshot.active[:most]:
        yield _line("active", active, progress(active))
    for waiting in snapshot.waiting[:most]:
        yield _line("waiting", waiting, waiting.reason)
    for answered in snapshot.answered[-most:]:
        yield _line(answered.state or answered.room, answered, answered.code)


def _line(state: str, entry: Entry, words: str) -> str:
    """Return one request in columns that two blanks part; what is not known is left out."""
    wanted = f"{entry.build} {','.join(entry.images)}".strip()
    name = entry.request or entry.request_id
    return "  ".join(["", f"{state:<14}", *filter(None, (name, words, wanted))])


def _pinned(snapshot: Snapshot, most: int = sys.maxsize) -> Iterator[str]:
    shown = snapshot.pinned[:most]
    yield from (f"pinned: {url}" for url in shown)
    if more := snapshot.pinned_builds - len(shown):
        yield f"pinned: {more} more"


def progress(entry: ActivePart) -> str:
    """Say how far an active request is."""
    parts = [entry.phase, entry.image, f"on {entry.host}"]
    if entry.total_bytes:
        parts.append(f"{entry.bytes >> 20} of {entry.total_bytes >> 20} MiB")
        parts.append(f"{entry.bytes_per_second / 1e6:.1f} MB/s")
        if entry.seconds_left is not None:
            parts.append(f"{entry.seconds_left} s left")
    return ", ".join(filter(None, parts))
