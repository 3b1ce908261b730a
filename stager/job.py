"""One claimed request from start to end.

The order is the crash-safety argument, and this is the one place that states it:

1. an image is linked into place whole, checked and synced;  2. then its sidecar is written;
3. then the flag;  4. the token is released, after the work directory is gone;  5. the result is
written privately;  6. the claim is committed by one rename;  7. the result is published.

Dying between any two steps leaves something true: a visible image is complete; a flag lists only
what is there; a result is published only for a committed claim, and a committed claim's result is
already on disk for anybody to publish. Whoever takes over repeats from the start, and finds done
what was done. What another machine might still do late with an old claim or token fails, as the
names and directories it would need are gone.
"""

import random

import structlog

from stager import durable
from stager.answer import is_staged, is_true, look, make_result, quoted
from stager.archive import GenerationGone
from stager.case import Case, Tools
from stager.errors import (
    ArchiveUnavailable,
    Internal,
    StagerError,
    StorageError,
    TakenOver,
    TargetConflict,
    Then,
    TooManyAttempts,
)
from stager.hook import Call
from stager.instance import Buried
from stager.lock import Work
from stager.request import PRIORITIES, Request
from stager.result import Result, State
from stager.stage import Staging

log = structlog.get_logger()

FIRST_DEFERRAL_SECONDS = 5.0
LONGEST_DEFERRAL_SECONDS = 900.0


def run(tools: Tools, case: Case) -> None:
    """Work on a claimed request until it is answered, put back, or somebody else's.

    Never raises for what a request, an archive, the network or a disk can do: `case.error` says
    what it met, `case.due` is set where it waits now.
    """
    case.started_at, case.starts_before = tools.heart.server_now(), case.claim.a
    case.progress.sign.step()
    try:
        with durable.storage():
            _stage(tools, case)
            answer(tools, case)
    except StagerError as e:
        settle(tools, case, e)
    except Buried:
        settle(tools, case, TakenOver("this instance was taken for dead"))
    except Exception as e:
        if isinstance(e, MemoryError) or "new thread" in str(e):
            settle(tools, case, StorageError(f"no memory or thread for a worker: {e!r}"))
            return
        log.exception("a fault of ours", request_id=case.claim.request_id)
        settle(tools, case, Internal("a fault in watcherd"))


def _stage(tools: Tools, case: Case) -> None:
    """Walk the main path: what is staged, token, what is missing, archive, images."""
    request = case.request
    assert request is not None
    if is_staged(tools, case) or _is_judged(tools, case):
        return
    if case.claim.a > tools.config.attempts:
        raise TooManyAttempts(f"the daemon died on this request {case.claim.a} times")
    with tools.locks.take(request.build.key) as work:
        case.learnt_at = tools.heart.server_now()
        try:
            tools.marker.look_afresh(request.build)
            tools.marker.check_target(request.build)
            _mend_flag(tools, request, work)
            missing = _missing(tools, case)
            if missing:
                case.claim = tools.spool.start(case.claim)
                _stage_missing(tools, case, work, missing)
            work.renew()
            _mend_flag(tools, request, work)
        except OSError:
            # A directory that is gone may mean that we were fenced off, not that a disk failed.
            work.check()
            raise
    look(tools, case)
    if any(i not in case.staged and i not in case.failures for i in request.images):
        raise ArchiveUnavailable("another request changed the build meanwhile")


def _is_judged(tools: Tools, case: Case) -> bool:
    """Whether an earlier request of this build has answered this one too."""
    assert case.request is not None
    if not case.verdict:
        return False
    look(tools, case)
    missing = [image for image in case.request.images if image not in case.staged]
    if any(image not in case.verdict for image in missing):
        case.staged = {}
        return False
    case.failures = {image: case.verdict[image] for image in missing}
    return True


def _missing(tools: Tools, case: Case) -> list[str]:
    """Return the images to stage, now that nobody else can; refuse another bucket's target."""
    request = case.request
    assert request is not None
    for sidecar in tools.marker.sidecars(request.build).values():
        if sidecar.archive_url != request.build.archive_url:
            raise TargetConflict(
                f"{request.build.target} holds images of {sidecar.archive_url.rpartition('/')[0]}"
            )
    staged = {} if request.force else tools.marker.staged(request.build, request.images)
    return [image for image in request.images if image not in staged]


def _stage_missing(tools: Tools, case: Case, work: Work, missing: list[str]) -> None:
    """Open the archive at one generation and stage from it; begin anew, once, if it is replaced."""
    request, rid = case.request, case.claim.request_id
    assert request is not None
    build = request.build
    fetched = 0
    for last in (False, True):
        case.progress.enter("looking for the archive")
        case.learnt_at = tools.heart.server_now()
        case.archive = tools.source.look(build, case.progress.pause)
        case.archive.fetched = fetched
        # A try while the queue waits for the end of a fault is no news.
        say = log.debug if case.is_probe else log.info
        images = f"Image(s) {quoted(missing)} for build {build.target}"
        say(f"{images} will be staged", request_id=rid)
        say(f"Downloading image archive from {build.url}", request_id=rid,
            generation=case.archive.generation)  # fmt: skip
        staging = Staging(
            build, work, case.archive, tools.marker, tools.room, tools.heart, case.progress, rid,
            request.force,
        )  # fmt: skip
        try:
            staging.stage(missing)
        except GenerationGone:
            # What is known is true of an archive that is no more.
            staging.failures.clear()
            fetched = case.archive.fetched
            if last:
                raise
        else:
            break
        finally:
            case.failures = {image: e.bare() for image, e in staging.failures.items()}
            case.kept = staging.kept


def _mend_flag(tools: Tools, request: Request, work: Work) -> None:
    """See that the flag is true: before the work, and when nothing of it can have a late effect.

    A crash in the middle of a swap leaves a flag without an image that is there; a rename out of
    the work directory that the server executes a second time, later, could put an older flag back
    (NFSv3), but not once that directory is gone.
    """
    has_target = tools.marker.paths.target(request.build).is_dir()
    if has_target and not tools.marker.is_true(request.build):
        tools.marker.write_flag(work, request.build)


def settle(tools: Tools, case: Case, error: StagerError) -> None:
    """Answer with an error, or put the request where it waits."""
    case.error = error.bare()
    try:
        with durable.storage():
            if _is_final(tools, case, error):
                answer(tools, case)
            elif error.then is not Then.DROP:
                _wait(tools, case, error)
            else:
                # It may be only the token that is not ours any more (or its filesystem that is
                # away): then the claim is adopted, and the start was not the request's fault.
                tools.spool.uncount(case.claim, case.starts_before)
            tools.spool.drop(case.claim)
    except StagerError as e:
        # The claim stays where it is: whoever scans active/ next takes it up again.
        if error.then is not Then.DEFER:
            tools.spool.uncount(case.claim, case.starts_before)
        tools.spool.drop(case.claim)
        if e.then is not Then.DROP:
            case.error = e.bare()
    except Buried:
        tools.spool.drop(case.claim)
    except Exception:
        log.exception("a fault of ours", request_id=case.claim.request_id)
        tools.spool.drop(case.claim)


def _is_final(tools: Tools, case: Case, error: StagerError) -> bool:
    """Whether an error ends the request, or is waited out."""
    if error.then is Then.LOOK_AGAIN:
        assert case.request is not None
        wait = case.request.wait
        patience = tools.config.wait_for_archive if wait is None else wait
        return tools.heart.server_now() >= case.claim.arrived_ns / 1e9 + patience
    if error.then is Then.DEFER:
        return case.claim.a >= tools.config.attempts
    return error.then in {Then.REJECT, Then.FAIL, Then.CANCEL}


def _wait(tools: Tools, case: Case, error: StagerError) -> None:
    """Move the claim to waiting/: only a deferral keeps its start counted."""
    now, starts = tools.heart.server_now(), case.starts_before
    case.due = now
    if error.then is Then.DEFER:
        starts = case.claim.a
        case.due += deferral_seconds(starts)
    elif error.then is Then.LOOK_AGAIN:
        case.due += case.look_seconds
    priority = case.request.priority if case.request else PRIORITIES["normal"]
    if tools.spool.put_back(case.claim, priority, case.due, case.dropped.uid, starts) is None:
        case.error = TakenOver(f"{case.claim} is no longer ours")
    elif error.then is Then.GIVE_BACK:
        log.info("given back: this instance ends", request_id=case.claim.request_id)


def deferral_seconds(starts: int) -> float:
    """Return the back-off after so many starts: doubled each time, with a jitter."""
    seconds = FIRST_DEFERRAL_SECONDS * 2.0 ** (max(starts, 1) - 1)
    return min(seconds, LONGEST_DEFERRAL_SECONDS) * random.uniform(0.8, 1.2)


def answer(tools: Tools, case: Case) -> None:
    """Commit the claim with its answer, and say so in the log; TakenOver: it is not ours."""
    answer_all(tools, [case])
    if not case.is_answered:
        raise TakenOver(f"{case.claim} is no longer ours")


def answer_all(tools: Tools, cases: list[Case]) -> None:
    """Answer several; those that are not ours any more stay unanswered."""
    results: list[tuple[Case, Result]] = []
    for case in cases:
        results.append((case, make_result(tools, case)))
        case.progress.enter("answering")
    by_claim = {case.claim: case for case in cases}
    committed = tools.spool.answer_all(
        [(case.claim, result) for case, result in results],
        lambda claim: is_true(tools, by_claim[claim]),
    )
    for case, result in results:
        case.is_answered = case.claim in committed
        if case.is_answered:
            case.state = result.state.value
            case.code = result.error.code if result.error else ""
            _say(tools, case, result)


def _say(tools: Tools, case: Case, result: Result) -> None:
    target = str(tools.marker.paths.static / result.target) if result.target else ""
    tools.hook.call(Call(result, tools.spool.paths.results / case.claim.result_file, target))
    seconds = round(max(0.0, tools.heart.server_now() - case.claim.arrived_ns / 1e9), 3)
    facts = {"request_id": result.request_id, "request": result.request, "seconds": seconds}
    if result.error:
        log.warning(f"{result.state}: {result.error.message}", code=result.error.code, **facts)
        return
    news = f"{result.state}"
    if case.request and result.state is State.ALREADY_STAGED and case.archive is None:
        names, target = quoted(case.request.images), case.request.build.target
        news = f"All requested images ({names}) for build {target} have already been staged."
    log.info(news, build=result.build, bytes=result.bytes_fetched, **facts)
