"""A real browser, and pages for it: without Chromium or Playwright the tests here are skipped."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """Chromium as the system has it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs: pip install playwright")
    program = next((path for name in NAMES if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as driver:
        # As root, as in a container, Chromium refuses to run in its sandbox.
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The rules of axe-core, as a script."""
    package = pytest.importorskip(
        "axe_playwright_python", reason="needs: pip install axe-playwright-python"
    )
    return (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
