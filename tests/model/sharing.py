"""Whether who waits for a build shares its outcome, and keeps no worker from other builds."""

import os
from collections.abc import Callable
from pathlib import Path

from model.daemons import Instance
from model.fileserver import EPOCH, Change
from model.plan import ABSENT, Plan
from model.witness import Witness
from stager.errors import ImageNotInArchive
from stager.layout import Claim, Waiting
from stager.lock import Token
from stager.result import parse_result

PATIENCE_SECONDS = 15.0


class Sharing:
    """Looks into the daemons, as only they know what they wait for."""

    def __init__(self, plan: Plan, witness: Witness, sound: Callable[[str], bool]) -> None:
        self.plan, self.witness, self._sound = plan, witness, sound
        self._waiting: dict[tuple[str, str], float] = {}
        """Instance and request: since when a worker waits for another machine's build."""
        self._started: dict[tuple[str, str], float] = {}
        """Instance and request: when it began to look at its archive."""
        self._told: set[tuple[str, str]] = set()
        """Instance and request: its outcome is known, as another's was the same."""

    def look(self, instances: list[Instance]) -> None:
        """Accuse who keeps a worker waiting for a build that another machine has."""
        if self.plan.odds.slow:
            # Then a worker may be slow without waiting for anything.
            return
        found = {pair for i in instances for pair in self._workers_waiting(i)}
        now = self.witness.now()
        self._waiting = {pair: self._waiting.get(pair, now) for pair in found}
        for (inst, request), since in self._waiting.items():
            if now - since > PATIENCE_SECONDS:
                self.witness.accuse(f"promise 4: a worker of {inst} waits with {request}")

    def _workers_waiting(self, instance: Instance) -> list[tuple[str, str]]:
        found = []
        for inst in filter(self._sound, instance.insts):
            assert instance.server is not None
            for case in instance.server.dispatcher.cases():
                assert case.request is not None
                room = f"{self.witness.static}/.stager/locks/{case.request.build.key}"
                names = os.listdir(room) if os.path.isdir(room) else []
                token = max(filter(None, map(Token.parse, names)), default=None)
                if token and token.inst not in {"", inst}:
                    found.append((inst, case.claim.id))
        return found

    def see(self, change: Change, instances: list[Instance]) -> None:
        """Take note of an outcome, and see that who waited for it does not start as well.

        And nobody holds what another one holds.
        """
        held: set[str] = set()
        for inst in instances:
            its = inst.server.spool._held if inst.server else set()
            for both in held & its:
                self.witness.accuse(f"promise 4: two hold {both}")
            held |= its
        name, old = os.path.basename(change.path), os.path.basename(change.source)
        place = os.path.relpath(os.path.dirname(change.path), self.witness.spool)
        claim, before = Claim.parse(name), Claim.parse(old)
        if place == "failed" and claim:
            self._outcome(change, claim, instances)
        elif place == "active" and claim and before and claim.a > before.a:
            self._started[claim.inst, claim.id] = self.witness.now()
            if (claim.inst, claim.id) in self._told:
                self.witness.accuse(f"promise 4: {claim.request_id} was started, its outcome known")
        elif place == "active" and claim and (waiting := Waiting.parse(old)):
            others = {pair for pair in self._told if pair[1] == waiting.id}
            self._told -= others - {(claim.inst, waiting.id)}

    def _outcome(self, change: Change, claim: Claim, instances: list[Instance]) -> None:
        asked = self.witness.asked.get(change.inode)
        if asked is None or asked.images != [*ABSENT] or self.plan.odds.split_listing:
            return
        private = Path(self.witness.spool, "private", str(claim))
        answer = parse_result(private.read_bytes()) if private.exists() else None
        if not (answer and answer.error and answer.error.code == ImageNotInArchive.code):
            return
        started = self._started.get((claim.inst, claim.id), -EPOCH)
        before = EPOCH + started - 2 * self.plan.tick - 1.0
        for instance in instances:
            if claim.inst in instance.insts and instance.server:
                for entry in instance.server.dispatcher.backlog.entries.values():
                    wanted = entry.request
                    if (
                        wanted
                        and wanted.build == asked.build
                        and [*wanted.images] == asked.images
                        and not wanted.force
                        and entry.arrived < before
                    ):
                        self._told.add((claim.inst, entry.waiting.id))
