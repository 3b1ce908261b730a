"""Archives in Cloud Storage by the real client and the real session: reads, refusals, breaks."""

import gc
import io
import random
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any, ClassVar, NoReturn

import pytest
import requests
import urllib3
from cloud import Cloud
from lab import DEADLINE
from urllib3.connection import HTTPSConnection
from urllib3.util.ssltransport import SSLTransport

from stager.archive import SLICE_BYTES, Archive, GenerationGone
from stager.errors import (
    ArchiveCorrupt,
    ArchiveDenied,
    ArchiveNotFound,
    ArchiveUnavailable,
    CredentialsRefused,
    StagerError,
    Stopping,
)
from stager.gcs import (
    LAST_BYTES,
    LOT_BYTES,
    TLS_BYTES,
    TRIES,
    GcsSource,
    _pause_seconds,
    _RangeReader,
)
from stager.layout import Build
from stager.zipdir import STORED, Member

BUILD = Build("chromeos-image-archive", "x86+alex~release/a", "R23-2811.0.0+b")
DATA = random.Random(1).randbytes(3_000_000)


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


def source(url: str, credentials: str = "default", connections: int = 1) -> GcsSource:
    return GcsSource(credentials, url, connections)


def look(cloud: Cloud, pauses: list[float]) -> Archive:
    return source(cloud.url).look(BUILD, pauses.append)


def span(start: int, end: int) -> Member:
    """Return a member that lies so that streaming it reads [start, end) and what goes before."""
    return Member("m", b"m", start, end - start, end - start, 0, STORED, end)


def read(archive: Archive, start: int = 0, end: int = len(DATA)) -> bytes:
    return archive._bytes(start, end)


def test_one_look_pins_the_generation_and_ranges_come_as_asked(
    cloud: Cloud, pauses: list[float]
) -> None:
    archive = look(cloud, pauses)
    assert (archive.url, archive.size) == (BUILD.archive_url, len(DATA))
    assert archive.generation == cloud.put("other", "object", b"") - 1
    assert read(archive, 0, 1) == DATA[:1]
    assert read(archive, 1_234_567, 2_999_999) == DATA[1_234_567:2_999_999]
    assert read(archive, len(DATA) - 1) == DATA[-1:]
    assert [(h.start, h.end) for h in cloud.hits("media")] == [
        (0, 1), (1_234_567, 2_999_999), (len(DATA) - 1, len(DATA)),
    ]  # fmt: skip
    assert len(cloud.hits("metadata")) == 1
    assert archive.fetched == cloud.sent()
    assert pauses == []


@pytest.mark.parametrize("is_removed", [False, True], ids=["replaced", "removed"])
def test_a_replaced_or_removed_object_is_not_read_on(
    cloud: Cloud, pauses: list[float], is_removed: bool
) -> None:
    archive = look(cloud, pauses)
    assert read(archive, 0, 1000) == DATA[:1000]
    cloud.put(BUILD.bucket, BUILD.object_name, DATA)
    if is_removed:
        cloud.delete(BUILD.bucket, BUILD.object_name)
    with pytest.raises(GenerationGone):
        read(archive, 1000, 2000)


def test_an_object_replaced_behind_a_break_is_not_read_on(
    cloud: Cloud, pauses: list[float]
) -> None:
    archive = look(cloud, pauses)
    cloud.cut(1_000_000)
    cloud.replace_before(2, BUILD.bucket, BUILD.object_name, bytes(len(DATA)))
    with pytest.raises(GenerationGone):
        read(archive)
    assert len(cloud.hits("media")) == 2


BUSY = [408, 429, 500, 502, 503, 504]
LOOKED: list[Any] = [
    pytest.param(404, ArchiveNotFound, 1, id="404"),
    pytest.param(403, ArchiveDenied, 1, id="403"),
    pytest.param(401, CredentialsRefused, 1, id="401"),
    pytest.param(400, ArchiveUnavailable, 1, id="400"),
    *(pytest.param(status, ArchiveUnavailable, TRIES, id=f"{status}") for status in BUSY),
]
READ: list[Any] = [
    pytest.param(404, GenerationGone, 1, id="404"),
    pytest.param(412, GenerationGone, 1, id="412"),
    pytest.param(403, ArchiveDenied, 1, id="403"),
    pytest.param(401, CredentialsRefused, 1, id="401"),
    *(pytest.param(s, ArchiveUnavailable, TRIES, id=f"{s}") for s in [*BUSY, 400, 416]),
]


@pytest.mark.parametrize(("status", "error", "tries"), LOOKED)
def test_a_look_that_is_refused_is_the_right_error(
    cloud: Cloud, pauses: list[float], status: int, error: type[StagerError], tries: int
) -> None:
    cloud.fail("metadata", status, None)
    with pytest.raises(StagerError) as caught:
        look(cloud, pauses)
    assert type(caught.value) is error
    assert len(cloud.hits("metadata")) == tries == len(pauses) + 1


@pytest.mark.parametrize(("status", "error", "tries"), READ)
def test_a_read_that_is_refused_is_the_right_error(
    cloud: Cloud, pauses: list[float], status: int, error: type[StagerError], tries: int
) -> None:
    archive = look(cloud, pauses)
    cloud.fail("media", status, None)
    with pytest.raises(StagerError) as caught:
        read(archive)
    assert type(caught.value) is error
    assert len(cloud.hits("media")) == tries == len(pauses) + 1
    assert archive.fetched == 0


@pytest.mark.parametrize("kind", ["metadata", "media"])
@pytest.mark.parametrize("status", BUSY)
def test_a_busy_service_is_asked_again_with_longer_pauses(
    cloud: Cloud, pauses: list[float], kind: Any, status: int
) -> None:
    cloud.fail(kind, status, TRIES - 1)
    assert read(look(cloud, pauses)) == DATA
    assert len(pauses) == TRIES - 1
    assert pauses == sorted(pauses)
    assert 0 < pauses[0] < pauses[-1]


@pytest.mark.parametrize("kind", ["metadata", "media"])
def test_retry_after_is_honoured(cloud: Cloud, pauses: list[float], kind: Any) -> None:
    cloud.fail(kind, 429, 1, retry_after=17)
    assert read(look(cloud, pauses)) == DATA
    assert pauses == [17]


@pytest.mark.parametrize("rst", [False, True], ids=["FIN", "RST"])
def test_twenty_breaks_within_a_range_cost_no_byte(
    cloud: Cloud, pauses: list[float], rst: bool
) -> None:
    archive = look(cloud, pauses)
    cloud.cut(100_001, 20, rst=rst)
    assert read(archive) == DATA
    hits = cloud.hits("media")
    assert len(hits) == 21
    for before, after in pairwise(hits):
        assert before.start is not None
        assert before.start <= (after.start or 0) <= before.start + before.sent
    if not rst:  # a reset takes with it what was not read yet
        assert sum(hit.sent for hit in hits) == len(DATA)
    assert len(pauses) == 20
    assert max(pauses) < 1


def test_a_service_that_gives_not_one_byte_is_given_up(cloud: Cloud, pauses: list[float]) -> None:
    archive = look(cloud, pauses)
    cloud.cut(0, None)
    with pytest.raises(ArchiveUnavailable):
        read(archive)
    assert len(cloud.hits("media")) == TRIES


def test_a_server_that_is_not_there_is_unavailable(pauses: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ArchiveUnavailable):
        source(f"http://127.0.0.1:{port}").look(BUILD, pauses.append)
    assert len(pauses) == TRIES - 1


def test_no_further_try_is_made_when_the_work_should_end(cloud: Cloud, pauses: list[float]) -> None:
    def check() -> None:
        if pauses:
            raise Stopping("enough")

    archive = look(cloud, pauses)
    cloud.fail("media", 503, None)
    with pytest.raises(Stopping):
        list(archive.stream(span(0, len(DATA)), check))
    assert len(cloud.hits("media")) == 1


def test_a_last_try_that_broke_because_the_work_should_end_is_no_failure(
    cloud: Cloud, pauses: list[float]
) -> None:
    def check() -> None:
        if len(cloud.hits("media")) == TRIES:
            raise Stopping("interrupted")

    archive = look(cloud, pauses)
    cloud.fail("media", 503, None)
    with pytest.raises(Stopping):
        archive.directory(check)


@pytest.mark.parametrize("after", ["\N{SUPERSCRIPT TWO}", "soon", "-1", ""])
def test_a_time_to_wait_that_is_none_is_no_fault_of_ours(after: str) -> None:
    assert _pause_seconds(1, after) == 0.25


def test_the_whole_object_is_not_taken_for_a_range(cloud: Cloud, pauses: list[float]) -> None:
    archive = look(cloud, pauses)
    cloud.ignore_range()
    assert read(archive, 1000, 2000) == DATA[1000:2000]
    cloud.ignore_range(None)
    with pytest.raises(ArchiveUnavailable):
        read(archive, 1000, 2000)
    assert archive.fetched == 1000


def test_slices_by_several_connections_come_in_order_whatever_breaks(pauses: list[float]) -> None:
    data = b"PK\3\4" + bytes(26) + random.Random(2).randbytes(3 * SLICE_BYTES + 999)
    with Cloud() as cloud:
        cloud.put(BUILD.bucket, BUILD.object_name, data)
        archive = source(cloud.url, connections=4).look(BUILD, pauses.append)
        cloud.cut(1_000_000, 5)
        cloud.cut(2_000_000, 5, rst=True)
        # Together less than one slice may meet before it is given up, should it meet them all.
        cloud.fail("media", 503, 1)
        cloud.ignore_range(1)
        member = Member("", b"", 0, len(data) - 30, len(data) - 30, 0, STORED, len(data))
        assert b"".join(archive.stream(member, lambda: None)) == data[30:]
        assert archive.fetched == len(data)


def test_an_object_stored_with_an_encoding_is_refused(cloud: Cloud, pauses: list[float]) -> None:
    cloud.put(BUILD.bucket, BUILD.object_name, DATA, encoding="gzip")
    with pytest.raises(ArchiveCorrupt, match="gzip"):
        look(cloud, pauses)


# -- lots: a reader that is woken for much at a time ---------------------------------------------

LONG = random.Random(3).randbytes(LAST_BYTES + (2 << 20))


class _Short(BaseHTTPRequestHandler):
    """Gives ranges of LONG; the first answer ends too early, and its connection stays."""

    protocol_version = "HTTP/1.1"
    connections: ClassVar[set[tuple[str, int]]] = set()
    answers: ClassVar[list[int]] = []
    read: ClassVar[threading.Event] = threading.Event()
    """Set when the client has read an answer's headers, and nothing of what follows."""

    def do_GET(self) -> None:
        start, end = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        body = LONG[start : end + 1][: None if self.answers else LOT_BYTES]
        self.connections.add(self.client_address)
        self.answers.append(len(body))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end}/{len(LONG)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        assert self.read.wait(DEADLINE)
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def range_reader(session: Any, url: str, pauses: list[float]) -> _RangeReader:
    def refused(error: Exception) -> NoReturn:
        raise error

    return _RangeReader(session, url, 1, len(LONG), pauses.append, refused)


def test_a_connection_that_is_used_again_is_read_as_it_comes(pauses: list[float]) -> None:
    _Short.connections.clear()
    _Short.answers.clear()
    _Short.read.clear()

    def headers_are_read(*_: object, **__: object) -> None:
        _Short.read.set()

    with ThreadingHTTPServer(("127.0.0.1", 0), _Short) as server, requests.Session() as session:
        session.hooks["response"].append(headers_are_read)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            reader = range_reader(session, f"http://127.0.0.1:{server.server_port}/", pauses)
            assert b"".join(reader.read(0, len(LONG), lambda: None, 1 << 16)) == LONG
        finally:
            session.close()
            server.shutdown()
            thread.join()
    assert _Short.answers == [LOT_BYTES, len(LONG) - LOT_BYTES]
    assert (len(pauses), len(_Short.connections)) == (1, 1)


class _Tunnel(requests.Session):
    """Answers as over a proxy that is itself reached by TLS: its sockets have fewer calls."""

    def get(self, *_: object, **__: object) -> requests.Response:
        connection = HTTPSConnection("storage.googleapis.com")
        connection.sock = SSLTransport.__new__(SSLTransport)
        connection.sock.socket = socket.socket()
        answer = requests.Response()
        answer.status_code = 206
        answer.headers["Content-Range"] = f"bytes 0-{len(LONG) - 1}/{len(LONG)}"
        answer.raw = urllib3.HTTPResponse(
            io.BytesIO(LONG), preload_content=False, connection=connection
        )
        return answer


def test_a_range_comes_through_tls_within_tls(pauses: list[float]) -> None:
    reader = range_reader(_Tunnel(), "https://storage.googleapis.com/", pauses)
    pieces = list(reader.read(0, len(LONG), lambda: None, 1 << 20))
    assert b"".join(pieces) == LONG
    assert max(map(len, pieces)) == TLS_BYTES, "no memory is asked for that a record can't fill"
    assert pauses == []
