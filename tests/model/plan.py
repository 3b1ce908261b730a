"""What may happen in a history, and the small world it happens in."""

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from archives import make_archive, make_image

from model.network import Odds
from model.turns import Scheduler
from stager.config import Config
from stager.layout import Build

LEASE, HEARTBEAT, RESCAN = 30.0, 4.0, 5.0
BUCKET = "chromeos-image-archive"
FILES = {"test": "chromiumos_test_image.bin", "base": "chromiumos_base_image.bin"}
ABSENT = {"recovery": "recovery_image.bin"}
"""What may be asked for, and no archive holds."""
BUILDS = (Build(BUCKET, "x86-alex-release", "R23-1"), Build(BUCKET, "lumpy-release", "R24-2"))
NAMES = ("nightly.yaml", "a.yaml", "a.json", "b.yaml", "c.yaml", "d.yaml")


@dataclass(slots=True)
class Plan:
    """What may happen in a history; drawn from its seed."""

    machines: int
    chaos_seconds: float
    drops: int
    odds: Odds
    retention: bool
    force: bool
    tick: float
    """The server's clock, in seconds."""
    ambush: float
    """How likely a step that others see is the last for a while, or for good."""
    ambushes: tuple[str, ...]
    """Where, by the beginning of a path."""
    zombies: float
    """How likely who is paused sleeps until somebody else has taken its work."""
    redrop: float
    """How likely a NAME is used again just when its file is taken."""
    woken: float
    """How likely a machine hears of a drop at once."""
    late_seconds: tuple[float, float, float]
    """How long, in the mean, duplicates are under way."""
    just_then: float
    """How likely what is under way for a work directory arrives when the token is taken over."""
    builds: int
    """How many builds are asked for."""
    absent: float
    """How likely a request asks for what the archive does not hold."""
    clones: bool
    """Whether all machines have one machine id."""
    foreign: bool
    """Whether a build's directory holds a file of somebody else's, and the flag a line."""
    cached_seconds: float
    """How long names may be cached: less than the lease, or more."""
    held_up: float
    """How likely who makes something is held up then, for `hung_seconds`."""
    held_up_at: str
    """What that is, by its beginning."""
    hung: float
    """How likely it is a worker's call that stalls."""
    hung_seconds: float
    looked_at: float
    """How likely who looks for it just then is held up, rather than retention."""
    watched: float
    """For how long, at most, retention stands still where somebody uses what it removes.

    Less than 0: nobody does.
    """
    events: dict[str, float]
    """How likely each kind of event is, beside the others."""

    @classmethod
    def draw(cls, world: Scheduler) -> "Plan":
        rng = world.rng

        retention = rng.random() < 0.3

        def some(most: float) -> float:
            return rng.choice((0.0, most / 4, most, most * 2))

        return cls(
            machines=rng.choice((2, 2, 3)),
            chaos_seconds=600.0 if retention else rng.choice((60.0, 120.0)),
            drops=rng.randint(3, 7),
            odds=Odds(
                again=some(0.02), duplicate=some(0.03), lost=some(0.01), lost_late=some(0.005),
                refused=some(0.003), stale_listing=rng.choice((0.0, 0.5, 1.0)),
                split_listing=some(0.15),
                stale_name=rng.choice((0.0, 0.3, 0.8)),
                slow=some(0.01),
                busy=rng.choice((0.0, 0.0, 0.1)),
            ),
            retention=retention,
            force=rng.random() < 0.4,
            tick=rng.choice((0.05, 0.2, 1.0)),
            ambush=some(0.01),
            ambushes=("spool/active", "spool/done", "static/images", "static/.st"),
            zombies=0.6,
            redrop=some(0.05),
            woken=0.5,
            just_then=0.0,
            late_seconds=(0.3, 3.0, 30.0),
            builds=len(BUILDS),
            absent=rng.choice((0.0, 0.1)),
            clones=rng.random() < 0.15,
            foreign=rng.random() < 0.3,
            cached_seconds=rng.choice((30.0, 30.0, 60.0)),
            held_up=0.0,
            held_up_at="mkdir spool/tmp/",
            hung=0.0,
            hung_seconds=300.0,
            looked_at=0.0,
            watched=0.0,
            events={
                "drop": 6.0, "withdraw": 0.5, "kill": some(0.5), "cut power": some(0.5),
                "pause": some(1.0), "stall": some(1.0), "stall heart": some(0.5), "cut": some(0.5),
                "stop": some(0.5), "clock": 0.3, "archive": 0.3, "server away": some(0.2),
            },
        )  # fmt: skip


def configuration(root: str, *, retention: bool) -> Config:
    """Return the daemons' configuration, for a spool below `root`."""
    return Config.model_validate(
        {
            "spool": f"{root}/spool", "static": f"{root}/static", "results": f"{root}/results",
            "archive": {"source": "directory", "directory": f"{root}.archive", "buckets": [BUCKET]},
            "images": FILES | ABSENT, "lease": f"{LEASE:g}s", "heartbeat": f"{HEARTBEAT:g}s",
            "rescan": f"{RESCAN:g}s", "settle": "0.3s", "watch": "poll", "min_free": "0",
            "wait_for_archive": "600s",
            "retention": {"builds": {"age": "240s"}} if retention else {},
        }
    )  # fmt: skip


@cache
def archive_bytes(version: int, build: int) -> tuple[bytes, dict[str, bytes]]:
    """Return an archive and its images; versions of a build differ in the test image."""
    images = {
        FILES["test"]: make_image(100 * build + version, 9_000),
        FILES["base"]: make_image(7 + build, 5_000),
    }
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "image.zip"
        make_archive(path, images, extra=False)
        return path.read_bytes(), images
