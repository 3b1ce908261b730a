"""Metrics for Prometheus: read from memory only, so that they answer while storage does not.

Served over HTTP, or written as a textfile for node_exporter, or both, as the configuration says.
Numbers of one machine, but for the queue, which is the spool's as this machine sees it.
"""

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from stager import durable
from stager.config import MetricsConfig
from stager.facts import Facts

log = structlog.get_logger()

PERIOD_SECONDS = 15.0


class Numbers(Collector):
    """Turns what an instance knows of itself into metrics, each time it is asked."""

    def __init__(self, ask: Callable[[], Facts]) -> None:
        self._ask = ask

    def collect(self) -> Iterable[Metric]:
        """Yield all metrics."""
        facts = self._ask()
        yield InfoMetricFamily("watcherd_build", "The daemon.", {"version": facts.version})
        yield from _work(facts)
        yield from _queue(facts)
        yield from _health(facts)

    def describe(self) -> Iterable[Metric]:
        """Yield nothing: the registry need not ask while nothing is known."""
        return ()


def _work(facts: Facts) -> Iterable[Metric]:
    """Yield what has been done since the start."""
    tally = facts.tally
    yield _counter(
        "watcherd_requests", "Requests answered, by state and error code (empty: none).",
        dict(tally.answers), "state", "code",
    )  # fmt: skip
    yield _counter(
        "watcherd_archive_errors", "Faults that attempts met at archives, by error code.",
        {(code,): n for code, n in dict(tally.archive_errors).items()}, "code",
    )  # fmt: skip
    yield _counter(
        "watcherd_phase_seconds", "Time that workers spent, by phase of the work.",
        {(phase,): n for phase, n in dict(tally.phases).items()}, "phase",
    )  # fmt: skip
    yield _total("watcherd_fetched_bytes", "Bytes read from archives.", facts.fetched_bytes)
    yield _total("watcherd_staged_bytes", "Size of the images staged.", tally.staged_bytes)
    yield _total("watcherd_staged_images", "Images staged.", tally.staged_images)
    yield _total("watcherd_takeovers", "Requests taken over from the dead.", tally.takeovers)


def _queue(facts: Facts) -> Iterable[Metric]:
    """Yield what waits and what is worked on."""
    yield _gauge("watcherd_waiting_requests", "Requests that wait in the spool.", facts.waiting)
    yield _gauge(
        "watcherd_oldest_waiting_seconds", "How long the oldest of them has waited.",
        facts.oldest_seconds,
    )  # fmt: skip
    yield _gauge(
        "watcherd_unclaimable_entries", "Entries of the drop box that can't be claimed.",
        facts.unclaimable,
    )  # fmt: skip
    yield _gauge("watcherd_active_requests", "Requests this machine works on.", facts.active)
    yield _gauge("watcherd_workers", "Builds it can stage at the same time.", facts.workers)


def _health(facts: Facts) -> Iterable[Metric]:
    """Yield how the machine, the spool and its filesystems are."""
    for name, text, sizes in (
        ("free", "Space the daemon may still use.", {t: d[0] for t, d in facts.disks.items()}),
        ("size", "Size of the filesystem.", {t: d[1] for t, d in facts.disks.items()}),
    ):
        family = GaugeMetricFamily(f"watcherd_filesystem_{name}_bytes", text, labels=["tree"])
        for tree, size in sizes.items():
            family.add_metric([tree], size)
        yield family
    yield SummaryMetricFamily(
        "watcherd_scan_seconds", "Scans of the spool.",
        count_value=facts.tally.scans, sum_value=facts.tally.scan_seconds,
    )  # fmt: skip
    yield _gauge(
        "watcherd_scan_age_seconds", "Time since the last scan that went well.", facts.scan_age
    )
    yield _gauge(
        "watcherd_heartbeat_age_seconds", "Time since the last heartbeat.", facts.heartbeat_age
    )
    yield _gauge("watcherd_instances", "Daemons not known to be dead, this one too.", facts.living)
    yield _gauge("watcherd_paused", "Whether it is told to start nothing.", int(facts.paused))
    fault = GaugeMetricFamily(
        "watcherd_fault", "A standing fault that makes requests wait.", labels=["code"]
    )
    for code in ("no_space", "credentials_refused", "storage_error"):
        fault.add_metric([code], int(facts.fault == code))
    yield fault


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _total(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value)


def _counter(name: str, text: str, values: Mapping[Any, float], *labels: str) -> Metric:
    family = CounterMetricFamily(name, text, labels=list(labels))
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family


class Meter:
    """Gives the metrics away as the configuration says, from a thread of its own."""

    def __init__(self, ask: Callable[[], Facts]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(Numbers(ask))
        self._config = MetricsConfig()
        self._changed, self._ended = threading.Event(), False
        self._thread: threading.Thread | None = None
        self._server: Any = None
        self._listens = ""
        self._said: set[str] = set()

    def reconfigure(self, config: MetricsConfig) -> None:
        """Do as another configuration says from now on."""
        self._config = config
        self._changed.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End; a textfile goes too, as its numbers would stay for ever."""
        self._ended = True
        self._changed.set()
        if self._thread is not None:
            self._thread.join(PERIOD_SECONDS)

    def _run(self) -> None:
        while not self._ended:
            self._changed.clear()
            config = self._config
            self._alone("http", self._serve, config.http)
            if config.textfile:
                self._alone("textfile", self._write, config.textfile)
            self._changed.wait(PERIOD_SECONDS)
            if config.textfile and (self._ended or self._config.textfile != config.textfile):
                durable.discard(Path(config.textfile))
        self._alone("http", self._serve, "")

    def _alone(self, key: str, call: Callable[[str], None], argument: str) -> None:
        """Try; what fails is said once, and tried again with the next period."""
        try:
            call(argument)
        except OSError as e:
            if key not in self._said:
                self._said.add(key)
                log.warning(f"metrics.{key} ({argument}): {e.strerror or e}")
        else:
            if key in self._said:
                self._said.remove(key)
                log.info(f"metrics.{key} works again")

    def _serve(self, address: str) -> None:
        if address == self._listens:
            return
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server, self._listens = None, ""
        if address:
            host, port = MetricsConfig(http=address).listen
            self._server, _ = start_http_server(port, host, self.registry)
            self._listens = address

    def _write(self, path: str) -> None:
        """Replace the textfile; its name is never seen with half of it."""
        target = Path(path)
        tmp = target.with_name(f".{target.name}.{durable.nonce()}.tmp")
        durable.write_new(tmp, generate_latest(self.registry), sync=False)
        try:
            os.rename(tmp, target)
        except OSError:
            with suppress(OSError):
                tmp.unlink()
            raise
