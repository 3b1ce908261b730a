"""A TCP relay in front of the server: so many bytes a second on each connection, or cut ones.

    python -m benchmarks.wire PORT TARGET_PORT [--rate BYTES] [--cut-after BYTES --cuts N]

The kernel paces each connection (SO_MAX_PACING_RATE). nginx's limit_rate would not do: it counts
from each request's start, with a second's worth at once, so that a slice is never limited.
"""

import itertools
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click

from benchmarks import measure
from benchmarks.served import free_port

SO_MAX_PACING_RATE = 47
PIPE_BYTES = 1 << 18


def pump(source: socket.socket, target: socket.socket, cut_after: int) -> None:
    """Pass bytes on within the kernel; reset the connection after so many (0: never)."""
    reading, writing = os.pipe()
    left = cut_after or 1 << 62
    with suppress(OSError):
        while left and (size := os.splice(source.fileno(), writing, min(PIPE_BYTES, left))):
            left -= size
            while size:
                size -= os.splice(reading, target.fileno(), size)
    os.close(reading)
    os.close(writing)
    with suppress(OSError):
        if left == 0:
            target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            target.close()
            source.close()
        else:
            target.shutdown(socket.SHUT_WR)


@click.command()
@click.argument("port", type=int)
@click.argument("target", type=int)
@click.option("--rate", default=0, help="Bytes a second on each connection; 0: as they come.")
@click.option("--cut-after", default=0, help="Reset a connection after so many bytes.")
@click.option("--cuts", default=0, help="Do that to so many connections.")
def main(port: int, target: int, rate: int, cut_after: int, cuts: int) -> None:
    """Relay from PORT to TARGET on the loopback device."""
    server = socket.create_server(("127.0.0.1", port), backlog=256)
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    for number in itertools.count():
        client, _ = server.accept()
        upstream = socket.create_connection(("127.0.0.1", target))
        if rate:
            client.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, rate)
            # Else megabytes lie in buffers beyond the pace.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        # The first connection asks for metadata and directory: leave it whole.
        after = cut_after if 0 < number <= cuts else 0
        for source, sink, cut in ((client, upstream, 0), (upstream, client, after)):
            threading.Thread(target=pump, args=(source, sink, cut), daemon=True).start()


@contextmanager
def relay(url: str, **options: int) -> Iterator[str]:
    """Relay to a server for the length of a block; yield the URL to use instead of its own."""
    port = free_port()
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.wire", str(port), url.rpartition(":")[2], *arguments],
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout
        process.stdout.readline()
        yield f"http://127.0.0.1:{port}"
    finally:
        measure.end(process)
        assert process.stdout
        process.stdout.close()


if __name__ == "__main__":
    main()
