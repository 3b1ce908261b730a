"""The build's token, and the fence of its owner."""

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

from model.planted import WORLD, leaves_out
from stager import durable
from stager.durable import nonce
from stager.errors import BuildBusy
from stager.lock import Locks, Token, Work, _number


@leaves_out("the owners before are fenced", "stager.lock.Work.open", mood="zombies", machines=3,
            ambush=0.6, chaos_seconds=300.0)  # fmt: skip
def no_fence(self: Work) -> None:
    self.dir = self._make(self.paths.work / f"{self.key}.{self.token}")
    self.check()


def open_unchecked(self: Work) -> None:
    """Fence the owners before, and make a work directory."""
    prefix = f"{self.key}."
    for name in durable.listing(self.paths.work):
        older = name.startswith(prefix) and _number(name.removeprefix(prefix)) < self.token.n
        if older and not durable.remove_tree(self.paths.work / name):
            raise BuildBusy("an old attempt")
    self.dir = self._make(self.paths.work / f"{prefix}{self.token}")


@leaves_out("after the fence, see that the token is still ours", "stager.lock.Work.open",
            mood="zombies", ambushes=("static/.stager/locks",), machines=3,
            chaos_seconds=300.0)  # fmt: skip
def no_recheck(self: Work) -> None:
    open_unchecked(self)


def _half_removed(path: Path, tries: int = 5) -> bool:  # noqa: ARG001
    with suppress(OSError):
        WORLD.shutil.rmtree(path)
    return True


@leaves_out("a fence counts when rmdir succeeded", mood="zombies", busy=0.9, machines=3,
            archive=6.0, ambush=0.8, ambushes=("static/images",), chaos_seconds=300.0, also={
    "stager.lock.durable": SimpleNamespace(**vars(durable) | {"remove_tree": _half_removed})
})  # fmt: skip
def half_a_fence() -> None: ...


@leaves_out("a work directory is made elsewhere and renamed in", "stager.lock.Work._make",
            mood="zombies", duplicate=0.6, late_seconds=(30.0, 60.0, 60.0), just_then=0.9,
            archive=6.0, ambush=0.8, ambushes=("static/images",), machines=2)  # fmt: skip
def made_in_place(_self: Work, path: Path) -> Path:
    durable.make_dir(path)
    return path


@leaves_out("a token changes hands by rename", "stager.lock.Locks.take", mood="zombies")
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


@leaves_out("of several tokens the highest counts", "stager.lock.Locks.tokens",
            mood="split duplicates")  # fmt: skip
def the_lowest_token(self: Locks, key: str) -> list[Token]:
    try:
        names = durable.listing(self.paths.locks / key)
    except FileNotFoundError:
        return []
    return sorted(t for t in map(Token.parse, names) if t)[:1]


# That the highest counts is a second defence: a first token that is made again late is a lower one.
@leaves_out("the first token comes with its directory", "stager.lock.Locks._first",
            mood="duplicates", also={"stager.lock.Locks.tokens": the_lowest_token})  # fmt: skip
def first_token_in_place(self: Locks, key: str) -> list[Token]:
    room = self.paths.locks / key
    durable.make_dir(room)
    with suppress(FileExistsError):
        durable.write_new(room / str(Token(0)), b"")
    tokens = self.tokens(key)
    if not tokens:
        raise BuildBusy("another machine")
    return tokens


@leaves_out("a release makes a name that was never there", "stager.lock.Work.release",
            mood="duplicates")  # fmt: skip
def released_to_its_old_name(self: Work) -> bool:
    room = self.paths.locks / self.key
    self.close()
    durable.move(room / str(self.token), room / str(Token(self.token.n - 1)))
    self.locks.forget(self.token)
    return True


@leaves_out("lock directories stay", "stager.lock.Work.release", mood="zombies")
def lock_directories_removed(self: Work) -> bool:
    self.close()
    held = self.token in self.locks.tokens(self.key)
    if held:
        durable.remove_tree(self.paths.locks / self.key)
    self.locks.forget(self.token)
    return True


@leaves_out("what a failed release leaves is freed", "stager.lock.Locks.free_left",
            mood="failures")  # fmt: skip
def never_freed(_self: Locks) -> bool:
    return True


@leaves_out("what the dead held is freed, though nobody asks for it",
            "stager.lock.Locks.free_the_dead", mood="half done", force=False, archive=0.0,
            ambush=0.7, ambushes=("static/images",))  # fmt: skip
def the_dead_keep(_self: Locks, _keys: list[str]) -> list[str]:
    return []


@leaves_out("who frees for the dead may die of it", "stager.lock.Locks.free_the_dead",
            mood="half done", force=False, archive=0.0, ambush=0.7,
            ambushes=("static/images", "spool/instances"))  # fmt: skip
def own_dead_only(self: Locks, keys: list[str]) -> list[str]:
    buried = self.heart._buried
    return _FREE(self, [k for k in keys if {t.inst for t in self.tokens(k)} & buried])


_FREE = Locks.free_the_dead


@leaves_out("who waits for a build frees the worker", "stager.lock.Locks.take", mood="zombies",
            ambushes=("static/.stager/locks",), slow=0.0, machines=3, zombies=0.0)  # fmt: skip
def workers_wait(self: Locks, key: str) -> Work:
    while True:
        try:
            return _TAKE(self, key)
        except BuildBusy:
            WORLD.time.sleep(1.0)


_TAKE = Locks.take
