"""The spool at a glance, from its directories' names and what each instance tells of itself."""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stager import durable
from stager.errors import REASONS
from stager.identity import Identity
from stager.layout import Claim, Paths, Waiting, is_request_name

MOST = 1000
TOO_LONG_SECONDS = 3600.0


@dataclass(slots=True)
class Snapshot:
    """What a listing of everything shows. Ages in seconds, by the file server's clock."""

    waiting: list[dict[str, Any]] = field(default_factory=list)
    active: list[dict[str, Any]] = field(default_factory=list)
    answered: list[dict[str, Any]] = field(default_factory=list)
    instances: list[dict[str, Any]] = field(default_factory=list)
    unclaimable: dict[str, str] = field(default_factory=dict)
    other_files: int = 0
    paused: list[str] = field(default_factory=list)
    faults: list[dict[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for --json."""
        return {name: getattr(self, name) for name in self.__slots__}

    def troubles(self) -> list[str]:
        """Return what keeps `status --check` from being content."""
        found = [f"{fault['host']}: {fault['message']}" for fault in self.faults]
        if not any(instance["alive"] for instance in self.instances):
            found.append("no live watcherd")
        oldest = max((entry["age"] for entry in self.waiting), default=0.0)
        if oldest > TOO_LONG_SECONDS:
            found.append(f"the oldest request has waited for {oldest / 60:.0f} minutes")
        return found


def take(paths: Paths, alive_within: float = 0.0) -> Snapshot:
    """Look at everything once; `alive_within`: how long to look for heartbeats that move."""
    snapshot = Snapshot()
    _instances(paths, snapshot, alive_within)
    views = {i["name"]: i for i in snapshot.instances}
    reasons = {k: v for i in snapshot.instances for k, v in i.pop("reasons").items()}
    progress = {k: v for i in snapshot.instances for k, v in i.pop("active").items()}
    if any(instance["here"] for instance in snapshot.instances):
        _read_only(paths, snapshot)
    now = time.time()
    for name in durable.listing(paths.spool, touch=False):
        if name == "paused" or name.startswith("paused."):
            snapshot.paused.append(name.partition(".")[2] or "all machines")
    _dropped(paths, snapshot, now)
    for waiting in filter(None, map(Waiting.parse, durable.listing(paths.waiting, touch=False))):
        snapshot.waiting.append(_waiting(waiting, reasons, now, snapshot))
    for claim in filter(None, map(Claim.parse, durable.listing(paths.active, touch=False))):
        host = views.get(claim.inst, {}).get("host", claim.inst)
        entry = {"request": claim.file, "request_id": claim.request_id, "host": host}
        entry |= {"age": _age(claim.arrived_ns, now), "attempt": claim.a}
        snapshot.active.append(entry | progress.get(claim.request_id, {}))
    for room in ("done", "failed", "cancelled"):
        for claim in filter(
            None, map(Claim.parse, durable.listing(paths.spool / room, touch=False))
        ):
            entry = {"request": claim.file, "request_id": claim.request_id, "room": room}
            snapshot.answered.append(entry | {"age": _age(claim.arrived_ns, now)})
    for entries in (snapshot.waiting, snapshot.active, snapshot.answered):
        entries.sort(key=lambda entry: -entry["age"])
        del entries[:-MOST]
    return snapshot


def _read_only(paths: Paths, snapshot: Snapshot) -> None:
    """Say it where the daemon of this machine can't write, not even what its fault is."""
    for path in (paths.spool, paths.static, paths.results):
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            fault = {"code": "storage_error", "message": f"{path} is mounted read-only"}
            snapshot.faults.append({"host": Identity.mine().host, **fault})


def _age(arrived_ns: int, now: float) -> float:
    return round(max(0.0, now - arrived_ns / 1e9), 1)


def _waiting(
    waiting: Waiting, reasons: dict[str, str], now: float, snapshot: Snapshot
) -> dict[str, Any]:
    reason = reasons.get(waiting.request_id, "")
    if not reason and snapshot.faults:
        code = snapshot.faults[0]["code"]
        reason = REASONS.get(code, snapshot.faults[0]["message"])
    if not reason and waiting.due > now + 1:
        reason = f"retry at {time.strftime('%H:%M:%S', time.localtime(waiting.due))}"
    return {
        "request": waiting.file,
        "request_id": waiting.request_id,
        "priority": waiting.priority,
        "submitter": waiting.uid,
        "age": _age(waiting.arrived_ns, now),
        "reason": reason or "its turn has not come",
    }


def _dropped(paths: Paths, snapshot: Snapshot, now: float) -> None:
    for name in durable.listing(paths.requests, touch=False):
        if not is_request_name(name):
            snapshot.other_files += 1
            continue
        try:
            info = os.lstat(paths.requests / name)
        except OSError:
            continue
        entry: dict[str, Any] = {"request": name, "request_id": "", "submitter": info.st_uid}
        entry["age"] = _age(info.st_ctime_ns, now)
        entry["reason"] = snapshot.unclaimable.get(name, "not claimed yet")
        snapshot.waiting.append(entry)


def _instances(paths: Paths, snapshot: Snapshot, alive_within: float) -> None:
    first = _counters(paths)
    moved: set[str] = set()
    end = time.monotonic() + alive_within
    here = {inst for inst, count in first.items() if _runs_here(paths, inst, count)}
    while first and not (here | moved) and time.monotonic() < end:
        time.sleep(0.1)
        moved = {inst for inst, count in _counters(paths).items() if first.get(inst) != count}
    for inst in sorted(first):
        try:
            data = json.loads(durable.read_file(paths.instances / f"{inst}.status"))
        except (OSError, ValueError):
            data = {}
        entry = {"name": inst, "host": data.get("host", inst), "mode": data.get("mode", "")}
        entry |= {"alive": inst in here or inst in moved, "scanned": data.get("scanned")}
        entry["here"] = inst in here
        entry |= {"reasons": data.get("reasons", {}), "active": data.get("active", {})}
        snapshot.instances.append(entry)
        snapshot.unclaimable |= data.get("unclaimable", {})
        if data.get("fault") and entry["alive"]:
            snapshot.faults.append({"host": entry["host"], **data["fault"]})


def _counters(paths: Paths) -> dict[str, str]:
    names = (name.rpartition(".") for name in durable.listing(paths.instances, touch=False))
    return {inst: count for inst, _, count in names if count.isdigit()}


def _runs_here(paths: Paths, inst: str, count: str) -> bool:
    """Whether an instance's process runs on this very machine."""
    path: Path = paths.instances / f"{inst}.{count}"
    try:
        identity = Identity(**json.loads(durable.read_file(path)))
    except (OSError, ValueError, TypeError):
        return False
    return identity.same_kernel(Identity.mine()) and not identity.process_gone()
