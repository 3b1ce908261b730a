"""Metrics: as Prometheus reads them, by HTTP and from a textfile; alerts and dashboard use them."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from cloud import Cloud
from lab import BUCKET, BUILD, FILES, ROOT, Lab, until
from prometheus_client.parser import text_string_to_metric_families
from webserver import fetch

ABSENT = f"gs://{BUCKET}/x86-alex-release/R99"
RULES = ROOT / "contrib/watcherd.rules.yaml"
DASHBOARD = ROOT / "contrib/watcherd-dashboard.json"
Samples = dict[tuple[str, ...], float]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def parse(text: str) -> Samples:
    """Return the samples by name and label values, in the order of the labels."""
    return {
        (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def ask(port: int) -> str:
    """Ask as soon as somebody listens: a thread of its own begins to."""

    def answered() -> Any:
        try:
            return fetch(f"http://127.0.0.1:{port}/metrics")
        except ConnectionRefusedError:
            return None

    status, headers, body = until(answered, "an endpoint")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=")
    text: str = body.decode()
    return text


def promtool(*words: str, text: str | None = None) -> None:
    done = subprocess.run(
        ["promtool", *words], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr.strip(), done.stderr


@pytest.fixture
def measured(lab: Lab) -> tuple[Lab, int]:
    port = free_port()
    lab.write_config(metrics={"http": f"127.0.0.1:{port}"})
    return lab, port


def test_everything_that_happened_is_counted(measured: tuple[Lab, int]) -> None:
    lab, port = measured
    contents = lab.archive()
    with lab.running():
        answer = lab.ask(images=["test", "base"])
        lab.ask(images=["test"])
        lab.ask(ABSENT, wait=0)
        lab.ask(images=["tset"])
        until(lambda: ("watcherd_requests_total", "", "already_staged") in parse(ask(port)))
        lab.drop("later", ABSENT)
        error = "watcherd_archive_errors_total", "archive_not_found"
        until(lambda: parse(ask(port))[error] >= 2)
        until(lambda: parse(ask(port))["watcherd_waiting_requests",] == 1)
        found = parse(ask(port))
    staged = sum(len(contents[FILES[image]]) for image in ("test", "base"))
    expected = {
        ("watcherd_requests_total", "", "staged"): 1,
        ("watcherd_requests_total", "", "already_staged"): 1,
        ("watcherd_requests_total", "archive_not_found", "failed"): 1,
        ("watcherd_requests_total", "invalid_request", "rejected"): 1,
        ("watcherd_fetched_bytes_total",): int(answer["bytes_fetched"]),
        ("watcherd_staged_bytes_total",): staged,
        ("watcherd_staged_images_total",): 2,
        ("watcherd_takeovers_total",): 0,
        ("watcherd_active_requests",): 0,
        ("watcherd_workers",): 2,
        ("watcherd_instances",): 1,
        ("watcherd_paused",): 0,
        ("watcherd_unclaimable_entries",): 0,
        ("watcherd_fault", "no_space"): 0,
        ("watcherd_fault", "storage_error"): 0,
    }
    assert {key: found[key] for key in expected} == expected
    assert found["watcherd_phase_seconds_total", "fetching"] > 0
    assert 0 <= found["watcherd_oldest_waiting_seconds",] < 30
    assert 0 <= found["watcherd_heartbeat_age_seconds",] < 5
    assert 0 <= found["watcherd_scan_age_seconds",] < 5
    assert found["watcherd_scan_seconds_sum",] > 0
    disk = os.statvfs(lab.root)
    assert found["watcherd_filesystem_size_bytes", "static"] == disk.f_blocks * disk.f_frsize
    assert 0 < found["watcherd_filesystem_free_bytes", "spool"] < disk.f_blocks * disk.f_frsize


def test_names_and_units_are_as_prometheus_wants_them(
    measured: tuple[Lab, int], said: list[object]
) -> None:
    lab, port = measured
    lab.archive()
    with lab.running():
        lab.ask()
        lab.ask(ABSENT, wait=0)
        until(lambda: "archive_not_found" in ask(port))
        text = ask(port)
    promtool("check", "metrics", text=text)
    families = list(text_string_to_metric_families(text))
    for family in families:
        assert family.name.startswith("watcherd_")
        assert family.documentation
    said.append(f"promtool check metrics: nothing to say of {len(families)} metrics")


def test_bytes_of_a_download_count_while_it_runs(cloud_lab: tuple[Lab, Cloud]) -> None:
    lab, cloud = cloud_lab
    port = free_port()
    lab.write_config(metrics={"http": f"127.0.0.1:{port}"})
    lab.upload(cloud)
    cloud.slow(lab.archive_path().stat().st_size // 5)
    seen = [0.0]

    def fetched() -> float:
        seen.append(parse(ask(port))["watcherd_fetched_bytes_total",])
        return seen[-1]

    with lab.running():
        lab.drop("slow", images=["test", "base"])
        until(lambda: fetched() > 0 and lab.spool("active"))
        cloud.clear_faults()
        answer = lab.result("slow")
        until(lambda: fetched() == int(answer["bytes_fetched"]))
    assert seen == sorted(seen), "a counter never goes back"


def test_what_was_taken_over_is_counted(measured: tuple[Lab, int]) -> None:
    lab, port = measured
    lab.archive()
    peer = lab.peer(dead=True)
    lab.drop("theirs")
    assert peer.spool.take("theirs.yaml")
    with lab.running():
        lab.result("theirs")
        assert until(lambda: parse(ask(port))["watcherd_takeovers_total",]) == 1


def test_metrics_answer_while_the_spool_does_not(measured: tuple[Lab, int]) -> None:
    lab, port = measured
    mark = lab.root / "results/.layout"
    with lab.running() as daemon:
        until(lambda: parse(ask(port))["watcherd_fault", "storage_error"] == 0)
        mark.rename(lab.root / "away")
        daemon.await_log("the spool does not work")
        until(lambda: parse(ask(port))["watcherd_fault", "storage_error"] == 1)
        until(lambda: parse(ask(port))["watcherd_scan_age_seconds",] > 1)
        (lab.root / "away").rename(mark)
        until(lambda: parse(ask(port))["watcherd_fault", "storage_error"] == 0)


def test_a_textfile_is_whole_readable_and_goes_with_the_daemon(lab: Lab) -> None:
    directory = lab.root / "collector"
    directory.mkdir()
    path = directory / "watcherd.prom"
    lab.write_config(metrics={"textfile": str(path)})
    with lab.running():
        until(path.exists)
        text = path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert os.listdir(directory) == ["watcherd.prom"], "nothing half-made stays"
    assert parse(text)["watcherd_workers",] == 2
    promtool("check", "metrics", text=text)
    assert os.listdir(directory) == [], "numbers that nobody brings up to date would lie"


def test_a_port_that_is_taken_is_said_once_and_tried_again(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        lab.write_config(metrics={"http": f"127.0.0.1:{port}"})
        lab.archive()
        with lab.running() as daemon:
            daemon.await_log("metrics.http")
            assert lab.ask()["state"] == "staged", "the work goes on"
            moved = free_port()
            lab.write_config(metrics={"http": f"127.0.0.1:{moved}"})
            daemon.process.send_signal(signal.SIGHUP)
            daemon.await_log("metrics.http works again")
            assert parse(ask(moved))["watcherd_workers",] == 2
            assert daemon.log.count("Address already in use") == 1


@pytest.mark.parametrize(
    "metrics",
    [{"http": "here"}, {"http": ":0"}, {"http": "127.0.0.1:99999"}, {"http": "a b:9"},
     {"textfile": "relative.prom"}, {"textfile": "/tmp/metrics.txt"}, {"textfile": "/tmp/.prom/"}],
    ids=str,
)  # fmt: skip
def test_a_place_that_can_not_be_is_a_fault_of_the_configuration(
    lab: Lab, metrics: dict[str, str]
) -> None:
    lab.write_config(metrics=metrics)
    done = lab.once()
    assert done.returncode == 2
    assert "wanted" in done.stderr


# -- contrib ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Return the names of all samples that a daemon gives."""
    lab, port = Lab(tmp_path_factory.mktemp("known")), free_port()
    lab.write_config(metrics={"http": f"127.0.0.1:{port}"})
    lab.init().archive()
    try:
        with lab.running():
            lab.ask(BUILD)
            lab.ask(ABSENT, wait=0)
            until(lambda: ("watcherd_requests_total", "", "staged") in parse(ask(port)))
            return {name for name, *_ in parse(ask(port))}
    finally:
        lab.end()


@pytest.mark.parametrize("path", [RULES, DASHBOARD], ids=lambda path: path.name)
def test_alerts_and_dashboard_use_metrics_that_exist(path: Path, known: set[str]) -> None:
    used = set(re.findall(r"\bwatcherd_[a-z_]+", path.read_text()))
    assert len(used) > 5
    assert used <= known


def test_the_dashboard_shows_every_metric(known: set[str]) -> None:
    shown = DASHBOARD.read_text()
    left_out = {"watcherd_instances", "watcherd_paused", "watcherd_staged_images_total"}
    assert {name for name in known if name not in shown} == left_out


def test_the_dashboard_is_sound() -> None:
    data: dict[str, Any] = json.loads(DASHBOARD.read_text())
    panels = data["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells), "panels lie upon each other"
    assert max(x for x, _ in cells) < 24
    for panel in panels:
        assert all(target["expr"] for target in panel["targets"])
        assert panel["title"]


def test_the_dashboard_s_queries_are_sound(tmp_path: Path) -> None:
    expressions = [
        target["expr"].replace("$instance", ".*")
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for target in panel["targets"]
    ]
    rules = [{"record": f"check:{n}", "expr": expr} for n, expr in enumerate(expressions)]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", str(path))


def test_the_alerts_go_off_when_they_should(tmp_path: Path) -> None:
    promtool("check", "rules", str(RULES))
    labels = 'instance="lab-7"'
    series = {
        f"watcherd_heartbeat_age_seconds{{{labels}}}": "0+60x20",
        f'watcherd_fault{{{labels}, code="no_space"}}': "1x20",
        f'watcherd_fault{{{labels}, code="storage_error"}}': "0x20",
        f"watcherd_oldest_waiting_seconds{{{labels}}}": "4000+60x20",
        f'watcherd_filesystem_free_bytes{{{labels}, tree="static"}}': "5x20",
        f'watcherd_filesystem_size_bytes{{{labels}, tree="static"}}': "100x20",
        f"watcherd_takeovers_total{{{labels}}}": "0+1x20",
        f'watcherd_requests_total{{{labels}, state="failed", code="archive_corrupt"}}': "0+1x20",
    }
    firing = {
        "WatcherdIsSilent": 1, "WatcherdIsGone": 1, "WatcherdMeetsAFault": 1,
        "WatcherdQueueIsOld": 1, "WatcherdFailsRequests": 1, "WatcherdDiskIsFull": 1,
        "WatcherdTakesOver": 1, "WatcherdHasStrangeEntries": 0,
        "WatcherdArchivesAreUnavailable": 0,
    }  # fmt: skip
    assert set(firing) == {
        rule["alert"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    }
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": s, "values": v} for s, v in series.items()],
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}})',
                        "eval_time": "19m",
                        "exp_samples": [{"labels": "{}", "value": count}] if count else [],
                    }
                    for name, count in firing.items()
                ],
            }
        ],
    }
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump(test))
    promtool("test", "rules", str(path))
