"""Retention of answers and of answered requests: by age, and never more than MOST_KEPT of either.

Ages are the file server's: since a request was committed, since an answer was published.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from stager import durable
from stager.layout import ROOMS, Claim
from stager.visit import Visit

MOST_KEPT = 100_000


def prune(visit: Visit, *, dry_run: bool = False) -> Iterator[Path]:
    """Remove what is older than the rules say; yield each path."""
    rules, now = visit.config.retention, visit.heart.server_now()
    for path in _requests(visit, now - rules.requests if rules.requests else 0):
        grave = visit.spool.paths.tmp / f"{visit.heart.inst}.{durable.nonce()}"
        if dry_run or _put_away(path, grave):
            yield path
    for path, ctime in _results(visit, now - rules.results if rules.results else 0):
        if dry_run or _remove_result(visit, path, ctime):
            yield path


def _put_away(path: Path, grave: Path) -> bool:
    """Remove a request; False: it is gone, or a folder whose owner does not let us move it."""
    try:
        moved = durable.move(path, grave)
    except PermissionError:
        return False
    durable.discard(grave)
    return moved


def _requests(visit: Visit, before: float) -> list[Path]:
    """Return the requests committed before a time, or too many; not those still unpublished."""
    paths = visit.spool.paths
    private = set(durable.listing(paths.private))
    old = []
    for room in ROOMS:
        names = durable.listing(paths.spool / room, touch=False)
        claims = [c for n, c in ((n, Claim.parse(n)) for n in names) if c and n not in private]
        claims.sort(key=lambda claim: claim.arrived_ns)
        surplus = len(claims) - MOST_KEPT
        for number, claim in enumerate(claims):
            path = paths.spool / room / str(claim)
            # Nothing is committed before it is dropped: most need no look at the file.
            old_enough = claim.arrived_ns / 1e9 < before and _ctime(path) < before
            if number < surplus or old_enough:
                old.append(path)
    return old


def _results(visit: Visit, before: float) -> list[tuple[Path, float]]:
    """Return the answers published before a time, or too many, with that time."""
    results = visit.spool.paths.results
    names = (n for n in durable.listing(results, touch=False) if n.endswith(".yaml"))
    found = sorted((_ctime(results / name), name) for name in names if not name.startswith("."))
    surplus = len(found) - MOST_KEPT
    return [(results / n, c) for i, (c, n) in enumerate(found) if i < surplus or c < before]


def _remove_result(visit: Visit, path: Path, ctime: float) -> bool:
    """Remove an answer, unless it was replaced meanwhile: its NAME may be used again.

    Its grave is in a directory that is gone after, so that a late duplicate of the rename finds
    nowhere to put the next answer of that NAME.
    """
    tomb = visit.spool.paths.tmp / f"{visit.heart.inst}.{durable.nonce()}"
    durable.make_dir(tomb)
    grave = tomb / "gone"
    removed = _ctime(path) == ctime and durable.move(path, grave)
    if removed and os.lstat(grave).st_mtime > ctime:
        # Replaced between the look and the rename: it goes back, whatever has come since stays.
        durable.link(grave, path)
        removed = False
    durable.remove_tree(tomb)
    return removed


def _ctime(path: Path) -> float:
    try:
        return os.lstat(path).st_ctime
    except FileNotFoundError:
        return float("inf")
