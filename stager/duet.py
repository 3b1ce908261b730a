"""What only several machines at once can tell: races, links, and fences.

Every machine runs the same steps (`Meeting.together` between them) and says what it saw; the
verdicts are made of all the words, so they are the same everywhere but for what one saw itself.
"""

import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stager import durable
from stager.meeting import Meeting, open_dir
from stager.trial import Trial, attempt, no, warning, yes

NAMES = 200
MOST_ROUNDS = 16
LEAST_ROUNDS = 2
NOT_SHARED = "don't share this filesystem among machines; give each its own spool"


# -- one winner --------------------------------------------------------------------------------


@dataclass(slots=True)
class Races:
    """What all rounds of a race came to."""

    wins: Counter[str]
    rounds: int = 0
    doubled: int = 0
    nobody: int = 0
    untrue: int = 0

    def count(self, said: set[tuple[int, str]], there: set[tuple[int, str]]) -> None:
        """Count a round: who says he won which name, and who has it."""
        owners = Counter(n for n, _ in said | there)
        self.doubled += sum(owners[n] > 1 for n in range(NAMES))
        self.nobody += sum(owners[n] == 0 for n in range(NAMES))
        self.untrue += len(said - there)
        self.wins.update(member for _, member in there)
        self.rounds += 1

    @property
    def close(self) -> bool:
        """Whether everybody won now and then: else they did not run at the same time."""
        return all(count > self.rounds for count in self.wins.values())

    def judge(self, name: str, meeting: Meeting) -> Trial:
        """Return the verdict, with the figures."""
        names = self.rounds * NAMES
        tally = ", ".join(f"{meeting.label(m)} {n}" for m, n in sorted(self.wins.items()))
        figures = {"names": names, "won": dict(self.wins), "two_winners": self.doubled}
        figures |= {"nobody": self.nobody, "not_there": self.untrue}
        if self.doubled or self.untrue or self.nobody:
            what = f"of {names} names, {self.doubled} were won by two machines"
            what += f", {self.untrue} winners had nothing" if self.untrue else ""
            what += f", {self.nobody} could be won by nobody" if self.nobody else ""
            return no(name, what, NOT_SHARED, **figures)
        if not self.close:
            hint = "too far apart to prove it: run it again, with more --seconds"
            return warning(name, f"one winner each, but no close race ({tally})", hint, **figures)
        return yes(name, f"{names} names raced for, each won once ({tally})", **figures)


def _race(name: str, meeting: Meeting, place: Path, seconds: float) -> Iterator[Trial]:
    """Have all machines rename the same files at once, each to names of its own."""
    races, end = Races(Counter(dict.fromkeys(meeting.members, 0))), time.monotonic() + seconds / 8
    while _another(races, meeting, name, end):
        step, (source, target) = f"{name}: {races.rounds}", _places(place, races.rounds)
        if meeting.leads:
            open_dir(target)
            open_dir(source)
            for n in range(NAMES):
                durable.write_new(source / str(n), b"", sync=False)
        meeting.together(f"{step} made")
        for n in range(NAMES):
            # What is in the cache is what a real daemon would have there.
            (source / str(n)).stat()
        meeting.together(f"{step} ready")
        won = [n for n in range(NAMES) if _won(source / str(n), target / f"{n}~{meeting.me}")]
        words = meeting.together(f"{step} ran", won)
        said = {(n, member) for member, word in words.items() for n in word}
        listed = (entry.partition("~") for entry in durable.listing(target))
        races.count(said, {(int(n), member) for n, _, member in listed})
    yield races.judge(name, meeting)


def _links(name: str, meeting: Meeting, place: Path, seconds: float) -> Iterator[Trial]:
    """Have all machines link a file of their own to the same names; the first stays."""
    races, end = Races(Counter(dict.fromkeys(meeting.members, 0))), time.monotonic() + seconds / 8
    mine = place / f"{meeting.me}.mine"
    durable.write_new(mine, meeting.me.encode())
    while _another(races, meeting, name, end):
        step, (_, target) = f"{name}: {races.rounds}", _places(place, races.rounds)
        if meeting.leads:
            open_dir(target)
        meeting.together(f"{step} ready")
        won = [n for n in range(NAMES) if _linked(mine, target / str(n))]
        words = meeting.together(f"{step} ran", won)
        said = {(n, member) for member, word in words.items() for n in word}
        there = {(int(n), _read(target / n)) for n in durable.listing(target)}
        races.count(said, there)
    yield races.judge(name, meeting)


def _another(races: Races, meeting: Meeting, name: str, end: float) -> bool:
    """Agree on one more round: until all have won and the time is up."""
    late = time.monotonic() > end
    words = meeting.together(f"{name}: {races.rounds} again", late)
    if races.rounds < LEAST_ROUNDS:
        return True
    enough = races.close and any(words.values())
    return races.rounds < MOST_ROUNDS and not enough


def _places(place: Path, number: int) -> tuple[Path, Path]:
    return place / f"{number}.from", place / f"{number}.to"


def _linked(source: Path, target: Path) -> bool:
    try:
        return durable.link(source, target)
    except FileNotFoundError:
        return False  # it is gone again: somebody else's has replaced it


def _won(source: Path, target: Path) -> bool:
    try:
        os.rename(source, target)
    except OSError as e:
        if e.errno in {errno.ENOENT, errno.ESTALE}:
            return False
        raise
    return True


def _read(path: Path) -> str:
    return durable.read_file(path).decode()


# -- fences ------------------------------------------------------------------------------------


def _fences(name: str, meeting: Meeting, place: Path, _: float) -> Iterator[Trial]:
    """Have each hold files open while its neighbour removes its work directory and its claim."""
    escaped: list[str] = []
    kept: list[str] = []
    for member in meeting.members:
        home = place / member
        handles = _settle_in(home) if meeting.me == member else []
        meeting.together(f"{name}: {member} is at work")
        if meeting.me == meeting.neighbour(member):
            if not durable.remove_tree(home / "work"):
                kept.append(meeting.label(member))
            (home / "claim.g1").rename(home / "claim.g2")
        meeting.together(f"{name}: {member} is fenced off")
        if handles:
            escaped += _escapes(home, handles[-1])
            for handle in handles:
                with suppress(OSError):
                    os.close(handle)
        meeting.together(f"{name}: {member} has tried")
        escaped += durable.listing(home / "shown")
    words = meeting.together(f"{name}: ran", {"escaped": escaped, "kept": kept})
    out = sorted({what for word in words.values() for what in word["escaped"]})
    held = sorted({what for word in words.values() for what in word["kept"]})
    if held:
        what = f"a directory in which {', '.join(held)} had a file open could not be removed"
        hint = "a build then stays busy until that process is gone; right for one NFS client"
        yield warning(name, what, hint, kept=held)
    elif out:
        what = f"a machine could still move what was taken from it: {', '.join(out)}"
        yield no(name, what, NOT_SHARED, escaped=out)
    else:
        yield yes(name, "a machine whose work directory and claim were taken can't use them")


def _settle_in(home: Path) -> list[int]:
    """Be at work: open handles, everything in the cache; the directory's handle is the last."""
    work = home / "work"
    for directory in (home, work, home / "shown"):
        open_dir(directory)
    for path in (work / "image", work / "flag", home / "claim.g1"):
        durable.write_new(path, b"whole", sync=False)
        path.stat()
    image = os.open(work / "image", os.O_WRONLY)
    os.write(image, b"part")
    claim = os.open(home / "claim.g1", os.O_RDONLY)
    return [image, claim, os.open(work, os.O_RDONLY | os.O_DIRECTORY)]


def _escapes(home: Path, directory: int) -> list[str]:
    """Try to use what was taken; return what went well."""
    work, shown, flags = home / "work", home / "shown", os.O_CREAT | os.O_WRONLY
    ways: dict[str, Callable[[], object]] = {
        "an image (link)": lambda: os.link(work / "image", shown / "image"),
        "a flag (rename)": lambda: (work / "flag").rename(shown / "flag"),
        "a new file by path": lambda: os.close(os.open(work / "new", flags)),
        "a new file by handle": lambda: os.close(os.open("new", flags, dir_fd=directory)),
        "a claim": lambda: (home / "claim.g1").rename(home / "done"),
    }
    return [what for what, call in ways.items() if attempt(call) == ""]


Question = Callable[[str, Meeting, Path, float], Iterator[Trial]]
QUESTIONS: dict[str, Question] = {
    "one winner": _race,
    "links at once": _links,
    "fences": _fences,
}
