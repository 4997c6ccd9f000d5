"""The page of `mvmae explore` in a real browser, served by the real command."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvmae.cli.main import main

pytest.importorskip("uvicorn", reason="the server is not installed: pip install 'mvmae[explore]'")

pytestmark = pytest.mark.browser

A_SECOND = (
    "--recipe demo --model.image-size 32 --model.patch-size 8 --model.decoder-dim 32 "
    "--batch-size 8 --epochs 1 --warmup-epochs 0 --device cpu --workers 0"
)
PICTURES = ("#original", "#masked", "#prediction", "#pasted", "#similar", "#painted")
SOON = 60_000  # ms, for a busy machine


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A run and its images."""
    home = tmp_path_factory.mktemp("home")
    for number, label in enumerate(("blue", "red")):
        (home / "images" / label).mkdir(parents=True)
        rng = np.random.default_rng(number)
        for index in range(9):
            pixels = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1)))
            pixels[..., 2 * (1 - number)] = 230
            Image.fromarray(pixels.astype(np.uint8)).save(home / "images" / label / f"{index}.png")
    odd = "<b onclick=alert(1)>.png"
    (home / "images" / "red" / "0.png").rename(home / "images" / "red" / odd)
    Image.new("RGB", (90, 60), (20, 160, 60)).save(home / "green.png")
    (home / "notes.png").write_text("words")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(f"pretrain images --out run {A_SECOND}".split()) == 0
    return home


@pytest.fixture(scope="module")
def url(home):
    """Address of the page, served by the command."""
    command = [sys.executable, "-m", "mvmae", "explore", "run", "images", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said = ""
    while not (found := re.search(r"^open (http\S+)", said, re.MULTILINE)):
        line = process.stdout.readline()
        assert line, said
        said += line
    yield found[1]
    process.terminate()
    rest, _ = process.communicate(timeout=60)
    assert "Traceback" not in rest


@pytest.fixture
def open_page(browser, url):
    """Open the page and wait until it is complete; no error may be logged meanwhile."""
    contexts, errors = [], []

    def open_one(width=1440, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SOON)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console",
            lambda said: errors.append(said.text) if said.type in ("error", "warning") else None,
        )
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((url, "data:", f"blob:{url}"))
                else errors.append(request.url)
            ),
        )
        page.goto(url)
        page.wait_for_selector("#typical:not([hidden]) #most button")
        wait_until_idle(page)
        return page

    open_one.errors = errors
    yield open_one
    for context in contexts:
        context.close()
    assert not errors


def wait_until_idle(page) -> None:
    """Wait until no panel is busy. (The page's policy forbids Playwright's wait_for_function.)"""
    page.wait_for_timeout(150)  # longer than the page waits after the last move of a slider
    page.wait_for_selector("body:not(:has([aria-busy=true]))")


def wait_for_image(page, name: str) -> None:
    """Wait until the page shows everything about an image."""
    page.locator("#current-name").filter(has_text=re.compile(f"^{re.escape(name)}$")).wait_for()
    wait_until_idle(page)


def source(page, selector: str) -> str:
    return page.locator(selector).get_attribute("src")


def violations(page, axe: str) -> list[str]:
    """Accessibility problems that axe-core calls serious or critical."""
    page.evaluate(axe)
    return [
        f"{one['id']}: {one['nodes'][0]['html']}"
        for one in page.evaluate("axe.run()")["violations"]
        if one["impact"] in ("serious", "critical")
    ]


def test_every_image_loads_and_is_described(open_page):
    page = open_page()
    page.evaluate("Promise.all([...document.images].map((one) => one.decode()))")
    sizes = page.eval_on_selector_all("img", "all => all.map((one) => one.naturalWidth)")
    assert len(sizes) == 1 + 6 + 1 + 18 + 16 + 16  # current, panels, attention, lists
    assert min(sizes) > 0
    for selector in (*PICTURES, "#current-picture", "#attention-maps img"):
        assert "png" in page.locator(selector).get_attribute("alt"), selector
    assert page.locator("#nearest li").count() == 16
    assert page.locator("#status").inner_text() != ""


def test_the_slider_changes_the_mask_and_the_prediction(open_page):
    page = open_page()
    before = [source(page, one) for one in ("#masked", "#prediction", "#original")]
    assert "81 %, 13 of 16" in page.locator("#ratio-text").inner_text()
    page.locator("#ratio").fill("0.25")
    wait_until_idle(page)
    after = [source(page, one) for one in ("#masked", "#prediction", "#original")]
    assert "25 %, 4 of 16" in page.locator("#ratio-text").inner_text()
    assert after[0] != before[0]
    assert after[1] != before[1]
    assert after[2] == before[2]
    page.get_by_role("button", name="Another mask").click()
    wait_until_idle(page)
    assert page.locator("#seed").input_value() == "1"
    assert source(page, "#masked") != after[0]


def test_patches_are_hidden_and_shown_by_hand(open_page):
    page = open_page()
    page.locator("#ratio").fill("0.5")
    wait_until_idle(page)
    before = source(page, "#masked")
    area = page.locator("#mask").bounding_box()
    page.locator("#mask").click(position={"x": area["width"] / 8, "y": area["height"] / 8})
    wait_until_idle(page)
    text = page.locator("#ratio-text").inner_text()
    assert "7 of 16" in text or "9 of 16" in text
    assert source(page, "#masked") != before
    page.locator("#mask").press("Enter")  # the cursor is where it was clicked
    wait_until_idle(page)
    assert "8 of 16" in page.locator("#ratio-text").inner_text()
    assert source(page, "#masked") == before


def test_clicking_a_patch_changes_the_similarity_map(open_page):
    page = open_page()
    before = source(page, "#similar")
    area = page.locator("#patches").bounding_box()
    page.locator("#patches").click(position={"x": area["width"] * 7 / 8, "y": area["height"] / 8})
    wait_until_idle(page)
    assert source(page, "#similar") != before
    assert page.locator("#patch-text").inner_text().startswith("Row 1, column 4.")


def test_attention_of_blocks_and_heads(open_page):
    page = open_page()
    rollout = source(page, "#attention-maps img")
    page.get_by_text("One block").click()
    wait_until_idle(page)
    last = source(page, "#attention-maps img")
    page.locator("#block").fill("1")
    wait_until_idle(page)
    first = source(page, "#attention-maps img")
    assert len({rollout, last, first}) == 3
    page.get_by_text("Its heads").click()
    wait_until_idle(page)
    assert page.locator("#attention-maps img").count() > 1
    assert "Head 2" in page.locator("#attention-maps").inner_text()


def test_images_are_chosen_from_the_gallery_and_the_neighbours(open_page):
    page = open_page()
    for place in ("#gallery button >> nth=3", "#nearest button >> nth=0"):
        before, name = source(page, "#original"), page.locator(place).get_attribute("title")
        page.locator(place).click()
        wait_for_image(page, name)
        assert source(page, "#original") != before
    assert page.locator("#gallery button[aria-current=true]").count() == 1


def test_the_address_names_the_image(open_page, url):
    page = open_page()
    page.locator("#gallery button >> nth=5").click()
    name = page.locator("#gallery button >> nth=5").get_attribute("title")
    wait_for_image(page, name)
    page.reload()
    wait_for_image(page, name)
    assert page.url == url + "#" + page.locator("[aria-current=true]").first.get_attribute(
        "data-image"
    )


def test_file_names_are_text(open_page):
    page = open_page()
    page.locator("button[title*='onclick'] >> nth=0").click()
    wait_for_image(page, "red/<b onclick=alert(1)>.png")
    assert page.locator("#current-name").inner_text() == "red/<b onclick=alert(1)>.png"
    assert page.locator("b").count() == 0


def test_an_uploaded_image_is_explored(open_page, home):
    page = open_page()
    page.locator("#file").set_input_files(home / "green.png")
    wait_for_image(page, "green.png")
    assert page.locator("#original").evaluate(COLOUR) == pytest.approx([20, 160, 60], abs=3)


COLOUR = """async (img) => {
  await img.decode();
  const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1});
  canvas.getContext('2d').drawImage(img, 0, 0, 1, 1);
  return [...canvas.getContext('2d').getImageData(0, 0, 1, 1).data].slice(0, 3);
}"""

GIVE = """([kind, bytes, name]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name));
  const event = kind === 'paste'
    ? new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true})
    : new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true});
  document.body.dispatchEvent(event);
}"""


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_dropped_and_pasted_images_are_explored(open_page, home, how):
    page = open_page()
    content = list((home / "green.png").read_bytes())
    if how == "drop":
        page.evaluate(GIVE, ["dragover", content, "mine.png"])
        assert page.locator("#drop").is_visible()
    page.evaluate(GIVE, [how, content, "mine.png"])
    wait_for_image(page, "mine.png")
    assert not page.locator("#drop").is_visible()
    assert page.locator("#original").evaluate(COLOUR) == pytest.approx([20, 160, 60], abs=3)


def test_a_bad_upload_is_reported_on_the_page(open_page, home):
    page = open_page()
    name = page.locator("#current-name").inner_text()
    page.locator("#file").set_input_files(home / "notes.png")
    page.wait_for_selector("#upload-message:not([hidden])")
    said = page.locator("#upload-message").inner_text()
    assert said == "That file cannot be read as an image: not an image of a supported kind."
    assert page.locator("#upload-message").get_attribute("role") == "alert"
    assert page.locator("#current-name").inner_text() == name
    (refused,) = open_page.errors  # the browser itself logs each answer of 400
    assert "400" in refused
    open_page.errors.clear()
    page.locator("#file").set_input_files(home / "green.png")
    page.wait_for_selector("#upload-message", state="hidden")
    wait_until_idle(page)


def test_the_page_works_by_keyboard_alone(open_page):
    page = open_page()
    reached = []
    for _ in range(70):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
        if reached[-1] == "ratio":
            break
    assert {"theme", "upload"} < set(reached)
    before = source(page, "#masked")
    page.keyboard.press("ArrowLeft")
    wait_until_idle(page)
    assert source(page, "#masked") != before
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "mask"
    before = source(page, "#masked")
    page.keyboard.press("ArrowRight")
    assert "Row 1, column 2: " in page.locator("#status").inner_text()
    page.keyboard.press("Space")
    wait_until_idle(page)
    assert source(page, "#masked") != before
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "kind"
    page.keyboard.press("ArrowRight")
    wait_until_idle(page)
    assert page.locator("input[value=block]").is_checked()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "block"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "patches"
    before = source(page, "#similar")
    page.keyboard.press("ArrowUp")
    wait_until_idle(page)
    assert source(page, "#similar") != before
    assert "Row 2, column 3." in page.locator("#status").inner_text()
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (390, "dark"),
        (1440, "light"),
        pytest.param(390, "light", marks=pytest.mark.slow),
        pytest.param(1440, "dark", marks=pytest.mark.slow),
    ],
)
def test_the_page_fits_and_is_accessible(open_page, axe, width, scheme):
    page = open_page(width, color_scheme=scheme, has_touch=width < 500)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert violations(page, axe) == []
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", light)[:3])) > 380) is (scheme == "light")


def test_the_theme_button_works_and_reduced_motion_is_respected(open_page):
    page = open_page(color_scheme="light", reduced_motion="reduce")
    background = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(background)
    page.locator("#theme").click()
    assert page.evaluate(background) != before
    assert page.locator("#theme").inner_text() == "Light"
    page.evaluate("document.querySelector('#attention').setAttribute('aria-busy', 'true')")
    spinner = "getComputedStyle(document.querySelector('#attention .spinner')).animationName"
    assert page.evaluate(spinner) == "appear"


def test_outdated_answers_are_dropped(open_page):
    """The last move of the slider counts, however slow the answers are."""
    page = open_page()
    sent = []
    page.route(
        "**/api/reconstruct",
        lambda route: (sent.append(1), page.wait_for_timeout(300), route.continue_()),
    )
    for ratio in ("0.9375", "0.75", "0.5", "0.25"):
        page.locator("#ratio").fill(ratio)
        page.wait_for_timeout(120)
    wait_until_idle(page)
    assert "25 %, 4 of 16" in page.locator("#ratio-text").inner_text()
    assert len(sent) < 4
