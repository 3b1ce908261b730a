"""How the machines of a `stager probe` find each other: through the directory that is probed.

Each shows that it lives (presence.py). The lowest of enough living ones makes the room,
`.stager-probe.room.<leader>`, and says inside who takes part. In the room a file has one writer.
Nothing measured relies on this; where the filesystem breaks it, the machines just don't meet.
"""

import errno
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stager import durable
from stager.identity import host_slug
from stager.presence import BEAT_SECONDS, HELLO, PREFIX, ROOM, Presence, remove

LOOK_SECONDS = 1.0
LOOKS = 3
SILENT_SECONDS = 15.0
STALE_SECONDS = 60.0
LEAVING_SECONDS = 5.0
OPEN = 0o777


class Absent(Exception):
    """The others did not come, or went away: nothing can be said about several machines."""


class Meeting:
    """One machine's part in a meeting in `directory`; use as a context, which cleans up."""

    def __init__(self, directory: Path, machines: int) -> None:
        self.directory, self.machines = directory, machines
        self.host = socket.gethostname()
        self.me = f"{host_slug(self.host)}-{durable.nonce()}"
        self.members: list[str] = [self.me]
        self.room = directory / f"{PREFIX}room.{self.me}"
        self.alone = directory / f"{PREFIX}alone.{self.me}"
        self.plan: dict[str, Any] = {}
        self.presence = Presence(directory, self.me, machines)
        self._missed: dict[str, int] = {}

    def __enter__(self) -> Self:
        self.presence.begin()
        open_dir(self.alone)
        self.presence.sweep(STALE_SECONDS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            if kind is None and len(self.members) > 1:
                self._leave()
        for path in (self.room, self.alone):
            remove(path)
        self.presence.end()

    @property
    def leads(self) -> bool:
        return self.me == self.members[0]

    def label(self, member: str) -> str:
        """Return what people call a member: its host, where no other member has that name."""
        hosts = [host_of(each) for each in self.members]
        return member if hosts.count(host_of(member)) > 1 else host_of(member)

    def neighbour(self, member: str) -> str:
        """Return who comes after a member, in a ring."""
        return self.members[(self.members.index(member) + 1) % len(self.members)]

    # -- finding each other --------------------------------------------------------------------

    def gather(self, plan: dict[str, Any], seconds: float) -> None:
        """Meet; afterwards `members` and `plan` (the leader's) are the same on all machines."""
        deadline = time.monotonic() + seconds
        while not self._gathered(plan):
            if time.monotonic() > deadline:
                raise Absent(self._who_came(seconds))
            time.sleep(BEAT_SECONDS / 2)
        self.presence.state = "busy"
        self.together("here")

    def _gathered(self, plan: dict[str, Any]) -> bool:
        self.presence.observe(self.members)
        for name in durable.listing(self.directory):
            m = ROOM.fullmatch(name)
            if m and m["kind"] == "room" and self._invited(self.directory / name):
                return True
        near = sorted({self.me, *(m for m in self.presence.moved if m in self.presence.seen)})
        if len(near) < self.machines or near[0] != self.me:
            return False
        self.members = near[: self.machines]
        self.plan = plan
        open_dir(self.room)
        self.write("group", {"members": self.members, "plan": plan})
        return True

    def _invited(self, room: Path) -> bool:
        try:
            group = json.loads(durable.read_file(room / "group.json"))
        except (OSError, ValueError):
            return False
        if self.me not in group["members"]:
            return False
        self.room, self.members, self.plan = room, group["members"], group["plan"]
        return True

    def _who_came(self, seconds: float) -> str:
        others = [m for m in self.presence.seen if m != self.me]
        there = f"{len(others)} other probes were seen" if others else "nobody else was seen"
        for name in durable.listing(self.directory):
            m = HELLO.fullmatch(name)
            if m and m["member"] in self.presence.moved and int(m["machines"]) != self.machines:
                there += f"; {host_of(m['member'])} has --machines {m['machines']}"
        return (
            f"no {self.machines} machines met in {seconds:g} s ({there}): run the same command on "
            f"each at the same time; if it did run there, then {self.directory} is not the same "
            f"directory on all of them: compare `findmnt -T {self.directory}`"
        )

    # -- being together ------------------------------------------------------------------------

    def write(self, step: str, word: Any) -> None:
        """Say a word in the room, whole or not at all."""
        tmp = self.room / f"{durable.nonce()}.tmp"
        durable.write_new(tmp, json.dumps(word).encode(), sync=False)
        os.rename(tmp, self.room / f"{step}.json")

    def together(self, step: str, word: Any = None) -> dict[str, Any]:
        """Wait until everybody is at this step; return what each said there."""
        try:
            self.write(f"{step}~{self.me}", word)
            return self._hear(step)
        except OSError as e:
            if e.errno in {errno.ENOENT, errno.ESTALE}:
                raise Absent(f"another machine ended the meeting before {step}") from None
            raise

    def _hear(self, step: str) -> dict[str, Any]:
        words: dict[str, Any] = {}
        pause, next_look = 0.002, time.monotonic() + LOOK_SECONDS
        while True:
            names = set(durable.listing(self.room))
            for member in self.members:
                name = f"{step}~{member}.json"
                if member not in words and name in names:
                    with suppress(OSError, ValueError):
                        words[member] = json.loads(durable.read_file(self.room / name, 1 << 24))
            if len(words) == len(self.members):
                return {member: words[member] for member in self.members}
            if time.monotonic() > next_look:
                next_look = time.monotonic() + LOOK_SECONDS
                self._see_all_alive(step, set(self.members) - set(words) - {self.me})
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)

    def _see_all_alive(self, step: str, missing: set[str]) -> None:
        self.presence.observe(self.members)
        for member in missing:
            seen = self.presence.seen.get(member)
            # A listing that a rename splits may show neither of its names: look more than once.
            self._missed[member] = 0 if seen else self._missed.get(member, 0) + 1
            if self._missed[member] >= LOOKS:
                raise Absent(f"{host_of(member)} went away before {step}")
            if seen and time.monotonic() - seen[1] > SILENT_SECONDS:
                self.presence.bury(member)
                raise Absent(f"{host_of(member)} was silent for {SILENT_SECONDS:g} s before {step}")

    def _leave(self) -> None:
        """Say good-bye; the leader removes the room after that, and the others see to it."""
        deadline = time.monotonic() + LEAVING_SECONDS
        self.write(f"bye~{self.me}", None)
        byes = {f"bye~{member}.json" for member in self.members}
        while time.monotonic() < deadline and self.room.name in durable.listing(self.directory):
            if self.leads and byes <= set(durable.listing(self.room)):
                return
            time.sleep(BEAT_SECONDS / 2)


def open_dir(path: Path) -> None:
    """Make a directory that every member may write in, whatever the umask."""
    os.mkdir(path)
    os.chmod(path, OPEN)


def host_of(member: str) -> str:
    """Return the part of a member's name that people read."""
    return member.rpartition("-")[0]
