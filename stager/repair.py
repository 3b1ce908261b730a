"""What `stager doctor --repair` does: the mends that harm nobody, as an instance among the others.

All of it is the daemons' own code: a token is taken and released, a flag written under it, an
answer published.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from stager import site
from stager.config import Config
from stager.errors import BuildBusy, StagerError
from stager.finding import Finding, Mend, MendAnswer, MendFlag, MendRecord, MendTokens
from stager.finish import answer_lost
from stager.instance import GONE_SAMPLES, Buried
from stager.visit import Visit, visiting

MENDED = "mended"
LOOK_SECONDS = 0.2


def repair(config: Config, findings: Iterable[Finding]) -> Iterator[tuple[Finding, str]]:
    """Mend what can be; yield each finding with "mended" or why not.

    Root mends owners and modes, and then goes on as the daemon's user, whose all files must be.
    """
    others = []
    for finding in findings:
        if isinstance(finding.mend, site.Misfit):
            yield finding, _outcome(finding.mend.mend)
        elif finding.mend is None:
            yield finding, f"not mended: {finding.hint}"
        else:
            others.append((finding, finding.mend))
    if others:
        with visiting(config) as visit:
            for finding, mend in others:
                yield finding, _outcome(partial(_mend, visit, mend))


def _mend(visit: Visit, mend: Mend) -> None:
    """Do one thing; raises OSError and StagerError where it can't be done now."""
    if isinstance(mend, MendTokens):
        _see_who_is_gone(visit, mend.key)
        visit.locks.take(mend.key).release()
    elif isinstance(mend, MendFlag):
        with visit.locks.take(mend.build.key) as work:
            visit.marker.look_afresh(mend.build)
            visit.marker.write_flag(work, mend.build)
    elif isinstance(mend, MendRecord):
        with visit.locks.take(mend.build.key) as work:
            visit.marker.look_afresh(mend.build)
            if visit.marker.good(mend.build, mend.image) is None:
                visit.marker.write_flag(work, mend.build, without=[mend.image])
                work.away(visit.spool.paths.sidecar(mend.build.key, mend.image))
    elif isinstance(mend, MendAnswer):
        answer_lost(visit.spool, mend.claim, mend.room)


def _see_who_is_gone(visit: Visit, key: str) -> None:
    """Look as often as a daemon does before an owner that is not listed counts as dead."""
    owners = {token.inst for token in visit.locks.tokens(key) if token.inst}
    for _ in range(GONE_SAMPLES):
        for owner in owners:
            visit.heart.dead(owner)
        time.sleep(LOOK_SECONDS)
        visit.heart.observe()


def _outcome(mend: Callable[[], None]) -> str:
    try:
        mend()
    except BuildBusy as e:
        return f"not mended: {e}; again when that is over"
    except (OSError, StagerError, Buried) as e:
        return f"not mended: {e}"
    return MENDED
