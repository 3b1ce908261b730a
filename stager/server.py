"""One instance of the daemon at work: its parts, put together, and one turn of its loop."""

import json
import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from stager import durable, mounts, orders, site
from stager.case import Tools
from stager.clerk import Clerk
from stager.config import Config
from stager.dispatch import Dispatcher
from stager.dropbox import DropBox
from stager.errors import (
    CredentialsRefused,
    MachineFault,
    NoSpace,
    NotNow,
    SetupError,
    StorageError,
)
from stager.finish import finish
from stager.hook import Hook
from stager.instance import Buried, Heart
from stager.intake import Intake, Tally
from stager.keeper import Keeper
from stager.lock import Locks
from stager.marker import Marker
from stager.progress import Sign
from stager.source import open_source
from stager.spool import Spool
from stager.stage import Room
from stager.sweep import Sweeper
from stager.visit import Visit
from stager.watch import Wake, Watch

log = structlog.get_logger()

STATUS_SECONDS = 1.0
WELL_SECONDS = 1.0
"""So long all must go well before it is said that the spool works again."""
MOST_IN_STATUS = 200
KEYS_AT_ONCE = 100


class Server:
    """A registered instance with its workers; ends when told to, or when it was buried."""

    def __init__(self, config: Config, wake: Wake) -> None:
        self.config, self.paths = config, config.paths
        self.heart = Heart(self.paths, config.heartbeat, config.lease)
        self.spool = Spool(self.paths, self.heart)
        self.dropbox = DropBox(self.paths.requests, config.settle)
        self.watch = Watch(self.paths.requests, config.watch, config.rescan, self.dropbox.note)
        self.watch.wake, self.watch.orders = wake, self.paths.control
        self.locks, self.room = Locks(self.paths, self.heart), Room(self.paths.static, config)
        self.hook = Hook(config.on_done)
        tools = self._tools()
        self.dispatcher = Dispatcher(tools, Intake(tools, self.dropbox), wake.set)
        self.clerk = Clerk(self.spool, self.dispatcher, os.geteuid())
        self.sweeper = Sweeper(self.paths, self.heart)
        self.keeper = Keeper()
        self.buried = False
        self.fault: str | None = None
        self._is_said = False
        self._no_beat, self._last_bad = "", 0.0
        self._told: tuple[str | None, str] = None, ""
        self.paused = False
        self.note = ""
        """What else a person should read in the summary."""
        self._ended = threading.Event()
        self.sign, self._pulse_sign = Sign("the daemon's loop"), Sign("the heartbeat")
        self._pulse = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._next_rescan = self._next_status = 0.0
        self._dead: set[str] = set()
        self._cloned: set[str] = set()
        self._freeing: set[str] = set()
        self._keys: list[str] = []
        self._last_scan = time.time()

    @property
    def tally(self) -> Tally:
        """What this instance answered."""
        return self.dispatcher.intake.tally

    def start(self) -> None:
        """Appear among the instances and begin to look."""
        with durable.storage():
            self.heart.register()
            self._pulse.start()
            self.watch.arm()
        for misfit in site.check_modes(self.paths, os.geteuid()):
            log.warning(str(misfit))
        for notice in mounts.notices((self.paths.spool, self.paths.static, self.paths.results)):
            log.warning(str(notice))
        if self.config.metrics != Config.model_fields["metrics"].default:
            log.warning("metrics is read, but not used by this version yet")
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
            if now >= self._next_rescan or self.fault:
                self._next_rescan = now + self.watch.jittered_rescan()
                self._rescan()
            with durable.storage():
                if self.clerk.obey():
                    self._look_for_pause()
                self.dispatcher.turn(claim=not self.paused)
                self.spool.touch_published()
                self._publish_status()
            if trouble := self._no_beat or self.dispatcher.unread() or self.clerk.trouble():
                self._say_fault(trouble)
                return
        except (MachineFault, SetupError, NotNow) as e:
            self._say_fault(self._what_is_wrong() or str(e))
        except Buried:
            self.buried = self._is_our_spool()
        except Exception:
            log.exception("a fault of ours in the daemon's loop")
            self.fault = self.fault or "a fault in watcherd; see the log"
        else:
            if time.monotonic() - self._last_bad < WELL_SECONDS:
                return
            if self._is_said:
                log.info("the spool answers again")
            self.fault, self._is_said = None, False
            self.dispatcher.spool_is_faulty = False
            with suppress(OSError):
                self._publish_status()

    def wait(self) -> None:
        """Wait for an event, a worker's end, or the time something is due."""
        self.sign.step()
        if self.fault:
            self.watch.wait(random.uniform(0.5, 1.0))
            return
        server_now = self.heart.server_now()
        takes_in = self.dispatcher.takes_in and not self.paused
        due = min(
            self.dropbox.next_due() if takes_in else float("inf"),
            self.dispatcher.backlog.next_wake(server_now),
            self._next_rescan - time.monotonic(),
        )
        if self.dispatcher.running:
            now = time.monotonic()
            ends = [case.progress.deadline - now for case in self.dispatcher.cases()]
            due = min(due, STATUS_SECONDS, *(max(end, 0.05) for end in ends))
        due = max(due, 0.005)
        self.sign.rest(due)
        self.watch.wait(due)

    def idle(self) -> bool:
        """Whether nothing is left that this instance could answer, now or later (--once)."""
        try:
            return self._is_idle()
        except MachineFault as e:
            self._say_fault(str(e))
            return False

    def _is_idle(self) -> bool:
        if self.fault or self.dispatcher.running:
            return False
        if self.paused:
            return True
        with durable.storage():
            if self.dispatcher.backlog.entries or self.dropbox.settling()[0]:
                return False
            others = self.spool.active()
            if any(c.inst == self.heart.inst for c in others):
                return False
            if any(not self.heart.proven(c.inst) for c in others):
                return False
            self.dropbox.settled(0)
            if any(n not in self.dropbox.unclaimable() for n in self._new_names()):
                return False
            finish(self.spool)
        for claim in others:
            log.warning("left to its owner", request_id=claim.request_id, owner=claim.inst)
        for name in self.dropbox.settling()[1]:
            log.warning("left: it keeps changing", entry=name)
        for name, reason in self.dropbox.unclaimable().items():
            log.warning("left: it can't be claimed", entry=name, reason=reason)
        return True

    def reconfigure(self, config: Config) -> None:
        """Work by another configuration from the next job on."""
        self.config = self.room.config = config
        self.hook.command = config.on_done
        self.dropbox.settle = config.settle
        self.dispatcher.reconfigure(self._tools())

    def stop(self) -> None:
        """Give back what is unstarted, end the rest at a safe point, disappear."""
        self.dispatcher.stop()
        self.keeper.stop()
        self.watch.disarm()
        try:
            with durable.storage():
                self.dispatcher.close()
                self.spool.touch_last()
                self._end_pulse()
                durable.discard(self._status_path)
                if self.locks.free_left():
                    self.heart.leave()
        except (MachineFault, Buried) as e:
            log.warning(f"stopped, but could not sign off: {e}")
        finally:
            self._end_pulse()
        self.hook.stop()
        log.info("stopped", good=self.tally.good, bad=self.tally.bad)

    def abandon(self) -> None:
        """Let go of everything, where the spool did not even let us begin."""
        self.dispatcher.pool.shutdown()
        self.watch.disarm()
        self._end_pulse()

    def _end_pulse(self) -> None:
        self._ended.set()
        if self._pulse.is_alive():
            self._pulse.join(self.config.heartbeat)

    def signs(self) -> list[Sign]:
        """Return the signs of life of all threads that must get on."""
        working = [case.progress.sign for case in self.dispatcher.cases()]
        return [self.sign, self._pulse_sign, *working]

    def places(self) -> dict[str, Callable[[], object]]:
        """Return for each place of storage a question that its server must answer."""
        places: dict[str, Callable[[], object]] = {
            "spool": partial(os.utime, self.paths.tmp),
            "static tree": partial(os.utime, self.paths.static_tmp),
        }
        if directory := self.config.archive.directory:
            places["archive directory"] = partial(os.statvfs, directory)
        return places

    def summary(self) -> str:
        """Return one line for the service manager."""
        running, waiting = len(self.dispatcher.running), len(self.dispatcher.backlog.entries)
        hold = self.dispatcher.backlog.hold
        trouble = self.fault or (hold.error.message if hold else "")
        paused = "paused" if self.paused else ""
        scan = time.strftime("last scan %H:%M:%S", time.localtime(self._last_scan))
        counts = f"{running} active, {waiting} waiting"
        return "; ".join(filter(None, (counts, scan, self.watch.mode, paused, trouble, self.note)))

    # -- parts ---------------------------------------------------------------------------------

    def _tools(self) -> Tools:
        return Tools(
            self.config, self.heart, self.spool, self.locks,
            Marker(self.paths, self.config.images), open_source(self.config), self.room, self.hook,
        )  # fmt: skip

    def _beat(self) -> None:
        """Beat and look at the others, until the end; the heartbeat thread."""
        while not self._ended.wait(self._until_next_beat()):
            self._pulse_sign.step()
            try:
                self.heart.beat()
                self.heart.observe()
                self._no_beat = ""
            except Buried:
                if not self._is_our_spool():
                    self.heart.bad_sample()
                    continue
                self.buried = True
                self.dispatcher.stop()
                self.watch.wake.set()
                return
            except OSError as e:
                self.heart.bad_sample()
                if not self._no_beat:
                    self.watch.wake.set()
                self._no_beat = f"no heartbeat, the others may take this machine for dead: {e}"

    def _until_next_beat(self) -> float:
        seconds = self.config.heartbeat * random.uniform(0.9, 1.0)
        self._pulse_sign.rest(seconds)
        return seconds

    def _is_our_spool(self) -> bool:
        """Whether our heartbeat file is missed in our own spool, not in another in its place."""
        return not self._what_is_wrong()

    def _what_is_wrong(self) -> str:
        """Say what is wrong with the set of directories; empty: nothing."""
        try:
            site.check(self.config)
        except (SetupError, NotNow) as e:
            return str(e)
        return ""

    def _rescan(self) -> None:
        """Look at what no event tells: the directories, the dead, unfinished answers, leftovers."""
        site.check(self.config)
        self._last_scan = time.time()
        with durable.storage():
            self.watch.arm()
            self._look_for_pause()
            self.dispatcher.adopt()
            finish(self.spool)
            self.clerk.look_for_leftovers()
            busy = {claim.inst for claim in self.spool.active()}
            for inst in self.heart.cloned() - self._cloned:
                self._cloned.add(inst)
                log.warning("two machines have one machine id: give each its own", instance=inst)
            for inst in self.heart.bury(busy):
                log.info("an instance is gone", instance=inst)
                self._dead.add(inst)
            self._free_tokens()
            for path in self.sweeper.sweep():
                log.info("swept", path=str(path))
            self._keep_order()

    def _keep_order(self) -> None:
        """Apply retention; sooner where requests wait for room."""
        hold, tools = self.dispatcher.backlog.hold, self.dispatcher.tools
        visit = Visit(self.config, self.heart, self.spool, self.locks, tools.marker)
        self.keeper.turn(visit, hurry=hold is not None and isinstance(hold.error, NoSpace))

    def _look_for_pause(self) -> None:
        hosts = {self.heart.identity.host, self.heart.identity.host.split(".")[0]}
        paused = orders.paused(self.paths, hosts)
        if paused != self.paused:
            log.info("paused" if paused else "resumed")
        self.paused = paused

    def _free_tokens(self) -> None:
        """Free what the buried held, some builds at a time: there may be many thousands."""
        self.locks.free_left()
        if self._dead and not self._keys:
            self._keys, self._freeing = durable.listing(self.paths.locks), set(self._dead)
        some, self._keys = self._keys[:KEYS_AT_ONCE], self._keys[KEYS_AT_ONCE:]
        self.locks.free_the_dead(self._freeing, some)
        if not self._keys:
            self._dead -= self._freeing

    def _new_names(self) -> list[str]:
        return [n for n in self.dropbox.seen if n not in self.dropbox.settling()[1]]

    def _say_fault(self, fault: str) -> None:
        self.fault, self._last_bad = fault, time.monotonic()
        hold = self.dispatcher.backlog.hold
        # One fault is said once, though the loop and the jobs both meet it.
        held = hold is not None and hold.said and hold.error.code != CredentialsRefused.code
        if not self._is_said and not held:
            log.error(f"the spool does not work, requests wait: {fault}")
            self._is_said = self.dispatcher.spool_is_faulty = True
        with suppress(OSError):
            self._publish_status()

    @property
    def _status_path(self) -> Path:
        return self.paths.instances / f"{self.heart.inst}.status"

    def _publish_status(self) -> None:
        """Tell the other machines' `stager status` what we do: once a second, a fault at once."""
        now, hold = time.monotonic(), self.dispatcher.backlog.hold
        told = self.fault, hold.error.message if hold else ""
        if now < self._next_status and told == self._told:
            return
        target, data = self._status_path, json.dumps(self._status()).encode()
        try:
            durable.replace(self.paths.tmp / f"{self.heart.inst}.{durable.nonce()}", target, data)
        except OSError:
            # Where nothing new can be made, what is there can still say so, in few bytes.
            few = self._status() | {"reasons": {}, "active": {}, "unclaimable": {}}
            durable.overwrite(target, json.dumps(few).encode())
            raise
        self._next_status, self._told = now + STATUS_SECONDS, told

    def _status(self) -> dict[str, Any]:
        backlog = self.dispatcher.backlog
        reasons = {
            entry.waiting.request_id: lull.reason
            for entry in list(backlog.entries.values())[:MOST_IN_STATUS]
            if (lull := backlog.lull(entry))
        }
        hold, fault = backlog.hold, None
        if self.fault:
            fault = {"code": StorageError.code, "message": self.fault}
        elif hold:
            fault = {"code": hold.error.code, "message": hold.error.message}
        return {
            "host": self.heart.identity.host,
            "mode": self.watch.mode,
            "scanned": self._last_scan,
            "paused": self.paused,
            "workers": self.config.workers,
            "active": {c.claim.request_id: c.progress.view() for c in self.dispatcher.cases()},
            "reasons": reasons,
            "fault": fault,
            "unclaimable": dict(list(self.dropbox.unclaimable().items())[:MOST_IN_STATUS]),
            "answered": {"good": self.tally.good, "bad": self.tally.bad},
        }
