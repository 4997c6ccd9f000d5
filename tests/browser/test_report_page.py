"""A report as a person uses it: in a browser, by mouse, keyboard, phone and printer."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mvmae.cli.main import main

pytestmark = pytest.mark.browser

A_SECOND = (
    "--recipe demo --model.image-size 16 --model.decoder-dim 32 --batch-size 8 --epochs 4 "
    "--warmup-epochs 0 --log-every 1 --device cpu --workers 0"
)
WIDTHS = (390, 1440)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A report of one run, and one of two with scores, whose names would be markup."""
    home = tmp_path_factory.mktemp("home")
    for label, colour in (("blue", (20, 40, 200)), ('"><b onclick=x>', (200, 40, 20))):
        (home / "images" / label).mkdir(parents=True)
        for index in range(8):
            shade = tuple(value + 3 * index for value in colour)
            Image.new("RGB", (20, 16), shade).save(home / "images" / label / f"{index}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(f"pretrain images --out one {A_SECOND}".split()) == 0
        shutil.copytree("one", "two<img src=x>")
        write_results(Path("one"), 50.0)
        write_results(Path("two<img src=x>"), 90.0)
        Path("one/skipped.csv").write_text("path,reason\n<script>alert(1)</script>.png,bad\n")
        assert main(["report", "one", "--count", "2"]) == 0
        several = ["one", "two<img src=x>", "--count", "1", "--out", "several.html"]
        assert main(["report", *several]) == 0
    return {"one": home / "one" / "report.html", "several": home / "several.html"}


def write_results(run: Path, top1: float) -> None:
    """A result of knn and one of labels, as these commands leave them."""
    (run / "results").mkdir()
    config = {"encoder": "one", "data": "images", "k": [20]}
    data = {"name": "images", "num_train": 100, "num_test": 1000, "classes": ["blue", "red"]}
    rows = [
        {"name": name, "token": "mean", "top1": value, "top5": 99.0, "notes": {"k": 20}}
        for name, value in (("one", top1), ("the same, untrained", 40.0), ("raw pixels", 45.0))
    ]
    common = {"config": config, "data": data, "command_line": "mvmae knn one images"}
    knn = {"command": "knn", "headline": {"token": "mean", "top1": top1, "k": 20}, "rows": rows}
    knn["per_class"] = {"blue": 90.0, "<b>red</b>": 10.0}
    cells = [
        {"name": name, "amount": count, "draw": draw, "count": count, "top1": 30.0 + count + draw}
        for name in ("one", "raw pixels")
        for count in (1, 10)
        for draw in (0, 1)
    ]
    labels = {"command": "labels", "verdict": "pre-training was worth it", "cells": cells}
    for content in (knn, labels):
        file = run / "results" / f"{content['command']}-images.json"
        file.write_text(json.dumps(common | content))


@pytest.fixture(params=["one", "several"])
def file(request, pages) -> Path:
    return pages[request.param]


class Opened:
    """A page in the browser, with its console messages and requests."""

    def __init__(self, browser, file: Path, **options) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(**options)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())


@pytest.fixture
def open_report(browser) -> Iterator:
    """Open pages and close them afterwards."""
    known = []

    def open_page(file: Path, **options) -> Opened:
        known.append(Opened(browser, file, **options))
        return known[-1]

    yield open_page
    for one in known:
        one.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_loads_nothing_at_every_width_and_theme(open_report, file, width, scheme):
    view = open_report(file, viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = view.page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    loaded = "[...document.images].map(i => i.decode().then(() => i.naturalWidth))"
    widths = page.evaluate(f"Promise.all({loaded})")
    assert len(widths) >= 6
    assert min(widths) > 0
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 300) == (scheme == "dark")
    assert view.complaints == []
    assert [url for url in view.requests if not url.startswith("data:")] == [file.as_uri()]


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1440, "dark")])
def test_axe_finds_nothing_serious(open_report, file, axe, width, scheme):
    page = open_report(file, viewport={"width": width, "height": 800}, color_scheme=scheme).page
    page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    page.evaluate(axe)
    found = page.evaluate("axe.run().then(r => r.violations)")
    grave = [
        (one["id"], node["html"][:120], node["failureSummary"][:200])
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
    assert grave == []


def test_the_theme_button_works_by_keyboard(open_report, pages):
    page = open_report(pages["one"], color_scheme="light").page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the verdict"
    page.keyboard.press("Tab")
    button = page.locator("#theme")
    assert page.evaluate("document.activeElement.id") == "theme"
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == before


def test_headings_sort_by_keyboard_and_announce_it(open_report, pages):
    page = open_report(pages["several"]).page
    table = page.locator("#ranking table")
    heading = table.locator("thead th").nth(2)

    def names() -> list[str]:
        return table.locator("tbody th").all_text_contents()

    assert names() == ["two<img src=x>", "one"]  # best first
    heading.locator("button").focus()
    for order, first in (("descending", "two<img src=x>"), ("ascending", "one")):
        page.keyboard.press("Enter")
        assert heading.get_attribute("aria-sort") == order
        assert names()[0] == first
    table.locator("thead button").first.focus()
    page.keyboard.press("Space")
    assert names() == ["one", "two<img src=x>"]
    assert heading.get_attribute("aria-sort") is None


def test_folded_parts_open_by_keyboard(open_report, pages):
    page = open_report(pages["one"]).page
    fold = page.locator("details", has_text="config.json: every setting")
    fold.locator("summary").focus()
    page.keyboard.press("Enter")
    assert fold.get_attribute("open") is not None
    assert '"mask_ratio"' in fold.inner_text()


def test_curves_change_their_axis_and_show_their_values(open_report, pages):
    page = open_report(pages["one"]).page
    records = [
        json.loads(line)
        for line in (pages["one"].parent / "metrics.jsonl").read_text().splitlines()
    ]
    figure = page.locator("figure.chart", has_text="Telling images apart")
    assert figure.locator("svg.plot:visible").get_attribute("data-axis") == "steps"
    page.locator("input[value=images]").focus()
    page.keyboard.press("Space")
    assert figure.locator("svg.plot:visible").get_attribute("data-axis") == "images"
    slider = figure.locator("input[type=range]")
    slider.focus()
    page.keyboard.press("Home")
    said = figure.locator(".readout").inner_text()
    place, value = said.split(" images seen: loss ")
    assert int(place) == records[0]["images"]
    assert float(value) == pytest.approx(records[0]["contrastive"], rel=0.01)
    page.keyboard.press("End")
    assert figure.locator(".readout").inner_text().startswith(f"{records[-1]['images']} images")


def test_pointing_at_a_curve_shows_its_values(open_report, pages):
    page = open_report(pages["one"]).page
    figure = page.locator("figure.chart", has_text="Learning rate")
    figure.scroll_into_view_if_needed()
    assert figure.locator(".readout").inner_text().startswith("At the end: learning rate")
    box = figure.locator("svg.plot:visible").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert " steps: learning rate " in figure.locator(".readout").inner_text()
    assert figure.locator("svg.plot:visible .cursor").get_attribute("visibility") == "visible"


def test_print_is_light_and_unfolded_and_without_controls(open_report, file):
    page = open_report(file, color_scheme="dark").page
    page.emulate_media(media="print")
    for control in (".tools", "nav", ".choice", ".reader input"):
        assert not page.locator(control).first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    ink = page.evaluate("getComputedStyle(document.querySelector('h1')).color")
    assert sum(map(int, ink[4:-1].split(","))) < 200
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0


def test_page_prints_to_paper(open_report, file):
    paper = open_report(file).page.pdf(format="A4")
    assert paper.startswith(b"%PDF")
    assert 1 < paper.count(b"/Type /Page\n") + paper.count(b"/Type /Page ") < 40


def test_without_scripts_everything_is_there(open_report, pages):
    page = open_report(pages["one"], java_script_enabled=False).page
    assert not page.locator(".tools").is_visible()
    assert page.locator("svg.plot").first.is_visible()
    assert page.locator("table").first.is_visible()
    assert page.locator("#skipped").inner_text().count("<script>alert(1)</script>.png") <= 1


def test_names_that_look_like_markup_are_shown_as_they_are(open_report, pages):
    view = open_report(pages["several"])
    assert view.page.locator("#ranking tbody th").first.inner_text() == "two<img src=x>"
    assert view.page.locator("main b").count() == 0
    sources = view.page.evaluate("[...document.images].map(image => image.getAttribute('src'))")
    assert all(source.startswith("data:image/") for source in sources)


def test_a_script_slipped_into_the_file_does_not_run(open_report, pages, tmp_path):
    """The policy is the second line of defence, behind the escaping."""
    html = pages["one"].read_text()
    file = tmp_path / "changed.html"
    file.write_text(html.replace("</main>", "<script>document.title = 'run'</script></main>"))
    view = open_report(file)
    assert view.page.title() != "run"
    assert any("Content Security Policy" in said for said in view.complaints)
