"""One run of the daemon: its name, its heartbeat, and who of the others is alive.

A heartbeat is a counter in a file name, `instances/<inst>.<count>`, raised by rename. Nobody's
clock is compared with anybody else's: an observer calls an instance dead when it has seen the same
counter for a whole lease of its own monotonic clock, over good samples only. Correctness does not
rest on that (the fences of lock.py and spool.py do): a wrong verdict costs work, never data.
"""

import json
import os
import re
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stager import durable
from stager.identity import Identity, host_slug
from stager.layout import Paths

_ENTRY = re.compile(r"(?P<inst>[A-Za-z0-9-]+)\.(?P<count>\d+)")
GONE_SAMPLES = 3


class Buried(Exception):
    """Our heartbeat file was taken: the others called us dead. Begin as a new instance."""


@dataclass(slots=True)
class _Seen:
    """What we know of another instance."""

    count: int
    since: float
    samples: int = 0
    identity: Identity | None = None
    cloned: bool = False
    moved: bool = False


@dataclass(slots=True)
class _Gone:
    """An instance that owns something but is not listed."""

    samples: int = 0


@dataclass(slots=True)
class _Server:
    """The file server's clock, as an offset to our monotonic one."""

    offset_ns: int = 0
    known: bool = field(default=False)


class Heart:
    """The heartbeat of an instance, and its view of the others."""

    def __init__(self, paths: Paths, heartbeat: float, lease: float) -> None:
        self.paths, self.heartbeat, self.lease = paths, heartbeat, lease
        self.identity = Identity.mine()
        self.inst = f"{host_slug(self.identity.host)}-{durable.nonce()[:6]}"
        self.count = 0
        self._lock = threading.Lock()
        self._seen: dict[str, _Seen] = {}
        self._gone: dict[str, _Gone] = {}
        self._buried: set[str] = set()
        self._last_beat = 0.0
        self._last_sample = 0.0
        self._server = _Server()

    def register(self) -> None:
        """Appear among the instances; then look who else is there."""
        tmp = self.paths.tmp / f"{self.inst}.{durable.nonce()}"
        durable.write_new(tmp, json.dumps(asdict(self.identity)).encode() + b"\n")
        durable.move(tmp, self._path(self.count))
        self._confirmed()
        self.observe()

    def leave(self) -> None:
        """Disappear: everything of ours has been given back."""
        with self._lock:
            self._bury(f"{self.inst}.{self.count}")

    def beat(self) -> None:
        """Raise the counter; raise Buried if the file is no longer ours."""
        with self._lock:
            if not durable.move(self._path(self.count), self._path(self.count + 1)):
                raise Buried(self.inst)
            self.count += 1
            self._confirmed()

    def confirm(self) -> None:
        """Before a step others can see: a heartbeat older than half a lease is renewed first."""
        if time.clock_gettime(time.CLOCK_BOOTTIME) - self._last_beat > self.lease / 2:
            self.beat()

    def age(self) -> float:
        """Return the seconds since our last heartbeat; asks nobody, and waits for nobody."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self._last_beat

    @property
    def looks(self) -> bool:
        """Whether we still look at the others; if not, what was true proves nothing."""
        return time.monotonic() - self._last_sample < self.lease / 2

    def server_now(self) -> float:
        """Return the file server's time in seconds: for ages and due times, never for ownership."""
        if not self._server.known:
            return time.time()
        return (time.monotonic_ns() + self._server.offset_ns) / 1e9

    def observe(self) -> None:
        """Take one sample of all counters; a slow or late sample condemns nobody."""
        start = time.monotonic()
        listed = self._counts(durable.listing(self.paths.instances))
        now = time.monotonic()
        with self._lock:
            late = self._last_sample and now - self._last_sample > 3 * self.heartbeat
            if late or now - start > self.heartbeat:
                self.forget_samples(now)
            self._last_sample = now
            self._seen = {inst: self._sample(inst, n, now) for inst, n in listed.items()}
            self._gone = {inst: gone for inst, gone in self._gone.items() if inst not in listed}
            for gone in self._gone.values():
                gone.samples += 1

    def bad_sample(self) -> None:
        """Take note that we could not look, or not beat."""
        with self._lock:
            self.forget_samples()

    def proven(self, inst: str) -> bool:
        """Whether an instance was seen to live since we look: it moved, or its process is here."""
        with self._lock:
            seen = self._seen.get(inst)
            if seen is None:
                return False
            other = seen.identity
            here = other is not None and other.same_kernel(self.identity)
            return seen.moved or (here and other is not None and not other.process_gone())

    def forget_samples(self, now: float | None = None) -> None:
        """Begin counting anew: what we saw before does not prove that anybody is dead."""
        for seen in self._seen.values():
            seen.since, seen.samples = now or time.monotonic(), 0
        for gone in self._gone.values():
            gone.samples = 0

    def dead(self, inst: str) -> bool:
        """Whether `inst` may be taken over from."""
        if inst == self.inst:
            return False
        with self._lock:
            if inst in self._buried:
                return True
            seen = self._seen.get(inst)
            if seen is None:
                return self._gone.setdefault(inst, _Gone()).samples >= GONE_SAMPLES
            return self._judge(seen)

    def living(self) -> list[str]:
        """Return the names of all instances not known to be dead, ours included."""
        with self._lock:
            # Those we buried are not judged anew, should our next samples be bad ones.
            seen = {i: s for i, s in self._seen.items() if i not in self._buried}
            return sorted({self.inst, *(i for i, s in seen.items() if not self._judge(s))})

    def fallen(self) -> list[str]:
        """Return the names of all instances that are listed and may be taken over from."""
        with self._lock:
            return [i for i, s in self._seen.items() if i != self.inst and self._judge(s)]

    def cloned(self) -> set[str]:
        """Return the instances of other machines that have this machine's id."""
        with self._lock:
            return {inst for inst, seen in self._seen.items() if seen.cloned}

    def bury(self, busy: set[str]) -> list[str]:
        """Remove the heartbeat files of the dead who own nothing any more."""
        with self._lock:
            dead = [
                (inst, seen.count)
                for inst, seen in self._seen.items()
                if inst != self.inst and inst not in busy and self._judge(seen)
            ]
            gone = [inst for inst, count in dead if self._bury(f"{inst}.{count}")]
            self._buried |= set(gone)
        for inst in gone:
            durable.discard(self.paths.instances / f"{inst}.status")
        return gone

    def _judge(self, seen: _Seen) -> bool:
        other, unchanged = seen.identity, self._last_sample - seen.since
        if other is not None and other.same_kernel(self.identity) and other.process_gone():
            return True
        restarted = (
            other is not None
            and other.machine
            and other.machine == self.identity.machine
            and other.boot != self.identity.boot
            and not seen.cloned
        )
        patience = 3 * self.heartbeat if restarted else self.lease
        return self.looks and seen.samples >= GONE_SAMPLES and unchanged >= patience

    def _sample(self, inst: str, count: int, now: float) -> _Seen:
        seen = self._seen.get(inst)
        if seen is None:
            return _Seen(count, now, identity=self._identify(inst, count))
        if seen.identity is None:
            seen.identity = self._identify(inst, count)
        if seen.count != count:
            other = seen.identity
            # The counter of a machine with our id and another boot moves: two machines, one id.
            seen.cloned = bool(
                other
                and other.machine
                and other.machine == self.identity.machine
                and other.boot != self.identity.boot
            )
            seen.count, seen.since, seen.samples, seen.moved = count, now, 0, True
        else:
            seen.samples += 1
        return seen

    def _identify(self, inst: str, count: int) -> Identity | None:
        try:
            data = durable.read_file(self.paths.instances / f"{inst}.{count}")
            return Identity(**json.loads(data))
        except (OSError, ValueError, TypeError):
            return None

    @staticmethod
    def _counts(names: list[str]) -> dict[str, int]:
        counts: dict[str, int] = {}
        for m in filter(None, map(_ENTRY.fullmatch, names)):
            counts[m["inst"]] = max(int(m["count"]), counts.get(m["inst"], 0))
        return counts

    def _bury(self, name: str) -> bool:
        """Take a heartbeat file away; False: its counter has moved on, its owner lives."""
        grave = self.paths.tmp / f"{self.inst}.{durable.nonce()}"
        buried = durable.move(self.paths.instances / name, grave)
        if buried:
            durable.discard(grave)
        return buried

    def _path(self, count: int) -> Path:
        return self.paths.instances / f"{self.inst}.{count}"

    def _confirmed(self) -> None:
        self._last_beat = time.clock_gettime(time.CLOCK_BOOTTIME)
        before = time.monotonic_ns()
        durable.set_time(self._path(self.count))
        server = os.stat(self._path(self.count)).st_ctime_ns
        self._server = _Server(server - (before + time.monotonic_ns()) // 2, known=True)
