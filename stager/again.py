"""Retry orders: a new request of the bytes of one that was answered.

Whoever takes an order up after its taker died must not carry it out twice: what the order has made
already is known by the request it was made of, and by having come after the order was written.
"""

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

from stager import durable, orders
from stager.layout import Claim, Waiting
from stager.orders import Order, Received
from stager.result import parse_result
from stager.spool import Spool

Ended = tuple[str, Claim]


def made(spool: Spool, item: Received, ended: Iterable[Ended]) -> dict[str, str]:
    """Return what an order has made already: by the name that it means, the new request's id."""
    found = {}
    claims = (claim for _, claim in ended)
    fresh: Iterable[Claim | Waiting] = itertools.chain(spool.active(), spool.waiting(), claims)
    for entry in fresh:
        if entry.retry_of and entry.arrived_ns >= item.written_ns:
            name = entry.retry_of if entry.retry_of in item.order.names else ""
            if name := name or orders.called(item.order, entry):
                found[name] = entry.request_id
    return found


def chosen(
    spool: Spool, item: Received, ended: Iterable[Ended], without: Iterable[str]
) -> dict[str, Ended]:
    """Return which requests an order means, by name; of several with one NAME, the last."""
    found, without = dict[str, Ended](), set(without)
    for room, claim in ended:
        name = orders.called(item.order, claim)
        if name and name not in without and _is_wanted(spool, item.order, room, claim):
            found[name] = (room, claim)
    return found


def retry(
    spool: Spool, item: Received, ended: list[Ended], may: Callable[[Path], bool],
    admit: Callable[[Claim], None],
) -> dict[str, str]:  # fmt: skip
    """Carry out a retry order; return its outcome by name."""
    private = set(durable.listing(spool.paths.private))
    # One whose answer is not out yet would be answered twice: its answer needs its claim's name.
    ended = [(room, claim) for room, claim in ended if str(claim) not in private]
    before = made(spool, item, ended)
    outcome = dict.fromkeys(item.order.names, orders.NOT_FOUND)
    outcome |= {name: f"retried as {request_id}" for name, request_id in before.items()}
    for name, (room, claim) in chosen(spool, item, ended, before).items():
        if not may(spool.paths.spool / room / str(claim)):
            outcome[name] = orders.NOT_YOURS
        elif fresh := spool.take_again(room, claim):
            outcome[name] = f"retried as {fresh.request_id}"
            admit(fresh)
    return outcome


def _is_wanted(spool: Spool, order: Order, room: str, claim: Claim) -> bool:
    """Whether a retry of all means this one: failed ones, or as --state and --code say."""
    if not order.everything:
        return True
    if room != (order.state or "failed"):
        return False
    if not order.code:
        return True
    try:
        data = durable.read_file(spool.paths.results / claim.result_file)
    except OSError:
        return False
    result = parse_result(data)
    if result is None or result.request_id != claim.request_id:
        return False
    errors = [result.error, *(image.error for image in (result.images or {}).values())]
    return any(error and error.code == order.code for error in errors)
