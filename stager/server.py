"""One instance of the daemon at work: its parts, put together, and one turn of its loop."""

import os
import random
import time
from typing import TYPE_CHECKING

import structlog

from stager import durable, mounts, orders, site
from stager.board import Notice
from stager.bulletin import STATUS_SECONDS, Bulletin
from stager.case import Tools
from stager.clerk import Clerk
from stager.config import Config, MetricsConfig
from stager.dispatch import Dispatcher
from stager.dropbox import DropBox
from stager.errors import MachineFault, NotNow, SetupError
from stager.facts import Observer
from stager.fetch import Room
from stager.finish import finish
from stager.guard import Guard
from stager.hook import Hook
from stager.instance import Buried, Heart
from stager.intake import Intake
from stager.lock import Locks
from stager.marker import Marker
from stager.progress import Sign
from stager.pulse import Pulse
from stager.rounds import Rounds
from stager.source import open_source
from stager.spool import Spool
from stager.sweep import Sweeper
from stager.tally import Tally
from stager.trouble import Trouble
from stager.visit import Visit
from stager.watch import Wake, Watch

if TYPE_CHECKING:
    from stager.metrics import Meter

log = structlog.get_logger()

ORDERS_SECONDS = 1.0
TOKENS_SECONDS = 2.0
"""No longer the tokens of the dead are looked at when we stop."""
PAGE_SECONDS = 2.0
"""So long at least a page that is being written may take at the end: else it is left in tmp/."""


class Server:
    """A registered instance with its workers; ends when told to, or when it was buried."""

    def __init__(self, config: Config, wake: Wake) -> None:
        self.config, self.paths = config, config.paths
        self.guard = Guard(config)
        self.heart = Heart(self.paths, config.heartbeat, config.lease)
        self.spool = Spool(self.paths, self.heart)
        self.dropbox = DropBox(self.paths.requests, config.settle)
        self.watch = Watch(
            self.paths.requests, config.watch, config.rescan, self.dropbox.hints.note
        )
        self.watch.wake = wake
        self.locks, self.room = Locks(self.paths, self.heart), Room(self.paths.static, config)
        self.hook = Hook(config.on_done)
        tools = self._tools()
        self.dispatcher = Dispatcher(tools, Intake(tools, self.dropbox), wake.set)
        self.watch.also = {
            self.paths.control: orders.is_news, self.paths.waiting: self.dispatcher.is_work
        }  # fmt: skip
        self.clerk = Clerk(self.spool, self.dispatcher, os.geteuid())
        self.rounds = Rounds(Sweeper(self.paths, self.heart))
        self.bulletin = Bulletin(self.paths, self.heart, self.dispatcher, self.dropbox, config)
        self.trouble = Trouble(self.bulletin, self.dispatcher)
        self.notice = Notice(
            self.paths, self.heart, self.bulletin.news, lambda: self.trouble.is_told
        )
        self.observer = Observer(self.paths, self.bulletin)
        self._meter: Meter | None = None
        self._is_buried = False
        self.note = ""
        """What else a person should read in the summary."""
        self.sign = Sign("the daemon's loop")
        self.pulse = Pulse(self.heart, self.guard.is_ours, self._hear_pulse)
        self._next_rescan = self._next_orders = 0.0

    @property
    def tally(self) -> Tally:
        """What this instance answered."""
        return self.dispatcher.intake.tally

    @property
    def buried(self) -> bool:
        """Whether the others took this instance for dead."""
        return self._is_buried or self.pulse.buried

    def start(self) -> None:
        """Appear among the instances and begin to look."""
        with durable.storage():
            self.pulse.start()
            self.watch.arm()
        self.bulletin.mode = self.watch.mode
        self.notice.start()
        for misfit in site.check_modes(self.paths, os.geteuid()):
            log.warning(str(misfit))
        for notice in mounts.notices((self.paths.spool, self.paths.static, self.paths.results)):
            log.warning(str(notice))
        self._measure()
        log.info(
            "watching the drop box",
            spool=str(self.paths.spool), mode=self.watch.mode, filesystem=self.watch.kind,
            rescan=self.watch.rescan, workers=self.config.workers, instance=self.heart.inst,
        )  # fmt: skip

    def turn(self) -> None:
        """Do all that can be done now; a fault of the spool is said once, and waited out."""
        self.sign.step()
        try:
            now = time.monotonic()
            is_scan = now >= self._next_rescan or bool(self.trouble.fault)
            if is_scan:
                self._next_rescan = now + self.watch.jittered_rescan()
                self._rescan()
            with durable.storage():
                if self._may_have_orders(now, is_scan) and self.clerk.obey():
                    self._look_for_pause()
                look = is_scan or self.watch.mode == "inotify"
                self.dispatcher.turn(claim=not self.bulletin.paused, look=look)
                self.spool.outbox.touch_again()
                self.bulletin.publish()
            if trouble := self.pulse.trouble or self.dispatcher.unread() or self.clerk.trouble():
                self.trouble.met(trouble)
                return
        except (MachineFault, SetupError, NotNow) as e:
            self.trouble.met(self.guard.trouble() or str(e))
        except Buried:
            # Our heartbeat file is missed.
            self._is_buried = self.guard.is_ours()
        except Exception:
            log.exception("a fault of ours in the daemon's loop")
            self.trouble.met_ours()
        else:
            self.trouble.went_well()

    def wait(self) -> None:
        """Wait for an event, a worker's end, or the time something is due."""
        self.sign.step()
        if self.trouble.fault:
            self.watch.wait(random.uniform(0.5, 1.0))
            return
        server_now = self.heart.server_now()
        takes_in = self.dispatcher.takes_in and not self.bulletin.paused
        due = min(
            self.dropbox.next_due() if takes_in else float("inf"),
            self.dispatcher.backlog.next_wake(server_now),
            self._next_rescan - time.monotonic(),
            self.bulletin.due(),
        )
        if self.dispatcher.running:
            now = time.monotonic()
            ends = [case.progress.deadline - now for case in self.dispatcher.cases()]
            due = min(due, STATUS_SECONDS, *(max(end, 0.05) for end in ends))
        due = max(due, 0.005)
        self.sign.rest(due)
        self.watch.wait(due)

    def reconfigure(self, config: Config) -> None:
        """Work by another configuration from the next job on."""
        self.config = self.room.config = self.bulletin.config = self.guard.config = config
        self.hook.command = config.on_done
        self.dropbox.settle = config.settle
        self.dispatcher.reconfigure(self._tools())
        self._measure()

    def stop(self) -> None:
        """Give back what is unstarted, end the rest at a safe point, disappear."""
        self.dispatcher.stop()
        self.rounds.keeper.stop()
        self.notice.stop(max(self.config.heartbeat, PAGE_SECONDS))
        self.watch.disarm()
        try:
            with durable.storage():
                self.dispatcher.close()
                self.spool.outbox.touch_last()
                self.rounds.finish(self._visit(), TOKENS_SECONDS)
                self.pulse.end()
                # Before our heartbeat goes: what is left after it is only swept a lease later.
                self.bulletin.withdraw()
                # Who does not sign off is buried, and what is left to do is done by others.
                if self.locks.free_left() and not self.rounds.is_owing:
                    self.heart.leave()
                # After that: of several that stop at once the last one sees no other.
                self.notice.sign_off()
        except (MachineFault, Buried) as e:
            log.warning(f"stopped, but could not sign off: {e}")
        finally:
            self.pulse.end()
        self.hook.stop()
        if self._meter:
            self._meter.stop()
        log.info("stopped", good=self.tally.good, bad=self.tally.bad)

    def abandon(self) -> None:
        """Let go of everything, where the spool did not even let us begin."""
        self.dispatcher.pool.shutdown()
        self.notice.stop(0)
        self.watch.disarm()
        self.pulse.end()

    def signs(self) -> list[Sign]:
        """Return the signs of life of all threads that must get on."""
        working = [case.progress.sign for case in self.dispatcher.cases()]
        return [self.sign, self.pulse.sign, *working]

    def summary(self) -> str:
        """Return one line for the service manager."""
        running, waiting = len(self.dispatcher.running), len(self.dispatcher.backlog.entries)
        hold = self.dispatcher.backlog.hold
        trouble = self.trouble.fault or (hold.error.message if hold else "")
        paused = "paused" if self.bulletin.paused else ""
        scan = time.strftime("last scan %H:%M:%S", time.localtime(self.bulletin.scanned))
        counts = f"{running} active, {waiting} waiting"
        return "; ".join(filter(None, (counts, scan, self.watch.mode, paused, trouble, self.note)))

    # -- parts ---------------------------------------------------------------------------------

    def _tools(self) -> Tools:
        return Tools(
            self.config, self.heart, self.spool, self.locks,
            Marker(self.paths, self.config.images), open_source(self.config), self.room, self.hook,
        )  # fmt: skip

    def _measure(self) -> None:
        """Give metrics away, if anybody wants them."""
        if self._meter or self.config.metrics != MetricsConfig():
            from stager.metrics import Meter  # noqa: PLC0415 (0.1 s that not all need to pay)

            self._meter = self._meter or Meter(self.observer.facts)
            self._meter.reconfigure(self.config.metrics)

    def _hear_pulse(self) -> None:
        """Wake the loop, as the heartbeat has met something; the heartbeat's thread."""
        if self.pulse.buried:
            self.dispatcher.stop()
        self.watch.wake.set()

    def _rescan(self) -> None:
        """Look at what no event tells: the directories, the dead, unfinished answers, leftovers."""
        self.guard.check()
        with durable.storage(), self.tally.scanning():
            self.watch.arm()
            self.bulletin.mode = self.watch.mode
            self._look_for_pause()
            self.dispatcher.adopt()
            finish(self.spool)
            self.clerk.look_for_leftovers()
            self.rounds.go(self._visit(), self.dispatcher.backlog.hold)
            self.observer.look()
        self.bulletin.scanned_at = time.monotonic()

    def _visit(self) -> Visit:
        marker = self.dispatcher.tools.marker
        return Visit(self.config, self.heart, self.spool, self.locks, marker)

    def _look_for_pause(self) -> None:
        hosts = {self.heart.identity.host, self.heart.identity.host.split(".")[0]}
        paused = orders.paused(self.paths, hosts, self.spool.scan)
        if paused != self.bulletin.paused:
            log.info("paused" if paused else "resumed")
        self.bulletin.paused = paused

    def _may_have_orders(self, now: float, is_scan: bool) -> bool:
        """Whether to look for orders in this turn: where no event tells, each look is a listing."""
        # Between scans only for those who want to cancel what is worked on.
        soon = self.watch.mode == "inotify" or (self.dispatcher.running and now > self._next_orders)
        if not (soon or is_scan):
            return False
        self._next_orders = now + ORDERS_SECONDS
        return True
