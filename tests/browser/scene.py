"""A lab in the middle of a busy day, for the browser's tests and the pictures in the documents."""

import json
import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from archives import make_image
from cloud import Cloud
from lab import BUCKET, FILES, Lab, until

from stager import __version__, durable
from stager.layout import Waiting
from stager.plot import SLICE_SECONDS
from stager.result import stamp
from stager.snapshot import Board, SamplePart

BOARDS = ("x86-alex", "lumpy", "stumpy", "daisy", "link", "parrot")
HOSTILE = "<img src=x onerror=alert(1)> & '<script>alert(2)<-script>"


def build(number: int) -> str:
    """Return one build's URL of many."""
    return f"gs://{BUCKET}/{BOARDS[number % len(BOARDS)]}-release/R23-28{number:02}.0.0"


def yesterday(results: Path) -> None:
    """Leave the history of a working day, as an earlier daemon would have."""
    chance, now = random.Random(23), int(time.time())
    samples: list[SamplePart] = []
    waiting = 0.0
    for ago in range(86400 // SLICE_SECONDS - 1, 0, -1):
        at = (now // SLICE_SECONDS - ago) * SLICE_SECONDS
        busy = max(0.0, math.sin(ago / 91) + 0.25 + chance.uniform(-0.3, 0.3))
        waiting = 0.7 * waiting + 0.3 * busy**2 * 34
        samples.append(
            SamplePart(
                time=at, waiting=int(waiting), active=min(4, int(busy * 4)),
                fetched_bytes=int(busy * 92e6 * SLICE_SECONDS * chance.uniform(0.7, 1)),
                good=int(busy * 3), bad=int(chance.random() < 0.03),
            )
        )  # fmt: skip
    board = Board(
        time=stamp(now), version=__version__, slice_seconds=SLICE_SECONDS, history=samples
    )
    path = results / "status.json"
    path.write_text(json.dumps(board.as_dict()))


def put_in_waiting(lab: Lab, number: int, age: float, due_in: float, starts: int) -> None:
    """Have a request that waits since `age` seconds."""
    now = time.time()
    arrived = f"{int((now - age) * 1e9)}-abcd{number:02}"
    name = f"nightly-lab{number % 5}-{number}.yaml"
    due = int(now + due_in)
    entry = Waiting(5, due, 1000 + number % 3, name, arrived, 1, starts, durable.nonce())
    path = lab.root / "spool/tmp" / durable.nonce()
    path.write_text(yaml.safe_dump({"build": build(number), "images": ["test"]}))
    path.rename(lab.root / "spool/waiting" / str(entry))


@contextmanager
def busy(root: Path) -> Iterator[Lab]:
    """Have a daemon at work: two downloads under way, requests that wait, failed, were refused."""
    with Cloud() as cloud:
        settings = {"archive": {"source": "gcs", "connections": 1}, "workers": 3, "lease": "60s"}
        lab = Lab(root, settings, {"STORAGE_EMULATOR_HOST": cloud.url}).init()
        yesterday(root / "results")
        for number in range(6):
            lab.upload(cloud, build(number))
        big = {FILES["test"]: make_image(1, 24_000_000), FILES["base"]: make_image(2, 24_000_000)}
        for number in (6, 7, 8):
            lab.upload(cloud, build(number), images=big)
        try:
            with lab.running():
                fill(lab)
                cloud.slow(60_000)
                for number in (7, 8):
                    lab.drop(f"nightly-lab{number}-{number}", build(number), ["test", "base"])
                until(lambda: len(lab.spool("active")) == 2, "two downloads")
                for number in range(20, 26):
                    lab.drop(f"nightly-lab{number % 5}-{number}", build(number))
                put_in_waiting(lab, 40, age=900, due_in=1500, starts=2)
                yield lab
                cloud.clear_faults()
        finally:
            lab.end()


def fill(lab: Lab) -> None:
    """Have requests answered, well and badly."""
    for number in range(6):
        lab.result(lab.drop(f"nightly-lab{number}-{number}", build(number), ["test", "base"]))
    lab.result(lab.drop("again", build(0)))
    lab.result(lab.drop("too-early", build(60), wait=0))
    lab.result(lab.drop("typo", build(1), ["tset"]))
    lab.result(lab.drop("other-bucket", "gs://somewhere-else/x86-alex-release/R23-2811.0.0"))
    other = lab.requests / "README.txt"
    other.write_text("drop requests here\n")
