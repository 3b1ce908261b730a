"""`make install` on a clean machine, to a staged image over `systemctl`; upgrade; refusals."""

import json
import os

import pytest
import yaml
from lab import BUILD, until
from lab.machine import Machine

pytestmark = [pytest.mark.xdist_group("systemd"), pytest.mark.timeout(600)]
IMAGE = "x86-alex-release/R23-2811.0.0/chromiumos_test_image.bin"


def submit(machine: Machine, *options: str) -> str:
    """Ask for an image as any user, and wait."""
    words = ["stager", "submit", BUILD, "test", "--wait", "--timeout", "60", *options]
    return machine.run("runuser", "-u", "nobody", "--", *words).stdout


def releases(machine: Machine) -> list[str]:
    return sorted(os.listdir(machine.root / "opt/watcherd/releases"))


def test_a_clean_machine_stages_an_image_after_the_documented_lines(machine: Machine) -> None:
    machine.archive()
    config = machine.root / "etc/stager/config.yaml"
    text = config.read_text().replace("source: gcs ", "source: directory ")
    config.write_text(text.replace('directory: ""', "directory: /srv/archive"))
    machine.run("runuser", "-u", "stager", "--", "stager", "init")
    machine.systemctl("enable", "--now", "watcherd")
    assert "state: staged" in submit(machine)
    assert (machine.root / "srv/watcherd/static/images" / IMAGE).stat().st_size == 300_000
    status = machine.systemctl("status", "watcherd")
    assert 'Status: "0 active, 0 waiting; last scan ' in status
    assert "; inotify" in status


def test_it_is_a_fresh_debian_with_what_the_readme_asks_for(machine: Machine) -> None:
    command = ["dpkg-query", "-W", "-f", "${Package}\\n"]
    packages = set(machine.run(*command, told=False).stdout.split())
    assert {"make", "python3-venv"} <= packages
    assert not packages & {"gcc", "git", "nfs-common", "python3-pip", "python3-yaml", "strace"}
    assert 'VERSION_ID="12"' in machine.run("cat", "/etc/os-release").stdout


def test_programs_pages_and_completions_are_in_their_places(machine: Machine) -> None:
    share = machine.root / "usr/local/share"
    assert "_stager_completion" in (share / "bash-completion/completions/stager").read_text()
    assert "#compdef stager" in (share / "zsh/site-functions/_stager").read_text()
    assert "stager" in (share / "fish/vendor_completions.d/stager.fish").read_text()
    for page in ("man1/stager.1", "man8/watcherd.8", "man5/stager-request.5"):
        assert (share / "man" / page).read_text().startswith(".")
    assert "watcherd" in machine.run("watcherd", "--version").stdout
    first = (machine.root / "etc/stager/config.yaml").read_text().splitlines()[0]
    schema = machine.root / first.partition("$schema=/")[2]
    assert json.loads(schema.read_text())["title"] == "watcherd's configuration"
    run = machine.root / "run/watcherd"
    assert oct(run.stat().st_mode & 0o777) == "0o755"
    assert run.stat().st_uid == int(machine.run("id", "-u", "stager").stdout)


def test_a_packager_gets_all_of_it_below_a_root_and_nothing_elsewhere(machine: Machine) -> None:
    root, appdir = "/var/tmp/package", "/usr/lib/watcherd"
    here = machine.root / root.lstrip("/")
    machine.run("install", "-D", "-o", "4711", "/dev/null", f"{root}/srv/watcherd/spool/LAYOUT")
    machine.run("touch", "/run/before")
    machine.make("install", DESTDIR=root, PREFIX="/usr", APPDIR=appdir)
    changed = ["find", "/etc", "/opt", "/usr", "/var/lib", "-newer", "/run/before", "-type", "f"]
    assert machine.run(*changed).stdout == ""
    unit = (here / "usr/lib/systemd/system/watcherd.service").read_text()
    assert f"\nExecStart={appdir}/bin/watcherd\n" in unit
    # The user gets the number of the spool that is there.
    assert "\nu stager 4711 " in (here / "usr/lib/sysusers.d/watcherd.conf").read_text()
    assert (here / "usr/share/man/man8/watcherd.8").exists()
    assert "spool: /srv/watcherd/spool" in (here / "etc/stager/config.yaml").read_text()
    assert machine.run("grep", "-rlI", root, root, check=False).stdout == "", "it is moved later"
    machine.run("cp", "-a", f"{root}{appdir}", appdir)
    assert "watcherd " in machine.run(f"{appdir}/bin/watcherd", "--version").stdout
    machine.run("rm", "-r", appdir)
    machine.make("uninstall", DESTDIR=root, PREFIX="/usr", APPDIR=appdir)
    left = machine.run("find", root, "-type", "f", "-o", "-type", "l").stdout.split()
    assert sorted(left) == [f"{root}/etc/stager/config.yaml", f"{root}/srv/watcherd/spool/LAYOUT"]


def test_a_user_with_another_number_is_refused_before_anything_changes(machine: Machine) -> None:
    before = releases(machine)
    done = machine.make("install", STAGER_UID="4711", check=False)
    assert done.returncode != 0
    assert "usermod -u 4711 stager" in done.stderr
    assert releases(machine) == before


def test_an_upgrade_stops_at_a_configuration_that_is_not_good(machine: Machine) -> None:
    config = machine.root / "etc/stager/config.yaml"
    pid, before = machine.systemctl("show", "-p", "MainPID", "watcherd"), releases(machine)
    good = config.read_text()
    config.write_text(f"{good}\nnonsense: true\n")
    try:
        done = machine.make("install", check=False)
    finally:
        config.write_text(good)
    assert done.returncode != 0
    assert "`nonsense`: unknown key" in done.stderr
    assert machine.systemctl("show", "-p", "MainPID", "watcherd") == pid
    assert releases(machine) == before


def test_an_upgrade_keeps_what_is_in_flight_and_adds_a_spool_elsewhere(machine: Machine) -> None:
    machine.run("mkdir", "-p", "/data/b", "/data/c")
    was = machine.run("systemctl", "is-active", "watcherd", check=False).stdout
    unit = "[Mount]\nWhat=tmpfs\nWhere=/data/b\nType=tmpfs\n"
    machine.write("/run/systemd/system/data-b.mount", unit)
    machine.systemctl("daemon-reload")
    machine.systemctl("start", "data-b.mount")
    machine.run("chown", "stager", "/data/b", "/data/c")
    where = {"SPOOL": "/data/b/spool", "RESULTS": "/data/b/results", "STATIC": "/data/c/static"}
    with machine.cloud() as cloud:
        service = machine.service("upgrade", **machine.reading(cloud))
        service.start()
        name, pid, before = service.drop(), service.pid, releases(machine)
        until(lambda: cloud.hits("media"))
        machine.make("install", INSTANCE="b", check=True, **where)
        assert service.pid != pid
        cloud.clear_faults()
        result = service.result(name)
        assert (result["state"], result["attempts"]) == ("staged", "1")
        service.stop()
    assert len(set(releases(machine)) - set(before)) == 1
    assert machine.run("systemctl", "is-active", "watcherd", check=False).stdout == was

    config = machine.root / "etc/stager/b.yaml"
    settings = yaml.safe_load(config.read_text())
    assert {k.upper(): settings[k] for k in ("spool", "results", "static")} == where
    settings["archive"] = {"source": "directory", "directory": "/srv/archive"}
    config.write_text(yaml.safe_dump(settings))
    machine.run("runuser", "-u", "stager", "--", "stager", "init", "--config", "/etc/stager/b.yaml")
    machine.systemctl("enable", "--now", "watcherd@b")
    assert "state: staged" in submit(machine, "--config", "/etc/stager/b.yaml")
    assert (machine.root / "data/c/static/images" / IMAGE).exists()
    assert "data-b.mount" in machine.systemctl("show", "-p", "WantedBy", "watcherd@b")
    assert "data-b.mount" in machine.systemctl("show", "-p", "Requires", "watcherd@b")
    machine.systemctl("disable", "--now", "watcherd@b")
