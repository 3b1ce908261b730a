"""Archives in Google Cloud Storage: metadata and credentials by google-cloud-storage, bytes by us.

The client's own media loop reads 8 KiB at a time and costs seven times the CPU, and it takes a
whole object for a range; so the ranges are read over its authorised session, each answer checked.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

import google.auth
import requests
import urllib3
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import AuthorizedSession
from google.cloud import storage
from google.oauth2 import service_account
from requests.adapters import HTTPAdapter

from stager.ahead import Check
from stager.archive import Archive, GenerationGone, Pause
from stager.errors import (
    ArchiveCorrupt,
    ArchiveDenied,
    ArchiveNotFound,
    ArchiveUnavailable,
    CredentialsRefused,
)
from stager.layout import Build

SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
TIMEOUT = (10, 15)
"""Seconds to connect, and without a byte (or a first lot), before a try counts as failed."""
TRIES = 4
LOT_BYTES, LAST_BYTES = 256 << 10, 1 << 20
"""A read of a slow connection waits for so many bytes, but not of the last ones of a range."""
TLS_BYTES = 16 << 10  # what a record holds at most (RFC 8446, 5.1)
LONGEST_PAUSE = 30.0
_BUSY = {408, 429, 500, 502, 503, 504}
_BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError)

Answer = TypeVar("Answer")


class _Again(Exception):
    """A try failed in a way that another one may not."""

    def __init__(self, why: str, after: str | None = None) -> None:
        super().__init__(why)
        self.after = after


class GcsSource:
    """One client for all workers; made at the first look, anew after refused credentials."""

    def __init__(self, credentials: str, endpoint: str | None, connections: int) -> None:
        self._credentials, self._endpoint, self._connections = credentials, endpoint, connections
        self._client: storage.Client | None = None
        self._session: AuthorizedSession | None = None

    def look(self, build: Build, pause: Pause) -> Archive:
        """Ask for the object's metadata once, and pin its generation."""
        try:
            client, session = self._connect()
            blob = client.bucket(build.bucket).blob(build.object_name)
            generation, size = _retrying(lambda: self._reload(blob), pause)
        except _Again as e:
            raise ArchiveUnavailable(f"{build.archive_url}: {e}") from None
        except (auth.GoogleAuthError, OSError, api.Unauthorized) as e:
            self._refused(e)
        except api.NotFound:
            raise ArchiveNotFound(f"no archive {build.archive_url}") from None
        except api.Forbidden:
            raise ArchiveDenied(f"{build.archive_url}: Cloud Storage says 403") from None
        except api.GoogleAPICallError as e:
            raise ArchiveUnavailable(f"{build.archive_url}: {e.code} {e.message[:200]}") from None
        if blob.content_encoding:
            raise ArchiveCorrupt(f"stored with Content-Encoding {blob.content_encoding}")
        url = f"{client.api_endpoint}/download/storage/v1{blob.path}"
        reader = _RangeReader(session, url, generation, size, pause, self._refused)
        return Archive(build.archive_url, generation, size, reader, self._connections)

    @staticmethod
    def _reload(blob: storage.Blob) -> tuple[int, int]:
        """Ask once; return generation and size."""
        try:
            blob.reload(timeout=TIMEOUT, retry=None)
            return int(blob.generation), int(blob.size)
        except api.GoogleAPICallError as e:
            if e.code in _BUSY:
                headers = getattr(e.response, "headers", {}) or {}
                raise _Again(f"Cloud Storage says {e.code}", headers.get("Retry-After")) from None
            raise
        except _BROKEN as e:
            raise _Again(f"no answer ({type(e).__name__})") from None
        except auth.GoogleAuthError:
            raise
        except (ValueError, TypeError, AttributeError):
            raise _Again("Cloud Storage answered with what is no metadata") from None

    def _connect(self) -> tuple[storage.Client, AuthorizedSession]:
        if self._client is None or self._session is None:
            # Else the client asks for each bucket's metadata, in a thread, for tracing.
            os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
            try:
                credentials = self._load_credentials()
            except (ValueError, TypeError, AttributeError, LookupError) as e:
                raise CredentialsRefused(f"the key file is none: {type(e).__name__}") from None
            session: Any = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
            pool = HTTPAdapter(pool_connections=4, pool_maxsize=256)
            session.mount("https://", pool)
            session.mount("http://", pool)
            options = {"api_endpoint": self._endpoint} if self._endpoint else None
            self._client = storage.Client(
                project="none", credentials=credentials, _http=session, client_options=options
            )
            self._session = session
        return self._client, self._session

    def _load_credentials(self) -> Any:
        if self._credentials == "anonymous" or (self._credentials == "default" and self._endpoint):
            return AnonymousCredentials()  # type: ignore[no-untyped-call]
        if self._credentials == "default":
            return google.auth.default(scopes=[SCOPE])[0]
        return service_account.Credentials.from_service_account_file(  # type: ignore[no-untyped-call]
            _key_file(self._credentials), scopes=[SCOPE]
        )

    def _refused(self, error: Exception) -> NoReturn:
        """Forget the client, so that corrected credentials are read, and say what happened."""
        if self._credentials == "anonymous":
            raise ArchiveDenied("Cloud Storage says 401: not for everybody, or not there") from None
        self._client = self._session = None
        if isinstance(error, auth.TransportError) or getattr(error, "retryable", False):
            raise ArchiveUnavailable(f"the token service does not answer: {type(error).__name__}")
        if isinstance(error, OSError):
            what = error.strerror or type(error).__name__
            raise CredentialsRefused(f"the key file: {what}") from None
        # The library's words may hold parts of a key or token: only the kind of error is told.
        raise CredentialsRefused(f"Cloud Storage: {type(error).__name__}") from None


def _key_file(path: str) -> str:
    """Return where a key can be read: from what systemd loaded (LoadCredential=), if it did.

    {} stands for a key that was not there when the service started.
    """
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    loaded = os.path.join(directory, os.path.basename(path)) if directory else path
    try:
        return loaded if os.stat(loaded).st_size > len("{}") else path
    except OSError:
        return path


class _RangeReader:
    """Ranges of one object at one generation, resumed where a connection broke."""

    def __init__(
        self,
        session: AuthorizedSession,
        url: str,
        generation: int,
        size: int,
        pause: Pause,
        refused: Callable[[Exception], NoReturn],
    ) -> None:
        self._session, self._size = session, size
        self._pause, self._refused = pause, refused
        self._answers: set[Any] = set()
        self._url = f"{url}?alt=media&generation={generation}&ifGenerationMatch={generation}"

    def read(self, start: int, end: int, check: Check, most: int) -> Iterator[bytes]:
        """Yield a range; tries are counted from the last byte that came."""
        failures = 0
        while start < end:
            check()
            try:
                for piece in self._once(start, end, most, in_lots=failures == 0):
                    start, failures = start + len(piece), 0
                    yield piece
                if start < end:
                    raise _Again("the answer ended too early")
            except _Again as e:
                # What broke may be what was interrupted.
                check()
                failures += 1
                if failures >= TRIES:
                    raise ArchiveUnavailable(f"reading the archive: {e}") from None
                self._pause(_pause_seconds(failures, e.after))

    def _once(self, start: int, end: int, most: int, *, in_lots: bool) -> Iterator[bytes]:
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "gzip"}
        raw: Any = None
        try:
            with self._session.get(
                self._url, headers=headers, stream=True, timeout=TIMEOUT
            ) as answer:
                self._check(answer, start, end)
                raw = answer.raw
                self._answers.add(raw)
                yield from _pieces(raw, end - start, most, in_lots=in_lots)
        except _BROKEN as e:
            raise _Again(f"the connection broke ({type(e).__name__})") from None
        except auth.GoogleAuthError as e:
            self._refused(e)
        finally:
            self._answers.discard(raw)

    def interrupt(self) -> None:
        """Shut the connections' reading side, so that a stalled read ends now."""
        for answer in list(self._answers):
            connection = getattr(answer.connection, "sock", None)
            with suppress(OSError, ValueError, RuntimeError):
                if isinstance(connection, socket.socket):
                    # TLS's own would have what still comes read as it is, as if it were no TLS.
                    socket.socket.shutdown(connection, socket.SHUT_RD)
                else:
                    answer.shutdown()

    def _check(self, answer: requests.Response, start: int, end: int) -> None:
        """Take nothing but the very range that was asked for."""
        status = answer.status_code
        if status in {404, 412}:
            raise GenerationGone("the archive was replaced while it was read")
        if status == 401:
            self._refused(api.Unauthorized("401"))  # type: ignore[no-untyped-call]
        if status == 403:
            raise ArchiveDenied("Cloud Storage says 403 while the archive is read")
        if status in _BUSY:
            raise _Again(f"Cloud Storage says {status}", answer.headers.get("Retry-After"))
        want = f"bytes {start}-{end - 1}/{self._size}"
        if status != 206 or answer.headers.get("Content-Range") != want:
            raise _Again(f"Cloud Storage answered {status} with another range than asked for")


def _pieces(raw: Any, left: int, most: int, *, in_lots: bool) -> Iterator[bytes]:
    """Yield so many bytes of an answer, as they come or in lots; fewer where it ends before."""
    connection, lot = getattr(raw.connection, "sock", None), 1
    try:
        while left:
            wanted = LOT_BYTES if in_lots and left > LAST_BYTES else 1
            if wanted != lot:
                lot = _wait_for(connection, wanted)
            # Of a lot it is certain that it is there; TLS gives one record.
            size = max(most, lot) if type(connection) is socket.socket else TLS_BYTES
            piece = raw.read1(min(size, left), decode_content=False)
            if not piece:
                return
            left -= len(piece)
            yield piece
    finally:
        if lot != 1:
            # An answer that ended too early may have left it to others, whose answers are small.
            _wait_for(connection, 1)


def _wait_for(connection: Any, count: int) -> int:
    """Have the kernel wake a reader for so many bytes: few large pieces, not many small ones.

    The end of the stream, an error or a shutdown wake it all the same; a time-out is the socket's.
    """
    # No such call: TLS within TLS, by way of a proxy. An error: not here, or closed already.
    with suppress(AttributeError, OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
    return count


def _retrying(call: Callable[[], Answer], pause: Pause) -> Answer:
    for failure in range(1, TRIES):
        try:
            return call()
        except _Again as e:
            pause(_pause_seconds(failure, e.after))
    return call()


def _pause_seconds(failure: int, after: str | None) -> float:
    """How long to wait before the next try: as the service says, else 0.25 s, doubled each time."""
    seconds: float = 0.25 * 2.0 ** (failure - 1)
    if after and after.isdecimal():
        seconds = max(seconds, float(after))
    return min(seconds, LONGEST_PAUSE)
