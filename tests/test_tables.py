"""`status` and `list` on a terminal: tables, live with --watch; names play no tricks on it."""

import re
import time

import pytest
import yaml
from lab import BUCKET, BUILD, Lab
from terminal import drawn

from stager import durable
from stager.layout import Waiting

ABSENT = f"gs://{BUCKET}/x86-alex-release/R99"
MARKUP = "[red]not red[/red] [link=file:///etc]here[/link]"


@pytest.fixture
def told(lab: Lab) -> Lab:
    """Return a lab in which something was staged, failed, refused, and waits."""
    lab.archive()
    lab.drop("good")
    lab.drop("missing", ABSENT, wait=0)
    lab.drop("wrong", images=["tset"])
    lab.once()
    now = time.time()
    for name, starts in ((MARKUP, 0), ("later", 2)):
        arrived = f"{int((now - 90) * 1e9)}-abcdef"
        file = f"{name}.yaml".replace("/", "-")
        entry = Waiting(5, int(now + 600), 1004, file, arrived, 1, starts, durable.nonce())
        path = lab.root / "spool/tmp" / durable.nonce()
        path.write_text(yaml.safe_dump({"build": BUILD, "images": ["test"]}))
        path.rename(lab.root / "spool/waiting" / str(entry))
    (lab.requests / "clear\x1b[2Jscreen.yaml").write_text("x")
    return lab


def plain(screen: str) -> str:
    """Return the words, without colours and rules."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[─━╸╺]", "", screen).split())


@pytest.mark.parametrize("command", ["status", "list"])
def test_tables_say_who_waits_and_how_others_ended(told: Lab, command: str) -> None:
    screen = drawn(told, command)
    assert "\x1b[1m" in screen, "with colours"
    assert "─" in screen, "in tables"
    words = plain(screen)
    assert "waiting: 3" in words
    assert "answered: 3" in words
    assert MARKUP.replace("/", "-") in words, "markup is not ours to obey"
    assert "\x1b[2J" not in screen
    assert r"clear\x1b[2Jscreen.yaml" in words
    assert re.search(r"later\.yaml retry at \d\d:\d\d:\d\d 5 1004 \d+ min", words), words


def test_status_says_states_machines_and_disks(told: Lab) -> None:
    words = plain(drawn(told, "status"))
    assert "no watcherd runs: start it: systemctl start watcherd" in words
    assert "0 active, 3 waiting (1 deferred), 1 done, 2 failed, 0 cancelled" in words
    assert re.search(r"spool and static: [\d.]+ .B of [\d.]+ .B free", words)
    assert re.search(r"good\.yaml staged \d+ s ago", words)
    assert re.search(r"missing\.yaml failed .* \(archive_not_found\)", words)
    assert re.search(r"wrong\.yaml rejected .* \(invalid_request\)", words)


def test_watching_on_a_terminal_is_live_on_a_screen_of_its_own(told: Lab) -> None:
    with told.running():
        screen = drawn(told, "status", "--watch", enough=lambda s: s.count("waiting: ") >= 2)
    assert "\x1b[?1049h" in screen, "the scrolled text stays as it was"
    assert plain(screen).count("waiting: ") >= 2, "it is drawn anew"
    assert "alive" in screen


def test_json_is_the_same_whatever_it_is_printed_on(told: Lab) -> None:
    screen = drawn(told, "status", "--json")
    assert "\x1b" not in screen
    assert yaml.safe_load(screen)["counts"] == {
        "waiting": 3, "deferred": 1, "active": 0, "done": 1, "failed": 2, "cancelled": 0,
    }  # fmt: skip
