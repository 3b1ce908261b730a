"""What `stager doctor` can find, and what mends it."""

from dataclasses import dataclass
from pathlib import Path

from stager import durable, site
from stager.layout import Build, Claim


@dataclass(frozen=True, slots=True)
class MendFlag:
    """Write a build's flag anew, under its token."""

    build: Build


@dataclass(frozen=True, slots=True)
class MendTokens:
    """Leave one token to a build."""

    key: str


@dataclass(frozen=True, slots=True)
class MendAnswer:
    """Answer a request that ended without one."""

    room: Path
    claim: Claim


@dataclass(frozen=True, slots=True)
class MendRecord:
    """Take away the record of an image that is not there."""

    build: Build
    image: str


Mend = site.Misfit | MendRecord | MendFlag | MendTokens | MendAnswer


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it must be; `mend` is what `doctor --repair` would do.

    Not `broken`: a remark; no invariant is hurt, and what is left over goes by itself.
    """

    rule: str
    what: str
    hint: str
    mend: Mend | None = None
    broken: bool = True


def look(directory: Path) -> list[str]:
    """List a directory of the spool anew; touched first where we may."""
    try:
        return durable.listing(directory)
    except PermissionError:
        return durable.listing(directory, touch=False)
