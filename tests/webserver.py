"""A real nginx on loopback that serves a lab by the sample configuration of the repository."""

import http.client
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import DEADLINE, ROOT, Lab, until

SAMPLE = ROOT / "nginx/watcherd.conf"
# As Debian's nginx.conf, but below one directory.
MAIN = """
daemon off;
worker_processes 1;
pid {home}/pid;
error_log stderr notice;
user {user};
events {{ worker_connections 64; }}
http {{
    access_log {home}/access.log;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    include {home}/watcherd.conf;
}}
"""


def sample(lab: Lab, port: int) -> str:
    """Return the sample with the changes that its head asks for."""
    text = SAMPLE.read_text()
    for old, new in (
        ("listen 80;", f"listen 127.0.0.1:{port};"),
        ("/srv/watcherd/static", str(lab.root / "static")),
        ("/srv/watcherd/results", str(lab.root / "results")),
    ):
        assert old in text
        text = text.replace(old, new)
    return text


@contextmanager
def nginx(lab: Lab) -> Iterator[str]:
    """Serve a lab for the length of a block; yield the server's URL."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    home = Path(tempfile.mkdtemp(prefix="watcherd-nginx-"))
    home.chmod(0o755)
    (home / "watcherd.conf").write_text(sample(lab, port))
    (home / "nginx.conf").write_text(MAIN.format(home=home, user="www-data"))
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin")
    assert program, "apt-get install nginx-light"
    log = home / "error.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [program, "-p", str(home), "-c", str(home / "nginx.conf")], stderr=stderr
        )
    try:
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", port)) == 0

        until(answers, "nginx")
        yield url
    finally:
        process.terminate()
        process.wait(DEADLINE)
        shutil.rmtree(home)


def fetch(url: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of an answer, whatever it is; redirects are not followed."""
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=DEADLINE)
    try:
        connection.request(method, f"/{path}", headers=headers)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()
