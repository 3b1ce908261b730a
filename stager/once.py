"""`watcherd --once`: whether an instance has done all that it could ever do."""

import structlog

from stager import durable
from stager.errors import MachineFault
from stager.finish import finish
from stager.server import Server

log = structlog.get_logger()


def is_done(server: Server) -> bool:
    """Whether nothing is left that it could answer, now or later; what it leaves is said."""
    if server.trouble.fault or server.dispatcher.running:
        return False
    if server.bulletin.paused:
        return True
    try:
        with durable.storage():
            return _nothing_is_left(server)
    except MachineFault as e:
        server.trouble.met(str(e))
        return False


def _nothing_is_left(server: Server) -> bool:
    spool, dropbox = server.spool, server.dropbox
    if spool.waiting() or dropbox.settling()[0]:
        return False
    others = spool.active()
    if any(c.inst == server.heart.inst or not server.heart.proven(c.inst) for c in others):
        return False
    dropbox.settled(0)
    changing, unclaimable = dropbox.settling()[1], dropbox.unclaimable()
    if any(name not in changing and name not in unclaimable for name in dropbox.seen):
        return False
    finish(spool)
    for claim in others:
        log.warning("left to its owner", request_id=claim.request_id, owner=claim.inst)
    for name in changing:
        log.warning("left: it keeps changing", entry=name)
    for name, reason in unclaimable.items():
        log.warning("left: it can't be claimed", entry=name, reason=reason)
    return True
