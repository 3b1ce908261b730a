"""`stager probe` from two clients of a real NFS server at once."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from lab import ROOT
from machines import outcome, said


@pytest.mark.timeout(300)
@pytest.mark.parametrize("version", ["4.2", "3"])
def test_two_clients_of_one_server_find_that_nfs_keeps_what_is_needed(version: str) -> None:
    with tempfile.TemporaryDirectory(prefix="watcherd-nfs-") as directory:
        lab = Path(directory)
        guest = [str(ROOT / "tests/nfs/guest_probe.sh"), version, sys.executable, str(ROOT)]
        done = subprocess.run(
            [str(ROOT / "tests/lab/uml-run.sh"), "-t", "240", "-d", "256", "--", "bash", *guest],
            env=os.environ | {"LAB": str(lab)}, capture_output=True, text=True, timeout=280,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        told = "".join((lab / f"{n}.{kind}").read_text() for n in "ab" for kind in ("err", "json"))
        assert [(lab / f"{n}.code").read_text() for n in "ab"] == ["0\n", "0\n"], told
        a, b = (json.loads((lab / f"{n}.json").read_text()) for n in "ab")
        assert (lab / "left").read_text() == "", "nothing is left"
    assert a["verdict"] == b["verdict"] == "yes"
    assert [machine["host"] for machine in a["machines"]] == ["lab-a", "lab-b"]
    for question in ("one winner", "links at once", "fences", "fresh listings", "clocks"):
        assert outcome(a, question) == "yes", said(a, question)
    assert f"nfs{'4' if version == '4.2' else ''} {version}" in said(a, "mount")
    assert "no events of other machines" in said(a, "events")
    figures = next(
        trial["figures"]
        for trial in a["machines"][0]["trials"]
        if trial["name"] == "fresh listings"
    )
    assert figures["old_after_touch"] == 0
    if version == "4.2":
        assert figures["old"] == 0, "NFSv4 has a change counter"
