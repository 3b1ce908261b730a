"""The protocol's rules, each left out in turn: what the model must find.

A planted fault replaces one function of the product by one that lacks the rule; `Plan` fields and
odds named beside it make the circumstances likely that the rule is for.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from model.plan import Plan
from stager import durable, gc, result
from stager.durable import nonce
from stager.errors import BuildBusy
from stager.instance import Heart, _Seen
from stager.layout import Claim, can_name_result, request_name
from stager.lock import Locks, Token, Work, _number
from stager.marker import Marker
from stager.result import Result
from stager.spool import Spool
from stager.stage import Staging
from stager.sweep import Sweeper


@dataclass(frozen=True, slots=True)
class Fault:
    """One rule left out."""

    rule: str
    target: str
    function: Callable[..., Any]
    likely: dict[str, Any] = field(default_factory=dict)
    seed: int = 1
    """One that shows it."""
    rare: bool = False
    """Too rare to be looked for in every run of the tests."""

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Leave the rule out for the length of a block."""
        with mock.patch(self.target, self.function):
            yield

    def shape(self, plan: Plan) -> None:
        """Make likely what the rule is for."""
        for name, value in self.likely.items():
            if (event := name.replace("_", " ")) in plan.events:
                plan.events[event] = value
            else:
                setattr(plan.odds if hasattr(plan.odds, name) else plan, name, value)


FAULTS: dict[str, Fault] = {}
WORLD: Any = durable
"""Where `os` is what the running history put in its place."""


def leaves_out(
    rule: str, target: str, *, seed: int = 1, rare: bool = False, **likely: Any
) -> Callable[[Callable[..., Any]], None]:
    """Register a function that lacks a rule."""

    def register(function: Callable[..., Any]) -> None:
        name = function.__name__.replace("_", "-")
        FAULTS[name] = Fault(rule, target, function, likely, seed, rare)

    return register


# -- after an error, and before a decision -------------------------------------------------------


@leaves_out("touch a directory before a listing that decides", "stager.durable.listing", seed=10,
            rare=True, stale_listing=1.0, again=0.5, slow=0.0, tick=5.0, drops=20,
            drop=30.0)  # fmt: skip
def no_touch(directory: Path, *, touch: bool = True) -> list[str]:  # noqa: ARG001
    names: list[str] = WORLD.os.listdir(directory)
    return names


@leaves_out("after an error, look for one's own destination", "stager.durable.move",
            again=0.04, lost=0.02)  # fmt: skip
def no_look_after_an_error(source: Path, target: Path) -> bool:
    try:
        WORLD.os.rename(source, target)
    except OSError as e:
        if e.errno in {errno.ENOENT, errno.ESTALE}:
            return False
        raise
    return True


# -- claims --------------------------------------------------------------------------------------


@leaves_out("take and accept are two renames", "stager.spool.Spool.take", rare=True, seed=12,
            duplicate=0.2, drops=12)  # fmt: skip
def no_accept(self: Spool, name: str) -> Claim | None:
    file = name if can_name_result(request_name(name)) else ""
    source = self.paths.requests / name
    try:
        fresh = f"{WORLD.os.lstat(source).st_ctime_ns}-{nonce()[:6]}"
    except FileNotFoundError:
        return None
    claim = Claim(file, fresh, 1, 0, self.heart.inst, nonce())
    return claim if self._move(source, self.paths.active, claim) else None


@leaves_out("the inode opened is the one that is listed", "stager.spool.Spool._check_inode", seed=3,
            stale_name=1.0, drops=20, machines=3, redrop=0.8)  # fmt: skip
def no_inode_check(_self: Spool, _claim: Claim, _inode: int) -> None:
    return


@leaves_out(
    "what a lost reply left is taken over, not just gone on with",
    "stager.spool.Spool.take_over",
    rare=True,
    seed=12,
    lost_late=0.06,
    lost=0.06,
    refused=0.06,
)
def adopted_in_place(self: Spool, claim: Claim) -> Claim | None:
    if claim.g == 0:
        return self.accept(claim)
    if claim.inst == self.heart.inst:
        self._held.add(str(claim))
        return claim
    mine = claim.next(self.heart.inst, nonce())
    return mine if self._move(self._active(claim), self.paths.active, mine) else None


@leaves_out("nothing goes back to the drop box", "stager.spool.Spool.put_back")
def back_to_requests(
    self: Spool, claim: Claim, priority: int, due: float, uid: int, starts: int
) -> None:
    del priority, due, uid, starts
    durable.move(self._active(claim), self.paths.requests / claim.file)
    self.drop(claim)


# -- answers -------------------------------------------------------------------------------------


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
                self.write_answers([(claim, answer)])
            elif step == "c":
                commit(claim, answer)
            elif claim in committed or "c" in order.partition("p")[2]:
                self.publish(claim)
    return committed


@leaves_out("the answer is on disk before the commit", "stager.spool.Spool.answer_all", ambush=0.3)
def commit_first(self: Spool, answers: Answers, _: Any = None) -> set[Claim]:
    return _answer(self, answers, "cwp")


@leaves_out("the commit comes before the public answer", "stager.spool.Spool.answer_all", kill=2.0)
def publish_first(self: Spool, answers: Answers, _: Any = None) -> set[Claim]:
    return _answer(self, answers, "wpc")


@leaves_out("an answer's making can't be repeated late", "stager.spool.Spool.write_answers",
            rare=True, seed=4,
            duplicate=0.3, again=0.0, drops=12)  # fmt: skip
def no_desk(self: Spool, answers: Answers) -> None:
    for claim, answer in answers:
        tmp = self.paths.tmp / f"{self.heart.inst}.{nonce()}"
        durable.write_new(tmp, result.to_yaml(answer, claim))
        durable.move(tmp, self.paths.private / str(claim))


@leaves_out(
    "answers are finished by whoever finds them",
    "stager.server.finish",
    rare=True,
    seed=3,
    ambush=0.3,
)
def no_finisher(_spool: Spool) -> int:
    return 0


# -- the build token -----------------------------------------------------------------------------

ZOMBIES: dict[str, Any] = {
    "kill": 0.0,
    "cut_power": 0.0,
    "pause": 0.5,
    "stall": 0.0,
    "stall_heart": 0.0,
    "stop": 0.0,
    "cut": 0.0,
    "server_away": 0.0,
    "drops": 30,
    "chaos_seconds": 300.0,
    "ambush": 0.4,
    "ambushes": ("static",),
    "zombies": 1.0,
    "builds": 1,
    "force": True,
}


@leaves_out("the owners before are fenced", "stager.lock.Work.open", seed=10, rare=True, **ZOMBIES)
def no_fence(self: Work) -> None:
    self.dir = self._make(self.paths.work / f"{self.key}.{self.token}")
    self.check()


@leaves_out("after the fence, see that the token is still ours", "stager.lock.Work.open", rare=True,
            **ZOMBIES | {"ambushes": ("static/.stager/locks",)})  # fmt: skip
def no_recheck(self: Work) -> None:
    prefix = f"{self.key}."
    for name in durable.listing(self.paths.work):
        older = name.startswith(prefix) and _number(name.removeprefix(prefix)) < self.token.n
        if older and not durable.remove_tree(self.paths.work / name):
            raise BuildBusy("an old attempt")
    self.dir = self._make(self.paths.work / f"{prefix}{self.token}")


@leaves_out("a fence counts when rmdir succeeded", "stager.durable.remove_tree", rare=True,
            **ZOMBIES, again=0.2)  # fmt: skip
def half_a_fence(path: Path, tries: int = 5) -> bool:  # noqa: ARG001
    with suppress(OSError):
        WORLD.shutil.rmtree(path)
    return True


@leaves_out("a work directory is made elsewhere and renamed in",
            "stager.lock.Work._make", rare=True,
            duplicate=0.7, **ZOMBIES)  # fmt: skip
def made_in_place(_self: Work, path: Path) -> Path:
    durable.make_dir(path)
    return path


@leaves_out("a token changes hands by rename", "stager.lock.Locks.take", **ZOMBIES)
def broken_by_unlink(self: Locks, key: str) -> Work:
    tokens = self.tokens(key) or self._first(key)
    if owner := self._owner(max(tokens)):
        raise BuildBusy(owner)
    room, mine = self.paths.locks / key, Token(max(tokens).n + 1, self.heart.inst, nonce())
    self._held.add(str(mine))
    durable.discard(room / str(max(tokens)))
    durable.write_new(room / str(mine), b"")
    work = Work(self, key, mine)
    work.open()
    return work


@leaves_out("of several tokens the highest counts", "stager.lock.Locks.tokens", rare=True, seed=5,
            duplicate=0.5, drops=10, chaos_seconds=200.0)  # fmt: skip
def the_lowest_token(self: Locks, key: str) -> list[Token]:
    try:
        names = durable.listing(self.paths.locks / key)
    except FileNotFoundError:
        return []
    return sorted(t for t in map(Token.parse, names) if t)[:1]


@leaves_out("what a failed release leaves is freed", "stager.lock.Locks.free_left", rare=True,
            lost_late=0.0, refused=0.2, drops=8, kill=0.0, cut_power=0.0, stop=0.0, pause=0.0,
            ambush=0.0, chaos_seconds=60.0)  # fmt: skip
def never_freed(_self: Locks) -> None:
    return


# -- what is visible -----------------------------------------------------------------------------


@leaves_out("images are linked, never renamed over", "stager.durable.link", rare=True, **ZOMBIES)
def replacing_rename(source: Path, target: Path) -> bool:
    WORLD.os.rename(source, target)
    return True


@leaves_out("an image that is there is adopted", "stager.stage.Staging._adopt",
            rare=True, kill=3.0, drops=10)  # fmt: skip
def never_adopted(_self: Staging, _image: str, _member: Any) -> bool:
    return False


@leaves_out("a name that is used again is taken away through a grave",
            "stager.lock.Work.away", rare=True,
            retention=True, force=True, duplicate=0.3, drops=14, chaos_seconds=400.0)  # fmt: skip
def no_grave(self: Work, path: Path) -> None:
    durable.move(path, self.file())


@leaves_out("the flag is replaced, not written in place", "stager.marker.Marker._replace_flag")
def flag_in_place(self: Marker, _work: Work, build: Any, lines: list[str]) -> None:
    target = self.paths.target(build) / "staged"
    durable.discard(target)
    durable.write_new(target, "".join(f"{line}\n" for line in lines).encode())


@leaves_out("flag and record are true again when nothing late can come",
            "stager.job._mend_flag", rare=True,
            force=True, drops=14, archive=3.0, ambush=0.2)  # fmt: skip
def never_mended(_tools: Any, _request: Any, _work: Work) -> None:
    return


# -- retention -----------------------------------------------------------------------------------

KEEPING: dict[str, Any] = {"retention": True, "chaos_seconds": 500.0, "drops": 30}


@leaves_out("an answer from what is there touches it", "stager.marker.Marker._touch", **KEEPING)
def untouched(self: Marker, build: Any, image: str) -> bool:
    return self.paths.sidecar(build.key, image).name in durable.listing(self.paths.sidecars)


@leaves_out("retention looks at the uses again after the flag", "stager.gc.remove", seed=2,
            **KEEPING | {"drops": 5, "drop": 20.0, "watched": 10.0})  # fmt: skip
def not_looked_again(work: Work, marker: Marker, staged: gc.Staged, now: float) -> str:  # noqa: ARG001
    build, paths = staged.build, marker.paths
    marker.write_flag(work, build, without=staged.images)
    for image in staged.images:
        work.away(marker.image_path(build, image))
        work.away(paths.sidecar(build.key, image))
    return ""


@leaves_out("retention takes the flag's line first", "stager.gc.remove", **KEEPING)
def image_first(work: Work, marker: Marker, staged: gc.Staged, now: float) -> str:  # noqa: ARG001
    build, paths = staged.build, marker.paths
    for image in staged.images:
        work.away(marker.image_path(build, image))
        work.away(paths.sidecar(build.key, image))
    marker.write_flag(work, build)
    return ""


# -- the living and the dead ---------------------------------------------------------------------


@leaves_out("dead is who was silent for a lease", "stager.instance.Heart._judge",
            rare=True, slow=0.02)  # fmt: skip
def dead_at_once(_self: Heart, seen: _Seen) -> bool:
    return seen.samples >= 1


@leaves_out("only good samples condemn", "stager.instance.Heart.forget_samples", rare=True,
            server_away=6.0, stall_heart=6.0, stall=0.0, drop=12.0, drops=40,
            chaos_seconds=300.0)  # fmt: skip
def bad_samples_count(_self: Heart, now: float | None = None) -> None:  # noqa: ARG001
    return


@leaves_out("the living are not taken for dead", "stager.instance.Heart.dead", rare=True, **ZOMBIES)
def nobody_dies(_self: Heart, _inst: str) -> bool:
    return False


@leaves_out("what is swept was left over twice, a lease apart",
            "stager.sweep.Sweeper.sweep", rare=True,
            stop=2.0)  # fmt: skip
def swept_at_once(self: Sweeper) -> list[Path]:
    return [path for path in self._leftovers() if self._remove(path)]
