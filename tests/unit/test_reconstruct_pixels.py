"""From predictions to pixels: exact where it can be, and unasked never from what was hidden."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mvmae.config import ModelConfig, ObjectiveConfig, PretrainConfig
from mvmae.figures import reconstruction
from mvmae.figures.reconstruction import Panels
from mvmae.models.mae import MaskedAutoencoder
from mvmae.models.patches import masking_from_noise, patchify
from mvmae.models.pixels import denormalized_patches
from mvmae.objectives import normalize_patches
from mvmae.tasks.reconstruct import HIDDEN, panels_of

GRID = (4, 6)


def patches(seed: int = 0, count: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    brightness = 3 * torch.randn(2, count, 1, generator=generator)
    return brightness + torch.randn(2, count, 12, generator=generator)


def mask(num_visible: int = 5, count: int = 24) -> torch.Tensor:
    noise = torch.rand(2, count, generator=torch.Generator().manual_seed(7))
    return masking_from_noise(noise, num_visible).mask


# statistics


def test_target_statistics_undo_the_normalisation():
    target = patches()
    back = denormalized_patches(normalize_patches(target), target, mask(), GRID, "target")
    torch.testing.assert_close(back, target)


def test_target_statistics_undo_the_normalisation_of_flat_patches():
    target = torch.full((2, 24, 12), 0.3)
    back = denormalized_patches(normalize_patches(target), target, mask(), GRID, "target")
    torch.testing.assert_close(back, target)


def test_visible_statistics_do_not_depend_on_hidden_pixels():
    target, prediction, hidden = patches(), patches(1), mask()
    other = torch.where(hidden[..., None] == 1, patches(2) * 50, target)
    assert not torch.equal(other, target)
    first, second = (
        denormalized_patches(prediction, pixels, hidden, GRID, "visible")
        for pixels in (target, other)
    )
    assert torch.equal(first, second)


def test_target_statistics_do_depend_on_hidden_pixels():
    target, prediction, hidden = patches(), patches(1), mask()
    other = torch.where(hidden[..., None] == 1, patches(2), target)
    first, second = (
        denormalized_patches(prediction, pixels, hidden, GRID, "target")
        for pixels in (target, other)
    )
    assert not torch.allclose(first, second)


def test_visible_patches_keep_their_own_statistics():
    target, hidden = patches(), mask()
    back = denormalized_patches(normalize_patches(target), target, hidden, GRID, "visible")
    seen = hidden == 0
    torch.testing.assert_close(back[seen], target[seen], atol=1e-4, rtol=1e-4)


def test_hidden_patch_takes_after_the_nearest_visible_one():
    """In a row of ten, dark on the left and bright on the right, only the ends are seen."""
    target = torch.zeros(1, 10, 4)
    target[0, 9] = 100
    hidden = torch.tensor([[0.0, *[1.0] * 8, 0.0]])
    prediction = torch.zeros(1, 10, 4)
    means = denormalized_patches(prediction, target, hidden, (1, 10), "visible").mean(-1)[0]
    assert (means[:4] < 20).all()
    assert (means[6:] > 80).all()
    assert (means.diff() > 0).all()
    assert means[4] == pytest.approx(100 - means[5].item(), abs=1e-3)


def test_rows_and_columns_are_not_mixed_up():
    """One column is seen bright in its top row: the patch below it is nearer than any beside."""
    target = torch.zeros(1, 8, 4)
    target[0, 0] = 100
    hidden = torch.ones(1, 8)
    hidden[0, [0, 3]] = 0  # of 2 rows of 4: the two upper corners
    prediction = torch.zeros(1, 8, 4)
    means = denormalized_patches(prediction, target, hidden, (2, 4), "visible").mean(-1)[0]
    assert means[4] > 80
    assert means[7] < 20


def test_patches_seen_alike_make_hidden_ones_alike():
    target = torch.full((2, 24, 12), 0.25)
    prediction = torch.zeros(2, 24, 12)
    back = denormalized_patches(prediction, target, mask(), GRID, "visible")
    torch.testing.assert_close(back, target)


# pictures


def run_config(*, normalize: bool, channels: int = 3) -> PretrainConfig:
    return PretrainConfig(
        model=ModelConfig(
            encoder="vit_pico",
            image_size=(16, 24),
            patch_size=4,
            in_channels=channels,
            mask_ratio=0.75,
            decoder_depth=1,
            decoder_dim=32,
        ),
        objective=ObjectiveConfig(normalize_targets=normalize),
    )


def tiled_images(channels: int = 3) -> torch.Tensor:
    """Two images, each of one patch over and over."""
    generator = torch.Generator().manual_seed(0)
    patch = torch.randint(30, 225, (1, channels, 4, 4), generator=generator, dtype=torch.uint8)
    return patch.repeat(2, 1, 4, 6)


def panels(model, images, config, statistics="visible") -> Panels:
    noise = torch.rand(2, 24, generator=torch.Generator().manual_seed(3))
    return panels_of(
        model,
        images,
        noise,
        config,
        num_visible=config.model.num_visible,
        statistics=statistics,
        device=torch.device("cpu"),
    )


def copying_model(config: PretrainConfig, images: torch.Tensor) -> MaskedAutoencoder:
    """A model that has learnt by heart the one patch that the images are made of."""
    mean, std = (torch.tensor(s).view(1, -1, 1, 1) for s in config.pixel_statistics)
    target = patchify((images.float() / 255 - mean) / std, config.model.patch_size)
    if config.objective.normalize_targets:
        target = normalize_patches(target)
    model = MaskedAutoencoder(config.model).eval()
    with torch.no_grad():
        model.decoder_pred.weight.zero_()
        model.decoder_pred.bias.copy_(target[0, 0])
    return model


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("statistics", ["visible", "target"])
@pytest.mark.parametrize("normalize", [True, False])
def test_model_that_copies_shows_the_original(normalize, statistics, channels):
    config, images = run_config(normalize=normalize, channels=channels), tiled_images(channels)
    shown = panels(copying_model(config, images), images, config, statistics)
    original = images.permute(0, 2, 3, 1).numpy() / 255
    np.testing.assert_allclose(shown.original, original, atol=1e-5)
    np.testing.assert_allclose(shown.prediction, original, atol=1e-4)
    np.testing.assert_allclose(shown.pasted, original, atol=1e-4)


def test_masked_picture_shows_visible_patches_and_gray():
    config = run_config(normalize=True)
    images = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    shown = panels(MaskedAutoencoder(config.model).eval(), images, config)
    gray = np.isclose(shown.masked, HIDDEN, atol=1e-6).all(axis=-1)
    blocks = gray.reshape(2, 4, 4, 6, 4).transpose(0, 1, 3, 2, 4).reshape(2, 24, 16)
    hidden = blocks.all(axis=-1)
    assert hidden.sum(axis=1).tolist() == [18, 18]
    by_pixel = hidden.reshape(2, 4, 6).repeat(4, axis=1).repeat(4, axis=2)
    np.testing.assert_array_equal(shown.masked[~by_pixel], shown.original[~by_pixel])
    np.testing.assert_allclose(shown.pasted[~by_pixel], shown.original[~by_pixel], atol=1e-6)
    np.testing.assert_allclose(shown.pasted[by_pixel], shown.prediction[by_pixel], atol=1e-6)


def test_picture_values_lie_between_black_and_white():
    config = run_config(normalize=False)
    images = tiled_images()
    model = copying_model(config, images)
    with torch.no_grad():
        model.decoder_pred.bias.mul_(100)
    shown = panels(model, images, config)
    for picture in shown:
        assert picture.min() >= 0
        assert picture.max() <= 1


def test_unasked_the_picture_takes_nothing_from_hidden_pixels():
    config = replace(run_config(normalize=True))
    images = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    model = MaskedAutoencoder(config.model).eval()
    first = panels(model, images, config)
    hidden = torch.from_numpy(np.isclose(first.masked, HIDDEN).all(-1))[:, None]
    other = panels(model, torch.where(hidden, 255 - images, images), config)
    np.testing.assert_array_equal(other.masked, first.masked)
    np.testing.assert_array_equal(other.prediction, first.prediction)


# figure


def figure(count=2, size=(16, 24, 3), names=None) -> Image.Image:
    picture = np.random.default_rng(0).random((count, *size), dtype=np.float32)
    drawn = reconstruction.draw(
        Panels(picture, picture, picture, picture),
        names=names or ["class/name.jpg"] * count,
        title="run: 4 of 16 patches visible",
        note="how it was made",
    )
    return Image.open(io.BytesIO(drawn))


@pytest.mark.parametrize(
    "size", [(16, 16, 3), (16, 16, 1), (16, 32, 3), (32, 16, 1), (256, 256, 3)]
)
@pytest.mark.parametrize("count", [1, 3])
def test_figure_is_a_png_with_a_row_an_image(count, size):
    opened = figure(count, size)
    assert opened.format == "PNG"
    width = 150 * (4 * reconstruction.CELL + 0.35)
    height = 150 * (reconstruction.CELL * size[0] / size[1] * count + 1.05)
    assert opened.size == (pytest.approx(width, abs=1), pytest.approx(height, abs=1))


def test_four_equal_panels_are_drawn_alike():
    """The middle of each panel, at the size of a cell."""
    pixels = np.asarray(figure(1, (16, 16, 3)).convert("RGB")).astype(float)
    middle = pixels[160:300]
    centers = [45 + 255 * (column + 0.5) for column in range(4)]
    parts = [middle[:, round(center) - 60 : round(center) + 60] for center in centers]
    assert np.std(parts[0]) > 20
    for part in parts[1:]:
        assert abs(part.mean() - parts[0].mean()) < 10


@pytest.mark.parametrize(
    "name", [r"$\frac$.jpg", "a$_$b.jpg", "one$.jpg", "under_score^.jpg", "a{b}.jpg"]
)
def test_name_of_an_image_is_only_text(name):
    assert figure(1, names=[name]).format == "PNG"


@pytest.mark.parametrize("name", ["caf\udce9.jpg", "写真.jpg"])
def test_name_in_any_alphabet_or_none_does_not_stop_the_drawing(name):
    assert figure(1, names=[name]).format == "PNG"
