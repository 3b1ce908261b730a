"""One run of the real daemon in the model."""

from collections.abc import Callable
from typing import Any

from model.calls import Machine
from model.clocks import Pool
from model.nfsclient import Client
from model.turns import Event, Scheduler
from stager.config import Config
from stager.errors import MachineFault
from stager.instance import Buried
from stager.server import Server


class Instance(Machine):
    """One run of the real daemon."""

    def __init__(
        self, world: Scheduler, config: Config, ended: Callable[["Instance", bool], None],
        client: Client, boot: str, pid: int, machine_id: str,
    ) -> None:  # fmt: skip
        super().__init__(client, boot, pid, machine_id)
        self.world, self.config, self.ended = world, config, ended
        self.wake = Event(world, once=True)
        self.server: Server | None = None
        self.stopping = False
        self.ailing_until = world.now
        """When what kept it from its work, or a thread of it, ended last."""
        rng = world.rng
        self.clock_offset = rng.uniform(0.0, 1e5)
        self.wall_offset = rng.choice((0.0, 0.0, 3600.0, -7200.0))

    @property
    def insts(self) -> list[str]:
        return [self.server.heart.inst] if self.server and not self.dead else []

    def serve(self) -> None:
        """Run as `watcherd` does: until told to stop; begin anew when buried."""
        failed = False
        while not self.stopping:
            server = self._make()
            self.server, self.ailing_until = server, self.world.now
            try:
                server.start()
            except (OSError, MachineFault):
                # systemd starts it again.
                failed = True
                break
            while not (self.stopping or server.buried):
                server.turn()
                server.wait()
            try:
                server.stop()
            except (OSError, MachineFault, Buried):
                break
        self.ended(self, failed)
        self.world.sleep(1e9)

    def _make(self) -> Server:
        wake: Any = self.wake
        pool: Any = Pool(self.world, self)
        server = Server(self.config, wake)

        def clock() -> float:
            return self.world.now + self.clock_offset

        server.dropbox._clock = server.dropbox.hints.clock = clock
        server.dispatcher.backlog._clock = clock
        server.dispatcher.pool = pool
        return server
