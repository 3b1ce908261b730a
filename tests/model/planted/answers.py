"""How a request ends: the answer on disk, the commit, the public answer."""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from model.planted import leaves_out
from stager import durable, result
from stager.backlog import Backlog
from stager.durable import nonce
from stager.layout import Claim
from stager.outbox import Outbox
from stager.result import Result
from stager.spool import Spool

Answers = list[tuple[Claim, Result]]


def _answer(self: Spool, answers: Answers, order: str) -> set[Claim]:
    committed: set[Claim] = set()

    def commit(claim: Claim, answer: Result) -> None:
        if durable.move(self._active(claim), self._room(answer.state) / str(claim)):
            committed.add(claim)
        else:
            durable.discard(self.paths.private / str(claim))
        self.drop(claim)

    for claim, answer in answers:
        for step in order:
            if step == "w":
                self.outbox.write([(claim, answer)])
            elif step == "c":
                commit(claim, answer)
            elif claim in committed or "c" in order.partition("p")[2]:
                self.outbox.publish([claim])
    return committed


@leaves_out("the answer is on disk before the commit", "stager.spool.Spool.answer_all",
            mood="last words")  # fmt: skip
def commit_first(
    self: Spool, answers: Answers, is_true: Callable[[Claim], bool] | None = None
) -> set[Claim]:
    del is_true
    return _answer(self, answers, "cwp")


@leaves_out("the commit comes before the public answer", "stager.spool.Spool.answer_all",
            mood="last words")  # fmt: skip
def publish_first(
    self: Spool, answers: Answers, is_true: Callable[[Claim], bool] | None = None
) -> set[Claim]:
    del is_true
    return _answer(self, answers, "wpc")


@leaves_out("an answer's making can't be repeated late", "stager.outbox.Outbox.write",
            mood="duplicates")  # fmt: skip
def no_desk(self: Outbox, answers: Answers) -> None:
    for claim, answer in answers:
        tmp = self.paths.tmp / f"{self.heart.inst}.{nonce()}"
        durable.write_new(tmp, result.to_yaml(answer, claim))
        durable.move(tmp, self.paths.private / str(claim))


@leaves_out("answers are finished by whoever finds them", "stager.server.finish",
            mood="last words")  # fmt: skip
def no_finisher(_spool: Spool) -> int:
    return 0


def _write_unsynced(files: Iterable[tuple[Path, bytes]]) -> None:
    for path, data in files:
        durable.write_new(path, data, sync=False)


@leaves_out("answers are synced before the commit", "stager.durable.write_all_new",
            mood="power cuts")  # fmt: skip
def answers_unsynced(files: Iterable[tuple[Path, bytes]]) -> None:
    _write_unsynced(files)


# What is synced is whole: so the finisher's look at it is a second defence, and only missed where
# answers are not synced either.


def _believe(_data: bytes, _claim: Claim) -> bool:
    return True


_UNSYNCED: dict[str, Any] = {"stager.durable.write_all_new": _write_unsynced}


@leaves_out("the finisher publishes only a whole answer that fits", mood="last words",
            also=_UNSYNCED | {
                "stager.finish.result": SimpleNamespace(**vars(result) | {"fits": _believe})
            })  # fmt: skip
def torn_answers_published() -> None: ...


@leaves_out("a commit without an answer is answered", "stager.finish.answer_lost",
            mood="last words", also=_UNSYNCED)  # fmt: skip
def torn_answers_stay(_spool: Spool, _claim: Claim, _room: Path) -> None:
    return


@leaves_out("an outcome answers all who waited", "stager.backlog.Backlog.judge", mood="crowd",
            builds=1, absent=0.6)  # fmt: skip
def everybody_asks(_self: Backlog, _url: str, _verdict: object, _learnt_at: float) -> None:
    return
