"""Holds every move of a request, and every answer, against promise 1 and I1, I2."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from model.fileserver import EPOCH, Change
from stager import result
from stager.layout import ROOMS, Build, Claim

PLACES = ("active", "waiting", *ROOMS)


@dataclass(slots=True)
class Asked:
    """A request that was dropped."""

    number: int
    name: str
    data: bytes
    build: Build
    images: list[str]
    force: bool
    withdrawn: bool = False
    ended: list[str] = field(default_factory=list)
    """The claims it was committed under."""
    answers: list[str] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    """Its images that were not there when it was committed."""

    @property
    def sha(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


class Answers:
    """Knows what people asked for, and what came of it."""

    def __init__(self, root: str, files: dict[str, str], now: Callable[[], float]) -> None:
        self.root, self.files, self.now = root, files, now
        self.spool, self.static = f"{root}/spool", f"{root}/static"
        self.violations: list[str] = []
        self.asked: dict[int, Asked] = {}
        """By inode."""
        self.known: dict[tuple[str, str], set[str]] = {}
        """Build key and image: the SHA-256 of every content an archive ever had."""
        self.visible: dict[str, tuple[int, str]] = {}
        """Path of an image: its inode and SHA-256."""
        self.used: dict[tuple[str, str], float] = {}
        """Build key and image: when an answer was last made from it."""
        self.keep_seconds = 0.0
        """How long after its use an image must not be removed; 0: never."""
        self.published: dict[str, list[str]] = {}
        """Name of an answer: the ids of the requests it was published for."""
        self._claims: dict[str, Asked] = {}
        self._ids: dict[str, Asked] = {}

    def accuse(self, what: str) -> None:
        """Note a violation."""
        what = what.replace(f"{self.root}/", "")
        if what not in self.violations:
            self.violations.append(what)

    def unanswered(self) -> list[Asked]:
        """Return the requests that nobody withdrew or answered."""
        return [a for a in self.asked.values() if not a.withdrawn and not a.answers]

    def _request(self, change: Change) -> None:
        asked = self.asked.get(change.inode)
        lost = self.asked.get(change.replaced)
        if lost is not None:
            if change.who == "user":
                lost.withdrawn = True
            else:
                self.accuse(f"I1: request {lost.number} was overwritten by {change.path}")
        if asked is None:
            return
        if change.who == "user":
            asked.withdrawn = asked.withdrawn or change.verb == "unlink"
            return
        place = os.path.relpath(os.path.dirname(change.path), self.spool)
        if change.verb != "rename" or place not in PLACES:
            self.accuse(f"I1: request {asked.number}: {change.verb} to {change.path}")
        elif place in ROOMS:
            self._committed(asked, os.path.basename(change.path))
        elif asked.ended:
            self.accuse(f"I1: request {asked.number} left {os.path.dirname(change.source)}")

    def _committed(self, asked: Asked, name: str) -> None:
        claim = Claim.parse(name)
        asked.ended.append(name)
        images = [image for image in asked.images if image in self.files]
        asked.gone = {i for i in images if self._image_path(asked.build, i) not in self.visible}
        if len(asked.ended) > 1:
            self.accuse(f"I2: request {asked.number} was committed twice: {asked.ended}")
        self._claims[name] = asked
        if claim is None or claim.g == 0:
            self.accuse(f"I2: committed under {name}")
        elif self._ids.setdefault(claim.request_id, asked) is not asked:
            self.accuse(f"I2: one id for two requests: {claim.request_id}")

    def _answer(self, change: Change) -> None:
        name = os.path.basename(change.path)
        if not name.endswith(".yaml") or name.startswith("."):
            return
        if change.verb != "rename":
            self.accuse(f"I2: answer {name}: {change.verb}")
            return
        with open(change.path, "rb") as f:
            data = f.read()
        line = data.rsplit(b"\n", 2)[-2].decode() if data.count(b"\n") > 1 else ""
        asked = self._claims.get(line.removeprefix("# "))
        answer = result.parse_result(data)
        if asked is None or answer is None:
            self.accuse(f"I2: {name} published without a commit: {line or 'torn'}")
            return
        claim = Claim.parse(line.removeprefix("# "))
        if claim is None or not result.fits(data, claim):
            self.accuse(f"I2: {name} does not fit its claim")
        asked.answers.append(line)
        self.published.setdefault(name, []).append(claim.request_id if claim else "")
        if len(asked.answers) > 1:
            self.accuse(f"I2: request {asked.number} was answered twice: {asked.answers}")
        if answer.request_sha256 is None and answer.error and answer.error.code == "internal":
            self.accuse(f"I2: the answer to request {asked.number} was lost")
        elif answer.request_sha256 != asked.sha:
            self.accuse(f"request {asked.number} was answered for other bytes")
        room = "done" if answer.state.value.endswith("staged") else "failed"
        if not os.path.exists(f"{self.spool}/{room}/{asked.ended[-1]}"):
            self.accuse(f"request {asked.number}: answer {answer.state}, not in {room}/")
        if room == "done":
            self._promised(asked, answer)

    def read(self, name: str, request_id: str) -> None:
        """Judge what somebody who waits has read."""
        if request_id not in self.published.get(name, []):
            self.accuse(f"I2: {name} was read as the answer to {request_id}")

    def _promised(self, asked: Asked, answer: result.Result) -> None:
        """See that what an answer names is there."""
        for image in asked.images:
            if image not in self.files:
                self.accuse(f"request {asked.number} was answered with a {image} image")
                continue
            key = (asked.build.key, image)
            part = (answer.images or {}).get(image)
            if part is None or part.sha256 not in self.known[key]:
                self.accuse(f"request {asked.number} was answered with an unknown {image} image")
            if image in asked.gone:
                self.accuse(f"request {asked.number} was answered without its {image} image")
            made = datetime.fromisoformat(answer.finished).timestamp() - EPOCH
            self.used[key] = max(self.used.get(key, made), made)

    def _image_path(self, build: Build, image: str) -> str:
        return f"{self.static}/{build.target}/{self.files[image]}"
