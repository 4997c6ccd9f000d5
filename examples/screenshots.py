"""Make the pictures for the README and the docs from a run: screenshots.py RUN [DATA].

This needs Chromium and the packages that `make setup` installs. The report and the explore page are
captured in the browser; the commands draw the other pictures.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).parents[1] / "docs" / "images"
MVMAE = (sys.executable, "-m", "mvmae")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
DESKTOP, PHONE = {"width": 1440, "height": 1000}, {"width": 390, "height": 844}


def main(run: str, data: str) -> None:
    """Write every picture."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    draw(IMAGES / "attention.png", "attention", run, data, "--count", "4")
    draw(IMAGES / "reconstructions.png", "reconstruct", run, data, "--count", "4")
    draw(IMAGES / "curves.png", "curves", run)
    report = Path(run).resolve() / "report.html"
    mvmae("report", run, "--data", data, "--count", "4")
    with chromium() as browser, serve_explore(run, data) as address:
        capture(browser, report.as_uri(), "report.png", DESKTOP)
        capture(browser, report.as_uri(), "report-phone.png", PHONE)
        capture(
            browser, address, "explore.png", DESKTOP | {"height": 1300}, prepare=wait_for_panels
        )
        capture(browser, address, "explore-dark.png", PHONE, dark=True, prepare=wait_for_panels)


def draw(picture: Path, *arguments: str) -> None:
    """Draw a picture with a command, and remove an older one first, which it would not replace."""
    picture.unlink(missing_ok=True)
    mvmae(*arguments, "--out", str(picture))


def mvmae(*arguments: str) -> None:
    """Run a command and wait for its end."""
    subprocess.run([*MVMAE, *arguments], check=True)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the system's browser."""
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if program is None:
        sys.exit("no Chromium here")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def serve_explore(run: str, data: str) -> Iterator[str]:
    """Run `mvmae explore` and yield the address of its page."""
    command = [*MVMAE, "explore", run, data, "--port", "0", "--most", "400"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        addresses = (re.search(r"http://\S+", line) for line in server.stdout)
        try:
            yield next(found[0] for found in addresses if found)
        finally:
            server.terminate()


def wait_for_panels(page: Page) -> None:
    """Wait until every panel of the page is complete."""
    is_complete = (
        "[...document.images].every(image => image.complete) && "
        "!document.querySelector('[aria-busy=true]')"
    )
    for _ in range(120):  # the page's policy forbids `wait_for_function`
        page.wait_for_timeout(1_000)
        if page.evaluate(is_complete):
            break
    page.wait_for_timeout(3_000)


def capture(
    browser: Browser,
    address: str,
    file: str,
    size: dict[str, int],
    *,
    dark: bool = False,
    prepare: Callable[[Page], None] | None = None,
) -> None:
    """Save a picture of the part of a page that is visible without scrolling."""
    context = browser.new_context(viewport=size, color_scheme="dark" if dark else "light")
    page = context.new_page()
    page.goto(address)
    if prepare:
        prepare(page)
    page.screenshot(path=IMAGES / file)
    context.close()
    print(f"written: {IMAGES / file}")


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else "photos")
