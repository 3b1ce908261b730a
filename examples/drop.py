#!/usr/bin/env python3
"""Ask for images and wait for the answer; only the standard library is needed.

  drop.py gs://BUCKET/PATH/BUILD test base

Exit code: 0 staged, 1 not, 2 usage, 4 no answer in time (the request goes on).
"""

import json
import os
import pathlib
import secrets
import socket
import sys
import time

SPOOL = pathlib.Path(os.environ.get("SPOOL", "/srv/watcherd/spool"))
RESULTS = pathlib.Path(os.environ.get("RESULTS", "/srv/watcherd/results"))


def drop(build: str, images: list[str]) -> str:
    """Drop a request, whole, under a NAME that nobody else uses; return that NAME."""
    name = f"drop-{socket.gethostname()}-{int(time.time())}-{secrets.token_hex(4)}"
    tmp = SPOOL / "requests" / f".{name}.tmp"
    tmp.write_text(json.dumps({"build": build, "images": images}) + "\n")
    tmp.rename(SPOOL / "requests" / f"{name}.json")
    return name


def answer(name: str, seconds: float) -> str | None:
    """Wait for the answer's text; None where it does not come in time."""
    end = time.monotonic() + seconds
    # Listed anew each time: on NFS, asking for one name may be told an old "no such file".
    while f"{name}.yaml" not in os.listdir(RESULTS):
        if time.monotonic() > end:
            return None
        time.sleep(0.5)
    return (RESULTS / f"{name}.yaml").read_text()


def main() -> int:
    """Drop, wait, print; return the exit code."""
    if len(sys.argv) < 3:
        print("usage: drop.py gs://BUCKET/PATH/BUILD IMAGE...", file=sys.stderr)
        return 2
    name = drop(sys.argv[1], sys.argv[2:])
    text = answer(name, float(os.environ.get("WAIT", "3600")))
    if text is None:
        print(f"{name}: no answer yet", file=sys.stderr)
        return 4
    print(text, end="")
    return 0 if text.splitlines()[0].endswith("staged") else 1


if __name__ == "__main__":
    sys.exit(main())
