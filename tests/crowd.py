"""What people and malice put into a drop box and into control/, besides good requests.

Every entry is made by a function of a path and of the `Yard` outside the spool that it may point
at. SECRET stands in all contents (but never where the contract has a text quoted).
"""

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lab import BUCKET, BUILD
from yard import GOOD, HEAD, SECRET, STRANGER, Yard

ALIASES = "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}], k{new}: 1}}\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


Make = Callable[[Path, Yard], None]


@dataclass(frozen=True)
class Bad:
    """One bad entry: how to make it, and the codes its answer may have (none: it stays)."""

    make: Make
    codes: frozenset[str] = frozenset({"invalid_request"})


def content(data: bytes | str, path: Path, yard: Yard) -> None:
    """Write a file as `cat >` does; {yard} in it becomes the yard's directory."""
    raw = data if isinstance(data, bytes) else data.encode()
    path.write_bytes(raw.replace(b"{yard}", bytes(yard.root)))


def asking(build: str) -> str:
    """Return a request for a build as it was typed."""
    return f"build: {build}\nimages: [test]\nnote: {SECRET}\n"


def link_to(target: str, path: Path, yard: Yard) -> None:
    """Make a symbolic link; {yard} in its target is the yard's directory."""
    path.symlink_to(target.format(yard=yard.root))


def hard_link(name: str, path: Path, yard: Yard) -> None:
    """Make a second name of a file in the yard."""
    os.link(yard.root / name, path)


def fifo(path: Path, _: Yard) -> None:
    """Make a named pipe that everybody may open."""
    os.mkfifo(path)
    path.chmod(0o666)


def unix_socket(path: Path, _: Yard) -> None:
    """Make a listening socket's name."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


def folder(owner: int | None, filled: bool, path: Path, yard: Yard) -> None:
    """Make a directory of the daemon's uid or of another one, empty or not."""
    path.mkdir()
    if filled:
        (path / "inner.yaml").write_bytes(GOOD)
    os.chown(path, yard.owner if owner is None else owner, -1)


def unreadable(path: Path, _: Yard) -> None:
    """Write a file that only its owner may read."""
    path.touch(0o600)
    # Given away last: root may not write to others' files in a sticky directory everywhere.
    path.write_bytes(f"- {SECRET}\n".encode())
    os.chown(path, STRANGER, -1)


CONTENTS: dict[str, bytes | str] = {
    "10-megabytes": f"{HEAD}note: {SECRET * 1_000_000}\n",
    "10-megabytes-of-comments": HEAD + f"# {SECRET}\n" * 700_000,
    "one-byte-too-many": HEAD + "#" * (65537 - len(HEAD)),
    "alias-bomb": f"a: &a [{SECRET}]\n{ALIASES}{HEAD}",
    "merge-bomb": f"a: &a {{k: {SECRET}}}\n{MERGES}{HEAD}",
    "flow-nesting": "[" * 60_000,
    "map-nesting": "{a: " * 15_000,
    "block-nesting": "".join(" " * i + "a:\n" for i in range(300)),
    "json-nesting": '{"build":' * 7_000,
    "list-nesting": "- " * 30_000,
    "many-keys": HEAD + "".join(f"k{i}: {SECRET}\n" for i in range(3_000)),
    "many-problems": HEAD + "".join(f"priority: {SECRET}\n" for _ in range(900)),
    "nul": f"{HEAD}note: {SECRET}\0\n",
    "nul-escaped": 'build: "gs://chromeos-image-archive/a\\0b/c"\nimages: [test]\n',
    "latin-1": f"{HEAD}note: {SECRET} \xe4\n".encode("latin-1"),
    "utf-16": asking(BUILD).encode("utf-16"),
    "utf-32": asking(BUILD).encode("utf-32"),
    "overlong": HEAD.encode() + b"note: \xc0\xaf\n",
    "lone-surrogate": HEAD.encode() + b"note: \xed\xa0\x80\n",
    "binary": bytes(range(256)) * 100,
    "gzip": b"\x1f\x8b\x08\0" + os.urandom(500),
    "empty": "",
    "only-newlines": "\n" * 500,
    "only-comment": f"# {SECRET}\n",
    "scalar": f"{SECRET}\n",
    "list": f"- {SECRET}\n",
    "passwd-like": f"root:{SECRET}:19000:0:99999:7:::\n" * 20,
    "python-tag": f"note: !!python/object/apply:os.system ['touch {{yard}}/x']\n{HEAD}# {SECRET}\n",
    "tag": f"build: !{SECRET} {BUILD}\nimages: [test]\n",
    "verbatim-tag": f"build: !<{SECRET}> {BUILD}\nimages: [test]\n",
    "anchor": f"build: &{SECRET} {BUILD}\nimages: [test]\n",
    "alias": f"build: *{SECRET}\nimages: [test]\n",
    "directive": f"%{SECRET} 1\n---\n{HEAD}",
    "documents": f"{HEAD}---\n{HEAD}note: {SECRET}\n",
    "repeated-key": f"{HEAD}note: a\nnote: {SECRET}\n",
    "complex-key": f"? [{SECRET}]\n: 1\n{HEAD}",
    "unknown-escape": f'{HEAD}note: "\\q{SECRET}"\n',
    "open-quote": f'{HEAD}note: "{SECRET}\n',
    "tabs": f"build:\n\t{SECRET}\n",
    "bad-indent": f"build: a\n   {SECRET}: b\n  c: d\n",
    "escape-sequences": f'{HEAD}note: "\\e[2J{SECRET}"\n\x1b[2J\n',
    "priority": f"{HEAD}priority: {SECRET}\n",
    "expires": f"{HEAD}expires: {SECRET}\n",
    "wait": f"{HEAD}wait: -{SECRET}\n",
    "wait-for-ages": f"{HEAD}wait: {'9' * 400}d\n",
    "force": f"{HEAD}force: {SECRET}\n",
    "note-too-long": f"{HEAD}note: {SECRET * 20}\n",
    "note-is-a-list": f"{HEAD}note: [{SECRET}]\n",
    "images-is-a-map": f"build: {BUILD}\nimages: {{test: {SECRET}}}\n",
    "images-in-images": f"build: {BUILD}\nimages: [[{SECRET}]]\n",
    "no-images": f"build: {BUILD}\nnote: {SECRET}\n",
    "no-build": f"images: [test]\nnote: {SECRET}\n",
    "build-is-a-list": f"build: [{SECRET}]\nimages: [test]\n",
    "json-cut-off": json.dumps({"build": BUILD, "images": ["test"], "note": SECRET})[:-20],
}
BUILDS = {
    "up": f"gs://{BUCKET}/x86-alex-release/../../../../etc",
    "up-first": f"gs://{BUCKET}/../x86-alex-release/R23",
    "up-last": f"gs://{BUCKET}/x86-alex-release/..",
    "dot": f"gs://{BUCKET}/./x86-alex-release",
    "hidden": f"gs://{BUCKET}/.stager/locks",
    "absolute": "/etc/shadow",
    "absolute-in-bucket": f"gs://{BUCKET}//etc/shadow",
    "empty-part": f"gs://{BUCKET}/x86-alex-release//R23",
    "two-slashes-last": f"gs://{BUCKET}/x86-alex-release/R23//",
    "no-bucket": "gs:///x86-alex-release/R23",
    "only-bucket": f"gs://{BUCKET}",
    "one-part": f"gs://{BUCKET}/R23",
    "long-part": f"gs://{BUCKET}/x86-alex-release/{'R' * 129}",
    "percent": f"gs://{BUCKET}/x86-alex-release/%2e%2e",
    "backslash": f"gs://{BUCKET}/x86-alex-release/..\\..",
    "space": f"'gs://{BUCKET}/x86-alex-release/R 23'",
    "newline": f'"gs://{BUCKET}/x86-alex-release/R23\\n"',
    "umlaut": f"gs://{BUCKET}/x86-alex-release/Rü",
    "digits-of-others": f"gs://{BUCKET}/x86-alex-release/R٢٣",
    "flag-name": f"gs://{BUCKET}/x86-alex-release/staged",
    "flag-name-first": f"gs://{BUCKET}/staged/R23",
    "image-name": f"gs://{BUCKET}/x86-alex-release/chromiumos_test_image.bin",
    "http": f"http://{BUCKET}/x86-alex-release/R23",
    "file": "file:///etc/shadow",
    "capitals": f"GS://{BUCKET}/x86-alex-release/R23",
    "user": f"gs://me@{BUCKET}/x86-alex-release/R23",
    "query": f"gs://{BUCKET}/x86-alex-release/R23?generation=1",
    "fragment": f"gs://{BUCKET}/x86-alex-release/R23#1",
}
FOREIGN_BUCKETS = {
    "other-bucket": "gs://other-bucket/x86-alex-release/R23-2811.0.0",
    "bucket-prefix": f"gs://{BUCKET[:-1]}/x86-alex-release/R23-2811.0.0",
    "bucket-suffix": f"gs://{BUCKET}s/x86-alex-release/R23-2811.0.0",
}
LINKS = {
    "link-to-good": "{yard}/target.yaml",
    "link-to-private": "{yard}/secret-target.yaml",
    "link-to-shadow": "/etc/shadow",
    "link-to-nothing": "{yard}/nothing-there",
    "link-to-folder": "{yard}/folder",
    "link-to-device": "/dev/zero",
    "link-to-tty": "/dev/tty",
    "link-to-good-neighbour": "good-0.yaml",
    "link-up": "../../yard/target.yaml",
}


def entries(owner: int) -> dict[str, Bad]:
    """Return all kinds of bad entries with safe names, for a daemon of this uid."""
    either = frozenset({"invalid_request", "unreadable_request"})
    stays = frozenset[str]() if owner else Bad.codes
    kinds = {label: Bad(partial(content, data)) for label, data in CONTENTS.items()}
    kinds |= {f"build-{k}": Bad(partial(content, asking(v))) for k, v in BUILDS.items()}
    kinds |= {
        label: Bad(partial(content, asking(build)), frozenset({"bucket_not_allowed"}))
        for label, build in FOREIGN_BUCKETS.items()
    }
    kinds |= {label: Bad(partial(link_to, target)) for label, target in LINKS.items()}
    kinds |= {
        "fifo": Bad(fifo),
        "socket": Bad(unix_socket),
        "own-folder": Bad(partial(folder, None, False)),
        "own-folder-filled": Bad(partial(folder, None, True)),
        "foreign-folder": Bad(partial(folder, STRANGER, False), stays),
        "foreign-folder-filled": Bad(partial(folder, STRANGER, True), stays),
        "unreadable": Bad(unreadable, either),
    }
    names = ("daemons.yaml", "group.yaml", "private.yaml")
    return kinds | {f"hard-link-{name}": Bad(partial(hard_link, name), either) for name in names}


UNSAFE_NAMES: dict[str, bytes] = {
    "255-bytes": b"x" * 250 + b".yaml",
    "151-bytes": b"x" * 151 + b".yaml",
    "umlauts-over-150-bytes": "ü".encode() * 76 + b".yml",
    "not-utf-8": b"caf\xe9.yaml",
    "only-bytes": b"\xff\xfe.json",
    "newline": b"two\nlines.yaml",
    "newline-last": b"newline\n.yaml",
    "return": b"over\rwritten.yaml",
    "tab": b"a\tb.yaml",
    "escape": b"\x1b[2J\x1b]0;title\x07.yaml",
    "bell": b"bell\x07.yml",
    "delete": b"delete\x7f.yaml",
    "c1": "csi\u009b2J.yaml".encode(),
    "right-to-left": "gpj\u202elmay.yaml".encode(),
    "line-separator": "line\u2028separator.yaml".encode(),
    "zero-width": "zero\u200bwidth.yaml".encode(),
    "fake-state": b"state: staged\n#.yaml",
}


@dataclass
class Crowd:
    """`count` bad entries of all kinds in a drop box; `bad` maps NAMEs to their kinds."""

    yard: Yard
    bad: dict[str, Bad] = field(default_factory=dict)
    unsafe: int = 0

    def fill(self, box: Path, count: int) -> None:
        """Put the entries there, every second one by a rename."""
        kinds = entries(self.yard.owner)
        rest = count - len(kinds) - len(UNSAFE_NAMES)
        more = [f"{label}-again" for label in list(kinds)[:rest]]
        assert len(more) == rest, f"{count - len(kinds)} kinds are missing"
        for number, name in enumerate([*kinds, *more]):
            self.bad[name] = kinds[name.removesuffix("-again")]
            path = box / f"{name}{('.yaml', '.yml', '.json')[number % 3]}"
            if number % 2:
                self.bad[name].make(path, self.yard)
            else:
                self.bad[name].make(box / f".{number}", self.yard)
                os.rename(box / f".{number}", path)
        for raw in UNSAFE_NAMES.values():
            Path(os.fsdecode(bytes(box) + b"/" + raw)).write_bytes(f"- {SECRET}\n".encode())
            self.unsafe += 1
