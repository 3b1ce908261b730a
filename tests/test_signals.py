"""Signals come at any moment, in the middle of any line of ours too."""

import signal
import threading

from lab import Lab, until


def test_no_moment_is_wrong_for_a_signal(lab: Lab) -> None:
    lab.archive()
    lab.write_config(settle="0.01s", rescan="0.05s")
    daemon, pace = lab.start(), threading.Event()
    for _ in range(4_000):
        daemon.process.send_signal(signal.SIGHUP)
        pace.wait(0.0005)
    count = daemon.log.count("the configuration was read again")
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: daemon.log.count("the configuration was read again") > count, "a reload", 10)
    assert lab.result(lab.drop("x"), 10)["state"] == "staged"
    assert daemon.stop() == 0
