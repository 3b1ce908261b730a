"""One bad entry each: how it is refused, what becomes of it, and what is told of it."""

import hashlib
import os
from functools import partial
from pathlib import Path

import pytest
from crowd import Make, fifo, folder, hard_link, link_to, unix_socket, unreadable
from hand import acting_as, by_hand
from lab import BUCKET, BUILD, Lab, until
from yard import SECRET, STRANGER, never_settling, start, written_by_daemon

from stager.spool import NotClaimable

DAEMON = 65531
UIDS = pytest.mark.parametrize("user", [None, DAEMON], ids=["root", "unprivileged"])

NO_FILES: dict[str, Make] = {
    "a-link": partial(link_to, "{yard}/target.yaml"),
    "a-link-to-nothing": partial(link_to, "nothing"),
    "a-fifo": fifo,
    "a-socket": unix_socket,
    "a-folder": partial(folder, None, True),
}


@UIDS
def test_what_is_no_file_is_put_aside_as_it_is(public_dir: Path, user: int | None) -> None:
    lab, yard = start(public_dir, user)
    kinds = {}
    with lab.running():
        for name, make in NO_FILES.items():
            make(lab.requests / f"{name}.yaml", yard)
            kinds[name] = (lab.requests / f"{name}.yaml").lstat()
        yard.forget_reads()
        answers = [lab.result(name)["error"] for name in NO_FILES]
    assert {(a["code"], a["message"]) for a in answers} == {
        ("invalid_request", "not a regular file")
    }
    (lab.root / "spool/failed").lstat()
    for name, before in kinds.items():
        (claim,) = lab.ended(name)
        after = (lab.root / "spool/failed" / str(claim)).lstat()
        assert (after.st_mode, after.st_ino, after.st_atime_ns) == (
            before.st_mode, before.st_ino, before.st_atime_ns
        )  # fmt: skip
    assert yard.reads() == []


@UIDS
@pytest.mark.parametrize(
    ("make", "for_root", "for_user", "hint"),
    [
        pytest.param(partial(hard_link, "public.yaml"), "staged", "staged", "", id="public"),
        pytest.param(
            partial(hard_link, "daemons.yaml"), "invalid_request", "invalid_request", "copy it",
            id="of-the-daemon",
        ),
        pytest.param(
            partial(hard_link, "group.yaml"), "invalid_request", "invalid_request", "copy it",
            id="of-a-group",
        ),
        pytest.param(
            partial(hard_link, "private.yaml"), "invalid_request", "unreadable_request", "",
            id="of-somebody",
        ),
        pytest.param(
            unreadable, "invalid_request", "unreadable_request", "chmod a+r", id="unreadable"
        ),
    ],
)  # fmt: skip
def test_hard_links_and_unreadable_files(
    public_dir: Path, user: int | None, make: Make, for_root: str, for_user: str, hint: str
) -> None:
    lab, yard = start(public_dir, user)
    lab.archive()
    with lab.running() as daemon:
        make(lab.requests / "x.yaml", yard)
        answer = lab.result("x")
        assert SECRET not in daemon.log
    wanted = for_user if user else for_root
    error = answer.get("error", {"code": answer["state"]})
    assert error["code"] == wanted
    if user or "hard" in str(make):
        assert hint in f"{error.get('hint')} {error.get('message')}"
    assert wanted == "staged" or SECRET not in str(answer)


def test_a_hard_link_is_refused_by_whoever_takes_it_over(public_dir: Path) -> None:
    lab, yard = start(public_dir, None)
    lab.archive()
    hard_link("daemons.yaml", lab.requests / "x.yaml", yard)
    assert lab.peer(dead=True).spool.take("x.yaml")
    with lab.running():
        answer = lab.result("x")
    assert answer["state"] == "rejected"
    assert SECRET not in str(answer)


def test_a_folder_of_another_user_stays_even_where_it_could_be_moved(public_dir: Path) -> None:
    """Its owner could keep it from being moved on (chmod), and so have it tried for ever."""
    lab, yard = start(public_dir, DAEMON)
    path = lab.requests / "open.yaml"
    folder(STRANGER, False, path, yard)
    path.chmod(0o777)
    with acting_as(DAEMON), by_hand(lab) as server:
        with pytest.raises(NotClaimable, match=f"its owner .uid {STRANGER}. or root removes it"):
            server.spool.take(path.name)
        assert lab.spool("requests") == [path.name]


def test_a_key_that_is_not_known_is_not_told_to_others(lab: Lab) -> None:
    with lab.running():
        lab.drop_text("x", f"build: {BUILD}\nimages: [test]\n{SECRET}: 1\n")
        (problem,) = lab.result("x")["error"]["problems"]
    assert (problem["line"], problem["column"]) == ("3", "1")
    assert [path for path, text in written_by_daemon(lab.root) if SECRET in text] == []


def test_a_request_changed_after_it_was_taken_is_answered_once_by_what_it_says(lab: Lab) -> None:
    archive = f"gs://{BUCKET}/x86-alex-release/R99-1.0.0"
    text = f"build: {archive}\nimages: [test]\nnote: {{}}\n"
    with lab.running():
        lab.drop_text("x", text.format("first"))
        with (lab.root / "spool/waiting" / until(lambda: lab.spool("waiting"))[0]).open("r+b") as f:
            f.write(text.format("later").encode())
        lab.archive(archive)
        answer = lab.result("x")
        until(lab.is_clean)
    assert answer["state"] == "staged"
    acted_on = text.format(answer["note"]).encode()
    assert answer["request_sha256"] == hashlib.sha256(acted_on).hexdigest()
    assert len(lab.ended("x")) == 1


def test_once_names_what_it_leaves_and_ends(public_dir: Path) -> None:
    lab, yard = start(public_dir, DAEMON)
    lab.archive()
    lab.drop("good")
    folder(STRANGER, True, lab.requests / "folder\x1b.yaml", yard)
    with never_settling(lab.requests, ["changing"]):
        done = lab.once()
    assert done.returncode == 0, done.stderr
    assert lab.result("good")["state"] == "staged"
    assert "changing.yaml" in done.stderr
    assert "folder\\x1b.yaml" in done.stderr
    shown = lab.stager("status").stdout + lab.stager("list").stdout + done.stderr
    assert all(line.isprintable() for line in shown.splitlines())
    assert sorted(os.listdir(lab.requests)) == ["changing.yaml", "folder\x1b.yaml"]
