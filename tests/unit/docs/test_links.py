"""Links of the documentation lead to pages, headings and pictures that exist."""

import re
from functools import cache

import markdown
import pytest

from tests.unit.docs.pages import PAGES, ROOT, page_name, prose

LINK = re.compile(r"\]\(([^)\s]+)\)")


@cache
def headings(page):
    """Return the anchors of a page's headings, as the site makes them."""
    html = markdown.markdown(page.read_text(), extensions=["toc", "fenced_code", "tables"])
    return set(re.findall(r'<h\d id="([^"]+)"', html))


def links(page):
    """Return a page's links inside the repository, as path and anchor."""
    found = [link for link in LINK.findall(prose(page)) if not link.startswith("http")]
    return [link.partition("#")[::2] for link in found]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page):
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {path}"
        if anchor:
            assert anchor in headings(target), f"{page.name} links to {path}#{anchor}"


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    missing = [p.name for p in (ROOT / "docs").glob("*.md") if f" {p.name}\n" not in navigation]
    assert not missing


def test_there_are_links_to_follow():
    assert sum(len(links(page)) for page in PAGES) > 150
