"""Everything that can go wrong, with what happens then.

Each error has a stable `code` (written to results, `internal` is a fault of ours), a `then` (what
the daemon does with the request that met it) and a `hint` (what a person does next).

    StagerError
    |-- RequestError             rejected at once
    |     invalid_request, bucket_not_allowed, unreadable_request
    |-- ArchiveMissing           looked for again until the request's `wait` is over
    |     ArchiveNotFound, ArchiveDenied
    |-- ArchiveUnavailable       deferred with back-off, counted
    |-- ArchiveCorrupt, ImageNotInArchive, ArchiveChanged, TargetConflict     failed at once
    |-- MachineFault             the whole queue waits, nothing is counted
    |     CredentialsRefused, NoSpace, StorageError (ArchivesAway)
    |-- Expired, TooManyAttempts, Internal        failed
    |-- Cancelled                cancelled
    |-- BuildBusy                parked until the build's token is free
    |-- Stopping                 given back
    `-- TakenOver                dropped in silence: somebody else answers
    SetupError                   the program cannot start as it is set up: exit code 2
    NotNow                       it cannot start now: exit code 1, systemd tries again
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Self


class Then(StrEnum):
    """What becomes of a request that met an error."""

    REJECT = "reject"
    FAIL = "fail"
    CANCEL = "cancel"
    LOOK_AGAIN = "look again"
    DEFER = "defer"
    HOLD = "hold"
    PARK = "park"
    GIVE_BACK = "give back"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a text, with its place (line and column count from 1; 0: no place)."""

    message: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.line}:{self.column}: {self.message}" if self.line else self.message


class StagerError(Exception):
    """Base of all: `code`, `then`, `hint`; the message is for a person."""

    code: ClassVar[str] = "internal"
    then: ClassVar[Then] = Then.FAIL
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint

    def bare(self) -> Self:
        """Let go of all that was in use where it was met: it may be kept while others wait."""
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self

    @property
    def retryable(self) -> bool:
        """Whether trying again later can help without a change of the request."""
        return self.then in {Then.LOOK_AGAIN, Then.DEFER, Then.HOLD, Then.PARK}


class RequestError(StagerError):
    """The file cannot be acted on; `problems` holds all of its faults."""

    code = "invalid_request"
    then = Then.REJECT
    default_hint = "correct the file and drop it again under a new name"

    def __init__(self, problems: list[Problem], hint: str = "") -> None:
        super().__init__("; ".join(str(p) for p in problems), hint)
        self.problems = problems


class BucketNotAllowed(RequestError):
    """The build's bucket is not in `archive.buckets`."""

    code = "bucket_not_allowed"
    default_hint = "name one of the allowed buckets, or have the admin add it to archive.buckets"


class UnreadableRequest(RequestError):
    """The daemon may not read the file."""

    code = "unreadable_request"
    default_hint = "chmod a+r the file before it is dropped, and drop it again"


class ArchiveMissing(StagerError):
    """No archive to be seen under the exact object name."""

    then = Then.LOOK_AGAIN


class ArchiveNotFound(ArchiveMissing):
    """404: there is no such object."""

    code = "archive_not_found"
    default_hint = "check the build's URL; has the builder uploaded image.zip yet?"


class ArchiveDenied(ArchiveMissing):
    """403: the object is not there, or these credentials may not see it."""

    code = "archive_denied"
    default_hint = (
        "the object may not exist: Cloud Storage says 403 instead of 404 to those who may not list "
        "the bucket; else grant the daemon's account storage.objects.get"
    )


class ArchiveUnavailable(StagerError):
    """The service failed us for now: 429, 5xx, broken or stalled streams."""

    code = "archive_unavailable"
    then = Then.DEFER
    default_hint = "Cloud Storage did not answer properly; drop the request again later"


class ArchiveCorrupt(StagerError):
    """The zip is not sound; said after reading it twice."""

    code = "archive_corrupt"
    default_hint = "have the build's image.zip made and uploaded again"


class ImageNotInArchive(StagerError):
    """A sound zip without the wanted member."""

    code = "image_not_in_archive"
    default_hint = "not every build has every image; ask for one that the archive holds"


class ArchiveChanged(StagerError):
    """The archive now holds other content than images already staged from it."""

    code = "archive_changed"
    default_hint = "drop a request with force: true for all images of the build to stage it afresh"


class TargetConflict(StagerError):
    """The target belongs to another bucket's build of the same path."""

    code = "target_conflict"
    default_hint = "only one bucket's build of a path can be staged; remove the other one first"


class MachineFault(StagerError):
    """The machine or the service is at fault, not the request: the queue waits."""

    then = Then.HOLD


class CredentialsRefused(MachineFault):
    """Cloud Storage does not take the daemon's credentials."""

    code = "credentials_refused"
    default_hint = "check archive.credentials and the clock of this machine; requests wait"


class NoSpace(MachineFault):
    """Not enough room for the images and min_free."""

    code = "no_space"
    default_hint = "make room on the static tree's filesystem or lower min_free; requests wait"


class StorageError(MachineFault):
    """The spool's or the static tree's filesystem failed."""

    code = "storage_error"
    default_hint = "check the mounts of spool, static and results; requests wait"


class ArchivesAway(StorageError):
    """The directory that the archives are in is not there."""

    default_hint = "mount it, or set `archive.directory` in the configuration; requests wait"


class Expired(StagerError):
    """Not finished within the request's `expires`."""

    code = "expired"
    default_hint = "drop the request again, with a longer expires or none"


class TooManyAttempts(StagerError):
    """The daemon died on this request more than `attempts` times."""

    code = "too_many_attempts"
    default_hint = "see the daemon's log of the named machines for what kills it"


class Internal(StagerError):
    """A fault of ours."""

    default_hint = "the daemon's log has the traceback under the request id: please report it"


class Cancelled(StagerError):
    """Its owner or an admin said so."""

    code = "cancelled"
    then = Then.CANCEL
    default_hint = "if it is wanted after all: `stager retry NAME`, or drop it again"


class BuildBusy(StagerError):
    """Another worker has the build's token."""

    then = Then.PARK

    def __init__(self, owner: str) -> None:
        super().__init__(f"build busy on {owner}")


class Stopping(StagerError):
    """The daemon is asked to stop; the request goes back to the others."""

    then = Then.GIVE_BACK


class TakenOver(StagerError):
    """The claim or the token is no longer ours."""

    then = Then.DROP


class NotNow(Exception):
    """The program cannot start now, but may later, as it is set up; exit code 1."""


class SetupError(Exception):
    """The program cannot start as it is set up; exit code 2."""

    def __init__(self, message: str, problems: list[Problem] | None = None) -> None:
        super().__init__(message)
        self.problems = problems or []


def codes() -> list[str]:
    """Return every error's code, as results show them."""
    kinds, found = [StagerError], dict[str, None]()
    while kinds:
        kind = kinds.pop(0)
        kinds += kind.__subclasses__()
        found[kind.code] = None
    return sorted(found)


NOT_THERE_YET = "archive not there yet"
REASONS = {
    "no_space": "no space",
    "credentials_refused": "credentials refused",
    "storage_error": "storage error",
}
"""The standing faults in the words of `status`."""
