"""`make screenshots`: pictures for the documents, of a real daemon at work, into docs/images/.

The page in Chromium at two widths, served by nginx from the sample configuration; a terminal run of
the commands, as rich draws it.
"""

import os
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import WIDTHS, chromium, opened  # noqa: E402
from lab import until  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.text import Text  # noqa: E402
from scene import build, busy  # noqa: E402
from terminal import COLUMNS, drawn  # noqa: E402
from webserver import nginx  # noqa: E402

IMAGES = ROOT / "docs/images"


def last_frame(screen: str) -> str:
    """Return what stands on the screen while a progress bar is drawn over and over."""
    *_, frame = (part for part in screen.split("\x1b[2K") if part.strip("\r\n"))
    head = screen.partition("\n")[0]
    return f"{head}\n{frame}"


def draw(runs: list[tuple[str, str]], path: Path) -> None:
    """Draw commands and what they printed as a terminal."""
    console = Console(record=True, width=COLUMNS, file=Path(os.devnull).open("w"))  # noqa: SIM115
    for command, printed in runs:
        console.print(Text.assemble(("$ ", "green"), (command, "bold")))
        console.print(Text.from_ansi(printed.rstrip()), "")
    svg = console.export_svg(title="stager")
    # No font from elsewhere: what the reader has is good enough.
    path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))


def main() -> None:
    """Make all pictures."""
    IMAGES.mkdir(exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="watcherd-pictures-"))
    root.chmod(0o755)
    with busy(root) as lab, nginx(lab) as url, chromium() as browser:
        page = root / "results/status.html"
        until(lambda: page.exists() and "nightly-lab8-8.yaml" in page.read_text(), "the page")
        for name, scheme, height in (("desk", "light", 1000), ("phone", "dark", 1200)):
            with opened(browser, f"{url}/results/status.html", WIDTHS[name], scheme) as (shown, _):
                shown.set_viewport_size({"width": WIDTHS[name], "height": height})
                shown.screenshot(path=IMAGES / f"status-{name}.png")
        words = f"submit {build(6)} test base --name nightly-4711 --wait"
        runs = [(f"stager {words}", last_frame(drawn(lab, *words.split(), seconds=12)))]
        runs.append(("stager status", drawn(lab, "status")))
        draw(runs, IMAGES / "terminal.svg")
    for path in sorted(IMAGES.iterdir()):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
