"""Somebody who waits for answers on a machine of their own, as `stager wait` does."""

from pathlib import Path
from typing import Any

from model.calls import Machine
from model.nfsclient import Client
from model.plan import NAMES
from model.turns import Scheduler
from model.witness import Witness
from stager import client
from stager.config import Config
from stager.layout import request_name

LOOKS_SECONDS = 2.0


class Reader(Machine):
    """Looks for answers by name, without a right to touch what it lists."""

    def __init__(self, world: Scheduler, config: Config, witness: Witness, desk: Client) -> None:
        super().__init__(desk, "boot of a desk", 1)
        self.world, self.paths, self.witness = world, config.paths, witness
        self.missing: list[str] | None = None
        """What it could not find when all was quiet; None: it has not looked yet."""

    def read(self) -> None:
        """Look for one answer after the other."""
        names = sorted({request_name(name) for name in NAMES})
        while True:
            self.world.sleep(self.world.rng.expovariate(1 / LOOKS_SECONDS))
            name = self.world.rng.choice(names)
            if result := self._find(name):
                self.witness.read(f"{name}.yaml", result.request_id)

    def look_at_all(self) -> None:
        """Look whether all answers are there for who only reads."""
        answers = [Path(name).stem for name in sorted(self.witness.published)]
        self.missing = [name for name in answers if self._find(name) is None]

    def _find(self, name: str) -> Any:
        try:
            return client.read_result(self.paths, name)
        except OSError:
            return None
