"""Orders of the client commands, dropped into control/ and obeyed by a daemon.

An order is `control/<nonce>.order`, its answer `control/<nonce>.answer`, both JSON. Who may order
what is decided by the order file's owner, as the filesystem tells it: a request's owner, the
daemon's user, or root.
"""

import errno
import itertools
import json
import os
import re
import stat
from collections.abc import Container
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from stager import durable, stuck
from stager.errors import StorageError
from stager.layout import Claim, Paths, Waiting, request_name

MAX_BYTES = 64 * 1024
AT_ONCE = 20
MOST_NAMES = 1000
_NAME = re.compile(r"[a-z2-7]{8,32}\.order")
_TAKEN = re.compile(r"(?P<inst>[A-Za-z0-9-]+)\.[a-z2-7]+\.[a-z2-7]{8,32}\.order")
NOT_FOUND, NOT_YOURS = "not found", "not yours"
VERBS = ("cancel", "retry", "pause", "resume", "pin", "unpin")


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody wants done: to the requests in `names` (NAME or id), or to `all` of them."""

    verb: str
    names: tuple[str, ...] = ()
    everything: bool = False
    state: str = ""
    code: str = ""
    host: str = ""


@dataclass(frozen=True, slots=True)
class Received:
    """An order in control/, with its owner and its times by the file server's clock.

    `time_ns`: when it was linked in, or taken; `written_ns`: when it was written, for good.
    """

    file: str
    order: Order
    uid: int
    time_ns: int
    written_ns: int


@dataclass(slots=True)
class Answer:
    """What became of an order: per name `cancelled`, `retried`, `not found`, ..."""

    outcome: dict[str, str] = field(default_factory=dict)
    problem: str = ""
    written_ns: int = 0
    """When the order was written."""


def send(paths: Paths, order: Order) -> str:
    """Drop an order (write, then link); return its name for `read_answer`."""
    name = durable.nonce() + durable.nonce()
    tmp = paths.control / f".{name}.tmp"
    durable.write_new(tmp, json.dumps(asdict(order)).encode())
    try:
        os.link(tmp, paths.control / f"{name}.order")
    finally:
        durable.discard(tmp)
    return name


def read_answer(paths: Paths, name: str, uid: int) -> Answer | None:
    """Return an order's answer if it is there, by a fresh listing; only the daemon's counts."""
    file = paths.control / f"{name}.answer"
    if file.name not in durable.listing(paths.control, touch=False):
        return None
    try:
        info = os.lstat(file)
        if not stat.S_ISREG(info.st_mode) or info.st_uid not in {0, uid}:
            return None
        return Answer(**json.loads(durable.read_file(file)))
    except (OSError, ValueError, TypeError):
        return None


def received(
    paths: Paths,
    without: set[str],
    later: Container[str] = (),
    look: durable.Look | None = None,
) -> tuple[list[Received], list[str], dict[str, OSError | StorageError]]:
    """Return the orders in control/ (some, if they are many), and the names of what is none.

    And what can't be read for now, with the reason. Those in `later` come last.
    """
    good: list[Received] = []
    bad: list[str] = []
    unread: dict[str, OSError | StorageError] = {}
    listed = (look or durable.listing)(paths.control)
    names = [n for n in listed if n.endswith(".order") and n[0] != "."]
    names = sorted((n for n in names if n not in without), key=lambda name: name in later)
    for name in itertools.islice(names, AT_ONCE):
        if not _NAME.fullmatch(name):
            bad.append(name)
            continue
        try:
            order = _read(paths.control / name)
        except (OSError, StorageError) as e:
            unread[name] = e
            continue
        if isinstance(order, Received):
            good.append(order)
        elif order is not None:
            bad.append(name)
    return good, bad, unread


def _read(path: Path) -> Received | str | None:
    """Read an order; its name if it is none, None if it is gone.

    OSError, StorageError: it can't be read now.
    """
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as e:
        # That is the directory's to tell: no mode of the file is the reason.
        raise StorageError(f"{e.strerror} ({path})") from e
    if not stat.S_ISREG(there.st_mode):
        return path.name
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as e:
        if e.errno in durable.PASSING:
            raise
        return path.name
    with os.fdopen(fd, "rb") as f:
        info, data = os.fstat(fd), f.read(MAX_BYTES + 1)
    try:
        fields: dict[str, Any] = json.loads(data)
        fields["names"] = tuple(str(name) for name in fields.get("names", ()))
        order = Order(**fields)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return path.name
    texts = (order.verb, order.state, order.code, order.host)
    if not all(isinstance(text, str) for text in texts) or not isinstance(order.everything, bool):
        return path.name
    if order.verb not in VERBS or len(data) > MAX_BYTES or len(order.names) > MOST_NAMES:
        return path.name
    return Received(path.name, order, info.st_uid, info.st_ctime_ns, info.st_mtime_ns)


def take(paths: Paths, inst: str, item: Received) -> Path | None:
    """Take an order for oneself; None: somebody else did."""
    mine = paths.tmp / f"{inst}.{durable.nonce()}.{item.file}"
    return mine if durable.move(paths.control / item.file, mine) else None


def is_news(kind: str, name: str) -> bool:
    """Whether an event in control/ is an order's coming, and not our own look at it."""
    return name.endswith(".order") and kind not in {"opened", "read"}


def taken(paths: Paths, look: durable.Look | None = None) -> dict[Path, str]:
    """Return the orders taken and not answered yet, in the order they came, with their takers."""
    found = (_TAKEN.fullmatch(name) for name in (look or durable.listing)(paths.tmp))
    takers = {paths.tmp / m[0]: m["inst"] for m in found if m}
    return dict(sorted(takers.items(), key=lambda taken: _written_ns(taken[0])))


def _written_ns(path: Path) -> int:
    try:
        return os.lstat(path).st_mtime_ns
    except OSError:
        return 0


def read_taken(path: Path) -> Received | None:
    """Read an order that was taken."""
    item = _read(path)
    if not isinstance(item, Received):
        return None
    return replace(item, file=file_of(path))


def file_of(path: Path) -> str:
    """Return the name that a taken order had in control/."""
    return ".".join(path.name.split(".")[2:])


def answer(paths: Paths, inst: str, item: Received, reply: Answer) -> None:
    """Answer an order; the daemon's first answer stays, what others put there does not."""
    target = paths.control / f"{item.file.removesuffix('.order')}.answer"
    tmp = paths.tmp / f"{inst}.{durable.nonce()}"
    reply = replace(reply, written_ns=item.written_ns)
    durable.write_new(tmp, json.dumps(asdict(reply)).encode())
    try:
        if not durable.link(tmp, target) and not _is_ours(target):
            remove(paths, inst, target.name)
            durable.link(tmp, target)
    except PermissionError:
        # Somebody's directory has the name and can't be moved: the order is obeyed, unanswered.
        pass
    finally:
        durable.discard(tmp)


def is_answered(paths: Paths, file: str) -> bool:
    """Whether an order has a daemon's answer."""
    target = paths.control / f"{file.removesuffix('.order')}.answer"
    return target.name in durable.listing(paths.control) and _is_ours(target)


def is_overtaken(paths: Paths, item: Received, subjects: set[str]) -> bool:
    """Whether an order written after this one has been answered about one of the same subjects."""
    for name in durable.listing(paths.control):
        path = paths.control / name
        if not name.endswith(".answer") or path.name == item.file.replace(".order", ".answer"):
            continue
        reply = read_answer(paths, name.removesuffix(".answer"), os.geteuid())
        if reply and reply.written_ns > item.written_ns and reply.outcome.keys() & subjects:
            return True
    return False


def _is_ours(path: Path) -> bool:
    info = os.lstat(path)
    return stat.S_ISREG(info.st_mode) and info.st_uid == os.geteuid()


def close(paths: Paths, inst: str, item: Received, reply: Answer) -> None:
    """Answer an order and take it away."""
    answer(paths, inst, item, reply)
    remove(paths, inst, item.file)


def remove(paths: Paths, inst: str, file: str) -> bool:
    """Take a file out of control/; False: somebody else did; PermissionError: it can't be."""
    grave = paths.tmp / f"{inst}.{durable.nonce()}"
    if stuck.is_others_folder(paths.control / file):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), file)
    if not durable.move(paths.control / file, grave):
        return False
    if stat.S_ISDIR(os.lstat(grave).st_mode):
        durable.remove_tree(grave)
    else:
        durable.discard(grave)
    return True


def matches(names: tuple[str, ...], entry: Claim | Waiting) -> str:
    """Return which of `names` means this request: by NAME, dropped name or id; empty: none."""
    for name in names:
        if name and name in {entry.file, request_name(entry.file), entry.request_id, entry.id}:
            return name
    return ""


def called(order: Order, entry: Claim | Waiting) -> str:
    """Return the name by which an order means a request; empty: it does not."""
    if order.everything:
        return request_name(entry.file) or entry.request_id
    return matches(order.names, entry)


def paused(paths: Paths, hosts: set[str], look: durable.Look | None = None) -> bool:
    """Whether everybody, or one of `hosts`, is told not to claim."""
    listed = set((look or durable.listing)(paths.spool))
    return "paused" in listed or any(f"paused.{host}" in listed for host in hosts)
