"""Cloud Storage refuses, storms, hangs or is gone for a while, with many requests waiting."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from cloud import Cloud
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import rsa
from lab import BUCKET, FILES, Lab, until

SAID, GOES_ON = "the queue waits", "work goes on"
Labs = tuple[Lab, Cloud]
REQUESTS, BUILDS = 300, 20


def builds(lab: Lab, cloud: Cloud, count: int) -> dict[str, dict[str, bytes]]:
    """Upload small builds; return their images."""
    names = [f"gs://{BUCKET}/board-release/R{number}-1.0" for number in range(count)]
    images = {FILES["test"]: bytes(5_000), FILES["base"]: b"base" * 3_000}
    return {name: lab.upload(cloud, name, images=images) for name in names}


def give_account(lab: Lab, cloud: Cloud) -> None:
    """Have the daemons be a service account whose tokens the double gives."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    kind, none = form.PrivateFormat.PKCS8, form.NoEncryption()
    text = key.private_bytes(form.Encoding.PEM, kind, none).decode()
    info = {"client_email": "a@b.invalid", "token_uri": f"{cloud.url}/token"}
    path = lab.root / "key.json"
    path.write_text(json.dumps({"type": "service_account", "private_key": text, **info}))
    lab.write_config(archive={"source": "gcs", "credentials": str(path)})
    cloud.require_token = True


@pytest.mark.timeout(300)
def test_300_requests_wait_for_credentials_and_are_all_staged(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    give_account(lab, cloud)
    made = builds(lab, cloud, BUILDS)
    cloud.refuse_tokens()
    with lab.running() as daemon:
        images = (["test"], ["base"], ["test", "base"])
        names = [
            lab.drop(f"r{number}", list(made)[number % BUILDS], images[number % 3])
            for number in range(REQUESTS)
        ]
        until(lambda: len(lab.spool("waiting")) == REQUESTS, "all to wait", 60)
        assert cloud.hits("token"), "no token was asked for"
        assert not any(hit.status == 200 for hit in cloud.hits("token"))
        assert lab.spool("failed") == [] == lab.spool("done")
        assert "credentials refused" in lab.stager("status").stdout
        cloud.clear_faults()
        states = Counter(lab.result(name, 120)["state"] for name in names)
        assert set(states) == {"staged", "already_staged"}
        assert {lab.result(name)["attempts"] for name in names} <= {"0", "1"}
        until(lab.is_clean, "nothing left over")
    assert len(lab.spool("done")) == REQUESTS
    assert daemon.log.count(SAID) == daemon.log.count(GOES_ON) == 1
    for build, contents in made.items():
        assert sorted(lab.flag(build)) == ["base", "test"]
        assert all(lab.image(i, build).read_bytes() == contents[FILES[i]] for i in ("test", "base"))


def test_a_server_that_is_gone_and_comes_back_fails_nobody(public_dir: Path) -> None:
    with Cloud() as cloud:
        port = cloud.server_port
    lab = Lab(public_dir, {"archive": {"source": "gcs"}})
    lab.env["STORAGE_EMULATOR_HOST"] = f"http://127.0.0.1:{port}"
    lab.init()
    try:
        with lab.running() as daemon:
            lab.drop("one", f"gs://{BUCKET}/board-release/R0-1.0")
            daemon.await_log("deferred for")
            with Cloud(port=port) as back:
                builds(lab, back, 1)
                assert lab.result("one", 60)["state"] == "staged"
        assert len(re.findall("deferred for", daemon.log)) <= 3, "the log was flooded"
        assert lab.spool("failed") == []
    finally:
        lab.end()


def test_a_name_that_does_not_resolve_is_waited_out(cloud_lab: Labs) -> None:
    lab, cloud = cloud_lab
    builds(lab, cloud, 1)
    lab.env["STORAGE_EMULATOR_HOST"] = "http://storage.invalid:80"
    with lab.running() as daemon:
        lab.drop("one", f"gs://{BUCKET}/board-release/R0-1.0")
        daemon.await_log("deferred for")
        assert lab.spool("failed") == []
    lab.env["STORAGE_EMULATOR_HOST"] = cloud.url
    with lab.running():
        assert lab.result("one", 60)["state"] == "staged"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_storm_of_refusals_shorter_than_the_attempts_fails_nobody(
    cloud_lab: Labs, status: int
) -> None:
    lab, cloud = cloud_lab
    made = builds(lab, cloud, 3)
    cloud.fail("any", status, None)
    with lab.running() as daemon:
        names = [lab.drop(f"r{n}", list(made)[n % 3]) for n in range(30)]
        until(lambda: daemon.log.count("deferred for") >= 3, "all builds deferred", 60)
        cloud.clear_faults()
        for name in names:
            assert lab.result(name, 60)["state"] in {"staged", "already_staged"}
        until(lab.is_clean, "nothing left over")
    assert any(hit.status == status for hit in cloud.log)
    assert lab.spool("failed") == []
    assert daemon.log.count("deferred for") <= 3 * 3, "each request said it"
