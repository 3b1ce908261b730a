"""Checks of a live spool: the invariants of the protocol, and the staged images themselves.

A running spool changes while it is looked at, so a finding counts only when two looks, some time
apart, agree on it. What can be mended without harm says how (repair.py does it).
"""

import os
import stat
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stager import durable, remains, site, vitals
from stager.config import Config
from stager.errors import NotNow, SetupError
from stager.finding import Finding, MendAnswer, MendFlag, MendTokens, look
from stager.inflate import digest
from stager.layout import FLAG, ROOMS, Build, Claim, Paths, Waiting, arrival_ns, parse_build
from stager.lock import Token
from stager.marker import Sidecar

SETTLE_SECONDS = 2.0
MARGIN_SECONDS = 86400.0
"""More than clocks of machines with one spool differ."""
NFS_OPEN = ".nfs"
"""How names begin that the NFS client gives to files removed while they are open."""
STATES = ("active", "waiting", *ROOMS)


def examine(config: Config, seconds: float = SETTLE_SECONDS) -> list[Finding]:
    """Return what two looks agree on, remarks last."""
    first = set(_findings(config))
    if not first:
        return []
    time.sleep(seconds)
    return sorted(first & set(_findings(config)), key=lambda f: (not f.broken, f.rule, f.what))


def _findings(config: Config) -> Iterator[Finding]:
    paths = config.paths
    try:
        site.check(config, as_root=True)
    except (SetupError, NotNow) as e:
        yield Finding("layout", str(e), "mount what belongs there, or correct the configuration")
        return
    uid = site.Layout.read(paths.marks[0]).uid
    _see_all(paths, uid)
    misfits = [*site.check_modes(paths, uid), *_unreadable(paths)]
    for misfit in misfits:
        mend = misfit if misfit.uid is not None or misfit.mode is not None else None
        what = f"{misfit.path} {misfit.what}"
        yield Finding("owners and modes", what, misfit.command, mend)
    if not any(misfit.what == "is not there" for misfit in misfits):
        yield from _states(paths)
        yield from _answers(config)
        yield from _tokens(paths)
        yield from _flags(config)
        yield from remains.leftovers(config)
        yield from vitals.signs(config)


def _see_all(paths: Paths, uid: int) -> None:
    """Go on as the daemon's user where root may see no more than anybody (root_squash)."""
    try:
        durable.listing(paths.private, touch=False)
    except PermissionError:
        os.seteuid(uid)
    except FileNotFoundError:
        return


def _unreadable(paths: Paths) -> Iterator[site.Misfit]:
    """Say what of the published is not for everybody to read."""
    for name in look(paths.results):
        if name.endswith(".yaml") and not name.startswith("."):
            yield from _closed(paths.results / name, 0o644)
    for directory, _, files in os.walk(paths.images):
        yield from _closed(Path(directory), 0o755)
        for file in files:
            yield from _closed(Path(directory) / file, 0o644)


def _closed(path: Path, mode: int) -> Iterator[site.Misfit]:
    try:
        info = path.lstat()
    except FileNotFoundError:
        return
    now = stat.S_IMODE(info.st_mode)
    if stat.S_ISLNK(info.st_mode):
        return
    if now & 0o444 != 0o444 or now & mode & 0o111 != mode & 0o111:
        yield site.Misfit(path, "can't be read by everybody", mode=mode)


def _states(paths: Paths) -> Iterator[Finding]:
    """I1, I2: a request is in exactly one state."""
    seen: dict[str, list[str]] = defaultdict(list)
    for room in STATES:
        for name in look(paths.spool / room):
            if name.startswith(NFS_OPEN):
                continue
            parsed = Waiting.parse(name) if room == "waiting" else Claim.parse(name)
            if parsed is None:
                yield Finding("names", f"{room}/{name!a}", "not ours: move it elsewhere")
            elif not (isinstance(parsed, Claim) and parsed.g == 0):
                seen[parsed.request_id].append(room)
                if arrival_ns(parsed.id) <= 0:
                    yield Finding("names", f"{room}/{name!a}", "an id without a time")
    for request_id, rooms in seen.items():
        if len(rooms) > 1:
            what = f"request {request_id} is in {', '.join(rooms)}"
            yield Finding("one state", what, "report this: it must not happen")


def _answers(config: Config) -> Iterator[Finding]:
    """I2: what has ended has an answer. Looked at in the order in which an answer moves.

    Where retention removes answers, only of requests that are too young for that.
    """
    paths, keep = config.paths, config.retention.results
    since = (time.time() - keep + MARGIN_SECONDS) * 1e9 if keep else 0
    ended = [
        (paths.spool / room, claim)
        for room in ROOMS
        for claim in map(Claim.parse, look(paths.spool / room))
        if claim and claim.arrived_ns > since
    ]
    private = set(look(paths.private))
    published = set(look(paths.results))
    for room, claim in ended:
        if str(claim) not in private and claim.result_file not in published:
            what = f"request {claim.request_id} in {room.name}/ has no {claim.result_file}"
            hint = "doctor --repair answers it `internal`; then retry it"
            yield Finding("answers", what, hint, MendAnswer(room, claim))


def _tokens(paths: Paths) -> Iterator[Finding]:
    """I5: exactly one token per build."""
    for key in look(paths.locks):
        names = [n for n in look(paths.locks / key) if not n.startswith(NFS_OPEN)]
        tokens = [t for t in map(Token.parse, names) if t]
        if len(tokens) != 1 or len(names) != 1:
            what = f"locks/{key} holds {len(tokens)} tokens in {len(names)} files"
            if len(tokens) == len(names):
                hint, mend = "the next request for the build heals it", MendTokens(key)
            else:
                hint, mend = "move what is no token elsewhere", None
            yield Finding("one token", what, hint, mend)


def _flags(config: Config) -> Iterator[Finding]:
    """I3, I4: a flag lists just the images that are there, whole, with a record."""
    paths = config.paths
    for directory, _, files in os.walk(paths.images):
        path, seen = Path(directory), set(files)
        if not seen & {FLAG, *config.images.values()}:
            continue
        rel_path, _, short = str(path.relative_to(paths.images)).rpartition("/")
        build = Build("-", rel_path, short)
        lines = _lines(path / FLAG) if FLAG in seen else set()
        for image, file in config.images.items():
            sidecar = Sidecar.read(paths.sidecar(build.key, image))
            size = _size(path / file)
            whole = size and (sidecar is None or sidecar.size == size)
            if image in lines and not whole:
                what = f"{build.target}: {image} is listed, but not there"
                what += " whole" if size else ""
                hint = "drop a request for it: it is staged again"
                yield Finding("true flags", what, hint, MendFlag(build))
            elif image not in lines and whole and sidecar and _is_free(paths, build.key):
                what = f"{build.target}: {image} is staged, but not listed"
                hint = "drop a request for it: the flag is written"
                yield Finding("true flags", what, hint, MendFlag(build))


def _lines(flag: Path) -> set[str]:
    return {line.strip() for line in flag.read_text(errors="replace").splitlines()}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_free(paths: Paths, key: str) -> bool:
    """Whether nobody works on the build: only then its flag is complete."""
    try:
        tokens = [Token.parse(name) for name in look(paths.locks / key)]
    except FileNotFoundError:
        return True
    return not any(token and token.inst for token in tokens)


@dataclass(frozen=True, slots=True)
class Reading:
    """An image that was read again, and what is wrong with it; empty: nothing."""

    url: str
    image: str
    bytes: int = 0
    damage: str = ""


def reread(config: Config) -> Iterator[Reading]:
    """Read every staged image and compare it with its sidecar."""
    paths = config.paths
    for name in sorted(look(paths.sidecars)):
        key, _, image = name.removesuffix(".json").rpartition(".")
        sidecar = Sidecar.read(paths.sidecar(key, image))
        if sidecar is None or image not in config.images:
            continue
        url = sidecar.archive_url.rpartition("/")[0]
        build = parse_build(url, frozenset(config.images.values()))
        try:
            # Not a reading that should keep it from retention.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME
            fd = os.open(paths.target(build) / config.images[image], flags)
        except FileNotFoundError:
            yield Reading(url, image, damage="is not there")
            continue
        try:
            found = digest(fd)
        finally:
            os.close(fd)
        damage = ""
        if found.size != sidecar.size:
            damage = f"has {found.size} bytes, {sidecar.size} were staged"
        elif found.sha256 != sidecar.sha256:
            damage = "has other content than was staged"
        yield Reading(url, image, found.size, damage)
