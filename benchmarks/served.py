"""Cloud Storage's JSON API, as far as a reader asks it, by nginx: static metadata, aliased media.

Any object of any bucket is the one archive that is served, so that every round may ask for a build
of its own. nginx does the ranges itself: what is measured is the client.
"""

import base64
import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import google_crc32c

BUCKET, OBJECT = "chromeos-image-archive", "x86-alex-release/R23-2811.0.0/image.zip"
GENERATION = 1700000000000000

_CONFIG = """
daemon off;
worker_processes 2;
pid {root}/nginx.pid;
error_log {root}/error.log warn;
{user}
events {{ worker_connections 1024; }}
http {{
  log_format sent '$body_bytes_sent';
  access_log {root}/sent.log sent;
  client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fast;
  uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
  sendfile on; sendfile_max_chunk 2m; tcp_nopush on; keepalive_requests 100000;
  gzip off; etag off;
  server {{
    listen 127.0.0.1:{port};
    location ~ "^/(download/)?(storage/v1|v1)?/?b/[^/]+/o/.+" {{
      if ($arg_alt = media) {{ rewrite ^ /media last; }}
      rewrite ^ /metadata last;
    }}
    location = /media {{
      internal; alias {archive}; default_type application/zip;
      add_header x-goog-generation {generation};
      add_header x-goog-hash "crc32c={crc32c},md5={md5}";
      add_header x-goog-stored-content-length {size};
    }}
    location = /metadata {{ internal; alias {root}/metadata.json; default_type application/json; }}
    location ~ "^/{bucket}/.*image.zip$" {{
      alias {archive}; default_type application/zip;
    }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Served:
    """A server at work; `sent` tells the bytes of bodies that it has sent so far."""

    url: str
    root: Path

    def sent(self) -> int:
        """Return the bytes of all answers so far."""
        # nginx writes a line when an answer ends, and its client may be a little faster.
        before = -1
        while (now := self._sum()) != before:
            before = now
            time.sleep(0.05)
        return now

    def _sum(self) -> int:
        return sum(map(int, (self.root / "sent.log").read_text().split()))


def checksums(archive: Path) -> tuple[str, str]:
    """Return MD5 and CRC-32C of a file in Cloud Storage's spelling."""
    md5, crc = hashlib.md5(usedforsecurity=False), 0
    with archive.open("rb") as f:
        while piece := f.read(1 << 20):
            md5.update(piece)
            crc = google_crc32c.extend(crc, piece)
    return base64.b64encode(md5.digest()).decode(), base64.b64encode(
        crc.to_bytes(4, "big")
    ).decode()


def free_port() -> int:
    """Return a port of the loopback device that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def serve(archive: Path, root: Path) -> Iterator[Served]:
    """Serve an archive for the length of a block; `root` is a directory for what nginx writes."""
    root.mkdir()
    md5, crc32c = checksums(archive)
    port, size = free_port(), archive.stat().st_size
    url = f"http://127.0.0.1:{port}"
    metadata = {
        "kind": "storage#object",
        "id": f"{BUCKET}/{OBJECT}/{GENERATION}",
        "name": OBJECT,
        "bucket": BUCKET,
        "generation": str(GENERATION),
        "metageneration": "1",
        "contentType": "application/zip",
        "storageClass": "STANDARD",
        "size": str(size),
        "md5Hash": md5,
        "crc32c": crc32c,
        "etag": "CAE=",
        "timeCreated": "2012-08-01T12:00:00.000Z",
        "updated": "2012-08-01T12:00:00.000Z",
        "mediaLink": f"{url}/download/storage/v1/b/{BUCKET}/o/{quote(OBJECT, safe='')}?alt=media",
    }
    (root / "metadata.json").write_text(json.dumps(metadata))
    (root / "nginx.conf").write_text(
        _CONFIG.format(
            root=root, port=port, archive=archive, bucket=BUCKET, generation=GENERATION, size=size,
            md5=md5, crc32c=crc32c, user="user root;" if os.geteuid() == 0 else "",
        )
    )  # fmt: skip
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") or "nginx"
    nginx = subprocess.Popen([program, "-p", root, "-c", root / "nginx.conf"])
    try:
        _await(port, nginx)
        yield Served(url, root)
    finally:
        nginx.terminate()
        nginx.wait(10)


def _await(port: int, nginx: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        if nginx.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError("nginx does not listen")
