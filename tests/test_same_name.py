"""One NAME used again before its answer has come: every file taken is answered, exactly once."""

import os

import pytest
import yaml
from lab import BUCKET, Lab, until
from yard import HEAD


@pytest.mark.parametrize("workers", [1, 4])
def test_a_name_used_thirty_times_quickly_is_answered_once_for_each_file_taken(
    lab: Lab, workers: int
) -> None:
    builds = [f"gs://{BUCKET}/x86-alex-release/R{n}" for n in range(5)]
    for build in builds:
        lab.archive(build)
    lab.write_config(workers=workers)
    kept = []
    with lab.running():
        for number in range(30):
            request = {"build": builds[number % 5], "images": ["test"], "note": f"n{number}"}
            (lab.requests / ".new").write_text(yaml.safe_dump(request))
            kept.append((lab.requests / ".new").open())  # tells later whether it was replaced
            os.rename(lab.requests / ".new", lab.requests / "x.yaml")
            if number % 3 == 0:  # now and then it is gone before the next one comes
                until(lambda: not os.listdir(lab.requests))
        until(lambda: not os.listdir(lab.requests) and lab.is_clean(), "all answered")
    taken = [n for n, file in enumerate(kept) if os.fstat(file.fileno()).st_nlink]
    for file in kept:
        file.close()
    ended = stored(lab, "x")
    assert sorted(note for _, note in ended) == sorted(f"n{n}" for n in taken)
    assert {*range(0, 30, 3), 29} <= set(taken)
    last = lab.result("x")
    assert (last["request_id"], last["note"]) in ended


def stored(lab: Lab, name: str) -> list[tuple[str, str]]:
    """Return the requests in done/ that were dropped as NAME: id and note of each."""
    done = [claim for claim in lab.ended(name) if str(claim) in lab.spool("done")]
    return [(c.request_id, yaml.safe_load(_bytes(lab, str(c)))["note"]) for c in done]


def _bytes(lab: Lab, entry: str) -> bytes:
    return (lab.root / "spool/done" / entry).read_bytes()


def test_a_name_linked_thirty_times_is_answered_thirty_times(lab: Lab) -> None:
    lab.archive()
    with lab.running():
        for number in range(30):
            lab.requests.joinpath(".new").unlink(missing_ok=True)
            lab.requests.joinpath(".new").write_text(f"{HEAD}note: n{number}\n")

            def linked() -> bool:
                try:
                    os.link(lab.requests / ".new", lab.requests / "x.yaml")
                except FileExistsError:
                    return False
                return True

            until(linked, "the NAME to be free again")
        until(lambda: len(lab.ended("x")) == 30 and lab.is_clean(), "all answered")
    ended = stored(lab, "x")
    assert sorted(note for _, note in ended) == sorted(f"n{number}" for number in range(30))
    assert len({request_id for request_id, _ in ended}) == 30
    last = lab.result("x")
    assert (last["request_id"], last["note"]) in ended
