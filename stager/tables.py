"""The spool's snapshot as tables on a terminal; only a terminal loads this, and rich with it."""

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stager.snapshot import (
    START,
    ActivePart,
    AnsweredPart,
    InstancePart,
    Snapshot,
    WaitingPart,
)
from stager.words import in_bytes, in_seconds

COLOURS = {
    "staged": "green", "already_staged": "green", "done": "green",
    "failed": "red", "rejected": "red", "cancelled": "dim",
}  # fmt: skip


def overview(snapshot: Snapshot, most: int) -> RenderableType:
    """Return the spool at a glance, with at most `most` rows a table."""
    parts: list[RenderableType] = [Text("\n").join(_heads(snapshot))]
    if snapshot.active:
        parts.append(active_table(snapshot.active[:most], snapshot.counts.active))
    if snapshot.waiting:
        parts.append(waiting_table(snapshot.waiting[:most], snapshot.counts.waiting))
    if snapshot.answered:
        parts.append(answered_table(snapshot.answered[-most:], snapshot.counts.answered))
    if snapshot.pinned:
        parts.append(pinned_table(snapshot.pinned[:most], snapshot.pinned_builds))
    if snapshot.unclaimable:
        table = _table("can't be claimed", len(snapshot.unclaimable), "entry", "why, what to do")
        for name, reason in list(snapshot.unclaimable.items())[:most]:
            table.add_row(Text(name), Text(reason))
        parts.append(table)
    return Group(*parts)


def listed(snapshot: Snapshot) -> RenderableType:
    """Return all requests that the snapshot holds."""
    return Group(
        active_table(snapshot.active, snapshot.counts.active),
        waiting_table(snapshot.waiting, snapshot.counts.waiting),
        answered_table(snapshot.answered, snapshot.counts.answered),
        *([pinned_table(snapshot.pinned, snapshot.pinned_builds)] if snapshot.pinned else []),
    )


def _heads(snapshot: Snapshot) -> Iterator[Text]:
    yield from map(_machine, snapshot.instances)
    if snapshot.nobody:
        yield Text(f"{snapshot.nobody}: {START}", "red")
    for host in snapshot.paused:
        yield Text(f"paused: {host}", "yellow")
    for fault in snapshot.faults:
        yield Text(f"fault on {fault.host}: {fault.message} ({fault.code})", "red")
        if fault.hint:
            yield Text(f"  what to do: {fault.hint}")
    for disk in snapshot.disks:
        free, total = in_bytes(disk.free_bytes), in_bytes(disk.total_bytes)
        yield Text(f"{disk.tree}: {free} of {total} free", "dim")
    counts = snapshot.counts
    deferred = f" ({counts.deferred} deferred)" if counts.deferred else ""
    yield Text(
        f"{counts.active} active, {counts.waiting} waiting{deferred}, {counts.done} done, "
        f"{counts.failed} failed, {counts.cancelled} cancelled",
        "bold",
    )
    if snapshot.orders:
        yield Text(f"orders that no watcherd has obeyed yet: {snapshot.orders}", "yellow")
    if others := snapshot.left_alone():
        yield Text(others, "dim")


def _machine(instance: InstancePart) -> Text:
    line = Text.assemble((instance.host, "bold"), "  ")
    if instance.alive:
        line.append("alive", "green")
        line.append(f", heartbeat {in_seconds(instance.beat_age)} ago", "dim")
    else:
        line.append(instance.last_heard, "yellow")
    if instance.paused:
        line.append(", paused", "yellow")
    if instance.mode:
        line.append(f", {instance.mode}", "dim")
    return line


def active_table(entries: list[ActivePart], count: int) -> Table:
    """Return what is worked on, with its progress."""
    table = _table("active", count, "request", "machine", "phase", "progress", "", "rate", "left")
    for entry in entries:
        known = bool(entry.total_bytes)
        bar = ProgressBar(entry.total_bytes or 1, entry.bytes, width=18)
        done = f"{in_bytes(entry.bytes)} of {in_bytes(entry.total_bytes)}"
        table.add_row(
            _name(entry),
            Text(entry.host),
            Text(" ".join(filter(None, (entry.phase, entry.image)))),
            bar if known else "",
            done if known else "",
            f"{in_bytes(entry.bytes_per_second)}/s" if known else "",
            in_seconds(entry.seconds_left) if entry.seconds_left is not None else "",
        )
    return table


def waiting_table(entries: list[WaitingPart], count: int) -> Table:
    """Return what waits, and why."""
    table = _table("waiting", count, "request", "reason", "priority", "submitter", "age")
    for entry in entries:
        priority = "" if entry.priority is None else str(entry.priority)
        table.add_row(
            _name(entry), Text(entry.reason), priority, str(entry.submitter), in_seconds(entry.age)
        )
    return table


def answered_table(entries: list[AnsweredPart], count: int) -> Table:
    """Return what was answered, the last at the end."""
    table = _table("answered", count, "request", "state", "dropped", "machine", "what is wrong")
    for entry in entries:
        state = entry.state or entry.room
        table.add_row(
            _name(entry),
            Text(state, COLOURS.get(state, "")),
            f"{in_seconds(entry.age)} ago",
            Text(entry.host),
            Text(f"{entry.message} ({entry.code})" if entry.code else ""),
        )
    return table


def pinned_table(urls: list[str], count: int) -> Table:
    """Return the builds that retention leaves."""
    table = _table("pinned", count, "build")
    for url in urls:
        table.add_row(Text(url))
    return table


def _table(title: str, count: int, *heads: str) -> Table:
    table = Table(
        title=f"{title}: {count}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
        pad_edge=False, header_style="dim",
    )  # fmt: skip
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def _name(entry: ActivePart | WaitingPart | AnsweredPart) -> Text:
    # A Text, as a name may hold what rich would take for its markup.
    name = Text(entry.request or entry.request_id)
    if entry.build:
        # Without its bucket, for room: people know the build by its path.
        path = entry.build.removeprefix("gs://").partition("/")[2]
        name.append(f"\n{path} {','.join(entry.images)}", "dim")
    return name
