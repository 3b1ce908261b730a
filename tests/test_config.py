"""The configuration: every default stated, every key overridable, every problem with its place."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab import ROOT, Lab
from pydantic import BaseModel

from stager.config import DEFAULT_PATH, Config, find_config, load_config, parse_config
from stager.errors import SetupError

SAMPLE = ROOT / "config.yaml"


def parse(text: str, **environ: str) -> Config:
    return parse_config(text.encode(), "c.yaml", environ)


def refusal(text: str, **environ: str) -> list[str]:
    """Return the lines that say what is wrong."""
    with pytest.raises(SetupError) as caught:
        parse(text, **environ)
    return str(caught.value).splitlines()


def leaves(model: type[BaseModel], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return all keys of a model, with their defaults; those of nested models too."""
    found: dict[tuple[str, ...], Any] = {}
    for key, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= leaves(inner, (*path, key))
        else:
            found[*path, key] = field.default
    return found


LEAVES = leaves(Config)


# -- the sample ------------------------------------------------------------------------------------


def test_the_sample_states_every_default() -> None:
    stated = parse_config(SAMPLE.read_bytes(), "config.yaml", {})
    assert stated.rescan == 15.0, "what a local filesystem gets when it is left out"
    assert stated.model_copy(update={"rescan": None}) == Config()


def test_the_sample_names_every_key_and_no_other() -> None:
    sample = yaml.safe_load(SAMPLE.read_bytes())

    def keys(data: dict[str, Any], path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
        found: set[tuple[str, ...]] = set()
        for key, value in data.items():
            inside = isinstance(value, dict) and (*path, key) not in LEAVES
            found |= keys(value, (*path, key)) if inside else {(*path, key)}
        return found

    assert keys(sample) == set(LEAVES)


def test_an_empty_configuration_is_the_defaults() -> None:
    for text in ("", "# nothing\n", "{}\n"):
        assert parse(text) == Config()


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        pytest.param("settle: 0.5", "settle", 0.5, id="a number of seconds"),
        pytest.param("settle: 2m", "settle", 120, id="minutes"),
        pytest.param("rescan: 1h", "rescan", 3600, id="hours"),
        pytest.param("retention: {results: 7d}", "retention.results", 604800, id="days"),
        pytest.param("retention: {builds: {size: 1.5G}}", "retention.builds.size", 3 << 29,
                     id="a size"),
        pytest.param("allow_force: off", "allow_force", False, id="a boolean"),
        pytest.param("static_url: no", "static_url", "no", id="a text that looks like a boolean"),
        pytest.param("archive: {credentials: 1.10}", "archive.credentials", "1.10", id="a version"),
        pytest.param("archive: {buckets: 'one, two'}", "archive.buckets", ("one", "two"),
                     id="a list in one text"),
        pytest.param("archive: {buckets: [one]}", "archive.buckets", ("one",), id="a list"),
        pytest.param("images: {factory: factory_image.bin}", "images",
                     {"factory": "factory_image.bin"}, id="other images"),
        pytest.param("watch: poll", "watch", "poll", id="a choice"),
        pytest.param("workers: '8'", "workers", 8, id="a whole number"),
        pytest.param("min_free: 20G", "min_free", "20G", id="room as a size"),
    ],
)  # fmt: skip
def test_values_are_read_by_the_contracts_rules(text: str, path: str, value: Any) -> None:
    found: Any = parse(text)
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value


def test_min_free_is_a_share_or_a_size() -> None:
    assert parse("min_free: 5%").min_free_bytes(1000) == 50
    assert parse("min_free: 2.5 %").min_free_bytes(1000) == 25
    assert parse("min_free: 2K").min_free_bytes(1000) == 2048
    assert parse("min_free: 0").min_free_bytes(1000) == 0


# -- the environment -------------------------------------------------------------------------------

OVERRIDES: dict[str, tuple[str, Any]] = {
    "spool": ("/a", Path("/a")),
    "static": ("/b", Path("/b")),
    "results": ("/c", Path("/c")),
    "archive.source": ("directory", "directory"),
    "archive.directory": ("/d", "/d"),
    "archive.buckets": ("one, two", ("one", "two")),
    "archive.credentials": ("anonymous", "anonymous"),
    "archive.connections": ("7", 7),
    "workers": ("7", 7),
    "watch": ("poll", "poll"),
    "settle": ("7s", 7),
    "rescan": ("7m", 420),
    "heartbeat": ("7", 7),
    "lease": ("7h", 25200),
    "attempts": ("7", 7),
    "wait_for_archive": ("0", 0),
    "min_free": ("7%", "7%"),
    "static_url": ("http://a", "http://a"),
    "allow_force": ("no", False),
    "log.format": ("json", "json"),
    "log.level": ("debug", "debug"),
    "metrics.textfile": ("/e.prom", "/e.prom"),
    "metrics.http": (":9", ":9"),
    "on_done": ("a,b", ("a", "b")),
    "retention.builds.keep": ("7", 7),
    "retention.builds.age": ("7d", 604800),
    "retention.builds.size": ("7K", 7168),
    "retention.results": ("0", 0),
    "retention.requests": ("7", 7),
}


def test_the_table_of_overrides_is_whole() -> None:
    assert {*OVERRIDES, "images"} == {".".join(path) for path in LEAVES}


@pytest.mark.parametrize("key", OVERRIDES)
def test_every_key_can_be_overridden_from_the_environment(key: str) -> None:
    text, value = OVERRIDES[key]
    environ = {f"STAGER_{key.upper().replace('.', '__')}": text}
    if key == "archive.source":
        environ["STAGER_ARCHIVE__DIRECTORY"] = "/d"
    found: Any = parse(SAMPLE.read_text(), **environ)
    alone: Any = parse("", **environ)
    for part in key.split("."):
        found, alone = getattr(found, part), getattr(alone, part)
    assert found == alone == value


@pytest.mark.parametrize("text", ["", SAMPLE.read_text()], ids=["defaults", "sample"])
def test_overriding_one_image_leaves_the_others(text: str) -> None:
    images = parse(text, STAGER_IMAGES__TEST="other.bin").images
    assert images == {**Config().images, "test": "other.bin"}


def test_the_environment_wins_over_the_file() -> None:
    config = parse("workers: 3\narchive: {connections: 5}\n", STAGER_WORKERS="4")
    assert (config.workers, config.archive.connections) == (4, 5)


def test_a_variable_of_somebody_else_does_no_harm() -> None:
    assert parse("", STAGERX="1", PATH="/bin", STAGER_CONFIG="/x") == Config()


# -- problems --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        pytest.param("wrokers: 3", "1:1", "did you mean `workers`?", id="unknown key"),
        pytest.param("log:\n  format: text\n  colour: no", "3:3", "unknown key", id="inside"),
        pytest.param("workers: 0", "1:1", "1 to 256", id="too few"),
        pytest.param("workers: many", "1:1", "1 to 256", id="no number"),
        pytest.param("workers: 2.5", "1:1", "1 to 256", id="no whole number"),
        pytest.param("settle: soon", "1:1", "a duration", id="no duration"),
        pytest.param("spool: spool", "1:1", "an absolute path", id="relative path"),
        pytest.param("watch: always", "1:1", "'inotify'", id="no such choice"),
        pytest.param("log: {level: loud}", "1:7", "'warning'", id="no such level"),
        pytest.param("log: text", "1:1", "keys with values", id="a text for a section"),
        pytest.param("- a", "1:1", "keys with values", id="a list"),
        pytest.param("workers: 1\nworkers: 2", "2:1", "second time", id="repeated key"),
        pytest.param("attempts: &b 1\nworkers: *b", "1:11", "anchors", id="anchor"),
        pytest.param("workers: !!int 2", "1:10", "tags", id="tag"),
        pytest.param("workers: 2\n---\nworkers: 3", "2:1", "one document", id="two documents"),
        pytest.param("a: ]", "1:4", "not valid YAML", id="no YAML"),
        pytest.param("images: {}", "1:1", "at least one image", id="no image"),
        pytest.param("images: {a: ../x}", "1:1", "plain file name", id="an image elsewhere"),
        pytest.param("images: {a: x, b: x}", "1:1", "of its own", id="one file for two images"),
        pytest.param("images: {a: staged}", "1:1", "`staged`", id="the flag as an image"),
        pytest.param("min_free: 200%", "1:1", "a percentage below 100", id="more than all"),
        pytest.param("archive:\n  source: directory", "1:1", "`directory:`", id="no directory"),
        pytest.param("workers: 2\nlease: 5s", "2:1", "three times", id="a lease too short"),
        pytest.param("workers: 2\nrescan: 0", "2:1", "above 0", id="no rescan"),
        pytest.param("allow_force: maybe", "1:1", "true or false", id="no boolean"),
    ],
)  # fmt: skip
def test_a_problem_names_file_line_and_column(text: str, place: str, words: str) -> None:
    said = refusal(text)
    assert said[0].startswith(f"c.yaml:{place}: "), said
    assert words in said[0]


def test_all_problems_are_reported_together() -> None:
    text = "wrokers: 3\nsettle: soon\nlog:\n  level: loud\nheartbeat: 10\nlease: 5\nwatch: on\n"
    said = refusal(text, STAGER_ATTEMPTS="0", STAGER_NOTHING="1", STAGER_LOG__FORMT="text")
    places = {re.match(r"(\$\w+|c\.yaml:\d+)", line)[0] for line in said}  # type: ignore[index]
    assert places == {
        "$STAGER_ATTEMPTS", "$STAGER_NOTHING", "$STAGER_LOG__FORMT",
        "c.yaml:1", "c.yaml:2", "c.yaml:4", "c.yaml:6", "c.yaml:7",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        pytest.param("STAGER_WROKERS", "3", "did you mean `workers`?", id="unknown"),
        pytest.param("STAGER_ARCHIVE__BUCKET", "a", "unknown key", id="unknown inside"),
        pytest.param("STAGER_", "a", "unknown key", id="no key"),
        pytest.param("STAGER_WORKERS", "many", "1 to 256", id="a wrong value"),
        pytest.param("STAGER_WORKERS__X", "2", "1 to 256", id="a level too deep"),
        pytest.param("STAGER_LEASE", "1", "three times", id="a lease too short"),
        pytest.param("STAGER_ARCHIVE__SOURCE", "tape", "'gcs'", id="no such choice"),
    ],
)
def test_a_variable_is_named_as_it_was_set(variable: str, value: str, words: str) -> None:
    said = refusal("workers: 2\n", **{variable: value})
    assert said[0].startswith(f"${variable}: "), said
    assert words in said[0]


# -- where it is looked for ------------------------------------------------------------------------


def test_the_option_goes_before_the_variable_and_that_before_the_default() -> None:
    environ = {"STAGER_CONFIG": "/from/environ"}
    assert find_config("/from/option", environ) == Path("/from/option")
    assert find_config(None, environ) == Path("/from/environ")
    assert find_config(None, {}) == DEFAULT_PATH == Path("/etc/stager/config.yaml")


@pytest.mark.parametrize("there", ["nothing", "directory"])
def test_a_configuration_that_cant_be_read_says_where_another_is_given(
    tmp_path: Path, there: str
) -> None:
    path = tmp_path / "c.yaml"
    if there == "directory":
        path.mkdir()
    with pytest.raises(SetupError, match=r"--config or \$STAGER_CONFIG") as caught:
        load_config(path, {})
    assert str(path) in str(caught.value)


def test_check_config_says_good_or_what_is_wrong_and_where(public_dir: Path) -> None:
    lab = Lab(public_dir)
    command = [sys.executable, str(ROOT / "watcherd.py"), "--check-config"]
    environ = lab.environment() | {"STAGER_CONFIG": str(lab.config)}

    def check(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=environ | more, capture_output=True, text=True, check=False, timeout=30
        )

    good = check()
    assert (good.returncode, good.stdout, good.stderr) == (0, f"{lab.config}: good\n", "")
    lab.init()
    mark = lab.root / "spool/LAYOUT"
    alike = check()
    said = f"{lab.config}: good; lease and heartbeat are those of {mark}\n"
    assert (alike.returncode, alike.stdout, alike.stderr) == (0, said, "")
    for key, value in (("lease", "60"), ("heartbeat", "0.4")):
        other = check(**{f"STAGER_{key.upper()}": value})
        assert (other.returncode, other.stdout) == (2, "")
        ours = {"lease": "2", "heartbeat": "0.5"}[key]
        words = f"{key} is {value} s in the configuration and {ours} s in {mark}"
        assert f"{words}: set lease: 2 and heartbeat: 0.5" in other.stderr
    lab.config.write_text("wrokers: 1\nsettle: soon\n")
    bad = check(STAGER_LEASE="x")
    assert (bad.returncode, bad.stdout) == (2, "")
    for words in (f"{lab.config}:1:1: ", f"{lab.config}:2:1: ", "$STAGER_LEASE: "):
        assert words in bad.stderr
