"""Deep pixels are cropped, flipped and normalised as what they stand for."""

import numpy as np
import pytest
import torch

from mvmae.config.views import ViewsConfig
from mvmae.errors import UserError
from mvmae.method.views import (
    Box,
    crop,
    normalize,
    random_views,
    to_display_range,
    to_floats,
    whole_view,
)

CPU = torch.device("cpu")


def eight(channels: int = 3) -> torch.Tensor:
    """Waves and a little noise, 60 x 80."""
    row, column = torch.meshgrid(torch.arange(60.0), torch.arange(80.0), indexing="ij")
    waves = [torch.sin(row / (5 + at)) + torch.cos(column / (7 - at)) for at in range(channels)]
    noise = torch.randn(channels, 60, 80, generator=torch.Generator().manual_seed(0))
    return (128 + 50 * torch.stack(waves) + 5 * noise).clamp(0, 255).byte()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_deep_crop_is_the_eight_bit_one_to_within_its_rounding(interpolation):
    image, box = eight(), Box(5, 9, 41, 37)
    plain = crop(image, box, (24, 24), interpolation)
    deep = crop(image.float() / 255, box, (24, 24), interpolation)
    assert deep.dtype == torch.float32
    difference = (255 * deep - plain.float()).abs()
    assert difference.max() <= 1.5
    assert difference.mean() < 0.35


def test_a_deep_crop_invents_no_value_beyond_those_of_its_box():
    image = torch.zeros(2, 32, 32)
    image[:, :, 16:] = torch.tensor([0.8, 3000.0]).view(2, 1, 1)
    view = crop(image, Box(0, 0, 32, 32), (50, 50), "bicubic")
    assert view.amin() == 0
    assert view.amax((1, 2)).tolist() == pytest.approx([0.8, 3000.0])


def test_eight_bit_and_its_shares_are_normalised_alike():
    image, statistics = eight()[None], ((0.5, 0.4, 0.3), (0.2, 0.3, 0.1))
    plain = normalize(image, *statistics, CPU)
    deep = normalize(image.float() / 255, *statistics, CPU)
    assert torch.equal(plain, deep)


def test_normalising_leaves_what_it_was_given_alone():
    images = torch.rand(2, 3, 4, 4)
    before = images.clone()
    normalize(images, (0.5,) * 3, (0.1,) * 3, CPU)
    assert torch.equal(images, before)


def test_values_of_any_range_come_out_with_mean_0_and_deviation_1():
    images = torch.randn(4, 2, 30, 30) * torch.tensor([1e-3, 900.0]).view(2, 1, 1) - 50
    mean, std = images.mean((0, 2, 3)).tolist(), images.std((0, 2, 3)).tolist()
    out = normalize(images, tuple(mean), tuple(std), CPU)
    assert out.mean((0, 2, 3)).abs().max() < 0.05
    torch.testing.assert_close(out.std((0, 2, 3)), torch.ones(2), atol=0.05, rtol=0)


def test_counts_far_from_zero_lose_no_more_than_float32_did():
    whole = 1_000_000_000 + 10_000 * np.random.default_rng(0).standard_normal((1, 1, 50, 50))
    mean, std = whole.mean(), whole.std()
    out = normalize(torch.from_numpy(whole.astype(np.float32)), (mean,), (std,), CPU)
    step = 64 / std  # between float32's neighbours at 1e9
    assert np.abs(out.numpy() - (whole - mean) / std).max() <= step


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"std": (0.0,)}, "std must be between 1e-30 and 1e"),
        ({"std": (float("nan"),)}, "std must be between"),
        ({"std": (1e38,)}, "or with views.depth float the values of the files: scale those beyond"),
        ({"mean": (-1e38,)}, "mean must be between -1e"),
    ],
)
def test_statistics_that_float32_cannot_hold_are_refused(given, complaint):
    with pytest.raises(UserError) as caught:
        ViewsConfig(**given)
    assert complaint in str(caught.value)


def test_shares_are_of_255_for_eight_bit_alone():
    assert to_floats(torch.tensor([255], dtype=torch.uint8)).item() == 1
    assert to_floats(torch.tensor([255.0])).item() == 255


def draw_views(flip: str, count: int = 400) -> list[torch.Tensor]:
    image = eight(1)
    config = ViewsConfig(flip=flip, crop_scale=(1.0, 1.0), num_views=1)
    return [
        random_views(image, config, (60, 80), np.random.default_rng(seed))[0]
        for seed in range(count)
    ]


@pytest.mark.parametrize(("flip", "kinds"), [("none", 1), ("horizontal", 2), ("both", 4)])
def test_flips_give_so_many_pictures_equally_often(flip, kinds):
    whole = whole_view(eight(1), (60, 80))
    upright = {
        "as it is": whole, "mirrored": whole.flip(-1),
        "upside down": whole.flip(-2), "turned": whole.flip(-1, -2),
    }  # fmt: skip
    counts = dict.fromkeys(upright, 0)
    for view in draw_views(flip):
        gaps = {name: (view.int() - one.int()).abs().sum() for name, one in upright.items()}
        counts[min(gaps, key=gaps.get)] += 1
    seen = {name: count for name, count in counts.items() if count}
    assert list(seen) == list(upright)[:kinds]
    assert all(abs(count / 400 - 1 / kinds) < 0.08 for count in seen.values())


def test_flips_top_to_bottom_leave_the_crops_and_mirrors_of_the_first_view_alone():
    image = eight()
    for seed in range(20):
        one, two = (
            random_views(image, ViewsConfig(flip=flip), (16, 16), np.random.default_rng(seed))[0]
            for flip in ("horizontal", "both")
        )
        assert torch.equal(one, two) or torch.equal(one, two.flip(-2))


def test_people_see_eight_bit_as_it_is_and_deep_pixels_stretched():
    image = eight()[None]
    assert torch.equal(to_display_range(image, (0.5,) * 3, (0.1,) * 3), image.float() / 255)
    deep = torch.linspace(-500, 3500, 400).view(1, 1, 20, 20)
    shown = to_display_range(deep, (1500.0,), (1000.0,))
    assert (shown.min().item(), shown.max().item()) == (0, 1)
    assert shown.flatten().diff().min() >= 0
    outlier = deep.clone()
    outlier[..., -1] = 1e6
    assert to_display_range(outlier, (1500.0,), (1000.0,))[0, 0, 10, 0] > 0.4
    flat = torch.full((1, 1, 4, 4), 7.0)
    assert to_display_range(flat, (7.0,), (1.0,)).isfinite().all()
