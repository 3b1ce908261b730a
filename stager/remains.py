"""What the dead have left in a spool: no invariant is hurt by it, and running daemons clear it up.

That takes a lease or so; what stays longer tells that no daemon runs, or that it can't.
"""

from collections.abc import Iterator

from stager.config import Config
from stager.finding import Finding, MendRecord, MendTokens, look
from stager.layout import ROOMS, Claim, Paths, parse_build
from stager.lock import Token
from stager.marker import Sidecar

BY_ITSELF = "a running daemon clears it up within two leases"


def leftovers(config: Config) -> Iterator[Finding]:
    """Say what is left over: claims, tokens, work of the dead, answers and records of nothing."""
    paths = config.paths
    there = {name.partition(".")[0] for name in look(paths.instances)}
    yield from _claims(paths, there)
    yield from _tokens(paths, there)
    yield from _work(paths)
    yield from _private(paths)
    yield from _records(config)


def _claims(paths: Paths, there: set[str]) -> Iterator[Finding]:
    for name in look(paths.active):
        claim = Claim.parse(name)
        if claim and claim.inst not in there:
            what = f"request {claim.request_id} is held by {claim.inst}, which is gone"
            hint = "a running daemon takes it over; start one"
            yield Finding("left over", what, hint, None, broken=False)


def _tokens(paths: Paths, there: set[str]) -> Iterator[Finding]:
    for key in look(paths.locks):
        for token in filter(None, map(Token.parse, look(paths.locks / key))):
            if token.inst and token.inst not in there:
                what = f"the token of locks/{key} is held by {token.inst}, which is gone"
                hint = "the next request for the build takes it"
                yield Finding("left over", what, hint, MendTokens(key), broken=False)


def _work(paths: Paths) -> Iterator[Finding]:
    """Name the work directories whose token is not held."""
    for name in look(paths.work):
        key, _, rest = name.partition(".")
        token = ".".join(rest.split(".")[:3])
        try:
            held = token in look(paths.locks / key)
        except FileNotFoundError:
            held = False
        if not held:
            what = f"work/{name} belongs to no token"
            mend = MendTokens(key) if Token.parse(token) else None
            yield Finding("left over", what, BY_ITSELF, mend, broken=False)


def _private(paths: Paths) -> Iterator[Finding]:
    names = look(paths.private)
    rooms = ("active", *ROOMS) if names else ()
    used = {name for room in rooms for name in look(paths.spool / room)}
    for name in names:
        if name not in used:
            what = f"private/{name!a} answers no request"
            yield Finding("left over", what, BY_ITSELF, None, broken=False)


def _records(config: Config) -> Iterator[Finding]:
    """Name the records whose image somebody removed."""
    paths = config.paths
    for name in look(paths.sidecars):
        key, _, image = name.removesuffix(".json").rpartition(".")
        sidecar = Sidecar.read(paths.sidecar(key, image))
        if sidecar is None or image not in config.images:
            continue
        try:
            url = sidecar.archive_url.rpartition("/")[0]
            build = parse_build(url, frozenset(config.images.values()))
        except ValueError:
            continue
        if not (paths.target(build) / config.images[image]).exists():
            what = f"{build.target}: {image} has a record, but is not there"
            hint = "a request for it stages it again"
            yield Finding("left over", what, hint, MendRecord(build, image), broken=False)
