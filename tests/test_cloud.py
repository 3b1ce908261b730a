"""The Cloud Storage double, held against the real client."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from cloud import Cloud, Hit
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import rsa
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.exceptions import InvalidOperation, RefreshError
from google.cloud.storage import Blob, Client
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY
from google.oauth2 import service_account

BUCKET, NAME = "images", "lab-release/R120-1.2.3/image.zip"
DATA = random.Random(1).randbytes(3_000_000)
QUICK = DEFAULT_RETRY.with_delay(initial=0.01, maximum=0.02).with_timeout(10)
DEADLINE_SECONDS = 10


@pytest.fixture(autouse=True)
def no_threads_of_the_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the client from looking up the bucket, and Google's IAM, behind our back."""
    monkeypatch.setenv("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with Cloud() as running:
        running.put(BUCKET, NAME, DATA)
        yield running


@pytest.fixture
def blob(cloud: Cloud) -> Iterator[Blob]:
    yield from connected(cloud, anonymous())


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        yield opened


@pytest.fixture(scope="session")
def private_key() -> str:
    pem = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
    )
    return pem.decode()


def connected(cloud: Cloud, credentials: Credentials) -> Iterator[Blob]:
    options = {"api_endpoint": cloud.url}
    with Client(project="p", credentials=credentials, client_options=options) as client:
        yield client.bucket(BUCKET).blob(NAME)


def anonymous() -> Credentials:
    return AnonymousCredentials()  # type: ignore[no-untyped-call]


def account(cloud: Cloud, private_key: str) -> Credentials:
    info = {"client_email": "a@b.invalid", "token_uri": f"{cloud.url}/token"}
    info["private_key"] = private_key
    make: Any = service_account.Credentials.from_service_account_info  # untyped
    credentials: Credentials = make(info)
    return credentials


def media(
    cloud: Cloud,
    session: requests.Session,
    span: str = "",
    timeout_seconds: float = DEADLINE_SECONDS,
) -> requests.Response:
    url = f"{cloud.url}/storage/v1/b/{BUCKET}/o/{NAME.replace('/', '%2F')}?alt=media"
    headers = {"Range": f"bytes={span}"} if span else {}
    return session.get(url, headers=headers, stream=True, timeout=timeout_seconds)


def read_until_it_breaks(answer: requests.Response) -> tuple[bytes, BaseException | None]:
    got = io.BytesIO()
    try:
        while piece := answer.raw.read1(1 << 16):
            got.write(piece)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        return got.getvalue(), error
    return got.getvalue(), None


def test_the_client_reads_metadata(cloud: Cloud, blob: Blob) -> None:
    blob.reload()
    assert (blob.size, blob.name, blob.bucket.name) == (len(DATA), NAME, BUCKET)
    assert blob.generation == 1_700_000_000_000_001
    assert cloud.log == [Hit("GET", "metadata", BUCKET, NAME)]


def test_the_client_finds_the_server_by_the_emulator_variable(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud.url)
    client = Client.create_anonymous_client()
    assert client.bucket(BUCKET).blob(NAME).download_as_bytes() == DATA
    client.close()


def test_the_client_checks_a_whole_object_against_its_crc32c(cloud: Cloud, blob: Blob) -> None:
    assert blob.download_as_bytes(checksum="crc32c") == DATA
    assert cloud.log == [Hit("GET", "media", BUCKET, NAME, 0, len(DATA), 200, len(DATA))]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        pytest.param(10, 19, DATA[10:20], id="from-to"),
        pytest.param(2_999_000, None, DATA[2_999_000:], id="from-on"),
        pytest.param(-364, None, DATA[-364:], id="suffix"),
        pytest.param(2_999_999, 9_999_999, DATA[-1:], id="end-beyond-the-object"),
    ],
)
def test_the_client_reads_ranges(
    cloud: Cloud, blob: Blob, start: int, end: int | None, expected: bytes
) -> None:
    assert blob.download_as_bytes(start=start, end=end) == expected
    assert cloud.hits("media")[0].status == 206
    assert cloud.sent(NAME) == len(expected)


@pytest.mark.parametrize("span", ["3000000-", "3000000-3000001", "-0", "9-8"])
def test_a_range_that_covers_nothing_is_416(
    cloud: Cloud, session: requests.Session, span: str
) -> None:
    with media(cloud, session, span) as answer:
        assert answer.status_code == 416
        assert answer.headers["Content-Range"] == "bytes */3000000"


def test_a_missing_object_is_404_as_json_for_metadata_and_text_for_media(
    cloud: Cloud, blob: Blob, session: requests.Session
) -> None:
    cloud.delete(BUCKET, NAME)
    with pytest.raises(exceptions.NotFound, match="No such object: images/lab-release"):
        blob.reload()
    with media(cloud, session) as answer:
        assert answer.text == f"No such object: {BUCKET}/{NAME}"


def test_an_old_generation_is_404_and_a_failed_precondition_412(cloud: Cloud, blob: Blob) -> None:
    old = 1_700_000_000_000_001
    new = cloud.put(BUCKET, NAME, b"new")
    pinned = blob.bucket.blob(NAME, generation=old)
    for read in (pinned.reload, pinned.download_as_bytes):
        with pytest.raises(exceptions.NotFound):
            read()
    for read in (blob.reload, blob.download_as_bytes):
        with pytest.raises(exceptions.PreconditionFailed):
            read(if_generation_match=old)
    assert blob.bucket.blob(NAME, generation=new).download_as_bytes() == b"new"


def test_a_generation_may_be_chosen_but_never_goes_back(cloud: Cloud) -> None:
    chosen = 1_800_000_000_000_000
    assert cloud.put(BUCKET, NAME, b"new", chosen) == chosen
    with pytest.raises(ValueError, match="not above"):
        cloud.put(BUCKET, NAME, b"newer", chosen)
    assert cloud.put(BUCKET, NAME, b"newest") == chosen + 1


def test_one_connection_serves_many_requests(cloud: Cloud) -> None:
    cloud.fail("media", 503)
    with urllib3.HTTPConnectionPool("127.0.0.1", cloud.server_port, maxsize=1) as pool:
        for path in (f"b/{BUCKET}/o/{NAME.replace('/', '%2F')}", "b/none/o/none", f"b/{BUCKET}"):
            for query in ("", "?alt=media", "?alt=media"):
                pool.request("GET", f"/storage/v1/{path}{query}", retries=False)
        assert (pool.num_connections, pool.num_requests) == (1, 9)


def test_many_threads_read_at_once_and_every_byte_is_counted(cloud: Cloud, blob: Blob) -> None:
    spans = [(start, start + 99_999) for start in range(0, len(DATA), 100_000)]
    with ThreadPoolExecutor(8) as pool:
        parts = pool.map(lambda span: blob.download_as_bytes(start=span[0], end=span[1]), spans)
    assert b"".join(parts) == DATA
    assert cloud.sent() == len(DATA)
    cloud.reset_log()
    assert cloud.log == []


def test_the_client_s_own_look_at_the_bucket_is_answered_and_not_logged(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA")
    cloud.fail("metadata", 403, name="")
    before = set(threading.enumerate())
    for blob in connected(cloud, anonymous()):
        blob.reload()
        for thread in set(threading.enumerate()) - before:
            if thread.daemon:  # the client's; the server's own are not
                thread.join(DEADLINE_SECONDS)
        assert blob.bucket.exists()
    assert [hit.status for hit in cloud.log] == [200]


def test_an_object_may_be_a_file_of_gigabytes(cloud: Cloud, blob: Blob, tmp_path: Path) -> None:
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.seek(2_200_000_000)
        file.write(b"the end")
    cloud.put(BUCKET, NAME, path)
    path.unlink()
    assert blob.download_as_bytes(start=-7, timeout=DEADLINE_SECONDS) == b"the end"


def test_failures_are_counted_and_the_client_retries_them(
    cloud: Cloud, blob: Blob, session: requests.Session
) -> None:
    cloud.fail("media", 503)
    cloud.fail("metadata", 429, times=2)
    cloud.fail("any", 500)
    cloud.fail("any", 500, name="another")
    blob.reload(retry=QUICK)
    for expected in (503, 200):  # the client would leak a connection for each 503 of its media
        with media(cloud, session) as answer:
            assert answer.status_code == expected
    assert [hit.status for hit in cloud.log] == [429, 429, 500, 200, 503, 200]


def test_a_failure_may_bear_retry_after_and_its_own_body(
    cloud: Cloud, session: requests.Session
) -> None:
    cloud.fail("any", 429, times=None, retry_after=7, body="slow down")
    for _ in range(3):
        with media(cloud, session) as answer:
            assert (answer.status_code, answer.text) == (429, "slow down")
            assert answer.headers["Retry-After"] == "7"
    cloud.clear_faults()
    with media(cloud, session) as answer:
        assert answer.content == DATA


@pytest.mark.parametrize("rst", [False, True], ids=["fin", "rst"])
def test_a_cut_ends_the_body_after_exactly_that_many_bytes(
    cloud: Cloud, session: requests.Session, rst: bool
) -> None:
    cloud.cut(1_234_567, rst=rst)
    with media(cloud, session, "1000-") as answer:
        assert answer.headers["Content-Length"] == str(len(DATA) - 1000)
        got, error = read_until_it_breaks(answer)
    assert got == DATA[1000 : 1000 + 1_234_567]
    assert isinstance(error, urllib3.exceptions.ProtocolError)
    assert ("reset" in str(error)) is rst
    assert cloud.sent() == 1_234_567


@pytest.mark.parametrize("rst", [False, True], ids=["fin", "rst"])
def test_the_client_resumes_after_a_cut(cloud: Cloud, blob: Blob, rst: bool) -> None:
    cloud.cut(1_000_000, times=2, rst=rst)
    assert blob.download_as_bytes(retry=QUICK) == DATA
    starts = [hit.start or 0 for hit in cloud.hits("media")]
    assert starts == sorted(starts)
    assert len(set(starts)) == 3


def test_a_cut_waits_for_an_answer_that_is_long_enough(cloud: Cloud, blob: Blob) -> None:
    cloud.cut(1000, name=NAME)
    assert blob.download_as_bytes(end=999) == DATA[:1000]
    blob.download_as_bytes(retry=QUICK)
    assert len(cloud.hits("media")) == 3


def test_a_stall_outlasts_a_read_timeout_and_ends_when_faults_are_cleared(
    cloud: Cloud, session: requests.Session
) -> None:
    cloud.stall(1000, seconds=3600)
    with media(cloud, session, timeout_seconds=0.3) as answer:
        got, error = read_until_it_breaks(answer)
    assert got == DATA[:1000]
    assert isinstance(error, urllib3.exceptions.ReadTimeoutError)
    cloud.stall(1000, seconds=3600)
    with media(cloud, session) as answer:
        assert answer.raw.read(1000) == DATA[:1000]
        cloud.clear_faults()
        assert answer.raw.read() == DATA[1000:]


@pytest.mark.parametrize(
    "hold",
    [
        pytest.param(lambda cloud: cloud.stall(0, seconds=3600), id="stalled"),
        pytest.param(lambda cloud: cloud.slow(100), id="slow"),
        pytest.param(lambda _: None, id="unread"),
    ],
)
def test_closing_the_server_ends_every_answer_at_once(hold: Callable[[Cloud], None]) -> None:
    before = set(threading.enumerate())
    with requests.Session() as session:
        with Cloud() as cloud:
            cloud.put(BUCKET, NAME, DATA * 10)
            hold(cloud)
            answer = media(cloud, session)
            began = time.monotonic()
        assert time.monotonic() - began < 2
        assert set(threading.enumerate()) == before
        answer.close()


def test_corruption_is_seen_in_a_whole_object_and_not_in_a_range(cloud: Cloud, blob: Blob) -> None:
    cloud.corrupt(1_500_000, times=2)
    assert blob.download_as_bytes(end=1_499_999) == DATA[:1_500_000]
    part = blob.download_as_bytes(start=1_499_999, end=1_500_001)
    assert [a ^ b for a, b in zip(part, DATA[1_499_999:], strict=False)] == [0, 0xFF, 0]
    with pytest.raises(DataCorruption):
        blob.download_as_bytes()
    assert blob.download_as_bytes() == DATA


def test_an_ignored_range_is_answered_with_the_whole_object(
    cloud: Cloud, session: requests.Session
) -> None:
    cloud.ignore_range()
    with media(cloud, session) as answer:
        assert answer.status_code == 200
    for status, expected in ((200, DATA), (206, DATA[5:6])):
        with media(cloud, session, "5-5") as answer:
            assert (answer.status_code, answer.content) == (status, expected)


def test_an_object_is_replaced_just_before_the_nth_read(cloud: Cloud, blob: Blob) -> None:
    cloud.replace_before(2, BUCKET, NAME, b"new")
    blob.reload()
    assert blob.download_as_bytes(end=2) == DATA[:3]
    with pytest.raises(exceptions.NotFound):  # the client keeps the generation it first saw
        blob.bucket.blob(NAME, generation=blob.generation).download_as_bytes(end=2)
    assert blob.bucket.blob(NAME).download_as_bytes(end=2) == b"new"


def test_a_slow_connection_takes_its_time(cloud: Cloud, blob: Blob) -> None:
    cloud.slow(1_000_000)
    began = time.monotonic()
    assert blob.download_as_bytes(end=299_999) == DATA[:300_000]
    assert 0.2 < time.monotonic() - began < 3


def test_an_encoded_object_says_so(cloud: Cloud, blob: Blob) -> None:
    cloud.put(BUCKET, NAME, b"not really gzip", encoding="gzip")
    blob.reload()
    assert blob.content_encoding == "gzip"
    assert blob.download_as_bytes(raw_download=True) == b"not really gzip"


def test_a_service_account_gets_a_token_and_a_new_one_when_it_is_revoked(
    cloud: Cloud, private_key: str
) -> None:
    cloud.require_token = True
    for blob in connected(cloud, account(cloud, private_key)):
        blob.reload()
        cloud.revoke_tokens()
        assert blob.download_as_bytes() == DATA
    kinds = [(hit.kind, hit.status) for hit in cloud.log]
    assert kinds[:2] == [("token", 200), ("metadata", 200)]
    assert kinds[2:] == [("media", 401), ("token", 200), ("media", 200)]


def test_a_refused_service_account_gets_no_token(cloud: Cloud, private_key: str) -> None:
    cloud.refuse_tokens()
    for blob in connected(cloud, account(cloud, private_key)):
        with pytest.raises(RefreshError, match="invalid_grant"):
            blob.reload(retry=None)
    assert {hit.status for hit in cloud.log} == {400}


def test_nothing_is_given_without_a_required_token(
    cloud: Cloud, blob: Blob, session: requests.Session
) -> None:
    cloud.require_token = True
    with media(cloud, session) as answer:
        assert answer.status_code == 401
        assert answer.text.startswith("Anonymous caller")
    for read in (blob.reload, blob.download_as_bytes):
        with pytest.raises(InvalidOperation):  # the client's reading of 401, not Unauthorized
            read()


def test_the_program_serves_a_directory_until_it_is_told_to_end(
    tmp_path: Path, session: requests.Session
) -> None:
    path = tmp_path / BUCKET / NAME
    path.parent.mkdir(parents=True)
    (tmp_path.parent / "secret").write_text("outside")
    command = [sys.executable, str(Path(__file__).with_name("cloud.py")), "--root", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            url = program.stdout.readline().strip()
            where = f"{url}/storage/v1/b/{BUCKET}/o/{NAME.replace('/', '%2F')}"
            assert session.get(where, timeout=DEADLINE_SECONDS).status_code == 404
            generations = []
            for number in (1, 2):
                path.write_bytes(DATA[:number])
                os.utime(path, (number, number))
                generations.append(json.loads(session.get(where, timeout=10).content)["generation"])
            assert generations == ["1000000", "2000000"]
            got = session.get(f"{where}?alt=media", timeout=DEADLINE_SECONDS)
            assert got.content == DATA[:2]
            out = where.replace(NAME.replace("/", "%2F"), "..%2F..%2Fsecret")
            assert session.get(out, timeout=DEADLINE_SECONDS).status_code == 404
            program.send_signal(signal.SIGTERM)
            assert program.wait(DEADLINE_SECONDS) == 0
        finally:
            program.kill()
