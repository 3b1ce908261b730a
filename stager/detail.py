"""All that is known of a request without an answer: why it waits, how long, what to do about it.

What its file says is told to those who may read the file.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from stager import client, durable, status
from stager.client import Pending
from stager.config import Config
from stager.errors import NOT_THERE_YET, RequestError
from stager.layout import Claim, Paths, Waiting
from stager.request import MAX_BYTES, Request, parse_request
from stager.result import stamp
from stager.roster import LEFT_BEHIND, Look
from stager.snapshot import ActivePart, Snapshot, WaitingPart, printable

BY_ITSELF = "nothing: it goes on by itself; `stager cancel NAME` takes it back"
NO_WORDS = "it is just being moved, or one of very many"


def find_entry(snapshot: Snapshot, found: Pending) -> WaitingPart | ActivePart | None:
    """Return what a look at the spool says of a request, if it is among what was looked at."""
    wanted = (found.request_id, printable(found.file))
    entries: list[WaitingPart | ActivePart] = [*snapshot.waiting, *snapshot.active]
    return next((e for e in entries if (e.request_id, e.request) == wanted), None)


def describe(config: Config, found: Pending) -> dict[str, Any]:
    """Return a document about a request; keys without a value are left out."""
    entry = find_entry(status.take(config.paths, Look(lease=config.lease)), found)
    known = _known(config.paths, found)
    request = _read(known[0], config) if known else None
    # It may have been begun since it was found.
    data: dict[str, Any] = {"state": "active" if isinstance(entry, ActivePart) else found.state}
    is_left_behind = isinstance(entry, ActivePart) and entry.phase == LEFT_BEHIND
    if isinstance(entry, ActivePart):
        data |= {"host": entry.host}
        if is_left_behind:
            data |= {"reason": "its daemon ended or hangs", "hint": "the next daemon takes it over"}
    elif entry:
        data |= {"reason": entry.reason, "hint": entry.hint or BY_ITSELF, "due": entry.due}
    else:
        data |= {"reason": NO_WORDS, "hint": BY_ITSELF}
    if known and request and data.get("reason") == NOT_THERE_YET:
        patience = config.wait_for_archive if request.wait is None else request.wait
        data |= {"given_up_at": stamp(known[1].arrived_ns / 1e9 + patience)}
    if known and isinstance(known[1], Waiting):
        data |= _position(config.paths, known[1])
    data |= {"request": found.file, "request_id": found.request_id, "attempts": found.starts}
    data |= {"submitter": entry.submitter if isinstance(entry, WaitingPart) else None}
    if known:
        data |= _received(*known)
        data |= _wanted(request, known[1].arrived_ns / 1e9) if request else {}
    # What the dead said last is true no more.
    data |= {} if is_left_behind else client.progress(config.paths, found)
    return {key: value for key, value in data.items() if value not in ("", None, [])}


def _known(paths: Paths, found: Pending) -> tuple[Path, Waiting | Claim] | None:
    """Return a request's file, if a daemon has accepted it: so that it is a plain file."""
    for room in (paths.waiting, paths.active):
        for name in durable.listing(room, touch=False):
            parsed = Waiting.parse(name) if room is paths.waiting else Claim.parse(name)
            if parsed and parsed.g and parsed.request_id == found.request_id:
                return room / name, parsed
    return None


def _read(path: Path, config: Config) -> Request | None:
    try:
        return parse_request(durable.read_file(path, MAX_BYTES), config.rules)
    except (OSError, RequestError):
        return None


def _received(path: Path, known: Waiting | Claim) -> dict[str, Any]:
    try:
        submitter = os.lstat(path).st_uid
    except OSError:
        return {"received": stamp(known.arrived_ns / 1e9)}
    return {"submitter": submitter, "received": stamp(known.arrived_ns / 1e9)}


def _wanted(request: Request, arrived: float) -> dict[str, Any]:
    """Return what a request asks for."""
    return {
        "expires": None if request.expires is None else stamp(arrived + request.expires),
        "build": request.build.url,
        "images": list(request.images),
        "priority": request.priority,
        "force": request.force or None,
        "note": request.note,
    }


def _position(paths: Paths, mine: Waiting) -> dict[str, int]:
    """Return a request's place: by priority, submitters in turn, then arrival."""
    names = durable.listing(paths.waiting, touch=False)
    others = [entry for entry in map(Waiting.parse, names) if entry and entry.id != mine.id]
    level = [entry for entry in others if entry.priority == mine.priority]
    own = sum(e.uid == mine.uid and e.arrived_ns < mine.arrived_ns for e in level)
    lines = Counter(entry.uid for entry in level if entry.uid != mine.uid)
    before = sum(entry.priority < mine.priority for entry in others)
    before += own + sum(min(length, own) for length in lines.values())
    return {"position": before + 1, "waiting_in_all": len(others) + 1}
