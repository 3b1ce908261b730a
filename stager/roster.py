"""The daemons as somebody sees them who looks at the spool: who lives, what each tells of itself.

For words alone: who takes over from whom is decided by instance.py.
"""

import json
import os
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stager import durable
from stager.errors import StorageError
from stager.identity import Identity
from stager.layout import Paths
from stager.snapshot import FaultPart, InstancePart, InstanceState, Snapshot, printable

ALIVE, ENDED = InstanceState.ALIVE, InstanceState.ENDED
SILENT, UNSEEN = InstanceState.SILENT, InstanceState.UNSEEN
LEFT_BEHIND = "left behind"


@dataclass(frozen=True, slots=True)
class Look:
    """How to look at the daemons."""

    seconds: float = 0.0
    """How long to look for heartbeats that move."""
    living: Collection[str] = ()
    """The instances known to live, where somebody knows."""
    lease: float = float("inf")
    """The spool's: so long without a heartbeat, by our clock, and an instance is called silent."""
    without: str = ""
    """An instance that is about to leave."""


GLANCE = Look()
"""Takes no time, and knows of no lease."""


@dataclass(slots=True)
class Told:
    """What the instances say of requests, by id; of the dead, no more than what was wanted."""

    reasons: dict[str, str] = field(default_factory=dict)
    hints: dict[str, str] = field(default_factory=dict)
    wanted: dict[str, dict[str, Any]] = field(default_factory=dict)
    progress: dict[str, dict[str, Any]] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)
    alone: str = ""
    """A request that others wait for, as it is worked on alone."""

    def take_in(self, data: dict[str, Any], instance: InstancePart) -> None:
        """Remember what one instance says."""
        self.hosts[instance.name] = instance.host
        self.wanted |= data.get("wanted", {})
        active = data.get("active", {})
        if instance.state in {ENDED, SILENT}:
            left = {request_id: _left_behind(view) for request_id, view in active.items()}
            self.progress = left | self.progress
            return
        self.reasons |= data.get("reasons", {})
        self.hints |= data.get("hints", {})
        self.progress |= active
        self.alone = self.alone or data.get("alone", "")


def _left_behind(view: dict[str, Any]) -> dict[str, Any]:
    return {"phase": LEFT_BEHIND} | {k: v for k, v in view.items() if k in {"build", "images"}}


def call(paths: Paths, snapshot: Snapshot, how: Look, now: float) -> Told:
    """Put all instances into a snapshot; return what they tell."""
    told, listed = Told(), counters(paths)
    listed.pop(how.without, None)
    began = time.monotonic()
    fates = {inst: _fate(paths, inst, listed, how.living) for inst in listed}
    states = _watched(paths, listed, fates, how)
    now += time.monotonic() - began
    for inst in sorted(listed):
        data, age = load_told(paths, inst), _beat_age(paths, inst, listed[inst], now)
        state = states[inst]
        if state is UNSEEN and age is not None and age > how.lease:
            state = SILENT
        known = ("mode", "scanned", "paused", "workers", "version")
        entry = InstancePart(
            name=inst, host=data.get("host", inst), alive=state is ALIVE, state=state,
            beat_age=age, **{key: data[key] for key in known if key in data},
        )  # fmt: skip
        snapshot.instances.append(entry)
        told.take_in(data, entry)
        snapshot.unclaimable |= {printable(n): w for n, w in data.get("unclaimable", {}).items()}
        # Those not watched have beaten within a lease.
        if data.get("fault") and state in {ALIVE, UNSEEN}:
            snapshot.faults.append(FaultPart(host=entry.host, **data["fault"]))
    if ALIVE in fates.values():
        _read_only(paths, snapshot)
    return told


def _fate(
    paths: Paths, inst: str, listed: dict[str, str], living: Collection[str]
) -> InstanceState:
    """Return what is known of an instance without watching it: here, of its process."""
    if inst in living:
        return ALIVE
    identity = _identity(paths, inst, int(listed[inst]))
    if identity is None or not identity.same_kernel(Identity.mine()):
        return UNSEEN
    return ENDED if identity.process_gone() else ALIVE


def _identity(paths: Paths, inst: str, count: int) -> Identity | None:
    """Read who an instance is; it may just have raised its counter."""
    for number in (count, count + 1):
        try:
            data = durable.read_file(paths.instances / f"{inst}.{number}")
            return Identity(**json.loads(data))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError):
            break
    return None


def all_ended(paths: Paths) -> bool:
    """Whether there are instances, and the processes of all of them are known to have ended."""
    listed = counters(paths)
    return bool(listed) and all(_fate(paths, inst, listed, ()) is ENDED for inst in listed)


def _watched(
    paths: Paths, listed: dict[str, str], fates: dict[str, InstanceState], how: Look
) -> dict[str, InstanceState]:
    """Watch for heartbeats until somebody is known to live, if that is to be known."""
    states, end = dict(fates), time.monotonic() + how.seconds
    while UNSEEN in states.values() and ALIVE not in states.values():
        if time.monotonic() >= end:
            return {i: SILENT if how.seconds and s is UNSEEN else s for i, s in states.items()}
        time.sleep(0.1)
        counts = counters(paths)
        moved = {inst for inst, count in listed.items() if counts.get(inst, count) != count}
        states |= dict.fromkeys(moved, ALIVE)
    return states


def _read_only(paths: Paths, snapshot: Snapshot) -> None:
    """Say it where the daemon of this machine can't write, not even what its fault is."""
    for path in (paths.spool, paths.static, paths.results):
        try:
            if not os.statvfs(path).f_flag & os.ST_RDONLY:
                continue
            message = f"{path} is mounted read-only"
        except OSError as e:
            message = f"{path}: {e.strerror}; is it mounted?"
        fault = FaultPart(host=Identity.mine().host, code=StorageError.code, message=message)
        snapshot.faults.append(fault)


def load_told(paths: Paths, inst: str) -> dict[str, Any]:
    """Return what an instance last told of itself; nothing where it told nothing yet."""
    try:
        data: dict[str, Any] = json.loads(durable.read_file(paths.instances / f"{inst}.status"))
    except (OSError, ValueError):
        return {}
    return data


def counters(paths: Paths) -> dict[str, str]:
    """Return the heartbeat counter of every instance."""
    names = (name.rpartition(".") for name in durable.listing(paths.instances, touch=False))
    return {inst: count for inst, _, count in names if count.isdigit()}


def _beat_age(paths: Paths, inst: str, count: str, now: float) -> float | None:
    path: Path = paths.instances / f"{inst}.{count}"
    try:
        return round(max(0.0, now - os.lstat(path).st_ctime), 1)
    except OSError:
        return None
