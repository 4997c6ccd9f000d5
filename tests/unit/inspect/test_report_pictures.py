"""Attention on a report's page: one scale for the runs of an image, and what its peak is."""

import base64
import io
import re
from math import nan

import numpy as np
from PIL import Image

from mvmae.data.sources.open import open_source
from mvmae.inspect.choose_images import choose
from mvmae.inspect.model_pictures import overlay
from mvmae.inspect.report.html import Picture
from mvmae.inspect.report.pictures import (
    Drawn,
    Look,
    Shown,
    attention_picture,
    picture,
    side_by_side,
)

GRAY = np.full((32, 32, 3), 0.5, np.float32)


def make_drawn(name: str, heat: np.ndarray) -> Drawn:
    return Drawn(name, None, [Look(GRAY, heat.astype(np.float32), GRAY)], [])


def pixels(picture) -> np.ndarray:
    content = re.search(r"base64,([^\"']+)", str(picture))
    assert content, picture
    with Image.open(io.BytesIO(base64.b64decode(content[1]))) as opened:
        return np.asarray(opened.convert("RGB")).astype(float)


def test_runs_side_by_side_share_a_scale_and_say_their_peaks():
    weak, strong = np.ones((4, 4)), np.ones((4, 4))
    weak[0, 0], strong[0, 0] = 1.2, 6.0
    shown = Shown(("photos",), choose(open_source(("photos",), 3), 1, 0), "said")
    runs = [make_drawn("weak", weak), make_drawn("strong", strong)]
    galleries = dict(side_by_side(runs, shown))
    assert galleries.keys() == {"attention", "features"}
    _, first, second = galleries["attention"].strips[0].pictures
    assert (first.caption, second.caption) == (
        "weak, peak 1.2x even",
        "strong, peak 6.0x even",
    )
    assert "peak 1.2x even, strongest in the upper left" in first.alt
    corner = [pixels(one)[:4, :4].mean() for one in (first, second)]
    assert corner[1] > corner[0] + 30


def test_even_attention_has_one_colour():
    heat = np.random.default_rng(0).normal(1, 0.01, (4, 4)).astype(np.float32)
    look = Look(GRAY, heat, GRAY)
    made = pixels(attention_picture(look, "a", "attention", [look]))
    assert np.ptp(made, axis=(0, 1)).max() < 30
    assert np.ptp(255 * overlay(GRAY, heat), axis=(0, 1)).max() > 80


def decode(picture: Picture) -> Image.Image:
    head, body = picture.uri.split(",")
    image = Image.open(io.BytesIO(base64.b64decode(body)))
    assert head == f"data:image/{image.format.lower()};base64"
    return image


def test_small_pictures_keep_every_pixel():
    pixels = np.random.default_rng(0).random((8, 12, 3))
    shown = picture(pixels, "a", "b")
    assert shown.pixelated
    assert np.array_equal(np.asarray(decode(shown)), np.round(255 * pixels).astype(np.uint8))


def test_large_pictures_are_shrunk_and_gray_stays_gray():
    shown = picture(np.full((600, 300, 1), 0.5), alt="a", caption="b")
    image = decode(shown)
    assert (image.size, image.mode, image.format) == ((128, 256), "L", "JPEG")
    assert not shown.pixelated
    assert np.abs(np.asarray(image).astype(int) - 128).max() <= 1


def test_pixels_that_are_not_finite_are_gray():
    shown = picture(np.array([[[nan], [2.0], [-1.0]]]), alt="a", caption="b")
    assert np.asarray(decode(shown)).tolist() == [[128, 255, 0]]
