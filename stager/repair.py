"""What `stager doctor --repair` does: the mends that harm nobody, as an instance among the others.

It appears in instances/ like a daemon, so that the tokens it takes are respected, and are taken
over if it dies. All else is the daemons' own code: a token is taken and released, a flag written
under it, an answer published.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from stager import durable, site
from stager.config import Config
from stager.doctor import Finding, Mend, MendAnswer, MendFlag, MendTokens
from stager.errors import BuildBusy, StagerError
from stager.finish import answer_lost
from stager.instance import Buried, Heart
from stager.lock import Locks
from stager.marker import Marker
from stager.spool import Spool

MENDED = "mended"


@dataclass(frozen=True, slots=True)
class _Mender:
    """The parts of an instance that mends need."""

    heart: Heart
    spool: Spool
    locks: Locks
    marker: Marker

    def do(self, mend: Mend) -> None:
        """Do one thing; raises OSError and StagerError where it can't be done now."""
        if isinstance(mend, MendTokens):
            self.locks.take(mend.key).release()
        elif isinstance(mend, MendFlag):
            with self.locks.take(mend.build.key) as work:
                self.marker.write_flag(work, mend.build)
        elif isinstance(mend, MendAnswer):
            answer_lost(self.spool, mend.claim, mend.room)


def repair(config: Config, findings: Iterable[Finding]) -> Iterator[tuple[Finding, str]]:
    """Mend what can be; yield each finding with "mended" or why not.

    Root mends owners and modes, and then goes on as the daemon's user, whose all files must be.
    """
    others = []
    for finding in findings:
        if isinstance(finding.mend, site.Misfit):
            yield finding, _outcome(finding.mend.mend)
        else:
            others.append(finding)
    if others:
        yield from _as_instance(config, others)


def _as_instance(config: Config, findings: list[Finding]) -> Iterator[tuple[Finding, str]]:
    os.seteuid(site.Layout.read(config.paths.marks[0]).uid)
    heart = Heart(config.paths, config.heartbeat, config.lease)
    mender = _Mender(
        heart, Spool(config.paths, heart), Locks(config.paths, heart),
        Marker(config.paths, config.images),
    )  # fmt: skip
    with durable.storage():
        heart.register()
    try:
        for finding in findings:
            if finding.mend is None:
                yield finding, f"not mended: {finding.hint}"
            else:
                heart.beat()
                yield finding, _outcome(partial(mender.do, finding.mend))
    finally:
        with durable.storage():
            heart.leave()


def _outcome(mend: Callable[[], None]) -> str:
    try:
        mend()
    except BuildBusy as e:
        return f"not mended: {e}; again when that is over"
    except (OSError, StagerError, Buried) as e:
        return f"not mended: {e}"
    return MENDED
