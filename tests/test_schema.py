"""The published schemas and the reference: what the models say, and what the daemon takes."""

import json
from pathlib import Path
from typing import Any

import generate
import pytest
import yaml
from jsonschema import Draft202012Validator
from lab import BUILD, ROOT, Lab

from stager.config import IMAGES, Config
from stager.errors import RequestError
from stager.request import Rules, parse_request
from stager.yamltext import parse_text

RULES = Rules(IMAGES, Config().archive.buckets)


def schema(name: str) -> Draft202012Validator:
    """Return the schema as it is in the repository."""
    data = json.loads((ROOT / f"schema/{name}.schema.json").read_text())
    Draft202012Validator.check_schema(data)
    return Draft202012Validator(data)


def takes(text: str) -> bool:
    """Whether the daemon takes a request with this text."""
    try:
        parse_request(text.encode(), RULES)
    except RequestError:
        return False
    return True


@pytest.mark.parametrize("path", list(generate.files()), ids=lambda path: path.name)
def test_what_is_published_is_what_the_models_say(path: Path) -> None:
    assert path.read_text() == generate.files()[path], "run `make schema`"


def test_every_key_has_its_meaning() -> None:
    for name, data in generate.schemas().items():
        for part in [data, *data.get("$defs", {}).values()]:
            missing = [k for k, v in part.get("properties", {}).items() if "description" not in v]
            assert part.get("title") == "ProblemPart" or not missing, f"{name}: {missing}"


@pytest.mark.parametrize(
    ("text", "good"),
    [
        pytest.param(f"build: {BUILD}\nimages: [test]\n", True, id="the least"),
        pytest.param(f"archive_url: {BUILD}\nimage_types: 'test,base'\n", True, id="old keys"),
        pytest.param(f"build: {BUILD}/\nimages: test\npriority: high\nexpires: 2h\nwait: 0\n"
                     "force: no\nnote: nightly\nx-mine: {a: [1]}\n", True, id="everything"),
        pytest.param(f"build: {BUILD}\nimages: [test]\npriority: 3\n", True, id="a digit"),
        pytest.param(f"build: {BUILD}\nimages: [test]\npriority: 10\n", False, id="two digits"),
        pytest.param(f"build: {BUILD}\nimages: []\n", False, id="no image"),
        pytest.param(f"build: {BUILD}\n", False, id="no images"),
        pytest.param("images: [test]\n", False, id="no build"),
        pytest.param(f"build: {BUILD}\narchive_url: {BUILD}\nimages: [test]\n", False, id="both"),
        pytest.param("build: http://x/y/z\nimages: [test]\n", False, id="another kind of URL"),
        pytest.param(f"build: {BUILD}\nimages: [test]\nimage: [base]\n", False, id="unknown key"),
        pytest.param(f"build: {BUILD}\nimages: [test]\nexpires: soon\n", False, id="no duration"),
        pytest.param(f"build: {BUILD}\nimages: [test]\nforce: maybe\n", False, id="no boolean"),
    ],
)  # fmt: skip
def test_the_request_schema_and_the_daemon_agree(text: str, good: bool) -> None:
    assert schema("request").is_valid(yaml.safe_load(text)) is good
    assert takes(text) is good


@pytest.mark.parametrize("load", [yaml.safe_load, lambda data: parse_text(data).data],
                         ids=["as editors read it", "as the daemon reads it"])  # fmt: skip
def test_the_sample_configuration_fits_its_schema(load: Any) -> None:
    data = load((ROOT / "config.yaml").read_bytes())
    errors = [e.message for e in schema("config").iter_errors(data) if e.validator != "type"]
    assert not errors
    assert not schema("config").is_valid({"worker": 2})
    assert not schema("config").is_valid({"settle": "soon"})


def test_real_answers_fit_the_result_schema(lab: Lab) -> None:
    lab.archive()
    with lab.running():
        names = [
            lab.drop("good", images=["test", "base"], note="n"),
            lab.drop_text("bad", "- no request\n"),
            lab.drop("gone", build=f"{BUILD}1", wait=0),
        ]
        for name in names:
            lab.result(name)
    for name in names:
        text = (lab.root / f"results/{name}.yaml").read_text()
        answer = json.loads(json.dumps(yaml.safe_load(text), default=str))
        assert not [e.message for e in schema("result").iter_errors(answer)]
