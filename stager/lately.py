"""Which requests were answered lately, and how: from names, and from the last few answers."""

import heapq
import os

from stager import durable
from stager.layout import ROOMS, Claim, Paths
from stager.result import parse_result, stamp
from stager.snapshot import AnsweredPart, Counts, printable

MOST_TEXT = 300
UNPUBLISHED_SECONDS = 120.0


def arrival(name: str) -> int:
    """Return when a request was dropped, from its name on disk: cheaper than to parse it."""
    digits = name.rpartition("~")[2].partition("-")[0]
    return int(digits) if digits.isdigit() else 0


def room_entries(paths: Paths, counts: Counts, now: float, most: int) -> list[AnsweredPart]:
    """Count the answered requests; return those that were dropped last, by their names alone."""
    found = []
    for room in ROOMS:
        names = [n for n in durable.listing(paths.spool / room, touch=False) if "~" in n]
        setattr(counts, room, len(names))
        claims = filter(None, map(Claim.parse, heapq.nlargest(most, names, key=arrival)))
        found += [_entry(room, claim, now) for claim in claims]
    return sorted(found, key=lambda entry: -entry.age)[-most:]


class Lately:
    """The requests answered last; what was read of an answer is remembered while it is shown."""

    def __init__(self, paths: Paths, most: int) -> None:
        self.paths, self.most = paths, most
        self._listed: dict[str, tuple[int, set[str]]] = {}
        self._shown: dict[str, tuple[int, AnsweredPart]] = {}
        """By the name on disk: when it was answered, in nanoseconds, and what it says."""

    def look(self, counts: Counts, now: float) -> list[AnsweredPart]:
        """Count the answered requests; return the last ones, the last of all at the end."""
        for room in ROOMS:
            for name in self._candidates(room, counts, now):
                if name not in self._shown and (claim := Claim.parse(name)):
                    self._read(room, name, claim, now)
        self._read_again(now)
        last = heapq.nlargest(self.most, self._shown.items(), key=lambda item: item[1][0])
        self._shown = dict(last)
        return [self._aged(name, part, now) for name, (_, part) in reversed(last)]

    def _candidates(self, room: str, counts: Counts, now: float) -> list[str]:
        """Return the names that may be among the last: those dropped last, and the new ones."""
        path = self.paths.spool / room
        changed = path.stat().st_mtime_ns
        before, old = self._listed.get(room, (0, set()))
        # What changed just now may change again within the same tick of the clock.
        if changed == before and changed / 1e9 < now - 2:
            setattr(counts, room, len(old))
            return []
        names = {name for name in durable.listing(path, touch=False) if "~" in name}
        self._listed[room] = (changed, names)
        self._shown = {
            n: shown for n, shown in self._shown.items() if shown[1].room != room or n in names
        }
        setattr(counts, room, len(names))
        fresh = names - old if old else set()
        return list(
            {*heapq.nlargest(self.most, names, key=arrival), *list(fresh)[: 20 * self.most]}
        )

    def _read(self, room: str, name: str, claim: Claim, now: float) -> None:
        try:
            answered_ns = os.lstat(self.paths.spool / room / name).st_ctime_ns
        except OSError:
            return
        if len(self._shown) >= self.most and answered_ns <= self._bar():
            return
        self._shown[name] = (answered_ns, self._answer(_entry(room, claim, now), claim))

    def _read_again(self, now: float) -> None:
        """Look for the answers that were not published yet when their requests were committed."""
        for name, (answered_ns, part) in list(self._shown.items()):
            claim = Claim.parse(name)
            if claim and not part.state and now - answered_ns / 1e9 < UNPUBLISHED_SECONDS:
                self._shown[name] = (answered_ns, self._answer(part, claim))

    def _bar(self) -> int:
        return heapq.nlargest(self.most, (ns for ns, _ in self._shown.values()))[-1]

    def _answer(self, entry: AnsweredPart, claim: Claim) -> AnsweredPart:
        """Read an answer, if it is still there and not another's."""
        try:
            result = parse_result(durable.read_file(self.paths.results / claim.result_file))
        except OSError:
            return entry
        if result is None or result.request_id != claim.request_id:
            return entry
        entry.state, entry.finished, entry.host = result.state.value, result.finished, result.host
        entry.build, entry.images = result.build or "", list(result.images or {})
        if result.error:
            entry.code, entry.hint = result.error.code, result.error.hint[:MOST_TEXT]
            entry.message = printable(result.error.message)[:MOST_TEXT]
        return entry

    def _aged(self, name: str, part: AnsweredPart, now: float) -> AnsweredPart:
        answered = self._shown[name][0] / 1e9
        dropped = arrival(name) / 1e9
        update = {
            "age": round(max(0.0, now - dropped), 1),
            "seconds": round(max(0.0, answered - dropped), 1),
            "finished": part.finished or stamp(answered),
        }
        return part.model_copy(update=update)


def _entry(room: str, claim: Claim, now: float) -> AnsweredPart:
    return AnsweredPart(
        request=printable(claim.file),
        request_id=claim.request_id,
        room=room,
        age=round(max(0.0, now - claim.arrived_ns / 1e9), 1),
    )
