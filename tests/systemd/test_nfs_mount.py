"""The service on a real NFS mount, under a real systemd, on a kernel of its own."""

import os
import subprocess
from pathlib import Path

import pytest
from archives import make_archive, make_image
from lab import FILES, ROOT
from lab.transcript import tell

pytestmark = [pytest.mark.timeout(1200)]


def test_the_sandbox_lets_it_work_on_nfs_and_a_server_that_is_away_restarts_nothing(
    public_dir: Path,
) -> None:
    archive = public_dir / "archive"
    for version in ("1", "2"):
        path = archive / f"chromeos-image-archive/x86-alex-release/R23-{version}.0.0/image.zip"
        path.parent.mkdir(parents=True)
        make_archive(path, images={f: make_image(1, 300_000) for f in FILES.values()})
    lab = "/mnt/lab"
    subprocess.run(
        ["make", "-s", "install", f"DESTDIR={public_dir}/root", f"SPOOL={lab}/spool",
         f"STATIC={lab}/static", f"RESULTS={lab}/results"],
        cwd=ROOT, check=True, timeout=450, capture_output=True,
    )  # fmt: skip
    config = public_dir / "root/etc/stager/config.yaml"
    text = config.read_text().replace("source: gcs ", "source: directory ")
    config.write_text(text.replace('directory: ""', "directory: /opt/archive"))
    run = ROOT / "tests/lab/uml-run.sh"
    guest = ROOT / "tests/systemd/nfs-guest.sh"
    script = public_dir / "guest.sh"
    script.write_text(guest.read_text())
    done = subprocess.run(
        ["bash", run, "-t", "600", "-d", "128", "-k", "SYSTEMD=1", "--", "bash", script],
        env=os.environ | {"LAB": str(public_dir)}, capture_output=True, check=False, timeout=630,
    )  # fmt: skip
    printed = public_dir / "out"
    out = printed.read_text(errors="replace") if printed.exists() else ""
    tell("the service on an NFS mount, in a machine with a kernel of its own", out)
    assert done.returncode == 0, f"{out}\n{done.stdout[-2000:]!r}"
    said = dict(line.split(": ", 1) for line in out.splitlines() if ": " in line)
    assert said["mounted"] == "nfs4", out
    assert said["status"].endswith("; poll")
    assert " rescan=3.0 " in out, "the installed configuration leaves it to the filesystem"
    assert said["first"] == said["second"] == "state: staged", out
    assert said["outage"].startswith("active ")
    assert "does not answer since" in said["outage"]
    assert (said["restarts"], said["result"]) == ("0", "success")
