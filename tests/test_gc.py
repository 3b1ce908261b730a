"""Retention removes what was not used for longest, says why, and nothing that anybody needs."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hand import acting_as
from lab import BUCKET, BUILD, FILES, NOBODY, Lab, Peer, until
from yard import STRANGER

from stager import gc, job, prune
from stager.answer import is_staged
from stager.case import Case, Tools
from stager.config import KeepBuilds, load_config
from stager.errors import TakenOver
from stager.fetch import Room
from stager.gc import Staged, choose
from stager.hook import Hook
from stager.instance import GONE_SAMPLES
from stager.keeper import Keeper
from stager.layout import PIN_PREFIX, Build, Claim, parse_build
from stager.marker import TOUCH_SECONDS, Marker
from stager.request import parse_request
from stager.source import open_source
from stager.visit import Visit

DAY = 86400.0
NAMES = frozenset(FILES.values())


def url(n: int, board: str = "board") -> str:
    return f"gs://{BUCKET}/{board}/R{n}"


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """Return directories with six staged builds of two boards, to be copied."""
    with tempfile.TemporaryDirectory() as root:
        lab = Lab(Path(root)).init()
        for n in range(4):
            lab.archive(url(n))
            lab.drop(f"n{n}", url(n), ["test", "base"])
        for n in range(2):
            lab.archive(url(n, "other"))
            lab.drop(f"o{n}", url(n, "other"))
        lab.once()
        yield lab.root


@pytest.fixture
def used(template: Path, public_dir: Path) -> Iterator[Lab]:
    """Return a lab with those builds, the one with the highest number used last; no daemon."""
    for name in ("archive", "spool", "static", "results"):
        shutil.copytree(template / name, public_dir / name)
    lab = Lab(public_dir)
    for n in range(4):
        use(lab, url(n), 10 - 2 * n)
    for n in range(2):
        use(lab, url(n, "other"), 20 - n)
    yield lab
    lab.end()


def sidecars(lab: Lab, build: str) -> list[Path]:
    key = parse_build(build, NAMES).key
    return sorted((lab.root / "static/.stager/sidecars").glob(f"{key}.*.json"))


def use(lab: Lab, build: str, days_ago: float) -> None:
    """Have a build used so long ago."""
    when = time.time() - days_ago * DAY
    for path in (*sidecars(lab, build), *lab.target(build).iterdir()):
        os.utime(path, (when, when))


def collect(lab: Lab, *words: str) -> dict[str, dict[str, Any]]:
    done = lab.stager("gc", "--json", *words)
    assert done.returncode == 0, done.stderr
    return {found["build"]: found for found in json.loads(done.stdout)["builds"]}


def builds(lab: Lab) -> set[str]:
    """Return the builds that have an image, a sidecar or a flag; each has all of them."""
    flags, recorded = remains(lab)
    assert recorded == flags
    return flags


def remains(lab: Lab) -> tuple[set[str], set[str]]:
    """Return the builds that have an image or a flag, and those that have a sidecar."""
    flags = {f"gs://{BUCKET}/{p.parent.parent.name}/{p.parent.name}"
             for p in (lab.root / "static/images").glob("*/*/*")}  # fmt: skip
    every = {*(url(n) for n in range(4)), *(url(n, "other") for n in range(2))}
    return flags, {build for build in every if sidecars(lab, build)}


def test_without_rules_nothing_goes(used: Lab) -> None:
    before = builds(used)
    assert collect(used) == {}
    assert builds(used) == before


def test_what_was_not_used_for_long_goes_whole(used: Lab) -> None:
    used.write_config(retention={"builds": {"age": "9d"}})
    found = collect(used)
    assert set(found) == {url(0), url(0, "other"), url(1, "other")}
    assert all("not used for" in f["why"] for f in found.values())
    assert builds(used) == {url(1), url(2), url(3)}
    assert not used.target(url(0)).exists()
    assert used.stager("doctor").returncode == 0
    assert used.is_clean()


def test_the_last_used_of_each_board_stay(used: Lab) -> None:
    used.write_config(retention={"builds": {"keep": 1}})
    assert set(collect(used)) == {url(0), url(1), url(2), url(0, "other")}
    assert builds(used) == {url(3), url(1, "other")}


def test_all_together_stay_below_a_size(used: Lab) -> None:
    one = sum(json.loads(p.read_text())["allocated"] for p in sidecars(used, url(3)))
    used.write_config(retention={"builds": {"size": one + 1}})
    collect(used)
    assert builds(used) == {url(3)}


def test_builds_go_where_min_free_is_not_met() -> None:
    staged = [Staged(Build("b", "x", f"R{n}"), ["test"], used=n, bytes=100) for n in range(5)]
    rules = KeepBuilds(age=1e6)
    gone = [s.build.short_build for s, _ in choose(staged, rules, 10.0, missing=150)]
    assert gone == ["R0", "R1"]
    assert choose(staged, rules, 10.0, missing=0) == []


def test_what_another_rule_frees_counts_for_min_free() -> None:
    staged = [Staged(Build("b", "x", f"R{n}"), ["test"], used=n, bytes=100) for n in range(5)]
    chosen = choose(staged, KeepBuilds(keep=3), 10.0, missing=250)
    assert [s.build.short_build for s, _ in chosen] == ["R0", "R1", "R2"]
    assert "min_free" in chosen[-1][1]


def test_a_dry_run_says_the_same_and_removes_nothing(used: Lab) -> None:
    used.write_config(retention={"builds": {"age": "9d"}})
    before = builds(used)
    would = collect(used, "--dry-run")
    assert builds(used) == before
    did = collect(used)
    assert set(did) == set(would)


def test_a_use_keeps_a_build(used: Lab) -> None:
    with used.running():
        assert used.ask(url(0))["state"] == "already_staged"
        used.write_config(retention={"builds": {"age": "9d"}})
        found = collect(used)
    assert set(found) == {url(0, "other"), url(1, "other")}
    assert used.flag(url(0)) == ["test", "base"]


def test_a_reader_keeps_a_build(used: Lab) -> None:
    used.write_config(retention={"builds": {"age": "9d"}})
    image = used.image("test", url(0))
    os.utime(image, (time.time(), image.stat().st_mtime))
    assert url(0) not in collect(used)


def test_verifying_is_no_use(used: Lab) -> None:
    used.write_config(retention={"builds": {"age": "9d"}})
    assert used.stager("verify").returncode == 0
    assert url(0) in collect(used)


def test_a_pinned_build_stays_until_it_is_unpinned(used: Lab) -> None:
    with used.running():
        assert used.stager("pin", url(0)).returncode == 0
        used.write_config(retention={"builds": {"age": "9d"}})
        assert url(0) not in collect(used)
        assert used.flag(url(0)) == ["test", "base"]
        assert used.stager("unpin", url(0)).returncode == 0
        assert url(0) in collect(used)


def test_what_is_no_build_is_not_pinned(used: Lab) -> None:
    with used.running():
        done = used.stager("pin", "../../etc")
    assert done.returncode == 2
    assert "gs://" in done.stderr


def test_a_build_that_a_request_waits_for_stays(used: Lab) -> None:
    used.write_config(retention={"builds": {"age": "9d"}})
    claim = used.root / "spool/waiting" / "p5.9999999999.u0.x.yaml~1-abc.g1.a0.aaaaaaaa"
    claim.write_text(yaml.safe_dump({"build": url(0), "images": ["recovery"]}))
    assert url(0) not in collect(used)


def test_a_build_at_work_is_left(used: Lab) -> None:
    used.write_config(retention={"builds": {"age": "9d"}})
    peer = used.peer(machine="another")
    with peer.locks.take(parse_build(url(0), NAMES).key):
        found = collect(used)
    assert "busy" in found[url(0)]["spared"]
    assert used.flag(url(0)) == ["test", "base"]


def test_what_stays_whatever_the_rules_say_is_counted(used: Lab) -> None:
    used.write_config(retention={"builds": {"size": "1"}})
    use(used, url(0), 0)
    (used.root / "spool" / f"{PIN_PREFIX}{parse_build(url(1), NAMES).key}").touch()
    done = used.stager("gc", "--dry-run", "--json")
    assert json.loads(done.stdout)["kept"] == {"used within the hour": 1, "pinned": 1}
    assert "kept whatever the rules say: " in done.stderr
    assert "1 pinned" in done.stderr


def test_a_build_pinned_while_others_go_stays(used: Lab) -> None:
    used.write_config(retention={"builds": {"age": "9d"}})
    config, peer = load_config(used.config, {}), used.peer()
    marker = Marker(config.paths, config.images)
    passing = gc.collect(Visit(config, peer.heart, peer.spool, peer.locks, marker))
    next(passing)
    for build in (url(0), url(0, "other"), url(1, "other")):
        (used.root / "spool" / f"{PIN_PREFIX}{parse_build(build, NAMES).key}").touch()
    assert {removal.spared for removal in passing} == {"pinned meanwhile"}


def test_a_use_in_the_last_moment_writes_the_flag_back(used: Lab) -> None:
    build = parse_build(url(0), NAMES)
    config = load_config(used.config, {})
    peer, marker = used.peer(), Marker(config.paths, config.images)
    staged = next(s for s in gc.survey(config, time.time()) if s.build == build)
    os.utime(sidecars(used, url(0))[0])
    with peer.locks.take(build.key) as work:
        assert gc.remove(work, marker, staged, time.time()) == "used meanwhile"
    assert sorted(used.flag(url(0))) == ["base", "test"]


@pytest.fixture
def answering(used: Lab) -> Iterator[tuple[Tools, Case]]:
    """Return a request for the oldest build, found staged so long ago that it must be looked at."""
    config, peer = load_config(used.config, {}), used.peer()
    tools = Tools(
        config, peer.heart, peer.spool, peer.locks, Marker(config.paths, config.images),
        open_source(config), Room(config.static, config), Hook([]),
    )  # fmt: skip
    claim = peer.spool.take(f"{used.drop('late', url(0), ['test'])}.yaml")
    assert claim is not None
    dropped = peer.spool.read(claim)
    case = Case(claim, dropped, parse_request(dropped.data, config.rules))
    assert is_staged(tools, case)
    use(used, url(0), 10)
    case.looked_at -= TOUCH_SECONDS
    yield tools, case
    tools.hook.stop()


def test_an_answer_that_took_long_is_a_use_once_more(
    used: Lab, answering: tuple[Tools, Case]
) -> None:
    tools, case = answering
    job.answer(tools, case)
    assert used.result("late")["state"] == "already_staged"
    assert time.time() - next(iter(sidecars(used, url(0))[-1:])).stat().st_mtime < 60


def test_what_was_removed_while_it_was_answered_is_not_said_to_be_staged(
    used: Lab, answering: tuple[Tools, Case]
) -> None:
    tools, case = answering
    assert case.request is not None
    staged = next(s for s in gc.survey(tools.config, time.time()) if s.build == case.request.build)
    with tools.locks.take(staged.build.key) as work:
        assert gc.remove(work, tools.marker, staged, time.time()) == ""
    with pytest.raises(TakenOver):
        job.answer(tools, case)
    assert used.spool("active") == [str(case.claim)]
    assert not (used.root / "results/late.yaml").exists()


def test_what_is_not_ours_in_a_builds_directory_stays(used: Lab) -> None:
    used.write_config(retention={"builds": {"age": "9d"}})
    target = used.target(url(0))
    (target / "notes.txt").write_text("mine")
    (target / FILES["recovery"]).write_bytes(b"an older devserver's")
    (target / "staged").write_text("test\nbase\nrecovery\nsomething\n")
    assert url(0) in collect(used)
    assert sorted(os.listdir(target)) == sorted(["notes.txt", FILES["recovery"], "staged"])
    assert used.flag(url(0)) == ["recovery", "something"]


def test_an_interrupted_removal_is_finished_by_the_next(used: Lab) -> None:
    used.write_config(retention={"builds": {"age": "9d"}})
    used.image("test", url(0)).unlink()
    (used.target(url(0)) / "staged").write_text("")
    assert url(0) in collect(used)
    assert not used.target(url(0)).exists()


def test_a_build_that_stays_is_listed_again_after_a_removal_that_was_cut_short(used: Lab) -> None:
    used.write_config(retention={"builds": {"age": "9d"}})
    (used.target(url(3)) / "staged").write_text("")
    assert url(3) not in collect(used)
    assert used.flag(url(3)) == ["test", "base"]


def test_a_removed_build_is_staged_again_on_request(used: Lab) -> None:
    used.write_config(retention={"builds": {"age": "9d"}})
    collect(used)
    with used.running():
        assert used.ask(url(0), ["test", "base"])["state"] == "staged"
    assert used.flag(url(0)) == ["test", "base"]


def test_the_daemon_does_it_by_itself(used: Lab) -> None:
    used.write_config(retention={"builds": {"age": "9d"}})
    with used.running() as daemon:
        daemon.await_log("removed a build")
        left = {url(1), url(2), url(3)}
        until(lambda: remains(used) == (left, left))


def two_with_rules(lab: Lab) -> list[Peer]:
    """Return two instances of a spool with rules of retention, by their names."""
    lab.write_config(retention={"builds": {"age": "9d"}})
    return sorted((lab.peer(), lab.peer()), key=lambda peer: peer.inst)


def visit_of(lab: Lab, peer: Peer) -> Visit:
    """Return what retention works with."""
    config = load_config(lab.config, {})
    return Visit(config, peer.heart, peer.spool, peer.locks, Marker(config.paths, config.images))


def test_another_one_does_it_as_soon_as_the_first_has_gone(used: Lab) -> None:
    first, other = two_with_rules(used)
    other.heart.observe()
    visit, keeper = visit_of(used, other), Keeper()
    keeper.turn(visit)
    assert len(builds(used)) == 6
    first.heart.leave()
    other.heart.observe()
    keeper.turn(visit)
    left = {url(1), url(2), url(3)}
    until(lambda: remains(used) == (left, left))
    keeper.stop()


def test_what_somebody_left_half_done_goes_when_it_has_gone(used: Lab) -> None:
    first, other = two_with_rules(used)
    first.heart.observe()
    other.locks.take(parse_build(url(0), NAMES).key)
    visit, keeper = visit_of(used, first), Keeper()
    keeper.turn(visit)
    some, left = {url(n) for n in range(4)}, {url(1), url(2), url(3)}
    until(lambda: remains(used) == (some, some))
    other.heart.leave()
    for _ in range(GONE_SAMPLES + 1):
        first.locks.busy(parse_build(url(0), NAMES).key)
        first.heart.observe()
    keeper.turn(visit)
    until(lambda: remains(used) == (left, left))
    keeper.stop()


# -- answers and requests --------------------------------------------------------------------------


def test_old_answers_and_requests_go(used: Lab) -> None:
    used.write_config(retention={"requests": "1s", "results": "1s"})
    with used.running():
        state = used.ask(BUILD, ["factory"])["state"]
        assert state == "rejected"
        until(lambda: collect(used) == {} and not used.spool("done") + used.spool("failed"))
        assert not list((used.root / "results").glob("*.yaml"))
    assert used.stager("doctor").returncode == 0
    assert used.is_clean()


def test_young_ones_stay(used: Lab) -> None:
    before = used.spool("done"), sorted(os.listdir(used.root / "results"))
    assert len(before[0]) == 6
    done = used.stager("gc", "--json")
    assert json.loads(done.stdout)["files"] == []
    assert (used.spool("done"), sorted(os.listdir(used.root / "results"))) == before


def test_an_unpublished_answer_keeps_its_request(used: Lab) -> None:
    used.write_config(retention={"requests": "1s", "results": 0})
    name = used.spool("done")[0]
    (used.root / "spool/private" / name).write_text("x")
    until(lambda: time.time() - (used.root / "spool/done" / name).stat().st_ctime > 1)
    collect(used)
    assert used.spool("done") == [name]


@pytest.fixture
def visit(used: Lab) -> Visit:
    """Return one for an instance of its own."""
    return visit_of(used, used.peer())


def test_an_answer_that_was_replaced_meanwhile_stays(used: Lab, visit: Visit) -> None:
    path = used.root / "results/n0.yaml"
    old = path.stat().st_ctime - 1
    path.write_text("state: the next answer of that NAME\n")
    assert not prune._remove_result(visit, path, old)
    assert path.read_text().startswith("state: the next")
    assert prune._remove_result(visit, path, path.stat().st_ctime)
    assert not path.exists()


def test_a_folder_that_its_owner_keeps_where_it_is_keeps_nothing_else(public_dir: Path) -> None:
    lab = Lab(public_dir, {"retention": {"requests": "0.01s"}}, user=NOBODY).init()
    config, peer = load_config(lab.config, {}), lab.peer()
    visit = Visit(config, peer.heart, peer.spool, peer.locks, Marker(config.paths, config.images))
    folder, file = (
        lab.root / "spool/failed" / str(Claim(f"{name}.yaml", f"{n}-a", 1, 0, "x-aaaaaa", "b" * 8))
        for n, name in enumerate(("folder", "file"))
    )
    file.touch()
    folder.mkdir(0o555)
    os.chown(folder, STRANGER, -1)
    with acting_as(NOBODY):
        assert until(lambda: list(prune.prune(visit))) == [file]
        assert list(prune.prune(visit)) == []
    assert lab.spool("failed") == [folder.name]
