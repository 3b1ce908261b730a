"""What is wrong with the spool, as the daemon's loop meets it: said once, and when it is over."""

import time
from contextlib import suppress

import structlog

from stager.bulletin import Bulletin
from stager.dispatch import Dispatcher
from stager.errors import CredentialsRefused

log = structlog.get_logger()

WELL_SECONDS = 1.0
"""So long all must go well before it is said that the spool works again."""


class Trouble:
    """A fault that stands, for the log and for the status."""

    def __init__(self, bulletin: Bulletin, dispatcher: Dispatcher) -> None:
        self.bulletin, self.dispatcher = bulletin, dispatcher
        self._is_said = False
        self._last_bad = 0.0

    @property
    def fault(self) -> str | None:
        """What is wrong; None: nothing."""
        return self.bulletin.fault

    @property
    def is_told(self) -> bool:
        """Whether a fault that stands has been said, here or of the queue."""
        hold = self.dispatcher.backlog.hold
        return self._is_said or (hold is not None and hold.said)

    def met(self, fault: str) -> None:
        """Take in what a turn met."""
        self.bulletin.fault, self._last_bad = fault, time.monotonic()
        hold = self.dispatcher.backlog.hold
        # One fault is said once, though the loop and the jobs both meet it.
        held = hold is not None and hold.said and hold.error.code != CredentialsRefused.code
        if not self._is_said and not held:
            log.error(f"the spool does not work, requests wait: {fault}")
            self._is_said = self.dispatcher.outcomes.spool_is_faulty = True
        self._publish()

    def met_ours(self) -> None:
        """Take in a fault of the program, whose traceback is in the log."""
        self.bulletin.fault = self.fault or "a fault in watcherd; see the log"

    def went_well(self) -> None:
        """Take in a turn that met nothing."""
        if time.monotonic() - self._last_bad < WELL_SECONDS:
            return
        if self._is_said:
            log.info("the spool answers again")
        self.bulletin.fault, self._is_said = None, False
        self.dispatcher.outcomes.spool_is_faulty = False
        self._publish()

    def _publish(self) -> None:
        with suppress(OSError):
            self.bulletin.publish()
