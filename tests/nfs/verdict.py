"""What a run came to, judged from what is on the server's disk and what its kernel saw happen."""

import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from lab import FILES
from traffic import Ask, known, url

from stager.layout import Claim
from stager.lock import Token

GOOD = {"staged", "already_staged"}
ENDED = ("done", "failed", "cancelled")
EMPTY = ("spool/active", "spool/waiting", "spool/private", "static/.stager/work")
Event = tuple[float, str, str, str]


@dataclass
class Verdict:
    """The columns of docs/reliability.md; `problems` says in words what is not zero."""

    requests: int = 0
    lost: int = 0
    answered_twice: int = 0
    wrong: int = 0
    partial_reads: int = 0
    double_staging: int = 0
    reads: int = 0
    stale: int = 0
    most_starts: int = 0
    """How often the most unlucky request was started."""
    seconds: float = 0.0
    recovered_seconds: float = 0.0
    struck: str = ""
    """What shows that the fault struck."""
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def judge(home: Path, asks: list[Ask]) -> Verdict:
    """Judge a run that has ended and was taken home."""
    verdict = Verdict(requests=len(asks))
    events = read_events(home.parent / f"{home.name}.events")
    _answers(home, asks, events, verdict)
    _images(home, verdict)
    _staging(events, verdict)
    _publications(events, verdict)
    reader = json.loads((home / "reader.json").read_text())
    verdict.reads, verdict.stale = (
        reader["counts"].get("images", 0),
        reader["counts"].get("stale", 0),
    )
    verdict.partial_reads += len(reader["bad"])
    verdict.problems += reader["bad"]
    if not verdict.reads:
        verdict.problems.append("the reader has read no image")
    for room in EMPTY:
        verdict.problems += [f"left in {room}: {p.name}" for p in (home / room).iterdir()]
    for log in home.glob("*.log"):
        if "Traceback" in log.read_text():
            verdict.problems.append(f"a traceback in {log.name}")
    return verdict


def read_events(path: Path) -> list[Event]:
    """Return what the server saw, in its order."""
    lines = path.read_text().splitlines()
    return [tuple(json.loads(line)) for line in lines if line.endswith("]")]


def _answers(home: Path, asks: list[Ask], events: list[Event], verdict: Verdict) -> None:
    """See that every request has one answer, that it is right, and that it ended once."""
    names = (p.name for room in ENDED for p in (home / "spool" / room).iterdir())
    claims = [claim for claim in map(Claim.parse, names) if claim]
    ended = Counter(claim.file for claim in claims)
    verdict.most_starts = max((claim.a for claim in claims), default=0)
    published = Counter(n for _, place, kind, n in events if (place, kind) == ("results", "to"))
    for ask in asks:
        path = home / "results" / f"{ask.name}.yaml"
        if not path.exists():
            verdict.lost += 1
            verdict.problems.append(f"{ask.name} has no answer")
            continue
        times = max(ended[f"{ask.name}.yaml"], published[path.name])
        if times != 1:
            verdict.answered_twice += 1
            verdict.problems.append(f"{ask.name} was answered {times} times")
        answer = yaml.load(path.read_bytes(), yaml.BaseLoader)
        images = {name: image["state"] for name, image in answer.get("images", {}).items()}
        right = answer["state"] in GOOD and answer["build"] == url(ask.build)
        if not right or set(images) != set(ask.images) or not set(images.values()) <= GOOD:
            verdict.wrong += 1
            verdict.problems.append(f"{ask.name}: {answer}")


def _images(home: Path, verdict: Verdict) -> None:
    """See that the tree holds just the wanted images, whole, and flags that are true."""
    for directory, images in known(home).items():
        path = home / "static" / directory
        there = {p.name for p in path.iterdir()} if path.is_dir() else set()
        good = set()
        for image, (file, size, crc32) in images.items():
            if file in there:
                data = (path / str(file)).read_bytes()
                good.add(image)
                if (len(data), zlib.crc32(data)) != (size, crc32):
                    verdict.partial_reads += 1
                    verdict.problems.append(f"{directory}/{file} is not whole")
        flag = (path / "staged").read_text().split() if "staged" in there else []
        if set(flag) != good or there - {"staged", *FILES.values()}:
            verdict.problems.append(f"{directory}: {sorted(there)} with the flag {flag}")


def _staging(events: list[Event], verdict: Verdict) -> None:
    """See that a build had one work directory at a time, and its token one owner after another."""
    working: dict[str, set[str]] = defaultdict(set)
    last: dict[str, Token] = {}
    for moment, place, kind, name in events:
        if kind == "overflow":
            verdict.problems.append("the watcher has missed events")
        if place == "static/.stager/work":
            key = name.partition(".")[0]
            if kind == "to":
                working[key].add(name)
            elif kind in {"from", "gone"}:
                working[key].discard(name)
            owners = {Path(w).name.split(".")[2] for w in working[key]}
            if len(owners) > 1:
                verdict.double_staging += 1
                verdict.problems.append(f"at {moment}: {sorted(working[key])} at once")
        token = Token.parse(name) if place.startswith("static/.stager/locks/") else None
        if token and kind in {"to", "there"} and token != last.get(place):
            # What is listed when a watch begins may be told a second time.
            if place in last and token.n != last[place].n + 1:
                verdict.double_staging += 1
                verdict.problems.append(f"token {place}/{name} after {last[place]}")
            last[place] = token


def _publications(events: list[Event], verdict: Verdict) -> None:
    """See that an image appeared once, and nobody wrote to it, moved or removed it after that."""
    shown = Counter((place, n) for place, n, _ in _image_events(events, {"new"}))
    for (place, name), times in shown.items():
        if times > 1:
            verdict.problems.append(f"{place}/{name} appeared {times} times")
    for place, name, kind in _image_events(events, {"write", "from", "to", "gone"}):
        verdict.partial_reads += 1
        verdict.problems.append(f"{place}/{name} was changed: {kind}")


def _image_events(events: list[Event], kinds: set[str]) -> Iterator[tuple[str, str, str]]:
    for _, place, kind, name in events:
        if place.startswith("static/images") and kind in kinds and re.search(r"\.bin$", name):
            yield place, name, kind


def answered_at(events: list[Event]) -> dict[str, float]:
    """Return when each answer appeared, by the server's monotonic clock."""
    return {n: t for t, place, kind, n in reversed(events) if (place, kind) == ("results", "to")}
