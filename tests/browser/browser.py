"""A real headless Chromium, Debian's, with a profile of its own that is empty and goes with it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTHS = {"phone": 360, "desk": 1440}


@contextmanager
def chromium() -> Iterator[Browser]:
    """Have a browser for the length of a block."""
    program = shutil.which("chromium")
    assert program, "apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, headless=True, args=list(FLAGS)
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Browser, url: str, width: int, scheme: str = "light", *, scripts: bool = True
) -> Iterator[tuple[Page, list[str]]]:
    """Open a page; yield it with what it complained of so far."""
    context = browser.new_context(
        viewport={"width": width, "height": 800 if width > 500 else 740},
        color_scheme="dark" if scheme == "dark" else "light",
        java_script_enabled=scripts,
    )
    complaints: list[str] = []

    def told(message: ConsoleMessage) -> None:
        complaints.append(f"{message.type}: {message.text}")

    page = context.new_page()
    page.on("console", told)
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    page.on("response", lambda r: complaints.append(f"{r.status}: {r.url}") if not r.ok else None)
    try:
        page.goto(url, wait_until="networkidle")
        yield page, complaints
    finally:
        context.close()
