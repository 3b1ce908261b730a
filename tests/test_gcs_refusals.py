"""Cloud Storage refusing us, and answers that no sound service gives.

Credentials come from a key file; `Liar` answers what it is told to, true or not.
"""

import gc
import json
import random
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
from cloud import Cloud
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import rsa

from stager.archive import Archive
from stager.errors import ArchiveDenied, ArchiveUnavailable, CredentialsRefused
from stager.gcs import TRIES, GcsSource
from stager.layout import Build

BUILD = Build("chromeos-image-archive", "x86-alex-release", "R23-2811.0.0")
DATA = random.Random(1).randbytes(100_000)
Answer = tuple[int, dict[str, str], bytes]


# A source is never closed, as it lives as long as its daemon: here it does not.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(autouse=True)
def dropped_sources_are_collected() -> Iterator[None]:
    """Leave none to the tests of other files, where the warning would be an error."""
    yield
    gc.collect()


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with Cloud() as running:
        running.put(BUILD.bucket, BUILD.object_name, DATA)
        yield running


@pytest.fixture
def pauses() -> list[float]:
    """Return a list whose `append` is a pause that takes no time, and remembers its length."""
    return []


def source(url: str, credentials: str = "default") -> GcsSource:
    return GcsSource(credentials, url, 1)


def read(archive: Archive, start: int = 0, end: int = len(DATA)) -> bytes:
    return archive._bytes(start, end)


@pytest.fixture(scope="session")
def private_key() -> str:
    pem = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
    )
    return pem.decode()


@pytest.fixture
def key_file(tmp_path: Path, cloud: Cloud, private_key: str) -> Path:
    info = {"client_email": "a@b.invalid", "token_uri": f"{cloud.url}/token"}
    path = tmp_path / "key.json"
    path.write_text(json.dumps({"type": "service_account", "private_key": private_key, **info}))
    cloud.require_token = True
    return path


def test_an_accounts_token_is_asked_for_once_and_serves_every_read(
    cloud: Cloud, key_file: Path, pauses: list[float]
) -> None:
    account = source(cloud.url, str(key_file))
    for _ in range(2):
        archive = account.look(BUILD, pauses.append)
        assert read(archive, 0, 10) + read(archive, 10) == DATA
    assert len(cloud.hits("token")) == 1


def test_a_token_that_runs_out_is_renewed_within_a_read(
    cloud: Cloud, key_file: Path, pauses: list[float]
) -> None:
    archive = source(cloud.url, str(key_file)).look(BUILD, pauses.append)
    cloud.revoke_tokens()
    assert read(archive) == DATA
    assert len(cloud.hits("token")) == 2


@pytest.mark.parametrize("when", ["look", "read"])
def test_a_refused_token_is_a_refusal_that_names_no_secret(
    cloud: Cloud, key_file: Path, private_key: str, pauses: list[float], when: str
) -> None:
    account = source(cloud.url, str(key_file))
    archive = account.look(BUILD, pauses.append) if when == "read" else None
    cloud.revoke_tokens()
    cloud.refuse_tokens()
    with pytest.raises(CredentialsRefused) as caught:
        read(archive) if archive else account.look(BUILD, pauses.append)
    assert not set(re.findall(r"[\w+/]{12,}", private_key)) & set(
        re.findall(r"[\w+/]{12,}", caught.value.message)
    )
    cloud.clear_faults()
    assert read(account.look(BUILD, pauses.append)) == DATA


KEYS: list[Any] = [
    pytest.param(lambda path: path.unlink(), id="missing"),
    pytest.param(lambda path: path.write_text(""), id="empty"),
    pytest.param(lambda path: path.write_text("secret{"), id="no-json"),
    pytest.param(lambda path: path.write_text('{"type": "service_account"}'), id="keys-missing"),
    pytest.param(lambda path: path.write_text('["secret"]'), id="no-object"),
    pytest.param(lambda path: path.write_bytes(b"\xff\xfe\0"), id="no-text"),
    pytest.param(
        lambda path: path.write_text(path.read_text().replace("BEGIN PRIVATE KEY", "secret")),
        id="no-pem",
    ),
    pytest.param(lambda path: (path.unlink(), path.mkdir()), id="a-directory"),
]  # fmt: skip


@pytest.mark.parametrize("spoil", KEYS)
def test_a_bad_key_file_is_a_refusal_and_a_corrected_one_is_read(
    cloud: Cloud, key_file: Path, pauses: list[float], spoil: Callable[[Path], object]
) -> None:
    good = key_file.read_text()
    spoil(key_file)
    account = source(cloud.url, str(key_file))
    with pytest.raises(CredentialsRefused) as caught:
        account.look(BUILD, pauses.append)
    assert "secret" not in caught.value.message
    assert "None" not in caught.value.message
    if key_file.is_dir():
        key_file.rmdir()
    key_file.write_text(good)
    assert account.look(BUILD, pauses.append).size == len(DATA)


def test_no_credentials_at_all_are_a_refusal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pauses: list[float]
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(CredentialsRefused):
        GcsSource("default", None, 1).look(BUILD, pauses.append)


def test_what_everybody_may_not_see_is_denied_to_the_anonymous(
    cloud: Cloud, pauses: list[float]
) -> None:
    cloud.require_token = True
    with pytest.raises(ArchiveDenied):
        source(cloud.url, "anonymous").look(BUILD, pauses.append)
    cloud.require_token = False
    assert read(source(cloud.url, "anonymous").look(BUILD, pauses.append)) == DATA


# -- a server that lies ----------------------------------------------------------------------------


class Liar(ThreadingHTTPServer):
    """Answers metadata and media as a function says, true or not."""

    daemon_threads = False

    def __init__(self, lie: Callable[[int, int], Answer], metadata: Answer | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Told)
        self.lie, self.asked = lie, 0
        told = {"name": "n", "generation": "7", "size": str(len(DATA)), "bucket": "b"}
        self.metadata = metadata or (200, {}, json.dumps(told).encode())
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()


class _Told(BaseHTTPRequestHandler):
    server: Liar

    def do_GET(self) -> None:
        self.server.asked += 1
        answer = self.server.metadata
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            answer = self.server.lie(int(wanted[1]), int(wanted[2]) + 1)
        status, headers, body = answer
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


def ranged(text: str, start: int, end: int) -> Answer:
    return 206, {"Content-Range": text} if text else {}, DATA[start:end]


LIES: list[Any] = [
    pytest.param(lambda s, e: ranged("", s, e), id="no-content-range"),
    pytest.param(lambda s, e: ranged(f"bytes {s + 1}-{e}/{len(DATA)}", s + 1, e + 1), id="shifted"),
    pytest.param(lambda s, e: ranged(f"bytes 0-{e - s - 1}/{len(DATA)}", 0, e - s), id="from-zero"),
    pytest.param(lambda s, e: ranged(f"bytes {s}-{e - 1}/{len(DATA) + 1}", s, e), id="other-size"),
    pytest.param(lambda s, e: ranged(f"bytes {s}-{e - 2}/{len(DATA)}", s, e - 1), id="shorter"),
    pytest.param(lambda s, e: ranged(f"bytes {s}-{e}/{len(DATA)}", s, e + 1), id="longer"),
    pytest.param(lambda s, e: ranged(f"items {s}-{e - 1}/{len(DATA)}", s, e), id="other-unit"),
    pytest.param(lambda s, e: ranged(f"bytes {s}-{e - 1}/{len(DATA)}", 0, 0), id="empty-body"),
    pytest.param(lambda _s, _e: (200, {}, DATA), id="200-whole"),
    pytest.param(lambda s, e: (200, {}, DATA[s:e]), id="200-range"),
    pytest.param(lambda _s, _e: (200, {}, b"<html>log in</html>"), id="200-page"),
    pytest.param(lambda _s, _e: (204, {"Content-Length": "0"}, b""), id="204"),
]


@pytest.mark.parametrize("lie", LIES)
def test_nothing_but_the_very_range_asked_for_is_ever_used(
    pauses: list[float], lie: Callable[[int, int], Answer]
) -> None:
    with Liar(lie) as liar:
        archive = source(liar.url).look(BUILD, pauses.append)
        with pytest.raises(ArchiveUnavailable):
            read(archive, 5000, 9000)
        assert archive.fetched == 0
        assert liar.asked == 1 + TRIES


def test_more_than_was_asked_for_is_left_unread(pauses: list[float]) -> None:
    def lie(start: int, end: int) -> Answer:
        return ranged(f"bytes {start}-{end - 1}/{len(DATA)}", start, end + 5000)

    with Liar(lie) as liar:
        archive = source(liar.url).look(BUILD, pauses.append)
        assert read(archive, 5000, 9000) == DATA[5000:9000]


NONSENSE: list[Any] = [
    pytest.param((200, {}, b"<html>log in first</html>"), id="a-page"),
    pytest.param((200, {}, b""), id="nothing"),
    pytest.param((200, {"Content-Length": "500"}, b'{"generation": "7", '), id="broken-off"),
    pytest.param((200, {}, b"[]"), id="no-object"),
    pytest.param((200, {}, b'{"name": "n"}'), id="no-generation"),
    pytest.param((200, {}, b'{"generation": "x", "size": "y"}'), id="no-numbers"),
    pytest.param((503, {"Content-Length": "500"}, b"<html"), id="a-503-broken-off"),
]


@pytest.mark.parametrize("metadata", NONSENSE)
def test_metadata_that_is_none_means_unavailable_not_refused(
    pauses: list[float], metadata: Answer
) -> None:
    with Liar(lambda s, e: ranged("", s, e), metadata) as liar:
        with pytest.raises(ArchiveUnavailable):
            source(liar.url).look(BUILD, pauses.append)
        assert liar.asked > 0
