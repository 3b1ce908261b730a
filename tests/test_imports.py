"""Imports run one way, and the client commands stay light."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from lab import BUILD, ROOT, Lab

# Bottom to top: a module may import what stands on a line above its own, and nothing else of ours.
LAYERS = (
    # names, errors, and the few things that know nothing of the others
    {"errors", "identity", "layout", "log", "service", "stuck", "trial", "words"},
    {"parts"},
    {"snapshot"},
    {
        "ahead",
        "behind",
        "durable",
        "hints",
        "mounts",
        "plot",
        "progress",
        "yamltext",
        "zipdir",
    },
    {"deflate", "scans"},
    # what `stager probe` asks a filesystem
    {"presence"},
    {"meeting"},
    {"duet", "solo", "speed", "view"},
    {"probe"},
    # what a person wrote, and who is alive
    {"instance", "models", "pins", "roster", "vigil"},
    {"request", "values"},
    {"config"},
    # the rooms of the work
    {"archive", "dropbox", "dropped", "inflate", "lock", "orders", "result", "site"},
    {"backlog", "gcs", "lately", "marker", "outbox", "page", "sweep"},
    {"spool"},
    {"again", "fetch", "finish", "guard", "hook", "source"},
    {"stage"},
    # the walk of one request, then of all of them
    {"case"},
    {"answer", "status", "tally", "watch"},
    {"board"},
    {"job"},
    {"intake"},
    {"outcome"},
    {"dispatch"},
    {"bulletin", "cancel", "visit"},
    {"trouble"},
    {"clerk"},
    {"adopt", "facts", "gc", "prune"},
    {"metrics"},
    {"keeper", "pulse"},
    {"rounds"},
    {"server"},
    {"once"},
    # people
    {"client", "command", "complete", "finding", "plain", "tables"},
    {"waiting"},
    {"detail", "remains", "vitals"},
    {"doctor"},
    {"repair"},
    {"admin", "probing", "show", "upkeep"},
    {"cli", "watcherd"},
)
MODULES = {path.stem: path for path in (ROOT / "stager").glob("*.py") if path.stem != "__init__"}
MODULES["watcherd"] = ROOT / "watcherd.py"
LEVEL = {name: number for number, names in enumerate(LAYERS) for name in names}


def imported(path: Path) -> set[str]:
    """Return all dotted names that a file imports, at its head or in a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    """Return those of our modules that a file imports."""
    parts = [name.split(".") for name in imported(path)]
    names = {p[1] for p in parts if p[0] == "stager" and len(p) > 1}
    return (names | {p[0] for p in parts}) & set(MODULES)


def test_every_module_has_its_layer_and_only_one() -> None:
    assert sum(len(names) for names in LAYERS) == len(LEVEL), "a module stands in two layers"
    assert set(LEVEL) == set(MODULES), "put new modules into LAYERS, and take old ones out"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_run_downwards_only(module: str) -> None:
    upward = {name for name in ours(MODULES[module]) if LEVEL[name] >= LEVEL[module]}
    assert not upward, f"{module} imports {upward}, which stand beside or above it"


@pytest.mark.parametrize(
    ("library", "room"),
    [
        ("google", "gcs"),
        ("watchdog", "watch"),
        ("jinja2", "page"),
        ("prometheus_client", "metrics"),
    ],
)
def test_only_one_room_knows_a_heavy_library(library: str, room: str) -> None:
    users = {
        name
        for name, path in MODULES.items()
        if any(found.split(".")[0] == library for found in imported(path))
    }
    assert users == {room}


HEAVY = {"google", "watchdog", "requests", "urllib3", "grpc", "jinja2", "prometheus_client"}
PROBE = """
import json, sys
from stager.cli import main
try:
    main()
except SystemExit as e:
    code = e.code or 0
else:
    code = 0
with open({path!r}, "w") as f:
    json.dump([code, *sorted(sys.modules)], f)
"""


def test_client_commands_load_neither_googles_client_nor_watchdog(lab: Lab) -> None:
    commands = (
        f"submit {BUILD} test --name one --dry-run",
        "init",
        f"submit {BUILD} test --name one",
        "wait one",
        "status",
        "status --check",
        "status one",
        "list",
        "show one",
        "cancel one",
        "retry one",
        "pause",
        "resume",
        "verify",
        "doctor",
        f"probe --machines 1 {lab.root}",
    )
    lab.archive()
    told = lab.root / "modules.json"
    heavy = {}
    with lab.running():
        for command in commands:
            subprocess.run(
                [sys.executable, "-c", PROBE.format(path=str(told)), *command.split(),
                 "--config", str(lab.config)],
                env=lab.environment(), check=True, timeout=30, capture_output=True,
            )  # fmt: skip
            code, *names = json.loads(told.read_text())
            assert code == (command == "cancel one"), "too late to cancel, all else goes well"
            loaded = {name.split(".")[0] for name in names}
            assert "stager" in loaded
            heavy[command] = loaded & HEAVY
            told.unlink()
    assert heavy == {command: set() for command in commands}
