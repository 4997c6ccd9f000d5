"""Colours are torchvision's, view for view; their draws follow the seed and disturb no others."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from mvmae.config.model import ModelConfig
from mvmae.config.pretrain import PretrainConfig
from mvmae.config.views import ViewsConfig
from mvmae.data.reading.loader import ViewsDataset, collate
from mvmae.data.sources.open import open_source
from mvmae.errors import UserError
from mvmae.method.augmentations import (
    UNCHANGED,
    Augmentations,
    augment,
    change_colours,
    draw_augmentations,
)
from mvmae.method.inputs import model_inputs

STRONG = ViewsConfig(color_jitter=1.0, grayscale=0.2)
CPU = torch.device("cpu")


def images(channels: int = 3, count: int = 5) -> torch.Tensor:
    """Noise, with a gray, a black and a white image among it, where a hue is undefined."""
    pixels = torch.rand(count, channels, 8, 9, generator=torch.Generator().manual_seed(0))
    pixels[0] = pixels[0, :1]
    pixels[1, ..., :4], pixels[1, ..., 4:] = 0, 1
    return pixels


def draws(count: int, config: ViewsConfig = STRONG) -> Augmentations:
    """The columns of the views of several images, the views of an image side by side."""
    images = [draw_augmentations((0, 0, place, 1), config) for place in range(count)]
    columns = zip(*[one for one in images if one is not None], strict=True)
    return Augmentations(*map(torch.cat, columns))


def equal(count: int, **changed: float) -> Augmentations:
    """The same numbers for every view; what is not named is unchanged."""
    return Augmentations(**{k: torch.full((count,), v) for k, v in (UNCHANGED | changed).items()})


def first(drawn: Augmentations, count: int) -> Augmentations:
    return Augmentations(*(column[:count] for column in drawn))


def theirs(images: torch.Tensor, drawn: Augmentations) -> list[torch.Tensor]:
    """torchvision's functions, one after the other, for each image."""
    changed = []
    for index, image in enumerate(images):
        of_image = Augmentations(*(column.flatten()[index].item() for column in drawn))
        image = tv.adjust_brightness(image, of_image.brightness)
        image = tv.adjust_contrast(image, of_image.contrast)
        changed.append(
            tv.adjust_hue(tv.adjust_saturation(image, of_image.saturation), of_image.hue)
        )
    return changed


def make_config(views: ViewsConfig, **changed: object) -> PretrainConfig:
    model = ModelConfig(encoder="vit_pico", image_size=32, patch_size=4, decoder_dim=32)
    return PretrainConfig(model=model, views=views, workers=0, **changed)


def make_batch(config: PretrainConfig, count: int = 4):
    dataset = ViewsDataset(open_source(("photos",), 3), config)
    return collate([dataset[3, place] for place in range(count)])


def test_equal_to_torchvision() -> None:
    pixels = images(count=40)
    colours = draws(20)
    expected = torch.stack(theirs(pixels, colours))
    torch.testing.assert_close(
        change_colours(pixels, colours, bounded=True), expected, atol=2e-6, rtol=0
    )


@pytest.mark.parametrize("hue", [-0.5, -0.37, -1 / 6, 0.0, 0.01, 1 / 3, 0.5])
def test_every_hue_turns_as_torchvision_turns_it(hue: float) -> None:
    pixels = images()
    colours = equal(len(pixels), hue=hue)
    ours = change_colours(pixels, colours, bounded=True)
    torch.testing.assert_close(ours, tv.adjust_hue(pixels, hue), atol=2e-6, rtol=0)


def test_what_is_unchanged_stays() -> None:
    pixels = images()
    colours = equal(len(pixels))
    ours = change_colours(pixels, colours, bounded=True)
    torch.testing.assert_close(ours, pixels, atol=1e-6, rtol=0)


def test_gray_views_have_three_equal_channels_whatever_the_hue() -> None:
    gray = change_colours(
        images(), equal(5, brightness=1.2, contrast=0.7, saturation=0.0, hue=0.3), bounded=True
    )
    torch.testing.assert_close(gray[:, 0], gray[:, 1], atol=1e-6, rtol=0)
    torch.testing.assert_close(gray[:, 0], gray[:, 2], atol=1e-6, rtol=0)
    assert gray.std() > 0.1


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_without_colour_have_brightness_and_contrast(channels: int) -> None:
    pixels = images(channels)
    colours = equal(5, brightness=1.5, contrast=0.5, saturation=0.0, hue=0.4)
    brighter = (1.5 * pixels).clamp(0, 1)
    middle = brighter.mean((1, 2, 3), keepdim=True)
    expected = (middle + 0.5 * (brighter - middle)).clamp(0, 1)
    torch.testing.assert_close(change_colours(pixels, colours, bounded=True), expected)


def test_values_of_any_range_are_not_cut() -> None:
    values = 1000 * images() - 300
    colours = equal(5, brightness=1.5, contrast=1.4, saturation=1.2, hue=0.1)
    ours = change_colours(values, colours, bounded=False)
    assert ours.max() > 1000
    assert ours.min() < -400
    assert change_colours(values, colours, bounded=True).min() >= 0


def test_values_with_an_offset_change_about_their_own_black_and_stay_in_sight() -> None:
    kelvin = 280 + 20 * images(1)
    views = ViewsConfig(depth="float", mean=(290.0,), std=(5.0,), color_jitter=0.5)
    colours = first(draws(3, views), len(kelvin))
    changed = augment(kelvin[: len(colours.hue)], colours, views, 1)
    assert changed.min() > 250
    assert changed.max() < 330
    assert not torch.equal(changed, kelvin[: len(colours.hue)])
    same = augment(kelvin, equal(len(kelvin)), views, 1)
    torch.testing.assert_close(same, kelvin, atol=1e-3, rtol=0)
    # brightness alone: black, 290 - 2.5 x 5, stays, and what lies above it is scaled
    dark = augment(kelvin, equal(len(kelvin), brightness=0.5), views, 1)
    torch.testing.assert_close(dark, 277.5 + 0.5 * (kelvin - 277.5), atol=1e-3, rtol=0)


def test_eight_and_sixteen_bit_are_shares_of_white_and_are_cut() -> None:
    pixels = (255 * images()).byte()
    colours = first(draws(3), len(pixels))
    eight = augment(pixels, colours, STRONG, 3)
    shares = augment(pixels / 255, colours, replace(STRONG, depth="16"), 3)
    assert torch.equal(eight, shares)
    assert (eight.min(), eight.max()) == (0, 1)


def test_draws_have_the_ranges_and_shares_of_simclr() -> None:
    drawn = draws(4000, replace(STRONG, color_jitter=0.5))
    light = torch.stack([drawn.brightness, drawn.contrast], dim=1).numpy()
    hue, gray = drawn.hue.numpy(), drawn.saturation.numpy() == 0
    changed = light[:, 0] != 1
    assert changed.mean() == pytest.approx(0.8, abs=0.02)
    assert gray.mean() == pytest.approx(0.2, abs=0.02)
    assert gray[changed].mean() == pytest.approx(gray[~changed].mean(), abs=0.03)
    assert (light.min(), light.max()) == pytest.approx((0.6, 1.4), abs=5e-3)
    assert (hue.min(), hue.max()) == pytest.approx((-0.1, 0.1), abs=1e-3)
    assert np.std(light[changed], axis=0) == pytest.approx(0.8 / 12**0.5, abs=0.01)


def test_the_two_views_of_an_image_differ_and_the_seed_decides() -> None:
    once, again = (draw_augmentations((0, 1, 2, 1), STRONG) for _ in range(2))
    assert once is not None
    assert again is not None
    assert all(map(torch.equal, once, again))
    hue = draws(30).hue
    assert not torch.equal(hue[::2], hue[1::2])
    assert draw_augmentations((0, 1, 2, 1), ViewsConfig()) is None


def test_crops_and_masks_stay_what_they_were() -> None:
    plain, changed = (make_batch(make_config(views)) for views in (ViewsConfig(), STRONG))
    assert plain.augmentations is None
    assert changed.augmentations is not None
    assert {column.shape for column in changed.augmentations} == {(2, 4)}
    assert torch.equal(plain.views, changed.views)
    assert torch.equal(plain.noise, changed.noise)


def test_the_model_sees_each_view_in_its_own_colours() -> None:
    config = make_config(STRONG)
    batch = make_batch(config)
    assert batch.augmentations is not None
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in config.pixel_statistics)
    seen, _ = model_inputs(batch, config, CPU)
    coloured = theirs(batch.views.flatten(0, 1) / 255, batch.augmentations)
    expected = (torch.stack(coloured) - mean) / std
    torch.testing.assert_close(seen, expected, atol=2e-5, rtol=0)
    part, _ = model_inputs(batch, config, CPU, slice(1, 3))
    torch.testing.assert_close(part, seen.unflatten(0, (2, 4))[:, 1:3].flatten(0, 1))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"color_jitter": 1.5}, "between 0 and 1, not 1.5"),
        ({"color_jitter": -0.1}, "between 0 and 1"),
        ({"color_jitter": float("nan")}, "between 0 and 1"),
        ({"grayscale": 2.0}, "between 0 and 1, not 2"),
    ],
)
def test_what_cannot_be_is_refused(changed: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ViewsConfig(**changed)


def test_gray_images_have_no_colours_to_lose() -> None:
    model = ModelConfig(in_channels=1)
    with pytest.raises(UserError, match="images of 1 channel have none"):
        PretrainConfig(model=model, views=ViewsConfig(grayscale=0.2))
    PretrainConfig(model=model, views=ViewsConfig(color_jitter=0.5))
