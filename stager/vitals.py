"""Signs of life and health: heartbeats, machine ids, clocks, mounts. Remarks only.

Ages are by the file server's own clock. They decide nothing here either: who takes over from whom
is decided by instance.py.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from stager import durable, mounts
from stager.config import Config
from stager.finding import Finding, look
from stager.identity import Identity
from stager.layout import Paths

_BEAT = re.compile(r"(?P<inst>[A-Za-z0-9-]+)\.(?P<count>\d+)")
MOST_OFFSET_SECONDS = 5.0
"""What clocks may differ before ages (`expires`, retention) look odd to people."""


@dataclass(frozen=True, slots=True)
class Sign:
    """One instance's heartbeat file."""

    inst: str
    age_seconds: float
    identity: Identity | None


def signs(config: Config) -> Iterator[Finding]:
    """Say what somebody should look at."""
    paths = config.paths
    listed = _signs(paths)
    yield from _silent(listed, config.lease)
    yield from _cloned([sign for sign in listed if sign.age_seconds < config.lease])
    yield from _clock(paths)
    for notice in mounts.notices((paths.spool, paths.static, paths.results)):
        yield Finding("mounts", notice.what, notice.hint, None, broken=False)


def _signs(paths: Paths) -> list[Sign]:
    found = []
    names = look(paths.instances)
    now = os.stat(paths.instances).st_ctime
    for m in filter(None, map(_BEAT.fullmatch, names)):
        path = paths.instances / m[0]
        try:
            age = now - os.stat(path).st_ctime
            identity = Identity(**json.loads(durable.read_file(path)))
        except OSError:
            continue
        except (ValueError, TypeError):
            identity = None
        found.append(Sign(m["inst"], age, identity))
    return found


def _silent(listed: list[Sign], lease: float) -> Iterator[Finding]:
    for sign in listed:
        if sign.age_seconds > lease:
            what = f"{sign.inst} has not beaten for a lease: it is dead, or cut off"
            hint = "a running daemon takes over from it; see to that machine"
            yield Finding("heartbeats", what, hint, None, broken=False)


def _cloned(living: list[Sign]) -> Iterator[Finding]:
    """Name two living instances with one machine id and different boots."""
    by_id: dict[str, Sign] = {}
    for sign in sorted(living, key=lambda s: s.inst):
        if sign.identity is None or not sign.identity.machine:
            continue
        other = by_id.setdefault(sign.identity.machine, sign)
        if other.identity and other.identity.boot != sign.identity.boot:
            what = f"{other.inst} and {sign.inst} have one machine id, and both live"
            hint = "on one: rm /etc/machine-id && systemd-machine-id-setup, then reboot"
            yield Finding("heartbeats", what, hint, None, broken=False)


def _clock(paths: Paths) -> Iterator[Finding]:
    before = time.time()
    try:
        os.utime(paths.instances)
    except PermissionError:
        return
    offset = os.stat(paths.instances).st_ctime - (before + time.time()) / 2
    if abs(offset) > MOST_OFFSET_SECONDS:
        ahead = "ahead of" if offset > 0 else "behind"
        what = f"the file server's clock is {ahead} this machine's by more than 5 s"
        hint = "watcherd does not mind, people and logs do: set the clocks by NTP"
        yield Finding("clocks", what, hint, None, broken=False)
