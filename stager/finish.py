"""The finisher: publishes the answers of committed claims whose owner died before it could."""

from contextlib import suppress
from pathlib import Path

from stager import durable, result
from stager.errors import Internal
from stager.layout import ROOMS, Claim
from stager.result import Result, State
from stager.spool import Spool


def finish(spool: Spool) -> int:
    """Publish what is committed and still private; return how many answers that were."""
    pending = {str(c): c for c in map(Claim.parse, spool.scan(spool.paths.private)) if c}
    if pending:
        for name in durable.listing(spool.paths.active):
            pending.pop(name, None)
    finished = 0
    for room in ROOMS if pending else ():
        for name in set(durable.listing(spool.paths.spool / room)) & set(pending):
            with suppress(IsADirectoryError):
                _finish_one(spool, pending.pop(name), spool.paths.spool / room)
                finished += 1
    return finished


def _finish_one(spool: Spool, claim: Claim, room: Path) -> None:
    private = spool.paths.private / str(claim)
    try:
        data = durable.read_file(private)
    except FileNotFoundError:
        return
    if result.fits(data, claim):
        # Its owner may have died before the commit was on disk.
        for directory in (room, spool.paths.active):
            durable.sync_dir(directory)
        spool.outbox.publish([claim])
    else:
        # The answer was torn (a crash without a sync): the commit stands, so say so.
        answer_lost(spool, claim, room)


def answer_lost(spool: Spool, claim: Claim, room: Path) -> None:
    """Publish an answer of ours for a committed claim whose own was lost."""
    spool.outbox.write([(claim, _lost_answer(spool, claim, room))])
    spool.outbox.publish([claim])


def _lost_answer(spool: Spool, claim: Claim, room: Path) -> Result:
    error = Internal(f"the answer of {claim.inst} was lost; the request ended in {room.name}/")
    return Result(
        state=State.FAILED,
        request=claim.file,
        request_id=claim.request_id,
        error=result.error_part(error),
        attempts=claim.a,
        host=spool.heart.identity.host,
        received=result.stamp(claim.arrived_ns / 1e9),
        finished=result.stamp(spool.heart.server_now()),
    )
