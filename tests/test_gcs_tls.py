"""Ranges by TLS, as from Cloud Storage itself: a real server, a real session."""

import datetime as dt
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NoReturn

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from lab import DEADLINE

from stager.gcs import TLS_BYTES, _RangeReader

DATA = bytes(range(251)) * 800
HERE = "127.0.0.1"


class _Ranges(BaseHTTPRequestHandler):
    """Answers with the range, at once: it waits in the client's socket."""

    protocol_version = "HTTP/1.1"
    is_sent = threading.Event()

    def do_GET(self) -> None:
        start, end = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end}/{len(DATA)}")
        self.send_header("Content-Length", str(end + 1 - start))
        self.end_headers()
        self.wfile.write(DATA[start : end + 1])
        self.is_sent.set()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a certificate for this machine, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HERE)])
    now, day = dt.datetime.now(dt.UTC), dt.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(HERE))])
    signed = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(
        key.private_bytes(*form, serialization.NoEncryption()) + signed.public_bytes(form[0])
    )
    return path


@contextmanager
def served(certificate: Path) -> Iterator[str]:
    """Serve DATA by TLS; yield the address."""
    _Ranges.is_sent.clear()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with ThreadingHTTPServer((HERE, 0), _Ranges) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"https://{HERE}:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_a_read_that_is_interrupted_never_takes_what_is_encrypted_for_data(
    certificate: Path,
) -> None:
    def refused(error: Exception) -> NoReturn:
        raise error

    session: Any = requests.Session()
    pauses = list[float]()
    with served(certificate) as url, session:
        session.verify, session.trust_env = str(certificate), False
        reader = _RangeReader(session, url, 1, len(DATA), pauses.append, refused)
        came = bytearray()
        for number, piece in enumerate(reader.read(0, len(DATA), lambda: None, 1 << 20)):
            came += piece
            assert len(piece) <= TLS_BYTES
            if number == 0:
                assert _Ranges.is_sent.wait(DEADLINE)
                reader.interrupt()
    assert came == DATA
