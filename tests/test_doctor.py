"""`doctor` names every invariant that is broken; `verify` reads the images, and mends them."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from lab import BUCKET, BUILD, FILES, NOBODY, Lab, until

from stager import doctor
from stager.config import load_config
from stager.layout import Claim, parse_build

KEY = parse_build(BUILD, frozenset()).key
OTHER = f"gs://{BUCKET}/x86-alex-release/R99"


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """Return directories with staged images and answered requests, to be copied."""
    with tempfile.TemporaryDirectory() as root:
        lab = Lab(Path(root)).init()
        lab.archive()
        lab.drop("good", images=["test", "base"])
        lab.drop("bad", images=["factory"])
        lab.once()
        yield lab.root


@pytest.fixture
def used(template: Path, public_dir: Path) -> Iterator[Lab]:
    """Return a lab with staged images and answered requests, and no daemon."""
    for name in ("archive", "spool", "static", "results"):
        shutil.copytree(template / name, public_dir / name)
    lab = Lab(public_dir)
    yield lab
    lab.end()


def findings(lab: Lab) -> list[str]:
    """Return what the doctor finds; nothing runs, so that the second look can come at once."""
    found = doctor.examine(load_config(lab.config, {}), 0.0)
    return [f"{f.rule}: {f.what}: {f.hint}" for f in found if f.broken]


def remarks(lab: Lab) -> list[str]:
    """Return what the doctor says besides."""
    found = doctor.examine(load_config(lab.config, {}), 0.0)
    return [f"{f.rule}: {f.what}: {f.hint}" for f in found if not f.broken]


def claim_in(lab: Lab, room: str) -> Claim:
    (claim,) = filter(None, map(Claim.parse, lab.spool(room)))
    return claim


def token(lab: Lab) -> Path:
    (path,) = (lab.root / "static/.stager/locks" / KEY).iterdir()
    return path


def copy_claim(lab: Lab, room: str, nonce: str = "") -> None:
    """Let an answered request be in another room, or twice in its own."""
    claim = claim_in(lab, "done")
    name = str(claim).replace(claim.nonce, nonce) if nonce else str(claim)
    shutil.copy(lab.root / "spool/done" / str(claim), lab.root / "spool" / room / name)


BREAKAGES: dict[str, tuple[Callable[[Lab], object], str]] = {
    "two tokens": (
        lambda lab: token(lab).with_name("99.free").touch(), f"one token: locks/{KEY} holds 2",
    ),
    "no token": (lambda lab: token(lab).unlink(), f"one token: locks/{KEY} holds 0"),
    "something beside a token": (
        lambda lab: token(lab).with_name("notes.txt").touch(), f"one token: locks/{KEY}",
    ),
    "done and failed": (lambda lab: copy_claim(lab, "failed"), "one state: request "),
    "done and active": (lambda lab: copy_claim(lab, "active"), "one state: request "),
    "done twice": (lambda lab: copy_claim(lab, "done", "aaaaaaaa"), "one state: request "),
    "done and waiting": (
        lambda lab: shutil.copy(
            lab.root / "spool/done" / str(claim_in(lab, "done")),
            lab.root / f"spool/waiting/p5.0.u0.a~{claim_in(lab, 'done').id}.g1.a0.aaaaaaaa",
        ),
        "one state: request ",
    ),
    "a name that is none": (lambda lab: (lab.root / "spool/done/notes").touch(), "names: done/"),
    "a claim where requests wait": (
        lambda lab: copy_claim(lab, "waiting"), "names: waiting/",
    ),
    "a flag with an image that is not there": (
        lambda lab: lab.image("test").unlink(), "true flags: images/",
    ),
    "a flag with a line too many": (
        lambda lab: (lab.target() / "staged").write_text("test\nbase\nrecovery\n"),
        "true flags: images/",
    ),
    "a flag with an empty image": (
        lambda lab: lab.image("test").write_bytes(b""), "true flags: images/",
    ),
    "a flag with half an image": (
        lambda lab: os.truncate(lab.image("test"), 1000), "true flags: images/",
    ),
    "another set's results": (
        lambda lab: (lab.root / "results/.layout").write_text(
            (lab.root / "spool/LAYOUT").read_text().replace("set: ", "set: f")
        ),
        ".layout",
    ),
    "a staged image that the flag does not list": (
        lambda lab: (lab.target() / "staged").write_text("base\n"),
        "test is staged, but not listed",
    ),
    "a request that ended without an answer": (
        lambda lab: (lab.root / "results/good.yaml").unlink(), "answers: request ",
    ),
    "a room that is gone": (lambda lab: (lab.root / "spool/cancelled").rmdir(), "cancelled"),
}  # fmt: skip


def test_a_used_spool_is_well(used: Lab) -> None:
    assert findings(used) == []
    done = used.stager("doctor")
    assert (done.returncode, yaml.safe_load(done.stdout)) == (0, {"findings": [], "remarks": []})


@pytest.mark.parametrize("what", BREAKAGES)
def test_every_broken_invariant_is_named(used: Lab, what: str) -> None:
    breakage, words = BREAKAGES[what]
    breakage(used)
    found = findings(used)
    assert len(found) == 1, found
    assert words in found[0]


def test_the_request_in_two_states_is_named_with_both(used: Lab) -> None:
    copy_claim(used, "failed")
    (found,) = findings(used)
    assert claim_in(used, "done").request_id in found
    assert "done" in found
    assert "failed" in found


SPOOL_ROOMS = ("requests", "control", "active", "waiting", "done", "failed", "cancelled",
               "instances", "private", "tmp")  # fmt: skip
ROOMS = (
    *("spool", "results", "static", "static/images", "static/.stager"),
    *(f"spool/{name}" for name in SPOOL_ROOMS),
    *(f"static/.stager/{name}" for name in ("locks", "work", "sidecars")),
)


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_must_have_its_mode_and_owner(used: Lab, room: str) -> None:
    path = used.root / room
    mode = path.stat().st_mode & 0o7777
    path.chmod(0o777)
    (found,) = findings(used)
    assert found.startswith("owners and modes: ")
    assert f"chmod {mode:o} {path}" in found
    path.chmod(mode)
    os.chown(path, NOBODY, -1)
    (found,) = findings(used)
    assert f"chown 0 {path}" in found


def test_a_groups_drop_box_is_no_finding(public_dir: Path) -> None:
    lab = Lab(public_dir)
    assert lab.stager("init", "--group", "daemon").returncode == 0
    assert findings(lab) == []


@pytest.mark.parametrize(
    "which",
    [
        pytest.param(lambda lab: lab.image("test"), id="image"),
        pytest.param(lambda lab: lab.target() / "staged", id="flag"),
        pytest.param(lambda lab: lab.target(), id="build"),
        pytest.param(lambda lab: lab.root / "results/good.yaml", id="result"),
    ],
)
def test_what_is_published_must_be_readable_by_all(used: Lab, which: Callable[[Lab], Path]) -> None:
    which(used).chmod(0o700)
    (found,) = findings(used)
    assert found.startswith("owners and modes: ")
    assert which(used).name in found


def test_an_older_devservers_image_is_no_finding(used: Lab) -> None:
    target = used.target(OTHER)
    target.mkdir()
    (target / FILES["test"]).write_bytes(b"an image")
    (target / "staged").write_text("test\n# a note\n")
    assert findings(used) == []


def test_the_doctor_is_a_program_that_ends_with_1_and_says_what_to_do(used: Lab) -> None:
    token(used).with_name("99.free").touch()
    (used.root / "spool/private").chmod(0o755)
    done = used.stager("doctor", "--json")
    found = json.loads(done.stdout)["findings"]
    assert done.returncode == 1
    assert [f["rule"] for f in found] == ["one token", "owners and modes"]
    assert all(f["hint"] for f in found)


def test_a_spool_at_work_is_well(lab: Lab) -> None:
    builds = [f"gs://{BUCKET}/board/R{n}" for n in range(12)]
    for build in builds:
        lab.archive(build)
    with lab.running():
        for n, build in enumerate(builds * 4):
            lab.drop(f"n{n}", build, images=["test", "base"])
        done = lab.stager("doctor")
        assert lab.spool("requests") or lab.spool("waiting") or lab.spool("done")
    assert done.returncode == 0, done.stdout


# -- remarks ---------------------------------------------------------------------------------------


def held_by_nobody(lab: Lab) -> None:
    token(lab).rename(token(lab).with_name("9.lab-9-abcdef.aaaaaaaa"))


def work_of_nobody(lab: Lab) -> None:
    work = lab.root / f"static/.stager/work/{KEY}.1.lab-9-abcdef.aaaaaaaa"
    work.mkdir()
    (work / "half").write_bytes(b"x")


def claim_of_nobody(lab: Lab) -> None:
    name = str(claim_in(lab, "done"))
    lab.drop("another")
    (lab.root / "spool/requests/another.yaml").rename(
        lab.root / "spool/active" / name.replace("good", "another").replace("~1", "~2")
    )


def record_of_nothing(lab: Lab) -> None:
    lab.image("test").unlink()
    (lab.target() / "staged").write_text("base\n")


REMARKS: dict[str, tuple[Callable[[Lab], object], str, bool]] = {
    "a token of the dead": (held_by_nobody, f"the token of locks/{KEY} is held by lab-9-abc", True),
    "work of the dead": (work_of_nobody, f"work/{KEY}.1.lab-9-abcdef.aaaaaaaa belongs to no", True),
    "a claim of the dead": (claim_of_nobody, "is gone: a running daemon takes it over", False),
    "an answer to nothing": (
        lambda lab: (lab.root / "spool/private/x~1-a.g1.a0.lab-9-abcdef.aaaaaaaa").touch(),
        "answers no request", False,
    ),
    "a record of nothing": (
        record_of_nothing, "test has a record, but is not there", True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REMARKS)
def test_what_is_odd_and_breaks_nothing_is_remarked(used: Lab, what: str) -> None:
    assert remarks(used) == []
    oddity, words, mendable = REMARKS[what]
    oddity(used)
    assert findings(used) == []
    assert any(words in remark for remark in remarks(used)), remarks(used)
    done = used.stager("doctor", "--repair", "--json")
    assert done.returncode == 0, "no invariant is broken"
    (remark,) = [
        r for r in json.loads(done.stdout)["remarks"] if words in f"{r['what']}: {r['hint']}"
    ]
    assert (remark["repair"] == "mended") == mendable, remark
    assert any(words in remark for remark in remarks(used)) != mendable


def test_two_living_machines_with_one_id_are_remarked(used: Lab) -> None:
    peers = [used.peer(machine="one", boot=boot) for boot in ("first", "second")]
    (remark,) = (r for r in remarks(used) if "have one machine id, and both live" in r)
    assert all(peer.inst in remark for peer in peers)
    assert findings(used) == []


def test_a_silent_instance_is_remarked_after_a_lease_of_the_servers_clock(used: Lab) -> None:
    peer = used.peer(machine="another", boot="another")
    assert remarks(used) == []
    words = f"heartbeats: {peer.inst} has not beaten for a lease"
    until(lambda: any(words in remark for remark in remarks(used)), "it is remarked")


def test_files_that_an_nfs_client_keeps_open_are_not_ours_to_judge(used: Lab) -> None:
    for room in ("spool/active", "spool/done", f"static/.stager/locks/{KEY}"):
        (used.root / room / ".nfs0000000000000001").touch()
    assert findings(used) == remarks(used) == []


# -- repair ----------------------------------------------------------------------------------------

MENDED = (
    "two tokens", "no token", "a flag with an image that is not there",
    "a flag with a line too many", "a flag with an empty image", "a flag with half an image",
    "a staged image that the flag does not list", "a request that ended without an answer",
)  # fmt: skip
NOT_MENDED = (
    "something beside a token", "done and failed", "done and active", "a name that is none",
    "another set's results",
)  # fmt: skip


def repair(lab: Lab) -> tuple[int, list[str]]:
    done = lab.stager("doctor", "--repair", "--json")
    assert "Traceback" not in done.stderr
    return done.returncode, [f["repair"] for f in json.loads(done.stdout)["findings"]]


@pytest.mark.parametrize("what", MENDED)
def test_what_harms_nobody_is_mended(used: Lab, what: str) -> None:
    BREAKAGES[what][0](used)
    assert repair(used) == (0, ["mended"])
    assert findings(used) == []
    assert (used.spool("instances"), used.is_clean()) == ([], True)


@pytest.mark.parametrize("what", NOT_MENDED)
def test_what_needs_a_person_is_left_and_said(used: Lab, what: str) -> None:
    BREAKAGES[what][0](used)
    before = findings(used)
    code, (outcome,) = repair(used)
    assert code == 1
    assert outcome.startswith("not mended: ")
    assert findings(used) == before


def test_owners_and_modes_are_mended_by_root(public_dir: Path) -> None:
    lab = Lab(public_dir, user=NOBODY).init()
    lab.archive()
    lab.drop("good")
    lab.once()
    os.chown(lab.root / "spool/active", 0, 0)
    (lab.root / "spool/private").chmod(0o777)
    lab.image("test").chmod(0o600)
    (lab.target() / "staged").write_text("")
    assert lab.stager("doctor").returncode == 1
    assert repair(lab) == (0, ["mended"] * 4)
    assert lab.stager("doctor", user=NOBODY).returncode == 0
    made = [lab.target() / "staged", *(lab.root / "static/.stager/locks").glob("*/*")]
    assert {path.stat().st_uid for path in made} == {NOBODY}


def test_a_lost_answer_is_said_to_be_lost_and_the_request_can_be_retried(used: Lab) -> None:
    BREAKAGES["a request that ended without an answer"][0](used)
    repair(used)
    answer = used.result("good")
    assert (answer["state"], answer["error"]["code"]) == ("failed", "internal")
    (used.root / "results/good.yaml").unlink()
    with used.running():
        assert used.stager("retry", "good").returncode == 0
        assert used.result("good")["state"] == "already_staged"


def test_a_build_at_work_is_not_mended_under_its_owner(used: Lab) -> None:
    (used.target() / "staged").write_text("test\nbase\nrecovery\n")
    peer = used.peer(machine="another")
    with peer.locks.take(KEY):
        code, (outcome,) = repair(used)
    assert code == 1
    assert "another machine" in outcome or "not mended" in outcome
    assert repair(used) == (0, ["mended"])


# -- verify ----------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    with path.open("r+b") as f:
        f.seek(path.stat().st_size // 2)
        byte = f.read(1)
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte[0] ^ 1]))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped byte": (flip, "other content"),
    "a missing file": (Path.unlink, "not there"),
    "a cut-off file": (lambda path: os.truncate(path, 1000), "has 1000 bytes"),
    "an empty file": (lambda path: path.write_bytes(b""), "has 0 bytes"),
    "a longer file": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "bytes"),
}


def verify(lab: Lab, *words: str) -> tuple[int, list[dict[str, str]]]:
    done = lab.stager("verify", *words, "--json")
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)["damaged"]


@pytest.mark.parametrize("what", DAMAGES)
def test_verify_finds_the_damaged_image_and_no_other(used: Lab, what: str) -> None:
    damage, words = DAMAGES[what]
    assert verify(used) == (0, [])
    damage(used.image("test"))
    code, found = verify(used)
    assert code == 1
    assert [(f["build"], f["image"]) for f in found] == [(BUILD, "test")]
    assert words in found[0]["damage"]


@pytest.mark.parametrize("what", ["a flipped byte", "a missing file", "a cut-off file"])
def test_a_damaged_image_is_staged_again(used: Lab, what: str) -> None:
    sound = {image: used.image(image).read_bytes() for image in ("test", "base")}
    DAMAGES[what][0](used.image("test"))
    with used.running():
        code, ((found),) = verify(used, "--repair")
        assert code == 1
        assert used.result(found["repair"])["state"] == "staged"
        until(lambda: verify(used) == (0, []))
    assert {image: used.image(image).read_bytes() for image in sound} == sound
    assert set(used.flag()) == {"test", "base"}
    assert findings(used) == []


def test_an_image_is_mended_where_requests_may_not_force(used: Lab) -> None:
    flip(used.image("test"))
    used.write_config(allow_force=False)
    with used.running():
        _, (found,) = verify(used, "--repair")
        assert used.result(found["repair"])["state"] == "staged"
    assert verify(used) == (0, [])


def test_verify_says_what_to_do_next(used: Lab) -> None:
    flip(used.image("test"))
    assert "staged again: `stager verify --repair`\n" in used.stager("verify").stderr
    said = used.stager("verify", "--repair")
    (name,) = re.findall("repair: (.*)", said.stdout)
    assert f"staged again: `stager wait {name}`, then verify again\n" in said.stderr


def test_without_repair_nothing_is_changed(used: Lab) -> None:
    flip(used.image("test"))
    before = used.image("test").read_bytes()
    assert verify(used)[0] == 1
    assert used.spool("requests") == []
    assert used.image("test").read_bytes() == before
