"""What a case came to, as the answer that its submitter reads; and what is there already."""

import hashlib
import time

from stager import marker
from stager.archive import Archive
from stager.case import Case, Tools
from stager.errors import Internal, StagerError, Then
from stager.result import ArchivePart, ImagePart, Result, State, error_part, stamp


def is_staged(tools: Tools, case: Case) -> bool:
    """Whether all that is asked for is there already; asks neither network nor token."""
    assert case.request is not None
    look(tools, case)
    if case.request.force or len(case.staged) < len(case.request.images):
        case.staged = {}
        return False
    return True


def look(tools: Tools, case: Case) -> None:
    """Look which of the images are staged; for a minute retention knows that they are used."""
    assert case.request is not None
    case.looked_at = time.clock_gettime(time.CLOCK_BOOTTIME)
    case.staged = tools.marker.staged(case.request.build, case.request.images)


def is_true(tools: Tools, case: Case) -> bool:
    """Whether an answer still is; one that took longer than a minute is asked for again.

    Else retention might remove what we are about to say is staged: it knows of no use but a touch.
    """
    stale = time.clock_gettime(time.CLOCK_BOOTTIME) - case.looked_at > marker.TOUCH_SECONDS
    if not stale or not case.staged or case.error is not None:
        return True
    before = case.staged
    look(tools, case)
    return case.staged == before


def make_result(tools: Tools, case: Case) -> Result:
    """Make the answer from all that is known of a case."""
    claim, request, now = case.claim, case.request, tools.heart.server_now()
    images = _images(tools, case) if request else None
    error = _error(case)
    return Result(
        state=_state(case, error),
        request=claim.file,
        request_id=claim.request_id,
        retry_of=claim.retry_of,
        request_sha256=hashlib.sha256(case.dropped.data).hexdigest() if case.dropped.data else None,
        submitter=case.dropped.uid,
        note=request.note if request else None,
        build=request.build.url if request else None,
        target=request.build.target if request else None,
        images=images,
        error=error_part(error) if error else None,
        archive=_archive(case.archive),
        bytes_fetched=case.archive.fetched if case.archive else 0,
        attempts=claim.a,
        host=tools.heart.identity.host,
        received=stamp(claim.arrived_ns / 1e9),
        started=stamp(case.started_at) if case.started_at else None,
        finished=stamp(now),
    )


def _archive(archive: Archive | None) -> ArchivePart | None:
    if archive is None:
        return None
    return ArchivePart(object=archive.url, generation=archive.generation, size=archive.size)


def _error(case: Case) -> StagerError | None:
    """Return the error of the first image that failed, in the request's order."""
    if case.request is None or (case.error and case.error.then is Then.CANCEL):
        return case.error
    failed = [i for i in case.request.images if i in case.failures or not _is_done(case, i)]
    return case.failures.get(failed[0], case.error) if failed else case.error


def _is_done(case: Case, image: str) -> bool:
    """Whether an image is there; where it was to be staged again: whether it was."""
    assert case.request is not None
    is_enough = case.error is None or not case.request.force
    return image in case.staged and (is_enough or image in case.kept or _is_ours(case, image))


def _state(case: Case, error: StagerError | None) -> State:
    if error is not None:
        rejected = error.then is Then.REJECT
        cancelled = error.then is Then.CANCEL
        return State.REJECTED if rejected else State.CANCELLED if cancelled else State.FAILED
    fresh = any(_is_ours(case, image) for image in case.staged)
    return State.STAGED if fresh else State.ALREADY_STAGED


def _is_ours(case: Case, image: str) -> bool:
    """Whether this request, in this attempt or an earlier one, made the image what it is."""
    ours = case.staged[image].request_id == case.claim.request_id
    return ours and image not in case.kept


def _images(tools: Tools, case: Case) -> dict[str, ImagePart]:
    assert case.request is not None
    build = case.request.build
    try:
        case.staged = case.staged or tools.marker.staged(build, case.request.images)
    except OSError:
        # An error is no less true where the static tree fails: nobody waits for that as well.
        if case.error is None:
            raise
    return {image: _image(tools, case, image) for image in case.request.images}


def _image(tools: Tools, case: Case, image: str) -> ImagePart:
    assert case.request is not None
    error, sidecar = case.failures.get(image), case.staged.get(image)
    if error is not None or sidecar is None:
        error = error or case.error or Internal("neither staged nor failed")
        state = State.CANCELLED if error.then is Then.CANCEL else State.FAILED
        return ImagePart(state=state, error=error_part(error))
    path = f"{case.request.build.target}/{tools.config.images[image]}"
    url = tools.config.static_url.rstrip("/")
    return ImagePart(
        state=State.STAGED if _is_ours(case, image) else State.ALREADY_STAGED,
        path=path,
        url=f"{url}/{path}" if url else None,
        size=sidecar.size,
        allocated=sidecar.allocated,
        crc32=sidecar.crc32,
        sha256=sidecar.sha256,
        generation=sidecar.generation,
    )


def quoted(names: list[str] | tuple[str, ...]) -> str:
    """Join names as the seed's log did: `a', `b' and `c'."""
    quoted = [f"`{name}'" for name in names]
    return " and ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))
