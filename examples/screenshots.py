"""Make the pictures of the README and the docs from a run: screenshots.py RUN [DATA].

Needs Chromium, and what `make setup` installs. The report and the page are opened as a person
would open them; the other pictures are what the commands draw.
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
    with chromium() as browser, explorer(run, data) as address:
        shoot(browser, report.as_uri(), "report.png", DESKTOP)
        shoot(browser, report.as_uri(), "report-phone.png", PHONE)
        shoot(browser, address, "explore.png", DESKTOP | {"height": 1300}, prepare=ask)
        shoot(browser, address, "explore-dark.png", PHONE, dark=True, prepare=ask)


def draw(picture: Path, *words: str) -> None:
    """Let a command draw a picture, in the place of an older one, which it would not overwrite."""
    picture.unlink(missing_ok=True)
    mvmae(*words, "--out", str(picture))


def mvmae(*words: str) -> None:
    """Run a command to its end."""
    subprocess.run([*MVMAE, *words], check=True)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's browser."""
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if program is None:
        sys.exit("no Chromium here")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def explorer(run: str, data: str) -> Iterator[str]:
    """The address of `mvmae explore`, while it runs."""
    command = [*MVMAE, "explore", run, data, "--port", "0", "--most", "400"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = (re.search(r"http://\S+", line) for line in server.stdout)
        try:
            yield next(found[0] for found in said if found)
        finally:
            server.terminate()


def ask(page: Page) -> None:
    """Wait until every panel of the page has its answer."""
    settled = (
        "[...document.images].every(image => image.complete) && "
        "!document.querySelector('[aria-busy=true]')"
    )
    for _ in range(120):  # the page's policy forbids what `wait_for_function` would evaluate in it
        page.wait_for_timeout(1_000)
        if page.evaluate(settled):
            break
    page.wait_for_timeout(3_000)


def shoot(
    browser: Browser,
    address: str,
    file: str,
    size: dict[str, int],
    *,
    dark: bool = False,
    prepare: Callable[[Page], None] | None = None,
) -> None:
    """A picture of a page, as far as it is seen without scrolling."""
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
