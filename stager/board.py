"""The notice board: results/status.json and results/status.html, kept by one instance of the spool.

The daemon with the lowest name writes them, each by a rename, from a thread of its own; the others
only see that they are not the lowest. The pace is calm: nothing is written while nothing changes,
but for a sign of life, and a look that takes long makes the next one come later. On a network
filesystem only work and its own news hurry it, as each look is many calls. Nothing rests on these
files, so they are not synced; a fault costs only their freshness.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Hashable
from pathlib import Path

import structlog

from stager import durable, mounts, roster, status
from stager.instance import Heart
from stager.lately import Lately
from stager.layout import Paths
from stager.plot import SLICE_SECONDS, History
from stager.roster import Look
from stager.snapshot import Board, Snapshot

log = structlog.get_logger()

LOOK_SECONDS = 3.0
LONGEST_PAUSE_SECONDS = 30.0
SIGN_OF_LIFE_SECONDS = 30.0
SHARE = 0.1
"""The most of a core, and of the file server's time, that the board may take."""
MOST_SHOWN = 100
STATUS_BYTES = 1 << 20


class Notice:
    """Keeps the board up to date while it runs."""

    def __init__(
        self,
        paths: Paths,
        heart: Heart,
        news: Callable[[], Hashable],
        is_told: Callable[[], bool] = lambda: False,
    ) -> None:
        self.paths, self.heart = paths, heart
        self._is_told, self._is_costly = is_told, mounts.is_network(paths.results)
        """Whether a fault is standing that was said, and explains ours."""
        self._failures = 0
        self._news = news
        """Changes when something is to be said that no directory shows."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="board", daemon=True)
        self._lately, self._history = Lately(paths, MOST_SHOWN), History()
        self._has_run = self._leads = self._troubled = False
        self._seen: tuple[Hashable, ...] = ()
        self._written = float("-inf")
        self._newborn = heart.inst
        """Our name, until we had a look: so far we have counted nothing."""

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """End; storage that does not answer is not waited for any longer."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _run(self) -> None:
        pause, self._has_run = LOOK_SECONDS / 6, True
        while not self._ended.wait(pause):
            began = time.monotonic()
            try:
                self.turn()
            except OSError as e:
                # The daemon's loop may be just about to meet the same fault, and to say it.
                self._failures += 1
                if self._failures > 1 and not self._is_told():
                    self._say(f"the status page can't be written: {e}")
            except Exception:
                if not self._troubled:
                    log.exception("a fault of ours in the status page")
                self._troubled = True
            pause = max(LOOK_SECONDS, (time.monotonic() - began) / SHARE)
            pause = min(pause, LONGEST_PAUSE_SECONDS)

    def turn(self) -> None:
        """Publish, if it is ours to do and there is something new."""
        if not self._is_first():
            self._leads, self._newborn = False, ""
            return
        if not self._leads:
            self._leads, self._seen = True, ()
            self._history.load(self._published(), self._newborn)
            self._newborn = ""
        at_work = bool(os.listdir(self.paths.active))
        seen = (at_work, self._news()) if self._is_costly else self._look()
        since = time.monotonic() - self._written
        if at_work or seen != self._seen or since > SIGN_OF_LIFE_SECONDS:
            self.publish()
            self._seen, self._written = seen, time.monotonic()
        self._failures = 0
        if self._troubled:
            self._troubled = False
            log.info("the status page is written again")

    def sign_off(self) -> None:
        """Say that nobody runs, where we are the last to leave; a fault costs only that."""
        if not self._has_run or self._thread.is_alive():
            return
        try:
            snapshot = self._take(Look(lease=self.heart.lease, without=self.heart.inst))
            if snapshot.nobody:
                if not self._leads:
                    self._history.load(self._published(), self._newborn)
                self._write(snapshot)
        except OSError as e:
            self._say(f"the status page does not say that nobody runs: {e}")
        except Exception:
            log.exception("a fault of ours in the status page")

    def publish(self) -> None:
        """Look at everything and write both files."""
        snapshot = self._take(Look(living=self.heart.living(), lease=self.heart.lease))
        # Not begun at the end: who stops does not wait for it long.
        self._write(snapshot, self._ended.is_set)

    def _take(self, how: Look) -> Snapshot:
        now = self.heart.server_now()
        return status.take(self.paths, how, now=now, most=MOST_SHOWN, lately=self._lately)

    def _write(self, snapshot: Snapshot, is_over: Callable[[], bool] = lambda: False) -> None:
        from stager import page  # noqa: PLC0415 (templates are loaded by who needs them)

        now = self.heart.server_now()
        names = {self.heart.inst, *(instance.name for instance in snapshot.instances)}
        told = {name: roster.load_told(self.paths, name) for name in names}
        self._history.note(snapshot, told, now)
        board = Board(
            **snapshot.model_dump(),
            slice_seconds=SLICE_SECONDS,
            history=self._history.samples,
            counted=self._history.counted or {},
        )
        _bound(board)
        texts = {
            "status.html": page.render(board, now).encode(),
            "status.json": json.dumps(board.as_dict(), indent=1).encode() + b"\n",
        }
        for name, text in texts.items():
            if not is_over():
                self._put(name, text)

    def _is_first(self) -> bool:
        """Whether no living daemon has a lower name; commands that visit the spool don't count."""
        lower = {inst for inst in self.heart.living() if inst < self.heart.inst}
        if not lower:
            return True
        names = durable.listing(self.paths.instances, touch=False)
        return not lower & {n.removesuffix(".status") for n in names if n.endswith(".status")}

    def _look(self) -> tuple[Hashable, ...]:
        """Return what changes when a request moves: a call for each directory, no listing."""
        paths = self.paths
        rooms: list[Path] = [paths.spool, paths.requests, paths.control, paths.waiting]
        rooms += [paths.active, paths.done, paths.failed, paths.cancelled]
        return self._news(), *(room.stat().st_mtime_ns for room in rooms)

    def _published(self) -> object:
        try:
            return json.loads(durable.read_file(self.paths.results / "status.json", STATUS_BYTES))
        except (OSError, ValueError, RecursionError):
            return None

    def _put(self, name: str, data: bytes) -> None:
        tmp = self.paths.tmp / f"{self.heart.inst}.{durable.nonce()}"
        durable.replace(tmp, self.paths.results / name, data)

    def _say(self, message: str) -> None:
        """Say what lasts once."""
        if not self._troubled:
            self._troubled = True
            log.warning(message)


def _bound(board: Board) -> None:
    """See that no list grows with what others may make many of."""
    for items in (board.instances, board.faults, board.paused, board.troubles):
        del items[MOST_SHOWN:]
    board.unclaimable = dict(list(board.unclaimable.items())[:MOST_SHOWN])
