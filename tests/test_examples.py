"""The examples work as they stand, with real daemons."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from lab import BUILD, ROOT, Lab, serving

from stager.config import IMAGES, Config
from stager.request import Rules, parse_request

EXAMPLES = ROOT / "examples"
MISSING = f"{BUILD}-missing"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with serving(wait_for_archive="0") as made:
        made.archive()
        yield made


def run(lab: Lab, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run an example in a directory of its own, as on a machine where `stager` is installed."""
    place = lab.root / "example"
    place.mkdir(exist_ok=True)
    given = {
        "SPOOL": str(lab.root / "spool"), "RESULTS": str(lab.root / "results"), "WAIT": "60",
        "STAGER_CONFIG": str(lab.config),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    return subprocess.run(
        command, env=lab.environment() | given | env, cwd=place, timeout=90,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "command", [("drop.sh", BUILD), ("drop.py", BUILD, "test", "base")], ids=lambda c: c[0]
)
def test_a_script_drops_and_waits(lab: Lab, command: tuple[str, ...]) -> None:
    name, *words = command
    done = run(lab, str(EXAMPLES / name), *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("state: ")
    failed = run(lab, str(EXAMPLES / name), MISSING, *words[1:])
    assert failed.returncode == 1, failed.stderr
    assert "archive_not_found" in failed.stdout


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        (["drop.sh"], "usage: drop.sh gs://BUCKET/PATH/BUILD\n"),
        (["drop.sh", BUILD, "base"], "usage: drop.sh gs://BUCKET/PATH/BUILD\n"),
        (["drop.py"], "usage: drop.py gs://BUCKET/PATH/BUILD IMAGE...\n"),
        (["drop.py", BUILD], "usage: drop.py gs://BUCKET/PATH/BUILD IMAGE...\n"),
    ],
    ids=["no word", "too many", "no word for python", "no image"],
)
def test_a_script_says_how_it_is_called(lab: Lab, command: list[str], wanted: str) -> None:
    name, *words = command
    before = sorted(lab.root.glob("spool/*/*"))
    done = run(lab, str(EXAMPLES / name), *words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", wanted)
    assert not [p for p in lab.root.glob("spool/requests/*") if p not in before]


def test_the_makefile(lab: Lab) -> None:
    done = run(lab, "make", "-f", str(EXAMPLES / "Makefile"), "images", f"BUILD={BUILD}")
    assert done.returncode == 0, done.stderr
    assert "staged" in (lab.root / "example/images.yaml").read_text()


def lines_of_job(name: str) -> list[str]:
    """Return the shell lines of a CI system's job."""
    text = (EXAMPLES / name).read_text()
    if name == "Jenkinsfile":
        return re.findall(r"sh '(.*)'", text)
    job = yaml.safe_load(text)["images"]
    return [*job["script"], *job["after_script"]]


@pytest.mark.parametrize("name", ["Jenkinsfile", "gitlab-ci.yml"])
def test_a_job_of_a_ci_system(lab: Lab, name: str) -> None:
    variables = {"BUILD": BUILD, "BUILD_TAG": "nightly-7", "CI_JOB_ID": "7"}
    submit, cancel = lines_of_job(name)
    done = run(lab, "sh", "-ec", submit, **variables)
    assert done.returncode == 0, done.stderr
    again = run(lab, "sh", "-ec", cancel, **variables)
    assert again.returncode == 0, "cancelling what has ended does no harm"


def test_the_sample_request_is_taken() -> None:
    data = (EXAMPLES / "request.yaml").read_bytes()
    assert parse_request(data, Rules(IMAGES, Config().archive.buckets)).images


def test_the_mailing_hook(public_dir: Path) -> None:
    mailed, mail = public_dir / "mailed", public_dir / "mail"
    mail.write_text(f'#!/bin/sh\n{{ echo "$@"; cat; }} >> {mailed}\n')
    mail.chmod(0o755)
    hook = [str(EXAMPLES / "on-done.sh"), "lab@example.org"]
    lab = Lab(public_dir, {"on_done": hook}, {"MAIL": str(mail)}).init()
    lab.archive()
    lab.drop("good")
    lab.drop("bad", images=["factory"])
    assert lab.once().returncode == 1
    head, first, _ = mailed.read_text().splitlines()
    assert head == "-s watcherd: bad rejected lab@example.org"
    assert first.startswith("bad (")
    assert "invalid_request" in first
