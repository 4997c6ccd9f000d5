"""Crops are torchvision's in distribution and Pillow's in pixels; all else follows the seed."""

from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from mvmae.config.views import ViewsConfig
from mvmae.data.reading.loader import ViewsDataset
from mvmae.data.sources.open import open_source
from mvmae.method.views import (
    Box,
    crop,
    mask_noise,
    normalize,
    random_box,
    random_views,
    whole_view,
)

HEIGHT, WIDTH = 300, 400
SCALE = (0.2, 1.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def our_boxes(count: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    draw = rng()
    return np.array([random_box(draw, height, width, SCALE) for _ in range(count)])


def their_boxes(count: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    torch.manual_seed(1)
    transform = v2.RandomResizedCrop(8, scale=SCALE)
    image = torch.empty(3, height, width)
    boxes = [transform.make_params([image]) for _ in range(count)]
    return np.array([[box["top"], box["left"], box["height"], box["width"]] for box in boxes])


def draw_texture(height: int = 96, width: int = 120) -> Image.Image:
    """Waves of several lengths, with some noise: neither flat nor pure noise."""
    row, column = np.mgrid[0:height, 0:width] / 10
    waves = [np.sin(row) + np.cos(1.7 * column), np.sin(row * column / 9), np.cos(3 * row + column)]
    pixels = 128 + 50 * np.stack(waves, axis=-1) + rng().normal(0, 8, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def largest_gap(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Kolmogorov's and Smirnov's distance between two samples."""
    values = np.sort(np.concatenate([ours, theirs]))
    shares = [np.searchsorted(np.sort(s), values, side="right") / len(s) for s in (ours, theirs)]
    return np.abs(shares[0] - shares[1]).max()


# boxes


def test_box_lies_inside_the_image_and_within_the_bounds_of_area_and_ratio():
    top, left, height, width = our_boxes(3000).T
    assert min(top.min(), left.min()) == 0
    assert (top + height).max() == HEIGHT
    assert (left + width).max() == WIDTH
    area = height * width / (HEIGHT * WIDTH)
    assert area.min() > 0.2 - 0.01
    assert area.max() <= 1
    ratio = width / height
    assert ratio.min() > 3 / 4 - 0.01
    assert ratio.max() < 4 / 3 + 0.01


@pytest.mark.parametrize(("height", "width"), [(300, 400), (64, 64), (50, 200)])
def test_boxes_are_torchvisions_in_distribution(height, width):
    """Two samples of 4000 differ by more than 0.043 once in a thousand times; seeds are fixed."""
    ours, theirs = our_boxes(4000, height, width), their_boxes(4000, height, width)
    for name, measure in {
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: b[:, 3] / b[:, 2],
    }.items():
        assert largest_gap(measure(ours), measure(theirs)) < 0.043, name


def test_place_is_uniform_and_the_ratio_too_on_a_logarithmic_scale():
    """Where nothing has to be drawn again: a small share of a large square."""
    draw = rng()
    boxes = np.array([random_box(draw, 1000, 1000, (0.1, 0.11)) for _ in range(4000)])
    top, left, height, width = boxes.T
    uniform = (np.arange(4000) + 0.5) / 4000
    assert largest_gap(top / (1000 - height), uniform) < 0.03
    assert largest_gap(left / (1000 - width), uniform) < 0.03
    share = (np.log(width / height) - log(3 / 4)) / (log(4 / 3) - log(3 / 4))
    assert largest_gap(share, uniform) < 0.03
    assert largest_gap((height * width / 1e6 - 0.1) / 0.01, uniform) < 0.06  # whole pixels


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (10, 1000, Box(0, 493, 10, 13)),
        (1000, 10, Box(493, 0, 13, 10)),
        (1, 1000, Box(0, 499, 1, 1)),
        (1, 1, Box(0, 0, 1, 1)),
    ],
)
def test_strip_too_thin_for_any_box_gives_the_largest_in_its_middle(height, width, box):
    assert random_box(rng(), height, width, (0.5, 1.0)) == box
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(8, scale=(0.5, 1.0)).make_params([torch.empty(3, height, width)])
    assert Box(*(theirs[name] for name in ("top", "left", "height", "width"))) == box


# pixels


@pytest.mark.parametrize(("name", "filter_"), [("bicubic", 3), ("bilinear", 2)])
@pytest.mark.parametrize(
    ("box", "size"),
    [
        (Box(0, 0, 96, 120), (32, 32)),
        (Box(10, 20, 50, 61), (32, 32)),
        (Box(3, 5, 20, 24), (32, 48)),
        (Box(0, 0, 9, 8), (64, 64)),
    ],
)
def test_crop_is_pillows_within_a_grey_level(name, filter_, box, size):
    image = draw_texture()
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    theirs = image.crop(corners).resize(size[::-1], Image.Resampling(filter_))
    ours = crop(to_tensor(image), box, size, name)
    assert ours.shape == (3, *size)
    assert ours.dtype == torch.uint8
    difference = (ours.int() - to_tensor(theirs).int()).abs().float()
    assert difference.mean() < 1
    assert difference.max() <= 3


def test_shrinking_is_antialiased():
    """Single-pixel stripes become their average, not one or the other."""
    stripes = torch.zeros(3, 64, 64, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    small = crop(stripes, Box(0, 0, 64, 64), (8, 8), "bicubic")
    assert (small.float() - 127.5).abs().max() < 8


def test_crop_of_its_own_size_is_the_part_itself():
    image = to_tensor(draw_texture())
    assert torch.equal(crop(image, Box(4, 6, 20, 30), (20, 30), "bicubic"), image[:, 4:24, 6:36])


# views


def views(seed: int = 0, size: tuple[int, int] = (16, 16), **options) -> torch.Tensor:
    return random_views(to_tensor(draw_texture()), ViewsConfig(**options), size, rng(seed))


def test_two_targets_are_two_crops():
    first, second = views()
    assert first.shape == (3, 16, 16)
    assert not torch.equal(first, second)


def test_one_target_is_one_crop_twice():
    first, second = views(targets="one")
    assert torch.equal(first, second)


@pytest.mark.parametrize("targets", ["one", "two"])
def test_one_view_is_one_crop(targets):
    assert views(num_views=1, targets=targets).shape == (1, 3, 16, 16)


def test_view_may_be_wider_than_high():
    assert views(size=(8, 24)).shape == (2, 3, 8, 24)


def test_half_of_the_views_are_mirrored():
    """A whole view of a ramp tells by its first column whether it is."""
    ramp = torch.arange(32, dtype=torch.uint8).expand(3, 32, 32).contiguous()
    config = ViewsConfig(crop_scale=(0.999, 1.0))
    draw = rng()
    mirrored = [
        bool(view[0, 0, 0] > view[0, 0, -1])
        for _ in range(1000)
        for view in random_views(ramp, config, (32, 32), draw)
    ]
    assert 0.46 < np.mean(mirrored) < 0.54
    both = np.reshape(mirrored, (-1, 2))
    assert 0.45 < (both[:, 0] == both[:, 1]).mean() < 0.55  # each view for itself


def test_no_view_is_mirrored_where_flip_is_none():
    ramp = torch.arange(32, dtype=torch.uint8).expand(3, 32, 32).contiguous()
    config = ViewsConfig(crop_scale=(0.999, 1.0), flip="none")
    draw = rng()
    for _ in range(50):
        for view in random_views(ramp, config, (32, 32), draw):
            assert view[0, 0, 0] < view[0, 0, -1]


def test_mirrored_view_is_the_same_crop_the_other_way_round():
    plain = {seed: views(seed, num_views=1, flip="none")[0] for seed in range(20)}
    mixed = {seed: views(seed, num_views=1)[0] for seed in range(20)}
    same = [torch.equal(mixed[seed], plain[seed]) for seed in plain]
    mirrored = [torch.equal(mixed[seed], plain[seed].flip(-1)) for seed in plain]
    assert all(s != m for s, m in zip(same, mirrored, strict=True))
    assert any(same)
    assert any(mirrored)


def test_noise_is_uniform_and_each_views_own():
    noise = mask_noise(rng(), 2, 10_000)
    assert noise.dtype == torch.float32
    assert noise.shape == (2, 10_000)
    assert not torch.equal(noise[0], noise[1])
    uniform = (np.arange(10_000) + 0.5) / 10_000
    assert largest_gap(noise[0].numpy(), uniform) < 0.02


@pytest.mark.parametrize(
    ("height", "width", "size", "middle"),
    [
        (64, 96, (64, 64), (slice(0, 64), slice(16, 80))),
        (96, 64, (64, 64), (slice(16, 80), slice(0, 64))),
        (64, 64, (32, 64), (slice(16, 48), slice(0, 64))),
        (30, 80, (30, 40), (slice(0, 30), slice(20, 60))),
    ],
)
def test_whole_view_is_the_largest_part_in_the_middle(height, width, size, middle):
    image = to_tensor(draw_texture(height, width))
    view = whole_view(image, size)
    part = image[:, *middle]
    assert view.shape == (3, *size)
    assert torch.equal(view, crop(part, Box(0, 0, *part.shape[1:]), size, "bicubic"))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1), (7, 3), (1000, 31)])
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_whole_view_has_the_size_whatever_the_image(height, width, size):
    image = torch.full((3, height, width), 9, dtype=torch.uint8)
    view = whole_view(image, size)
    assert view.shape == (3, *size)
    assert view.unique().tolist() == [9]


def test_normalized_pixels_have_the_statistics_taken_away():
    image = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    mean, std = (0.5, 0.25, 0.2), (0.5, 0.25, 0.1)
    out = normalize(image, mean, std, torch.device("cpu"))
    assert out.flatten().tolist() == pytest.approx([-1, 3, 0], abs=1e-6)
    assert image.flatten().tolist() == [0, 255, 51]


# what they follow from


def test_views_and_noise_follow_from_seed_epoch_and_index(image_folder, tiny):
    source = open_source([str(image_folder(per_class=8))], 3)

    def sample(seed, epoch, index):
        return ViewsDataset(source, replace(tiny, seed=seed))[(epoch, index)]

    again, other = sample(0, 3, 5), sample(0, 3, 5)
    assert torch.equal(again.views, other.views)
    assert torch.equal(again.noise, other.noise)
    for different in (sample(1, 3, 5), sample(0, 4, 5), sample(0, 3, 6)):
        assert not torch.equal(again.views, different.views)
        assert not torch.equal(again.noise, different.noise)


def test_views_do_not_follow_from_what_was_drawn_before(image_folder, tiny):
    source = open_source([str(image_folder())], 3)
    fresh = ViewsDataset(source, tiny)[(0, 2)]
    used = ViewsDataset(source, tiny)
    for index in range(4):
        used[(0, index)]
    np.random.default_rng()
    torch.rand(1)
    assert torch.equal(used[(0, 2)].views, fresh.views)
