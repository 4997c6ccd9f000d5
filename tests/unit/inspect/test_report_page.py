"""The page of a report: everything in it is text, and it may fetch and run nothing else."""

import base64
import hashlib
import re
from html import unescape
from pathlib import Path

import pytest
from markupsafe import Markup

from mvmae.inspect.report import html as page
from mvmae.inspect.report.html import (
    Cell,
    Chart,
    Charts,
    Code,
    Facts,
    Fold,
    Gallery,
    Page,
    Picture,
    Section,
    Strip,
    Table,
    Text,
    Tile,
    Verdict,
)

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}"


def make_page(*blocks, text: str = "plain") -> Page:
    verdict = Verdict("good", text, text, [Tile(text, text, text)], [text])
    return Page(text, text, verdict, [Section("a", text, text, blocks)])


def render_blocks(*blocks, text: str = "plain") -> str:
    return page.render(make_page(*blocks, text=text)).decode()


def every_block(text: str) -> list:
    table = Table(text, [text], [[Cell(text, 1.0, 50.0, text, strong=True)]], sortable=True)
    chart = Chart(text, text, [], [(0, text), (1, text)])
    pictures = [Picture(Markup("data:,"), text, text, True)]
    parts = [
        Text([text], "note"),
        Facts([(text, text, text)]),
        Code(text, text),
        table,
        Charts([chart], ["steps", "images"]),
        Gallery([Strip(text, pictures)]),
    ]
    return [*parts, Fold(text, parts)]


def test_everything_in_a_page_is_text():
    html = render_blocks(*every_block(EVIL), text=EVIL)
    assert "alert(1)</script>" not in html
    assert "<img src=x" not in html
    assert html.count("<script>") == 1  # our own
    assert re.findall(r"\son\w+=(?![^<]*&)", html.split("</style>")[1].split("<script>")[0]) == []
    plain = unescape(html)
    assert plain.count(EVIL) > 30
    # No template in the text is evaluated. The footer has the time, which may contain 49.
    assert "49" not in html.split("</style>")[1].split("<footer")[0]


def test_page_may_load_nothing_and_run_its_own_script_only():
    html = render_blocks()
    policy = unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1])
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
        "base-uri 'none'",
        "form-action 'none'",
        f"script-src 'sha256-{digest}'",
    ]
    assert html.index("Content-Security-Policy") < html.index("<style>")
    assert not re.search(r"https?://|@import|url\(|<link|src=\"(?!data:)", html)


@pytest.mark.parametrize(
    ("letters", "written"),
    [
        ("a\udcffb", "a\\udcffb"),  # of a file name that is not UTF-8
        ("a\x00\x1bb", "a\\x00\\x1bb"),
        ("a\nb\tc", "a\\nb\\tc"),  # of a file name: it stays on one line
        ("gpj.\u202efdp", "gpj.\\u202efdp"),  # turns what follows around
        ("a\u200fb\u2066c", "a\\u200fb\\u2066c"),
        ("a\ud83d", "a\\ud83d"),
    ],
)
def test_characters_that_deceive_or_cannot_be_written_become_code_points(letters, written):
    html = render_blocks(Text([letters]), text=letters)
    assert written in html
    assert letters not in html


def test_code_keeps_its_lines():
    html = render_blocks(Code("one\n  two", "Code"))
    assert ">one\n  two\n</code>" in html


def test_a_section_without_blocks_is_left_out():
    assert 'href="#a"' in render_blocks(Text(["something"]))
    assert 'href="#a"' not in render_blocks()


def test_letters_of_every_language_are_kept():
    said = "Köln 東京 עברית 🦆 naïve"
    assert said in render_blocks(Text([said]))


def test_numbers_of_a_table_are_kept_for_sorting():
    row = [Cell("a", strong=True), Cell("57.1 %", 57.121, 57.121, "untrained 34.2 %")]
    html = render_blocks(Table("t", ["run", "kNN"], [row]))
    assert 'data-value="57.121"' in html
    assert "width:57.1%" in html
    assert '<tr class="strong">' in html
    assert "<small>untrained 34.2 %</small>" in html


def test_style_and_script_are_packed_with_the_code():
    """Hatchling packs every file below src/mvmae that .gitignore does not name."""
    folder = Path(page.__file__).parent
    rules = (Path(__file__).parents[3] / ".gitignore").read_text().split()
    for name in ("page.html", "style.css", "script.js"):
        assert page.asset(name) == (folder / name).read_text(encoding="utf-8")
        assert not any(Path(name).match(rule.strip("/")) for rule in rules)


def test_text_has_enough_contrast_in_light_and_dark():
    style = page.asset("style.css")
    colours = re.findall(r"(--[\w-]+): light-dark\((#\w+), (#\w+)\)", style)
    pairs = {name: (light, dark) for name, light, dark in colours}
    for side in (0, 1):
        for paper in ("--paper", "--card"):
            for name in ("--ink", "--soft", "--accent", "--good", "--weak", "--bad"):
                assert contrast(pairs[name][side], pairs[paper][side]) >= 4.5, (name, side)
            for number in range(6):  # WCAG 1.4.11: what is drawn
                assert contrast(pairs[f"--line-{number}"][side], pairs[paper][side]) >= 3


def contrast(one: str, other: str) -> float:
    """Of WCAG 2.2."""
    lights = sorted(luminance(colour) for colour in (one, other))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
