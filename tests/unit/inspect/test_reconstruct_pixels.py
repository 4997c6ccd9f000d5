"""From predictions to pixels: exact where it can be, and unasked never from what was hidden."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawn import cells
from PIL import Image

from mvmae.config.model import ModelConfig
from mvmae.config.pretrain import ObjectiveConfig, PretrainConfig
from mvmae.config.views import ViewsConfig
from mvmae.figures import page
from mvmae.inspect import reconstruct
from mvmae.inspect.choose_images import HIDDEN, select_channels
from mvmae.inspect.model_pictures import Panels, reconstruct_batch
from mvmae.inspect.reconstruct import Model
from mvmae.method.losses import normalize_patches
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.patches import denormalize_patches, masking_from_noise, patchify

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
    back = denormalize_patches(normalize_patches(target), target, mask(), GRID, "target")
    torch.testing.assert_close(back, target)


def test_target_statistics_undo_the_normalisation_of_flat_patches():
    target = torch.full((2, 24, 12), 0.3)
    back = denormalize_patches(normalize_patches(target), target, mask(), GRID, "target")
    torch.testing.assert_close(back, target)


def test_visible_statistics_do_not_depend_on_hidden_pixels():
    target, prediction, hidden = patches(), patches(1), mask()
    other = torch.where(hidden[..., None] == 1, patches(2) * 50, target)
    assert not torch.equal(other, target)
    first, second = (
        denormalize_patches(prediction, pixels, hidden, GRID, "visible")
        for pixels in (target, other)
    )
    assert torch.equal(first, second)


def test_target_statistics_do_depend_on_hidden_pixels():
    target, prediction, hidden = patches(), patches(1), mask()
    other = torch.where(hidden[..., None] == 1, patches(2), target)
    first, second = (
        denormalize_patches(prediction, pixels, hidden, GRID, "target")
        for pixels in (target, other)
    )
    assert not torch.allclose(first, second)


def test_visible_patches_keep_their_own_statistics():
    target, hidden = patches(), mask()
    back = denormalize_patches(normalize_patches(target), target, hidden, GRID, "visible")
    seen = hidden == 0
    torch.testing.assert_close(back[seen], target[seen], atol=1e-4, rtol=1e-4)


def test_hidden_patch_takes_after_the_nearest_visible_one():
    """In a row of ten, dark on the left and bright on the right, only the ends are seen."""
    target = torch.zeros(1, 10, 4)
    target[0, 9] = 100
    hidden = torch.tensor([[0.0, *[1.0] * 8, 0.0]])
    prediction = torch.zeros(1, 10, 4)
    means = denormalize_patches(prediction, target, hidden, (1, 10), "visible").mean(-1)[0]
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
    means = denormalize_patches(prediction, target, hidden, (2, 4), "visible").mean(-1)[0]
    assert means[4] > 80
    assert means[7] < 20


def test_patches_seen_alike_make_hidden_ones_alike():
    target = torch.full((2, 24, 12), 0.25)
    prediction = torch.zeros(2, 24, 12)
    back = denormalize_patches(prediction, target, mask(), GRID, "visible")
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


def panels(model, images, config, statistics="visible", channels=()) -> Panels:
    noise = torch.rand(2, 24, generator=torch.Generator().manual_seed(3))
    return reconstruct_batch(
        model,
        images,
        noise,
        config,
        num_visible=config.model.num_visible,
        statistics=statistics,
        device=torch.device("cpu"),
        channels=channels,
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
    np.testing.assert_allclose(shown.error, 0, atol=1e-6)


def test_error_is_that_of_hidden_pixels_as_drawn_in_all_channels():
    config, images = run_config(normalize=False), tiled_images()
    model = copying_model(config, images)
    with torch.no_grad():
        model.decoder_pred.bias.mul_(3)  # some of it beyond black and white
    shown = panels(model, images, config)
    hidden = np.isclose(shown.masked, HIDDEN, atol=1e-6).all(-1)
    assert hidden.mean() == 0.75
    expected = ((shown.prediction - shown.original) ** 2)[0][hidden[0]].mean()
    assert expected > 0.01
    assert shown.error[0] == pytest.approx(expected, rel=1e-5)
    one = panels(model, images, config, channels=(2,))
    np.testing.assert_array_equal(one.error, shown.error)


@pytest.mark.parametrize("channels", [1, 3])
def test_beside_the_error_stands_that_of_the_average_colour_of_the_same_patches(channels):
    config = run_config(normalize=False, channels=channels)
    generator = torch.Generator().manual_seed(0)
    shape = (2, channels, 16, 24)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    shown = panels(copying_model(config, images), images, config)
    blurred = F.interpolate(F.avg_pool2d(images.double() / 255, 4), scale_factor=4)
    squares = (blurred - images.double() / 255).square().permute(0, 2, 3, 1).numpy()
    hidden = np.isclose(shown.masked, HIDDEN, atol=1e-6).all(-1)
    for one, where, plain in zip(squares, hidden, shown.plain, strict=True):
        assert plain == pytest.approx(one[where].mean(), rel=1e-4)
    tiled = panels(copying_model(config, tiled_images(channels)), tiled_images(channels), config)
    np.testing.assert_allclose(tiled.error, 0, atol=1e-6)
    assert (tiled.plain > 0.01).all()


@pytest.mark.parametrize(
    ("have", "asked", "drawn"),
    [
        (1, (), [0]),
        (2, (), [0]),
        (3, (), [0, 1, 2]),
        (5, (), [0, 1, 2]),
        (5, (4, 2, 1), [3, 1, 0]),
        (5, (5,), [4]),
        (2, (2,), [1]),
    ],
)
def test_channels_drawn_are_those_asked_or_the_first(have, asked, drawn):
    pixels = np.random.default_rng(0).random((2, 4, 4, have))
    np.testing.assert_array_equal(select_channels(pixels, asked), pixels[..., drawn])


def test_images_of_five_channels_are_drawn_by_three():
    model_config = replace(run_config(normalize=True).model, in_channels=5)
    config = replace(
        run_config(normalize=True),
        model=model_config,
        views=ViewsConfig(mean=(0.5,) * 5, std=(0.25,) * 5),
    )
    images = tiled_images(5)
    shown = panels(copying_model(config, images), images, config, channels=(4, 2, 1))
    original = images[:, [3, 1, 0]].permute(0, 2, 3, 1).numpy() / 255
    np.testing.assert_allclose(shown.original, original, atol=1e-5)
    np.testing.assert_allclose(shown.prediction, original, atol=1e-4)
    assert shown.masked.shape == shown.pasted.shape == (2, 16, 24, 3)


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
    for picture in (shown.original, shown.masked, shown.prediction, shown.pasted):
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


def make_panels(picture: np.ndarray, others: np.ndarray | None = None) -> Panels:
    """Panels that all show the same, or another prediction."""
    count = len(picture)
    others = picture if others is None else others
    return Panels(picture, picture, others, others, np.full(count, 0.25), np.full(count, 0.5))


def figure(count=2, size=(16, 24, 3), names=None, models=1, **words) -> Image.Image:
    picture = 0.9 * np.random.default_rng(0).random((count, *size), dtype=np.float32)
    words = {"title": "run: 4 of 16 patches visible", "note": "how it was made"} | words
    shown = [Model(f"run {number}", make_panels(picture)) for number in range(models)]
    drawn = reconstruct.draw(shown, names=names or ["class/name.jpg"] * count, **words)
    return Image.open(io.BytesIO(drawn))


def pictures(count=1, size=(16, 24, 3), models=1) -> list[np.ndarray]:
    """The pictures of the first row."""
    stream = io.BytesIO()
    figure(count, size, models=models).save(stream, "png")
    return cells(stream.getvalue(), size[0] / size[1])


@pytest.mark.parametrize(
    "size", [(16, 16, 3), (16, 16, 1), (16, 32, 3), (32, 16, 1), (256, 256, 3)]
)
@pytest.mark.parametrize("count", [1, 3])
def test_figure_is_a_png_with_a_row_an_image(count, size):
    opened = figure(count, size)
    assert opened.format == "PNG"
    aspect = size[0] / size[1]
    cell = [page.CELL * max(page.MIN_CELL_WIDTH, min(1, 1 / aspect)), page.CELL * min(1, aspect)]
    width = 2 * page.MARGIN + page.NAME + 4 * cell[0] + 3 * page.GAP
    assert opened.width == pytest.approx(page.DPI * width, abs=1)
    further = page.DPI * (count - 1) * (cell[1] + page.GAP + page.CAPTION)
    assert opened.height - figure(1, size).height == pytest.approx(further, abs=count)


def test_four_equal_panels_are_drawn_alike():
    parts = pictures(1, (16, 16, 3))
    assert len(parts) == 4
    assert np.std(parts[0]) > 20
    for part in parts[1:]:
        np.testing.assert_array_equal(part, parts[0])


def test_a_further_model_adds_its_prediction_alone_and_pasted():
    assert [len(pictures(models=models)) for models in (1, 2, 3)] == [4, 6, 8]


def test_a_model_that_saw_another_mask_or_part_shows_what_it_saw():
    first, second = np.full((2, 1, 16, 24, 3), 0.3, dtype=np.float32)
    other = make_panels(first)._replace(masked=1 - first)
    tall = make_panels(np.full((1, 24, 16, 3), 0.6, dtype=np.float32))
    words = {"names": ["a"], "title": "t", "note": "n"}
    for panels_, count in ((make_panels(second), 6), (other, 7), (tall, 8)):
        models = [Model("a", make_panels(first)), Model("b", panels_)]
        png = reconstruct.draw(models, **words)
        assert len(cells(png)) == count


def test_each_model_stands_in_its_own_columns():
    shades = [np.full((1, 16, 16, 3), value, dtype=np.float32) for value in (0.2, 0.5, 0.8)]
    models = [
        Model("a", make_panels(shades[0], shades[1])),
        Model("b", make_panels(shades[0], shades[2])),
    ]
    png = reconstruct.draw(models, names=["a"], title="t", note="n")
    means = [cell.mean() / 255 for cell in cells(png)]
    np.testing.assert_allclose(means, [0.2, 0.2, 0.5, 0.5, 0.8, 0.8], atol=0.01)


def test_words_of_any_length_stay_on_the_figure():
    plain = figure(1)
    long = figure(1, names=["n" * 300], title="W" * 400, note="word " * 60)
    assert long.width == plain.width
    assert long.height > plain.height  # lines of the note
    pixels = np.asarray(long.convert("L"))
    for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
        assert edge.min() > 240


def test_very_many_rows_are_drawn_smaller_and_not_refused():
    picture = np.full((75, 8, 4, 1), 0.5, dtype=np.float32)
    png = reconstruct.draw(
        [Model("a", make_panels(picture))], names=["a"] * 75, title="t", note="n"
    )
    width, height = Image.open(io.BytesIO(png)).size
    assert height <= page.MAX_SIDE
    assert width * height <= 1.01 * page.MAX_PIXELS


@pytest.mark.parametrize(
    "name", [r"$\frac$.jpg", "a$_$b.jpg", "one$.jpg", "under_score^.jpg", "a{b}.jpg"]
)
def test_name_of_an_image_is_only_text(name):
    assert figure(1, names=[name]).format == "PNG"


@pytest.mark.parametrize("name", ["caf\udce9.jpg", "写真.jpg"])
def test_name_in_any_alphabet_or_none_does_not_stop_the_drawing(name):
    assert figure(1, names=[name]).format == "PNG"
