"""The status page as people meet it: in a real browser, from a real nginx, with a real daemon."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import WIDTHS, chromium, opened
from lab import Lab, until
from playwright.sync_api import Browser, Page
from scene import HOSTILE, busy
from webserver import nginx

ABSENT = "gs://chromeos-image-archive/x86-alex-release/R99"
pytestmark = pytest.mark.timeout(400)
EITHER = pytest.mark.parametrize("scheme", ["light", "dark"])
EVERY_WIDTH = pytest.mark.parametrize("width", [320, *WIDTHS.values()])


@pytest.fixture(scope="module")
def scene() -> Iterator[tuple[Lab, str]]:
    """Return a busy lab and the URL of its status page."""
    root = Path(tempfile.mkdtemp(prefix="watcherd-browser-"))
    root.chmod(0o755)
    try:
        with busy(root) as lab, nginx(lab) as url:
            lab.drop(HOSTILE, ABSENT)
            assert lab.stager("pin", ABSENT).returncode == 0
            page = root / "results/status.html"
            until(lambda: page.exists() and "onerror=" in page.read_text(), "the page")
            yield lab, f"{url}/results/status.html"
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def too_wide(page: Page) -> list[str]:
    """Return what reaches over the right edge of the window."""
    found: list[str] = page.evaluate("""() => [...document.querySelectorAll("body, body *")]
        .filter(e => e.getClientRects().length)
        .filter(e => getComputedStyle(e.closest("thead") ?? e).clipPath === "none")
        .filter(e => e.getBoundingClientRect().right > innerWidth + 0.5)
        .map(e => `${e.tagName}.${e.className}: ${e.textContent.trim().slice(0, 60)}`)""")
    return found


@EVERY_WIDTH
@EITHER
def test_the_page_fits_and_complains_of_nothing(
    scene: tuple[Lab, str], browser: Browser, width: int, scheme: str
) -> None:
    with opened(browser, scene[1], width, scheme) as (page, complaints):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert too_wide(page) == []
        assert complaints == []


@pytest.mark.parametrize("width", WIDTHS.values())
@EITHER
def test_axe_finds_nothing(
    scene: tuple[Lab, str], browser: Browser, said: list[object], width: int, scheme: str
) -> None:
    with opened(browser, scene[1], width, scheme) as (page, complaints):
        report = Axe().run(page)
        assert report.violations_count == 0, report.generate_report()
        passed = len(report.response["passes"])
        assert passed > 20, "else it looked at nothing"
        said.append(f"axe-core, {scheme}, {width} pixels wide: {passed} rules hold, 0 violations")
        assert complaints == []


@EITHER
def test_light_and_dark_are_as_the_reader_likes_it(
    scene: tuple[Lab, str], browser: Browser, scheme: str
) -> None:
    with opened(browser, scene[1], 1440, scheme) as (page, _):
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
        assert (brightness < 64) if scheme == "dark" else (brightness > 192)


def test_a_screen_reader_hears_tables_with_their_heads(
    scene: tuple[Lab, str], browser: Browser
) -> None:
    for width in WIDTHS.values():
        with opened(browser, scene[1], width) as (page, _):
            for name in ("Active", "Waiting", "Failed lately", "Done lately", "Machines"):
                table = page.get_by_role("table", name=re.compile(name))
                assert table.count() == 1, name
                assert table.get_by_role("columnheader").count() >= 4
                assert table.get_by_role("rowheader").count() >= 1
                rows = table.get_by_role("row")
                assert rows.count() == table.get_by_role("rowheader").count() + 1
            bars = page.get_by_role("progressbar")
            assert bars.count() == 2
            assert page.get_by_role("img", name=re.compile("Fetched .* most: .* at")).count() == 1


def test_it_says_everything_without_a_script(scene: tuple[Lab, str], browser: Browser) -> None:
    with opened(browser, scene[1], 360, scripts=False) as (page, complaints):
        text = page.locator("body").inner_text()
        for words in ("nightly-lab8-8.yaml", "archive_not_found", "invalid_request", "Waiting",
                      "bucket_not_allowed", "of them deferred", "alive"):  # fmt: skip
            assert words in text, words
        assert not page.get_by_role("button").is_visible()
        assert complaints == []


def test_it_comes_up_to_date_by_itself_until_it_is_paused(
    scene: tuple[Lab, str], browser: Browser
) -> None:
    lab, url = scene
    with opened(browser, url, 1440) as (page, complaints):
        page.evaluate("window.here = true")
        lab.drop("fresh", "gs://chromeos-image-archive/fresh-release/R1", ["tset"])
        page.get_by_text("fresh.yaml").first.wait_for(timeout=30_000)
        assert page.evaluate("window.here"), "in place, without loading it again"
        assert complaints == []
        button = page.get_by_role("button", name="Pause updates")
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        assert page.locator("#stale").is_hidden()


def test_it_says_when_nobody_writes_it_any_more(scene: tuple[Lab, str], browser: Browser) -> None:
    lab, url = scene
    old = (lab.root / "results/status.html").read_text()
    old = re.sub(r'(id="written" datetime=")[^"]*', r"\g<1>2020-01-01T00:00:00Z", old)
    (lab.root / "results/old.html").write_text(old)
    with opened(browser, url.replace("status.html", "old.html"), 360) as (page, _):
        assert "is watcherd running?" in page.get_by_role("status").inner_text()
        assert page.locator("#pill").inner_text() == "No news"
    (lab.root / "results/old.html").unlink()
