"""Runs watcherd, and stops its whole process (SIGSTOP) just before chosen steps, one after another.

usage: guest_stop.py MARKS STEP[,STEP...] WATCHERD [OPTION...]. Python tells of every rename, link
and open before it is made (audit events): there the thread that is about to make the call sends
itself the signal, so not one more instruction of watcherd runs. It stops at a step only once there
is MARKS/<STEP>.armed; MARKS/<STEP> says where it was.
"""

import json
import re
import runpy
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

Test = Callable[[str, tuple[Any, ...]], bool]
PIECES = 3


def call(wanted: str, source: str, target: str = "") -> Test:
    """Return a test for one kind of call on paths that fit two patterns."""

    def fits(event: str, args: tuple[Any, ...]) -> bool:
        if event != wanted or not re.search(source, str(args[0])):
            return False
        return not target or bool(re.search(target, str(args[1])))

    return fits


def by_worker(test: Test) -> Test:
    """Return a test for calls of the threads that stage."""

    def fits(event: str, args: tuple[Any, ...]) -> bool:
        return test(event, args) and threading.current_thread().name.startswith("worker")

    return fits


STEPS: dict[str, Test] = {
    "claim": call("os.rename", r"/requests/[^/]*$", r"/active/"),
    "accept": call("os.rename", r"/active/.*\.g0\.", r"/active/"),
    "start": call("os.rename", r"/active/.*\.a0\.", r"/active/.*\.a1\."),
    "token": by_worker(call("os.listdir", r"/\.stager/work$")),
    "streaming": call("open", r"/\.stager/work/[^/]*/[^/]*$"),
    "link": call("os.link", r"/\.stager/work/", r"/images/"),
    "sidecar": call("os.rename", r"/\.stager/work/", r"/sidecars/"),
    "flag": call("os.rename", r"/\.stager/work/", r"/staged$"),
    "release": call("os.rename", r"/locks/", r"/locks/.*\.free$"),
    "commit": call("os.rename", r"/active/", r"/(done|failed)/"),
    "publish": call("os.rename", r"/private/", r"/results/"),
}


class Stopper:
    """The steps still to stop at; the hook runs in every thread."""

    def __init__(self, marks: Path, steps: list[str]) -> None:
        self.marks, self.steps = marks, steps
        self.busy = threading.local()
        self.lock = threading.Lock()

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        """Stop here, if this is the step."""
        if getattr(self.busy, "here", False) or not event.startswith(("os.", "open")):
            return
        self.busy.here = True
        try:
            with self.lock:
                if not self.steps or not STEPS[self.steps[0]](event, args):
                    return
                if not (self.marks / f"{self.steps[0]}.armed").exists():
                    return
                step = self.steps.pop(0)
            if step == "streaming":
                sys.setprofile(Middle(self, step, args).profile)
            else:
                self.stop(step, args)
        finally:
            self.busy.here = False

    def stop(self, step: str, args: tuple[Any, ...]) -> None:
        """Say where we are, and stop."""
        mark = {"at": [str(arg) for arg in args[:2]], "thread": threading.current_thread().name}
        (self.marks / f"{step}.new").write_text(json.dumps(mark))
        (self.marks / f"{step}.new").rename(self.marks / step)
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


class Middle:
    """Stops in the middle of an image: before the third piece that is written of it."""

    def __init__(self, stopper: Stopper, step: str, args: tuple[Any, ...]) -> None:
        self.stopper, self.step, self.args, self.pieces = stopper, step, args, 0

    def profile(self, _: FrameType, event: str, arg: Any) -> None:
        """Count the writes of this thread."""
        if event == "c_call" and getattr(arg, "__name__", "") == "pwrite":
            self.pieces += 1
            if self.pieces == PIECES:
                sys.setprofile(None)
                self.stopper.busy.here = True
                self.stopper.stop(self.step, self.args)
                self.stopper.busy.here = False


def main() -> None:
    """Be watcherd, but for the stops."""
    marks, steps, program = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3]
    sys.argv = sys.argv[3:]
    sys.addaudithook(Stopper(marks, steps).hook)
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
