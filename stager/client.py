"""What the client commands do: drop a request, look for it, wait for its answer.

Clients only ever create files of their own; they find things by listing directories anew, since a
name that was once missing may stay "missing" in an NFS cache for half a minute.
"""

import json
import os
import re
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stager import durable, mounts
from stager.errors import SetupError
from stager.layout import Claim, Paths, Waiting, can_name_result, request_name
from stager.orders import Answer, read_answer
from stager.result import Result, State, parse_result
from stager.site import Layout

EXIT = {
    State.STAGED: 0,
    State.ALREADY_STAGED: 0,
    State.FAILED: 1,
    State.REJECTED: 3,
    State.CANCELLED: 6,
}
USAGE, FAILED, REJECTED, TIMED_OUT, NOT_FOUND, CANCELLED, INTERRUPTED = 2, 1, 3, 4, 5, 6, 130
WORST_FIRST = (2, 5, 4, 1, 3, 6, 0)


@dataclass(frozen=True, slots=True)
class Pending:
    """A request that has no answer yet."""

    state: str
    file: str
    request_id: str = ""
    inst: str = ""
    starts: int = 0


def compose(fields: dict[str, Any]) -> bytes:
    """Return a request file's text, with a nonce that makes its bytes ours."""
    fields = {**fields, "x-submission": secrets.token_hex(8)}
    text: str = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=1000)
    return text.encode()


def make_name(build: str) -> str:
    """Return a NAME nobody else uses: build, host, time and 40 random bits."""
    short = re.sub(r"[^A-Za-z0-9._+-]", "_", build.rstrip("/").rpartition("/")[2])[:60]
    host = socket.gethostname().split(".")[0][:20]
    return f"{short.lstrip('.') or 'request'}-{host}-{int(time.time())}-{durable.nonce()}"


def drop(paths: Paths, name: str, data: bytes) -> str:
    """Put a request into the drop box, whole (write, sync, link); return its file's name."""
    file = f"{name}.yaml"
    if not can_name_result(name):
        raise SetupError(
            "a name may have up to 150 bytes of printable characters, no /, no first ."
        )
    tmp = paths.requests / f".{name[:100]}.{durable.nonce()}.tmp"
    try:
        durable.write_new(tmp, data)
        try:
            linked = durable.link(tmp, paths.requests / file)
        finally:
            durable.discard(tmp)
        if mounts.is_nfs(paths.requests):
            # Later than a tick of the server's clock: who listed it in between is told (NFSv3).
            time.sleep(0.03)
            os.utime(paths.requests)
    except OSError as e:
        raise SetupError(f"can't drop a request into {paths.requests}: {e.strerror}") from None
    if not linked:
        raise SetupError(f"a request {name} is waiting already; use another name")
    return file


def pending(paths: Paths, name: str) -> Pending | None:
    """Look for a request by NAME, dropped name or id among those without an answer.

    Twice, as one that is just being moved may be missed by a look.
    """
    for _ in range(2):
        if found := _pending(paths, name):
            return found
    return None


def _pending(paths: Paths, name: str) -> Pending | None:
    for file in durable.listing(paths.requests, touch=False):
        if name in {file, request_name(file)} and not file.startswith("."):
            return Pending("waiting", file)
    for room in (paths.active, paths.waiting, paths.active):
        for entry in durable.listing(room, touch=False):
            parsed = Waiting.parse(entry) if room is paths.waiting else Claim.parse(entry)
            if parsed and name in {parsed.file, request_name(parsed.file), parsed.request_id}:
                inst = parsed.inst if isinstance(parsed, Claim) else ""
                state = "active" if inst else "waiting"
                return Pending(state, parsed.file, parsed.request_id, inst, parsed.a)
    return None


def read_result(paths: Paths, name: str) -> Result | None:
    """Return the answer to NAME (or to a dropped name, or an id) if it is there."""
    listed = set(durable.listing(paths.results, touch=False))
    for file in (f"{name}.yaml", f"{request_name(name)}.yaml"):
        if file in listed:
            return _load(paths.results / file)
    for room in ("done", "failed", "cancelled"):
        for entry in durable.listing(paths.spool / room, touch=False):
            claim = Claim.parse(entry)
            if claim and claim.request_id == name and claim.result_file in listed:
                result = _load(paths.results / claim.result_file)
                return result if result and result.request_id == name else None
    return None


def _load(path: Path) -> Result | None:
    try:
        return parse_result(durable.read_file(path))
    except OSError:
        return None


def progress(paths: Paths, found: Pending) -> dict[str, Any]:
    """Return what the instance at work says about a request's progress."""
    try:
        data = json.loads(durable.read_file(paths.instances / f"{found.inst}.status"))
    except (OSError, ValueError):
        return {}
    view: dict[str, Any] = data.get("active", {}).get(found.request_id, {})
    return view


def exit_code(codes: list[int]) -> int:
    """Return the worst of several outcomes' codes, by the contract's order."""
    return next((code for code in WORST_FIRST if code in codes), 0)


def await_answer(paths: Paths, order: str, seconds: float) -> Answer | None:
    """Wait for the answer to an order."""
    uid = Layout.read(paths.marks[0]).uid
    end, interval = time.monotonic() + seconds, 0.02
    while (answer := read_answer(paths, order, uid)) is None and time.monotonic() < end:
        time.sleep(interval)
        interval = min(interval * 1.5, 0.5)
    return answer


def order_code(outcome: dict[str, str]) -> int:
    """Return the exit code for what became of an order."""
    values = set(outcome.values())
    if "not found" in values:
        return NOT_FOUND
    return FAILED if any(v == "not yours" or v.startswith("already") for v in values) else 0
