"""A Cloud Storage double: a real HTTP server that the real google-cloud-storage client reads.

Owns: object metadata and media (ranges, generations, preconditions), service-account tokens,
a log of what was asked and really sent, and faults on demand. It gives a reader the JSON API's
answers (errors are JSON for metadata, plain text for media); no uploads, listings or transcoding.
As a program it serves DIR/<bucket>/<object>: python tests/cloud.py --root DIR --port 0
"""

import argparse
import base64
import fcntl
import json
import os
import re
import signal
import socket
import struct
import tempfile
import termios
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any, BinaryIO, Literal, Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import google_crc32c

Kind = Literal["media", "metadata", "token"]
PIECE_BYTES = 1 << 20
_ROUTE = re.compile(r"/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)")
_BUCKET = re.compile(r"/storage/v1/b/([^/]+)")
_RANGE = re.compile(r"bytes=(?!-$)(\d*)-(\d*)")
_REASONS = {
    401: ("required", "Anonymous caller does not have storage.objects.get access."),
    404: ("notFound", "No such object: {}/{}"),
    412: ("conditionNotMet", "At least one of the pre-conditions you specified did not hold."),
    416: ("requestedRangeNotSatisfiable", "The requested range cannot be satisfied."),
}


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer: bytes [start, end) asked for (None without an object), object bytes sent."""

    method: str
    kind: Kind
    bucket: str = ""
    name: str = ""
    start: int | None = None
    end: int | None = None
    status: int = 200
    sent: int = 0


@dataclass(eq=False)
class _Object:
    bucket: str
    name: str
    file: BinaryIO
    size: int
    generation: int
    encoding: str | None

    @cached_property
    def crc32c(self) -> str:
        value, source = 0, self.file.fileno()
        for offset in range(0, self.size, PIECE_BYTES):
            piece = bytes(min(PIECE_BYTES, self.size - offset))
            with suppress(OSError):  # ENXIO: only a hole is left; reading holes is dear
                if os.lseek(source, offset, os.SEEK_DATA) < offset + len(piece):
                    piece = os.pread(source, PIECE_BYTES, offset)
            value = google_crc32c.extend(value, piece)
        return base64.b64encode(value.to_bytes(4, "big")).decode()

    def resource(self, url: str) -> dict[str, Any]:
        path = f"storage/v1/b/{self.bucket}/o/{quote(self.name, safe='')}"
        return {
            "kind": "storage#object",
            "mediaLink": f"{url}/download/{path}?generation={self.generation}&alt=media",
            "bucket": self.bucket,
            "name": self.name,
            "generation": str(self.generation),
            "metageneration": "1",
            "contentType": "application/zip",
            "size": str(self.size),
            "crc32c": self.crc32c,
            "etag": f"E{self.generation}",
        } | ({"contentEncoding": self.encoding} if self.encoding else {})

    def headers(self) -> dict[str, str]:
        return {
            "Content-Type": "application/zip",
            "ETag": f"E{self.generation}",
            "x-goog-generation": str(self.generation),
            "x-goog-metageneration": "1",
            "x-goog-hash": f"crc32c={self.crc32c}",
            "x-goog-stored-content-encoding": self.encoding or "identity",
            "x-goog-stored-content-length": str(self.size),
        } | ({"Content-Encoding": self.encoding} if self.encoding else {})


@dataclass(eq=False)
class _Fault:
    sort: Literal["fail", "cut", "stall", "ignore_range", "corrupt"]
    times: int | None
    at: int = 0
    name: str | None = None
    kind: str = "media"
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    seconds: float = 0.0
    rst: bool = False

    def bites(self, hit: Hit, ranged: bool) -> bool:
        """Tell whether this answer would be changed; a fault that changes nothing is not spent."""
        if self.times == 0 or self.name not in (None, hit.name):
            return False
        if self.sort == "fail":
            return self.kind == hit.kind or (self.kind == "any" and hit.kind != "token")
        if hit.kind != "media" or hit.start is None or hit.end is None or hit.status >= 300:
            return False
        if self.sort == "corrupt":
            return hit.start <= self.at < hit.end
        return ranged if self.sort == "ignore_range" else hit.end - hit.start > self.at

    def spend(self) -> None:
        self.times = None if self.times is None else self.times - 1


@dataclass(eq=False)
class _Answer:
    hit: Hit  # swapped whole, by the one thread that answers
    over: threading.Event  # that of its decision: faults cleared since then must end its stall
    object: _Object | None = None
    fault: _Fault | None = None
    flips: set[int] = field(default_factory=set)


class Cloud(ThreadingHTTPServer):
    """Serves while entered; every method may be called from any thread."""

    daemon_threads = False  # server_close() joins them: nothing outlives the context
    request_queue_size = 128

    def __init__(
        self, *, port: int = 0, root: Path | None = None, require_token: bool = False
    ) -> None:
        self.require_token = require_token
        self.bytes_per_second: int | None = None
        self._root = root.resolve() if root else None
        self._lock = threading.RLock()
        self._over = threading.Event()  # set when the waits begun under it must end
        self._last_generation = 1_700_000_000_000_000  # like the real ones: microseconds
        self._objects: dict[tuple[str, str], _Object] = {}
        self._files: list[BinaryIO] = []
        self._tokens: set[str] = set()
        self._answers: list[_Answer] = []
        self._faults: list[_Fault] = []
        self._replacements: list[tuple[list[int], str, str, Path | bytes]] = []
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._over.set()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):  # the client went first
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()
        self._thread.join()
        for file in self._files:
            file.close()

    def put(
        self,
        bucket: str,
        name: str,
        content: Path | bytes,
        generation: int | None = None,
        *,
        encoding: str | None = None,
    ) -> int:
        """Store a new, larger generation; a file is held open, so it may be renamed or removed."""
        with self._lock:
            old = self._objects.get((bucket, name))
            if generation is None:
                generation = self._last_generation + 1
            elif old is not None and generation <= old.generation:
                raise ValueError(f"generation {generation} is not above {old.generation}")
            self._store(bucket, name, content, generation, encoding)
            return generation

    def delete(self, bucket: str, name: str) -> None:
        """Forget an object; answers under way still end with its bytes."""
        with self._lock:
            del self._objects[bucket, name]

    def revoke_tokens(self) -> None:
        """Make every token given so far worthless: the next use is answered 401."""
        with self._lock:
            self._tokens.clear()

    @property
    def log(self) -> list[Hit]:
        """Return the answers in the order they were decided, those under way included."""
        with self._lock:
            return [answer.hit for answer in self._answers]

    def hits(self, kind: Kind | None = None, name: str | None = None) -> list[Hit]:
        """Return the log, only of one kind or object where given."""
        return [h for h in self.log if kind in (None, h.kind) and name in (None, h.name)]

    def sent(self, name: str | None = None) -> int:
        """Count the object bytes given to the network; exact once the client has read them."""
        return sum(hit.sent for hit in self.hits("media", name))

    def reset_log(self) -> None:
        """Empty the log; answers under way are not counted any more."""
        with self._lock:
            self._answers = []

    def fail(
        self,
        kind: Literal["media", "metadata", "token", "any"] = "media",
        status: int = 503,
        times: int | None = 1,
        *,
        retry_after: int | None = None,
        name: str | None = None,
        body: bytes | str | None = None,
    ) -> None:
        """Answer with an error; `any` is media and metadata, never tokens."""
        raw = body.encode() if isinstance(body, str) else body
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        self._add(_Fault("fail", times, 0, name, kind, status, headers, raw))

    def refuse_tokens(self, times: int | None = None) -> None:
        """Answer the token endpoint with 400 invalid_grant."""
        self.fail("token", 400, times, body='{"error": "invalid_grant", "error_description": ""}')

    def cut(
        self, after_bytes: int, times: int | None = 1, rst: bool = False, name: str | None = None
    ) -> None:
        """Close (FIN or RST) after that many bytes of a body that is longer."""
        self._add(_Fault("cut", times, after_bytes, name, rst=rst))

    def stall(self, after_bytes: int, seconds: float, times: int | None = 1) -> None:
        """Pause after that many bytes of a longer body, then go on; clearing faults ends it."""
        self._add(_Fault("stall", times, after_bytes, seconds=seconds))

    def ignore_range(self, times: int | None = 1) -> None:
        """Answer a ranged request with 200 and the whole object."""
        self._add(_Fault("ignore_range", times))

    def corrupt(self, offset: int, times: int | None = 1) -> None:
        """Invert the byte at this offset of the object, in answers covering it."""
        self._add(_Fault("corrupt", times, offset))

    def replace_before(
        self, media_hit_number: int, bucket: str, name: str, data: Path | bytes
    ) -> None:
        """Put a new generation just before the nth further media GET of this object."""
        with self._lock:
            self._replacements.append(([media_hit_number], bucket, name, data))

    def slow(self, bytes_per_second: int | None) -> None:
        """Send no connection more than this; None is full speed again."""
        self.bytes_per_second = bytes_per_second

    def clear_faults(self) -> None:
        """Be well again at once: answers that stall or crawl go on at full speed."""
        with self._lock:
            self._faults, self._replacements, self.bytes_per_second = [], [], None
            over, self._over = self._over, threading.Event()
            over.set()

    def pause(self, seconds: float) -> bool:
        """Wait; return True if told to stop waiting before the time was up."""
        return self._over.wait(seconds)

    def give_token(self) -> tuple[_Answer, str]:
        """Decide and log one answer of the token endpoint."""
        with self._lock:
            answer, token = self._decided(Hit("POST", "token"), None, False), os.urandom(8).hex()
            if answer.hit.status == 200:
                self._tokens.add(token)
            return answer, token

    def decide(
        self, kind: Kind, bucket: str, name: str, query: Mapping[str, str], headers: Any
    ) -> _Answer:
        """Decide and log one answer: first what is true, then what a fault makes of it."""
        wanted: str | None = headers.get("Range") if kind == "media" else None
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        with self._lock:
            if kind == "media":
                self._replace(bucket, name)
            found, hit = self._find(bucket, name), Hit("GET", kind, bucket, name)
            status = _status(found, query)
            if self.require_token and token not in self._tokens:
                status = 401
            if found and kind == "media":
                start, end = _span(wanted, found.size)
                if status == 200 and wanted and _RANGE.fullmatch(wanted):
                    status = 206 if start < end else 416
                hit = replace(hit, start=start, end=end)
            return self._decided(replace(hit, status=status), found, wanted is not None)

    def _decided(self, hit: Hit, found: _Object | None, ranged: bool) -> _Answer:
        outcomes = (f for f in self._faults if f.sort != "corrupt")
        fault = next((f for f in outcomes if f.bites(hit, ranged)), None)
        if fault:
            fault.spend()
            if fault.sort == "fail":
                hit = replace(hit, status=fault.status)
            elif fault.sort == "ignore_range" and found:
                hit = replace(hit, status=200, start=0, end=found.size)
        answer = _Answer(hit, self._over, found, fault)
        for flaw in self._faults:
            if flaw.sort == "corrupt" and flaw.bites(hit, ranged):
                flaw.spend()
                answer.flips.add(flaw.at)
        self._answers.append(answer)
        return answer

    def _find(self, bucket: str, name: str) -> _Object | None:
        found = self._objects.get((bucket, name))
        if self._root is None:
            return found
        path = (self._root / bucket / name).resolve()
        if not path.is_relative_to(self._root) or not path.is_file():
            return None
        generation = path.stat().st_mtime_ns // 1000
        if found is None or found.generation != generation:
            found = self._store(bucket, name, path, generation, None)
        return found

    def _store(
        self, bucket: str, name: str, content: Path | bytes, generation: int, encoding: str | None
    ) -> _Object:
        file: BinaryIO
        if isinstance(content, Path):
            file = content.open("rb")
        else:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - answers read it until the server ends
            file.write(content)
            file.flush()
        self._files.append(file)
        size = os.fstat(file.fileno()).st_size
        stored = _Object(bucket, name, file, size, generation, encoding)
        self._objects[bucket, name] = stored
        self._last_generation = max(self._last_generation, generation)
        return stored

    def _replace(self, bucket: str, name: str) -> None:
        for entry in [r for r in self._replacements if r[1:3] == (bucket, name)]:
            entry[0][0] -= 1
            if entry[0][0] == 0:
                self._replacements.remove(entry)
                self.put(bucket, name, entry[3])

    def _add(self, fault: _Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's would ask the name service who we are
        self.server_name, self.server_port = "127.0.0.1", self.socket.getsockname()[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Cloud

    def handle(self) -> None:
        with suppress(OSError):  # the client is gone, which is its right
            super().handle()

    def log_message(self, *_: Any) -> None:
        """Keep quiet: Cloud.log is the log."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query, route = dict(parse_qsl(parts.query)), _ROUTE.fullmatch(parts.path)
        kind: Kind = "media" if query.get("alt") == "media" else "metadata"
        if found := _BUCKET.fullmatch(parts.path):
            # The client asks this from a thread of its own, for its traces, whenever it likes:
            # in the log, or meeting a fault, it would make tests depend on chance.
            self._send(200, {"name": found[1], "location": "US", "projectNumber": "1"})
            return
        bucket, name = (unquote(route[1]), unquote(route[2])) if route else ("", "")
        answer = self.server.decide(kind, bucket, name, query, self.headers)
        if answer.hit.status >= 300 or answer.object is None:
            self._send_error(answer)
        elif kind == "metadata":
            self._send(200, answer.object.resource(self.server.url))
        else:
            self._send_media(answer, answer.object)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/token":
            self._send(404, {"error": {"code": 404, "message": "Not Found"}})
            return
        answer, token = self.server.give_token()
        if answer.fault:
            self._send_error(answer)
        else:
            self._send(200, {"access_token": token, "expires_in": 3600, "token_type": "Bearer"})

    def _send(self, status: int, body: dict[str, Any] | bytes, **headers: str) -> None:
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            headers = {"Content-Type": "application/json; charset=UTF-8"} | headers
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def _send_error(self, answer: _Answer) -> None:
        hit, headers = answer.hit, dict(answer.fault.headers) if answer.fault else {}
        reason, message = _REASONS.get(hit.status, ("backendError", "Backend Error"))
        message = message.format(hit.bucket, hit.name)
        if hit.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="https://accounts.google.com/"'
        elif hit.status == 416 and answer.object:
            headers["Content-Range"] = f"bytes */{answer.object.size}"
        if answer.fault and answer.fault.body is not None:
            self._send(hit.status, answer.fault.body, **headers)
        elif hit.kind == "media":
            headers["Content-Type"] = "text/html; charset=UTF-8"
            self._send(hit.status, message.encode(), **headers)
        else:
            errors = [{"message": message, "domain": "global", "reason": reason}]
            error = {"code": hit.status, "message": message, "errors": errors}
            self._send(hit.status, {"error": error}, **headers)

    def _send_media(self, answer: _Answer, found: _Object) -> None:
        start, end, fault = answer.hit.start or 0, answer.hit.end or 0, answer.fault
        headers = found.headers() | {"Content-Length": str(end - start)}
        if answer.hit.status == 206:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{found.size}"
        self._send(answer.hit.status, b"", **headers)
        middle = start + fault.at if fault else start
        self._send_span(answer, found, start, middle)
        if fault and fault.sort == "cut":
            self.close_connection = True
            if fault.rst:
                self._reset()
            return
        if fault and fault.sort == "stall":
            answer.over.wait(fault.seconds)
        self._send_span(answer, found, middle, end)

    def _send_span(self, answer: _Answer, found: _Object, position: int, end: int) -> None:
        source = found.file.fileno()
        while position < end:
            rate = self.server.bytes_per_second
            piece = PIECE_BYTES if rate is None else max(1, min(PIECE_BYTES, rate // 20))
            flip = position in answer.flips
            marks = [mark for mark in answer.flips if mark > position]
            count = 1 if flip else min([end, position + piece, *marks]) - position
            # Counted before it is sent, so that a client that has it all finds it counted.
            before, done = answer.hit, 0
            answer.hit = replace(before, sent=before.sent + count)
            try:
                if flip:
                    inverted = os.pread(source, 1, position)[0] ^ 0xFF
                    done = self.connection.send(bytes([inverted]))
                else:
                    done = os.sendfile(self.connection.fileno(), source, position, count)
            finally:
                answer.hit = replace(before, sent=before.sent + done)
            if done == 0:
                raise ConnectionAbortedError(f"{found.name} became shorter while it was served")
            position += done
            if rate is not None:
                self.server.pause(done / rate)

    def _reset(self) -> None:
        """Close with RST, once the client's kernel has all that was sent (2 s at most)."""
        descriptor, deadline = self.connection.fileno(), time.monotonic() + 2
        while any(fcntl.ioctl(descriptor, termios.TIOCOUTQ, b"\0" * 4)):
            if time.monotonic() > deadline or self.server.pause(0.001):
                break
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        os.close(self.connection.detach())  # an orderly shutdown() would send FIN first


def _status(found: _Object | None, query: Mapping[str, str]) -> int:
    pin, match = query.get("generation"), query.get("ifGenerationMatch")
    if found is None or (pin is not None and pin != str(found.generation)):
        return 404
    return 200 if match in (None, str(found.generation)) else 412


def _span(wanted: str | None, size: int) -> tuple[int, int]:
    """Resolve a Range header to [start, end); what is not a plain range means everything."""
    found = _RANGE.fullmatch(wanted or "")
    if found is None:
        return 0, size
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size


def main() -> None:
    """Serve a directory until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="A Cloud Storage double over a directory.")
    parser.add_argument("--root", type=Path, required=True, help="serves ROOT/<bucket>/<object>")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with Cloud(port=options.port, root=options.root) as cloud:
        print(cloud.url, flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
