"""Real NFS, two machines with real daemons, one spool; the longer runs are in soak.py."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import scenarios
from network import OneKernel, one_kernel
from soak import note
from traffic import make_builds
from verdict import Verdict

VERSIONS = [pytest.param(v, marks=pytest.mark.xdist_group(f"nfs{v}")) for v in ("4.2", "3")]
"""Each is one guest, so one worker's; the two side by side."""


@pytest.fixture(scope="module", params=VERSIONS)
def machines(request: pytest.FixtureRequest) -> Iterator[OneKernel]:
    lab = Path(tempfile.mkdtemp(prefix="watcherd-nfs-"))
    lab.chmod(0o755)
    make_builds(lab)
    try:
        with one_kernel(lab, request.param) as made:
            yield made
    finally:
        shutil.rmtree(lab)


def nothing_is_wrong(machines: OneKernel, scenario: str, verdict: Verdict) -> None:
    note(scenario, machines.version, verdict)
    assert not verdict.problems, "\n".join(verdict.problems)
    counts = (verdict.lost, verdict.answered_twice, verdict.wrong)
    assert (*counts, verdict.partial_reads, verdict.double_staging) == (0,) * 5


@pytest.mark.timeout(600)
def test_200_requests_from_two_machines_are_answered_once(machines: OneKernel) -> None:
    nothing_is_wrong(machines, "two machines", scenarios.plain(machines))


@pytest.mark.timeout(600)
def test_a_machine_cut_off_past_the_lease_loses_nothing(machines: OneKernel) -> None:
    verdict = scenarios.cut(machines, scenarios.LONG_CUT, count=60)
    nothing_is_wrong(machines, "cut off for longer than the lease", verdict)


@pytest.mark.timeout(600)
def test_a_worker_that_was_stopped_and_taken_over_publishes_nothing(machines: OneKernel) -> None:
    verdict = scenarios.stopped(machines, ("link", "commit"), count=40)
    nothing_is_wrong(machines, "worker stopped past the lease", verdict)
