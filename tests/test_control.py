"""What is put into control/ that is no order: it stops nobody, and orders go on being obeyed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from crowd import Make, content, fifo, folder, hard_link, link_to, unix_socket, unreadable
from lab import BUCKET, NOBODY, Lab, until
from yard import SECRET, STRANGER, Yard, snapshot, written_by_daemon

DAEMON = 65531
ABSENT = f"gs://{BUCKET}/x86-alex-release/R99-1.0.0"
ORDER: dict[str, Any] = {
    "verb": "cancel", "names": ["x"], "everything": False, "state": "", "code": "", "host": "",
}  # fmt: skip


def order(**fields: Any) -> Make:
    """Return what writes an order with these fields; everything else as the command has it."""
    return partial(content, json.dumps(ORDER | fields))


GARBAGE: dict[str, list[Make]] = {
    "no-files": [
        fifo,
        unix_socket,
        partial(link_to, "/etc/shadow"),
        partial(link_to, "{yard}/nothing-there"),
        partial(link_to, "{yard}/secret-target.yaml"),
        partial(link_to, "/dev/zero"),
        partial(folder, None, True),
        partial(folder, STRANGER, False),
        partial(folder, STRANGER, True),
        partial(hard_link, "daemons.yaml"),
        partial(hard_link, "private.yaml"),
        unreadable,
    ],
    "no-json": [
        partial(content, ""),
        partial(content, f"cancel {SECRET}\n"),
        partial(content, "[" * 60_000),
        partial(content, '{"verb":' * 8_000),
        partial(content, b"\0" * 1000),
        partial(content, b'{"verb": "\xe4"}'),
        partial(content, bytes(range(256))),
        partial(content, "[" + f'"{SECRET}",' * 650_000 + "1]"),
    ],
    "no-order": [
        partial(content, f'["{SECRET}"]'),
        partial(content, f'"{SECRET}"'),
        partial(content, "5"),
        partial(content, "9" * 60_000),
        partial(content, "null"),
        partial(content, '{"verb": NaN}'),
        partial(content, json.dumps({k: v for k, v in ORDER.items() if k != "verb"})),
        order(verb=SECRET),
        order(verb=["cancel"]),
        order(verb={}),
        order(**{SECRET: 1}),
        order(note=SECRET * 1_000_000),
    ],
    "names": [
        order(names=5),
        order(names=None),
        order(names={"x": 1}),
        order(names="x"),
        order(names=[["x"], {}, None]),
        order(names=["\ud800"]),
        order(names=["../../x", "/etc/shadow", "", ".", "a\0b", "a\nb"]),
        order(names=["x" * 60_000]),
        order(names=[f"x{n}" for n in range(1001)]),
        order(verb="retry", names=["../../../yard/public.yaml", ""]),
        order(verb="retry", names=["\ud800"]),
    ],
    "wrong-types": [
        order(state={}),
        order(state=[SECRET]),
        order(code=[SECRET]),
        order(verb="retry", code={}),
        order(verb="retry", state=[]),
        order(everything=[SECRET], names=[], code=[SECRET]),
        order(verb="retry", everything=[SECRET], names=[], state="../../yard"),
        order(verb="pause", host="../../x"),
        order(verb="pause", host="a\nb"),
        order(verb="pause", host=[SECRET]),
        order(verb="resume", host=[SECRET]),
        order(verb="resume", host={}),
    ],
}
NAMES: dict[str, bytes] = {
    "255-bytes": b"x" * 249 + b".order",
    "not-utf-8": b"caf\xe9.order",
    "newline": b"two\nlines.order",
    "escape": b"\x1b[2J.order",
    "only-suffix": b".order",
    "space": b"a b.order",
    "no-suffix": b"garbage",
    "an-answer": b"aaaaaaaabbbbbbbb.answer",
    "dot-tmp": b".garbage.tmp",
}


@pytest.fixture
def quiet_lab(public_dir: Path) -> Iterator[tuple[Lab, Yard]]:
    """Return a lab of an unprivileged daemon, beside a yard."""
    made = Lab(public_dir, user=DAEMON)
    made.archive()
    yield made.init(), Yard(public_dir / "yard", DAEMON).lay_out()
    made.end()


def drop_as(lab: Lab, uid: int, name: str, build: str) -> None:
    """Drop a request of a user's."""
    (lab.requests / ".new").write_text(f"build: {build}\nimages: [test]\n")
    os.chown(lab.requests / ".new", uid, -1)
    os.rename(lab.requests / ".new", lab.requests / f"{name}.yaml")


def orders_are_obeyed(lab: Lab) -> None:
    """See that requests are staged, and that an order of their owner is carried out."""
    assert lab.result(lab.drop("good"))["state"] == "staged"
    lab.drop("unwanted", ABSENT)
    until(lambda: any("unwanted" in name for name in lab.spool("waiting")), "it to wait")
    done = lab.stager("cancel", "unwanted", seconds=20)
    assert (done.returncode, lab.result("unwanted")["state"]) == (0, "cancelled"), done


@pytest.mark.parametrize("uid", [NOBODY, 0], ids=["of-nobody", "of-root"])
@pytest.mark.parametrize("kind", GARBAGE)
def test_what_is_no_order_stops_nobody(quiet_lab: tuple[Lab, Yard], kind: str, uid: int) -> None:
    lab, yard = quiet_lab
    control = lab.root / "spool/control"
    with lab.running() as daemon:
        drop_as(lab, STRANGER, "x", ABSENT)
        until(lambda: any("~" in name for name in lab.spool("waiting")), "x to wait")
        names = [f"garbage{chr(ord('a') + number)}.order" for number in range(len(GARBAGE[kind]))]
        for make, name in zip(GARBAGE[kind], names, strict=True):
            make(control / ".new", yard)
            info = (control / ".new").lstat()
            if info.st_uid == 0 and info.st_nlink == 1:
                os.chown(control / ".new", uid, -1, follow_symlinks=False)
            before = snapshot(yard.root)
            yard.forget_reads()
            os.rename(control / ".new", control / name)
        orders_are_obeyed(lab)

        def left() -> set[str]:
            return {n for n in set(os.listdir(control)) & set(names) if n not in daemon.log}

        until(lambda: not left(), "all to be put aside")
        lab.stager("cancel", "x")
        assert lab.result("x")["submitter"] == str(STRANGER)
        assert not json.loads(lab.stager("status", "--json").stdout)["paused"]
    assert yard.reads() == []
    assert snapshot(yard.root) == before
    assert SECRET not in "".join(text for _, text in written_by_daemon(lab.root))
    assert not (lab.root / "x").exists()
    assert lab.is_clean()


@pytest.mark.parametrize("raw", [pytest.param(raw, id=label) for label, raw in NAMES.items()])
def test_odd_names_in_control_stop_nobody(quiet_lab: tuple[Lab, Yard], raw: bytes) -> None:
    lab, _ = quiet_lab
    with lab.running() as daemon:
        Path(os.fsdecode(bytes(lab.root / "spool/control") + b"/" + raw)).write_text(f"{SECRET}\n")
        orders_are_obeyed(lab)
    assert all(line.isprintable() for line in daemon.log.splitlines())
    assert SECRET not in daemon.log


def by_stranger(text: str) -> Callable[[Path], None]:
    """Return what writes a file that belongs to somebody else."""

    def write(path: Path) -> None:
        path.with_suffix(".new").write_text(text)
        os.chown(path.with_suffix(".new"), STRANGER, -1)
        os.rename(path.with_suffix(".new"), path)

    return write


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(by_stranger('{"outcome": {"mine": "not found"}, "problem": ""}'), id="a-lie"),
        pytest.param(by_stranger("[]"), id="a-list"),
        pytest.param(by_stranger(""), id="nothing"),
        pytest.param(os.mkfifo, id="a-fifo"),
        pytest.param(lambda path: path.symlink_to("/dev/zero"), id="a-link"),
    ],
)
def test_only_the_daemons_answer_is_believed(
    quiet_lab: tuple[Lab, Yard], forge: Callable[[Path], None]
) -> None:
    lab, _ = quiet_lab
    lab.drop("mine", ABSENT)
    client = subprocess.Popen(
        [sys.executable, "-m", "stager.cli", "cancel", "--config", str(lab.config), "mine"],
        env=lab.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with client:
        control = lab.root / "spool/control"
        (sent,) = until(lambda: list(control.glob("*.order")), "the order")
        forge(sent.with_suffix(".answer"))
        with lab.running():
            out, err = client.communicate(timeout=20)
            assert lab.result("mine")["state"] == "cancelled"
    assert "Traceback" not in err
    assert (client.returncode, out) == (0, "mine: cancelled\n"), err
