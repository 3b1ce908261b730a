"""The unit under a real systemd: start, configuration, crash, reload, stop, sandbox."""

import json
import re
import signal

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from lab import until
from lab.machine import Machine

pytestmark = [pytest.mark.xdist_group("systemd"), pytest.mark.timeout(600)]


# -- the files ----------------------------------------------------------------------------------


def test_systemd_finds_nothing_wrong_with_the_units(machine: Machine) -> None:
    for unit in ("watcherd.service", "watcherd@x.service"):
        done = machine.run("systemd-analyze", "--man=no", "verify", unit)
        ours = [line for line in done.stderr.splitlines() if "watcherd" in line]
        assert ours == []
    assert "ProtectSystem=strict" in machine.systemctl("cat", "watcherd")


@pytest.mark.parametrize("unit", ["watcherd.service", "watcherd@x.service"])
def test_the_sandbox_is_tight(machine: Machine, said: list[object], unit: str) -> None:
    done = machine.run("systemd-analyze", "security", "--offline=true", "--threshold=15", unit)
    score = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert score
    assert float(score[1]) <= 1.5
    said.append(f"systemd-analyze security --offline {unit}: {score[1]}")
    assert "✗ PrivateUsers=" in done.stdout, "all submitters would be one"


# -- start --------------------------------------------------------------------------------------


def test_it_is_started_when_it_watches_and_says_how_it_is(machine: Machine) -> None:
    machine.archive()
    service = machine.service("status")
    service.start()
    text = service.show("StatusText")
    assert re.fullmatch(r"0 active, 0 waiting; last scan \d\d:\d\d:\d\d; inotify", text)
    assert service.result(service.drop())["state"] == "staged"
    service.stop()
    assert service.show("Result") == "success"


def test_the_journal_has_one_line_an_event_with_its_level(machine: Machine) -> None:
    machine.archive()
    service = machine.service("journal")
    service.start()
    good = service.result(service.drop())["request_id"]
    bad = service.result(service.drop(["factory"]))["request_id"]
    service.stop()
    ours = [e for e in service.journal() if e.get("_SYSTEMD_UNIT") == service.unit]
    said = {rid: [e for e in ours if rid in e["MESSAGE"]] for rid in (good, bad)}
    assert [e["PRIORITY"] for e in said[good]] == ["6", "6", "6"]
    assert [e["PRIORITY"] for e in said[bad]] == ["4"]
    assert "invalid images requested: ['factory']" in said[bad][0]["MESSAGE"]
    rest = [e["MESSAGE"] for e in ours if e not in said[good] + said[bad]]
    words = [line.partition("] ")[2].split()[0] for line in rest]
    # What it says of the mounts of this machine, whose disk is an overlay, is not asked for here.
    assert [word for word in words if not word.startswith("/")] == ["watching", "stopped"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("workers: many\n", "{config}:1:1: `workers`"),
        (None, "can't read the configuration {config}"),
        ("spool: /srv/none\nstatic: /srv/none\nresults: /srv/none\n", "run `stager init` once"),
    ],
    ids=["a bad value", "no file", "no spool"],
)
def test_what_is_not_right_ends_with_2_and_is_not_tried_again(
    machine: Machine, config: str | None, said: str
) -> None:
    service = machine.service(f"bad{abs(hash(said)) % 1000}")
    path = machine.root / service.config.lstrip("/")
    path.unlink() if config is None else path.write_text(config)
    machine.run("systemctl", "start", service.unit, check=False)
    until(lambda: service.show("ActiveState") == "failed")
    assert (service.show("ExecMainStatus"), service.show("NRestarts")) == ("2", "0")
    [entry] = [e for e in service.journal() if said.format(config=service.config) in e["MESSAGE"]]
    assert entry["PRIORITY"] == "3"
    assert "Traceback" not in service.log()


def test_directories_that_the_sandbox_keeps_it_from_are_told_with_the_remedy(
    machine: Machine,
) -> None:
    service = machine.service("outside", "ReadWritePaths=\n")
    machine.run("systemctl", "start", service.unit, check=False)
    # It may be a disk that was remounted, too: so it is tried again.
    until(lambda: "`make install SPOOL= STATIC= RESULTS=`" in service.log())
    assert service.show("ExecMainStatus") == "1"
    service.stop()


def test_a_mount_comes_first_and_a_late_one_starts_it(machine: Machine) -> None:
    machine.archive()
    service = machine.service("mounted")
    mount = machine.disk(service)
    service.drop_in(f"[Install]\nWantedBy={mount}\n")
    machine.systemctl("enable", service.unit)
    machine.run("mv", "/srv/mounted.img", "/srv/away.img")
    machine.run("systemctl", "start", service.unit, check=False)
    assert service.show("ActiveState") == "inactive", service.log()
    machine.run("mv", "/srv/away.img", "/srv/mounted.img")
    machine.systemctl("start", mount)
    until(lambda: service.show("ActiveState") == "active", service.log())
    mounted = machine.systemctl("show", "-p", "ActiveEnterTimestampMonotonic", "--value", mount)
    assert int(mounted) <= int(service.show("ExecMainStartTimestampMonotonic"))
    assert service.result(service.drop())["state"] == "staged"
    service.stop()
    machine.systemctl("stop", mount)


# -- crash, reload, stop ------------------------------------------------------------------------


def test_a_crash_is_started_again_and_the_request_goes_on(machine: Machine) -> None:
    with machine.cloud() as cloud:
        service = machine.service("crash", **machine.reading(cloud))
        service.start()
        name = service.drop()
        until(lambda: cloud.hits("media"))
        service.send(signal.SIGKILL)
        until(lambda: service.show("NRestarts") == "1")
        cloud.clear_faults()
        result = service.result(name)
        assert (result["state"], result["attempts"]) == ("staged", "2")
        service.stop()


def test_however_often_it_crashes_it_is_started_again(machine: Machine) -> None:
    service = machine.service("often")
    service.start()
    for number in range(1, 8):  # systemd itself would give up at five within ten seconds
        service.send(signal.SIGKILL)
        until(lambda n=number: service.show("NRestarts") == str(n))  # type: ignore[misc]
        until(lambda: service.show("ActiveState") == "active")
    service.stop()


def test_a_reload_takes_a_good_file_and_refuses_a_bad_one(machine: Machine) -> None:
    service = machine.service("reload")
    service.start()
    service.write_config(workers=3)
    machine.systemctl("reload", service.unit)
    until(lambda: "the configuration was read again" in service.log())
    service.write_config(workers="many")
    done = machine.run("systemctl", "reload", service.unit, check=False)
    assert done.returncode != 0
    assert "`workers`" in service.log()
    # Who sends the signal himself is told, too; the old settings hold.
    machine.systemctl("kill", "-s", "HUP", "--kill-whom=main", service.unit)
    until(lambda: "the old settings stay" in service.show("StatusText"))
    assert (service.show("ActiveState"), service.show("NRestarts")) == ("active", "0")
    service.stop()


def test_stopped_in_the_middle_of_a_download_it_gives_the_request_to_another(
    machine: Machine,
) -> None:
    with machine.cloud() as cloud:
        service = machine.service("stop", **machine.reading(cloud))
        other = machine.service("other", **machine.reading(cloud))
        other.settings |= {k: service.settings[k] for k in ("spool", "static", "results")}
        other.write_config()
        other.drop_in(
            f"[Service]\nEnvironment=STORAGE_EMULATOR_HOST={cloud.url}\n"
            f"ReadWritePaths={service.inside}\n"
        )
        service.start()
        name = service.drop()
        until(lambda: cloud.hits("media"))
        service.stop()
        assert service.show("Result") == "success"
        assert service.spool("active") == service.spool("instances") == []
        assert [w.partition(".u0.")[2][: len(name)] for w in service.spool("waiting")] == [name]
        cloud.clear_faults()
        other.start()
        result = service.result(name)
        assert (result["state"], result["attempts"]) == ("staged", "1")
        other.stop()


def test_a_key_that_only_root_may_read_is_used(machine: Machine) -> None:
    with machine.cloud() as cloud:
        cloud.clear_faults()
        cloud.require_token = True
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        info = {"type": "service_account", "client_email": "a@b.invalid",
                "token_uri": f"{cloud.url}/token", "private_key_id": "1",
                "private_key": key.private_bytes(*form).decode()}  # fmt: skip
        machine.write("/etc/stager/key.json", json.dumps(info), 0o600)
        service = machine.service("key", **machine.reading(cloud))
        service.settings["archive"]["credentials"] = "/etc/stager/key.json"
        service.write_config()
        service.start()
        assert service.result(service.drop())["state"] == "staged"
        assert cloud.hits("token")
        service.stop()
