"""`make demo`: a small archive in a directory, a daemon, a request dropped as a script would."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUCKET, BUILD = "chromeos-image-archive", "x86-alex-release/R23-2811.0.0"
IMAGES = ("chromiumos_test_image.bin", "chromiumos_base_image.bin", "recovery_image.bin")
IMAGE_BYTES = 32 << 20
BINARIES = Path(sys.executable).parent


def make_archive(path: Path) -> None:
    """Make an image.zip like a builder's: three images with zero runs, and what else is in one."""
    path.parent.mkdir(parents=True)
    chance = random.Random(2811)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in IMAGES:
            archive.writestr(name, image(chance))
        archive.writestr("esp/", b"")
        archive.writestr("esp/startup.nsh", b"bootx64.efi\n")
        for script in ("mount_image.sh", "umount_image.sh", "pack_partitions.sh"):
            archive.writestr(script, b"#!/bin/sh\nexit 0\n")
        archive.writestr("id_rsa", b"a private key: it must never be served\n")


def image(chance: random.Random) -> bytes:
    """Return a disk image: a third zeros, a third text, a third noise."""
    parts: list[bytes] = []
    while sum(map(len, parts)) < IMAGE_BYTES:
        size = chance.choice((64, 256, 1024)) << 10
        text = (b"%08x a line of a file on the image\n" % chance.getrandbits(32)) * (size // 40)
        parts.append(chance.choice((bytes(size), text, chance.randbytes(size))))
    return b"".join(parts)[:IMAGE_BYTES]


def say(title: str, text: str = "") -> None:
    """Print a heading and what belongs to it."""
    print(f"\n== {title}")
    if text:
        print(text.rstrip())


@contextmanager
def daemon(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a watcherd of our own, and end it."""
    process = subprocess.Popen([BINARIES / "watcherd", "--config", config])
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def main() -> None:
    """Show the main job from request to result."""
    root = Path(tempfile.mkdtemp(prefix="watcherd-demo-"))
    try:
        show(root)
    finally:
        shutil.rmtree(root)


def show(root: Path) -> None:
    """Set up, run, ask, wait, print."""
    archive = root / "archive" / BUCKET / BUILD / "image.zip"
    say("an archive in a directory", f"making {archive} ...")
    make_archive(archive)
    members = {info.filename: info for info in zipfile.ZipFile(archive).infolist()}
    for name, info in members.items():
        print(f"{info.compress_size:>10} of {info.file_size:>10} bytes  {name}")

    config = root / "config.yaml"
    config.write_text(
        f"spool: {root}/spool\nstatic: {root}/static\nresults: {root}/results\n"
        f"archive: {{source: directory, directory: {root}/archive}}\nmin_free: 1M\n"
    )
    say("stager init")
    subprocess.run([BINARIES / "stager", "init", "--config", config], check=True)
    say("watcherd")
    with daemon(config):
        name = f"nightly-{os.uname().nodename}-{int(time.time())}-{os.getpid()}"
        request = f"build: gs://{BUCKET}/{BUILD}\nimages: [test, recovery]\n"
        say(f"a script drops requests/{name}.yaml (write a .tmp, then mv)", request)
        drop = f"cat > .{name}.tmp && mv .{name}.tmp {name}.yaml"
        subprocess.run(drop, shell=True, cwd=root / "spool/requests", check=True,  # noqa: S602
                       input=request.encode())  # fmt: skip
        subprocess.run([BINARIES / "stager", "wait", name, "--timeout", "60", "--config", config],
                       check=True, stdout=subprocess.DEVNULL)  # fmt: skip

    say(f"results/{name}.yaml", (root / f"results/{name}.yaml").read_text())
    target = root / "static/images" / BUILD
    say(f"the flag file images/{BUILD}/staged", (target / "staged").read_text())
    say("the static tree (what an HTTP server would serve; no id_rsa)")
    for path in sorted((root / "static/images").rglob("*")):
        if path.is_file():
            there = path.stat()
            used = there.st_blocks * 512
            print(f"{there.st_size:>10} bytes, {used:>10} on disk  {path.relative_to(root)}")
    fetched = next(
        int(line.split(":")[1])
        for line in (root / f"results/{name}.yaml").read_text().splitlines()
        if line.startswith("bytes_fetched:")
    )
    wanted = sum(members[IMAGES[i]].compress_size for i in (0, 2))
    say(
        "bytes",
        f"{fetched} read of the archive's {archive.stat().st_size}; "
        f"the two images take {wanted} of it",
    )


if __name__ == "__main__":
    main()
