"""The `on_done` command: told of every request that this instance answers, after its answer is out.

An argument list, never a shell. It runs beside the daemon's work, one call at a time; what it does,
how long it takes and whether it fails changes nothing for the request. Not promised: a call for an
answer that a machine published just before it died, or that another finished for it.
"""

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from stager.layout import request_name
from stager.result import Result, to_json

log = structlog.get_logger()

CALL_SECONDS = 60.0
STOP_SECONDS = 20.0
"""So long a stopping daemon goes on calling, and not longer."""
MOST_CALLS = 1_000
MOST_SAID = 200


@dataclass(frozen=True, slots=True)
class Call:
    """One answer that the command is told of."""

    result: Result
    path: Path
    target: str
    """The directory of the build's images; empty where the request named none."""

    def environment(self) -> dict[str, str]:
        """Return what the command finds in its environment, beside the daemon's own."""
        result = self.result
        return os.environ | {
            "WATCHERD_STATE": result.state.value,
            "WATCHERD_NAME": request_name(result.request),
            "WATCHERD_REQUEST_ID": result.request_id,
            "WATCHERD_BUILD": result.build or "",
            "WATCHERD_CODE": result.error.code if result.error else "",
            "WATCHERD_RESULT": str(self.path),
            "WATCHERD_TARGET": self.target,
        }


class Hook:
    """Runs the command in a thread of its own, which exists only once there was a call."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = command
        self._calls: queue.Queue[Call | None] = queue.Queue(MOST_CALLS)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stop_at = float("inf")

    def call(self, call: Call) -> None:
        """Have the command told of an answer; never waits, never raises."""
        if not self.command:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            log.warning("on_done is too slow: not called", request_id=call.result.request_id)
        with self._lock:
            if self._thread is None:
                self._begin(call)

    def _begin(self, call: Call) -> None:
        """Have a thread; where none can be made, the next call tries again."""
        thread = threading.Thread(target=self._work, name="on_done", daemon=True)
        try:
            thread.start()
        except RuntimeError as e:
            log.warning(f"on_done must wait: {e}", request_id=call.result.request_id)
        else:
            self._thread = thread

    def stop(self) -> None:
        """Make the calls that are left, for STOP_SECONDS at most."""
        if self._thread is None:
            return
        self._stop_at = time.monotonic() + STOP_SECONDS
        with suppress(queue.Full):
            self._calls.put_nowait(None)
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive() and (process := self._process):
            _end(process)
            self._thread.join(1.0)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if time.monotonic() >= self._stop_at:
                log.warning("stopped before on_done was called", left=self._calls.qsize() + 1)
                return
            try:
                self._run(call)
            except OSError as e:
                self._failed(call, f"{e.strerror} ({e.filename})")
            except Exception:
                log.exception("a fault of ours in on_done", request_id=call.result.request_id)

    def _run(self, call: Call) -> None:
        """Run the command: the answer as JSON on its stdin, its output into the log if it fails."""
        with subprocess.Popen(  # noqa: S603 (the administrator's own command, without a shell)
            self.command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, env=call.environment(), cwd="/", start_new_session=True,
        ) as process:  # fmt: skip
            self._process = process
            try:
                patience = min(CALL_SECONDS, self._stop_at - time.monotonic())
                data = json.dumps(to_json(call.result)).encode()
                _, said = process.communicate(data, timeout=max(0.0, patience))
            except subprocess.TimeoutExpired:
                _end(process)
                self._failed(call, f"killed after {patience:.0f} s")
                return
        if process.returncode:
            words = said.decode("utf-8", "replace").strip().splitlines()
            last = f": {words[-1][:MOST_SAID]}" if words else ""
            self._failed(call, f"exit code {process.returncode}{last}")

    def _failed(self, call: Call, why: str) -> None:
        log.warning(f"on_done failed: {why}", request_id=call.result.request_id)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a command's whole session: what it started must not outlive it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
