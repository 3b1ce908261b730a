"""Wake-ups: events of the drop box where the kernel tells them, and always a jittered timer.

An event only means "look now", and that a file was moved in, linked in or closed. NFS never tells
what other machines did, so there the timer is all there is.
"""

import os
import queue
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog
from watchdog.events import (
    FileClosedEvent,
    FileClosedNoWriteEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileOpenedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyFullEmitter
from watchdog.observers.inotify_c import InotifyConstants, Mask
from watchdog.observers.inotify_move_event_grouper import GroupedInotifyEvent, PathedInotifyEvent

from stager import mounts

log = structlog.get_logger()

LOCAL_RESCAN_SECONDS = 15.0
NETWORK_RESCAN_SECONDS = 3.0
_CLOSE = InotifyConstants.IN_CLOSE_WRITE | InotifyConstants.IN_CLOSE_NOWRITE
_KINDS: dict[type[FileSystemEvent], str] = {
    FileMovedEvent: "moved",
    FileCreatedEvent: "created",
    FileOpenedEvent: "opened",
    FileClosedEvent: "closed",
    FileClosedNoWriteEvent: "read",
}


class Wake:
    """A bell for the daemon's loop; anybody may ring it, signal handlers too.

    threading.Event may not be set in a signal handler: the main thread, which it interrupts, may be
    inside the event's own lock.
    """

    def __init__(self) -> None:
        self._rings: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        """Ring."""
        self._rings.put(None)

    def wait(self, seconds: float) -> bool:
        """Wait for a ring, at most `seconds`; take all that came."""
        try:
            self._rings.get(timeout=seconds)
        except queue.Empty:
            return False
        with suppress(queue.Empty):
            while True:
                self._rings.get_nowait()
        return True


class _Emitter(InotifyFullEmitter):
    """Tells names that come in, and nothing of those that leave.

    watchdog holds every event back for half a second behind an unpaired IN_MOVED_FROM, and each
    claim of ours is one.
    """

    def get_event_mask_from_filter(self) -> Mask:
        c = InotifyConstants
        return Mask(c.IN_MOVED_TO | c.IN_CREATE | c.IN_OPEN | _CLOSE | c.IN_DELETE_SELF)

    def build_and_queue_event(
        self, event: GroupedInotifyEvent, *, full_events: bool = True
    ) -> None:
        """End where the filesystem was unmounted: mounted again, it is the same and not watched."""
        super().build_and_queue_event(event, full_events=full_events)
        if isinstance(event, PathedInotifyEvent) and event.ev.mask & InotifyConstants.IN_UNMOUNT:
            self.stop()


class Watch(FileSystemEventHandler):
    """Wakes the daemon's loop; `wake` may be set by anybody."""

    def __init__(
        self, directory: Path, mode: str, rescan: float | None, note: Callable[[str, str], bool]
    ) -> None:
        self.directory, self._note = directory, note
        self.also: dict[Path, Callable[[str, str], bool]] = {}
        """Other directories, and whether a kind of event of a name there wakes the loop."""
        network = mounts.is_network(directory)
        self.kind = mounts.filesystem_kind(directory)
        self.mode = mode if mode != "auto" else "poll" if network else "inotify"
        self.rescan = rescan or (NETWORK_RESCAN_SECONDS if network else LOCAL_RESCAN_SECONDS)
        self.wake = Wake()
        self._observer: BaseObserver | None = None
        self._identity: list[tuple[int, int]] = []

    def arm(self) -> None:
        """Watch the directories that have the names now; again where one was replaced or lost."""
        if self.mode != "inotify":
            return
        infos = [os.stat(directory) for directory in (self.directory, *self.also)]
        identity = [(info.st_dev, info.st_ino) for info in infos]
        alive = self._observer and all(e.is_alive() for e in self._observer.emitters)
        if alive and identity == self._identity:
            return
        self.disarm()
        observer = BaseObserver(_Emitter)
        try:
            observer.schedule(self, str(self.directory))
            for other in self.also:
                observer.schedule(self, str(other))
            observer.start()
        except (OSError, RuntimeError) as e:
            # What is watched already would fill a queue that nobody empties.
            observer.unschedule_all()
            if not isinstance(e, OSError):
                raise
            # Watches or instances are used up: the timer sees everything, only later.
            log.warning(f"no events of the drop box, polling instead: {e.strerror}")
            self.mode = "poll"
            return
        self._observer, self._identity = observer, identity

    def disarm(self) -> None:
        """Stop watching."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(5)
            self._observer = None

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Pass a hint on; runs in the observer's thread."""
        kind = _KINDS.get(type(event))
        path = os.fsdecode(event.dest_path if kind == "moved" else event.src_path)
        directory, name = os.path.split(path)
        if not kind or not name:
            return
        if self.also.get(Path(directory), self._note)(kind, name):
            self.wake.set()

    def wait(self, seconds: float) -> bool:
        """Wait for a hint, at most `seconds`; True: something woke us."""
        return self.wake.wait(max(0.0, seconds))

    def jittered_rescan(self) -> float:
        """Return the seconds until the next scan, so that machines do not scan in step."""
        return self.rescan * random.uniform(0.8, 1.2)
