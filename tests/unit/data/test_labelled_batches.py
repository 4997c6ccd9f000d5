"""Batches of labelled images and their augmentation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from mvmae.data.augment import mix_images, rand_augment, random_erasing, seeded
from mvmae.data.labelled_batches import BatchOptions, LabelledBatch, labelled_batches
from mvmae.data.reading.loader import view_batches, whole_batches
from mvmae.data.sources.labelled import open_labelled
from mvmae.data.sources.open import open_source
from mvmae.method.views import whole_view

GRAY = (124.0, 116.0, 104.0)


def image(channels: int = 3, side: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (channels, side, side), dtype=torch.uint8)


# Randomness


def test_seeded_gives_the_same_draws_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with seeded(5):
            draws.append(torch.rand(3))
    assert torch.equal(*draws)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(6):
        assert not torch.equal(torch.rand(3), draws[0])


# RandAugment


@pytest.mark.parametrize("channels", [1, 3])
def test_rand_augment_keeps_size_and_kind_of_any_image(channels):
    fill = GRAY[:channels]
    for seed in range(60):
        one = image(channels)
        other = rand_augment(one, 9.0, np.random.default_rng(seed), fill)
        assert other.shape == one.shape
        assert other.dtype == torch.uint8


def test_rand_augment_is_a_function_of_its_generator():
    one = image()
    first = rand_augment(one, 9.0, np.random.default_rng(3), GRAY)
    torch.rand(7)  # global draws between the two
    assert torch.equal(rand_augment(one, 9.0, np.random.default_rng(3), GRAY), first)


def test_rand_augment_leaves_about_a_quarter_of_the_images_alone():
    """Two operations, each with probability one half; a few more, for Identity is one of them."""
    one = 60 + image() // 2  # or AutoContrast would change nothing either
    same = sum(
        torch.equal(rand_augment(one, 9.0, np.random.default_rng((1, seed)), GRAY), one)
        for seed in range(400)
    )
    identity = 1 / 14
    expected = (0.5 + 0.5 * identity) ** 2
    assert stats.binomtest(same, 400, expected).pvalue > 1e-3


def test_stronger_rand_augment_changes_more():
    one = image(side=32)

    def change(magnitude: float) -> float:
        changed = (
            rand_augment(one, magnitude, np.random.default_rng(seed), GRAY) for seed in range(150)
        )
        return float(np.mean([(c.float() - one.float()).abs().mean() for c in changed]))

    assert change(1.0) < change(9.0)


def test_rand_augment_draws_timms_strengths(monkeypatch):
    """A normal deviate of mean 90 % and deviation 5 % of the strongest, and no more than that."""
    from torchvision.transforms import v2

    seen = []
    real = v2.RandAugment

    def spy(*, magnitude: int, **options):
        seen.append(magnitude / (options["num_magnitude_bins"] - 1))
        return real(magnitude=magnitude, **options)

    monkeypatch.setattr(v2, "RandAugment", spy)
    one = image(side=8)
    for seed in range(400):
        rand_augment(one, 9.0, np.random.default_rng(seed), GRAY)
    assert max(seen) <= 1
    assert np.mean(seen) == pytest.approx(0.9, abs=0.01)
    assert np.std(seen) == pytest.approx(0.05, abs=0.01)


# Random erasing, MixUp, CutMix


def test_erasing_replaces_one_box_of_some_images_with_noise():
    images = torch.full((200, 3, 32, 32), 9.0)
    erased = random_erasing(images, 0.25, np.random.default_rng(0))
    changed = (erased != images).any(dim=1)
    chosen = changed.flatten(1).any(dim=1)
    assert stats.binomtest(int(chosen.sum()), 200, 0.25).pvalue > 1e-3
    shares = []
    for mask in changed[chosen]:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all()  # a whole rectangle
        shares.append(box.numel() / 32**2)
    assert 0.01 <= min(shares) < max(shares) <= 0.36
    noise = erased[erased != 9.0]
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(images, torch.full_like(images, 9.0))  # not in place


def test_erasing_of_probability_0_and_1():
    images = torch.zeros(8, 3, 16, 16)
    assert random_erasing(images, 0.0, np.random.default_rng(0)) is images
    erased = random_erasing(images, 1.0, np.random.default_rng(0))
    assert (erased != 0).flatten(1).any(dim=1).all()


def test_mixup_blends_images_and_shares_alike():
    labels = torch.tensor([0, 1, 2, 3])
    images = labels.float()[:, None, None, None].expand(4, 3, 8, 8)
    blended, shares = mix_images(images, labels, 4, mixup=0.8, cutmix=0.0)
    assert torch.equal(shares.sum(dim=1), torch.ones(4))
    torch.testing.assert_close(blended[:, 0, 0, 0], shares @ torch.arange(4.0))
    assert (shares.max(dim=1).values < 1).all()


def test_cutmix_shares_are_those_of_the_area():
    labels = torch.tensor([0, 1, 2, 3])
    images = F.one_hot(labels, 4).float()[:, :, None, None].expand(4, 4, 8, 8)
    cut, shares = mix_images(images, labels, 4, mixup=0.0, cutmix=1.0)
    torch.testing.assert_close(cut.mean(dim=(2, 3)), shares)
    assert set(cut.unique().tolist()) == {0.0, 1.0}


def test_without_mixing_each_image_is_its_class():
    labels = torch.tensor([2, 0])
    images = torch.rand(2, 3, 8, 8)
    same, shares = mix_images(images, labels, 3, mixup=0.0, cutmix=0.0)
    assert same is images
    assert shares.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_with_both_each_batch_gets_one_of_them_half_of_the_time():
    labels = torch.tensor([0, 1])
    images = labels.float()[:, None, None, None].expand(2, 1, 8, 8)
    blends = 0
    for _ in range(300):
        changed, _ = mix_images(images, labels, 2, mixup=0.8, cutmix=1.0)
        blends += int(((changed > 0) & (changed < 1)).any())
    assert stats.binomtest(blends, 300, 0.5).pvalue > 1e-3


# Labelled batches


@pytest.fixture
def labelled_source(image_folder):
    return open_labelled(str(image_folder(per_class=10)), 3).train


def batches(source, steps=range(4), *, augment=9.0, workers=0, rank=0, world_size=1, **options):
    settings = {"seed": 0, "batch_size": 4, "size": (16, 16), "crop_scale": (0.08, 1.0)} | options
    loader = labelled_batches(
        source,
        BatchOptions(interpolation="bicubic", augment=augment, **settings),
        steps,
        rank=rank,
        world_size=world_size,
        workers=workers,
        cuda=False,
    )
    return list(loader)


def assert_equal(ours: list[LabelledBatch], theirs: list[LabelledBatch]) -> None:
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert one.skipped == other.skipped


def test_labelled_batch_is_crops_and_their_classes(labelled_source):
    (batch,) = batches(labelled_source, range(1))
    assert batch.images.shape == (4, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.is_whole
    assert batch.skipped == []
    redder = batches(labelled_source, range(4), augment=False)
    for one in redder:
        blue = one.images.float().mean(dim=(2, 3))
        means = {label: blue[one.labels == label].mean(dim=0) for label in one.labels.tolist()}
        for pixels, label in zip(blue, one.labels.tolist(), strict=True):
            assert (pixels - means[label]).abs().max() < 40  # each class has its colour


def test_an_epoch_is_every_image_once_but_for_the_rest(labelled_source):
    seen = []
    for batch in batches(labelled_source, range(4), augment=False):
        seen += batch.labels.tolist()
    assert len(seen) == 16 == len(labelled_source)
    assert sorted(seen) == sorted(labelled_source.label(index) for index in range(16))


def test_labelled_batches_are_the_same_whoever_reads_them(labelled_source):
    alone = batches(labelled_source, range(6))
    assert_equal(batches(labelled_source, range(6), workers=2), alone)
    assert_equal(batches(labelled_source, range(3, 6)), alone[3:])
    halves = [batches(labelled_source, range(6), rank=rank, world_size=2) for rank in range(2)]
    for whole, first, second in zip(alone, *halves, strict=True):
        assert torch.equal(torch.cat([first.images, second.images]), whole.images)
        assert torch.equal(torch.cat([first.labels, second.labels]), whole.labels)


def test_another_seed_or_epoch_gives_other_crops(labelled_source):
    (first,), (other) = (
        batches(labelled_source, range(1)),
        batches(labelled_source, range(1), seed=1),
    )
    assert not torch.equal(first.images, other[0].images)
    orders = [
        torch.cat([batch.images for batch in batches(labelled_source, range(start, start + 4))])
        for start in (0, 4)
    ]
    assert not torch.equal(*orders)


def test_augmentation_changes_pixels_but_neither_order_nor_crops(labelled_source):
    plain, augmented = (batches(labelled_source, augment=strength) for strength in (False, 9.0))
    unchanged = 0
    for one, other in zip(plain, augmented, strict=True):
        assert torch.equal(one.labels, other.labels)
        pairs = zip(one.images, other.images, strict=True)
        unchanged += sum(torch.equal(a, b) for a, b in pairs)
    assert 0 < unchanged < 16


def test_without_flips_no_image_is_mirrored(labelled_source):
    size = {"size": (24, 20), "crop_scale": (1.0, 1.0)}
    for batch in batches(labelled_source, augment=False, flip=False, **size):
        originals = [labelled_source.read(index) for index in range(len(labelled_source))]
        assert not any(
            torch.equal(one, other.flip(-1)) for one in batch.images for other in originals
        )


def test_unreadable_image_is_replaced_with_its_label(image_folder):
    folder = image_folder(per_class=10)
    for index in range(10):
        if index != 0:
            (folder / "red" / f"{index}.jpg").write_bytes(b"")
    source = open_source([str(folder)], 3)
    found = batches(source, range(5), augment=False)
    assert all(batch.is_whole for batch in found)
    assert sum(len(batch.skipped) for batch in found) >= 9
    labels = torch.cat([batch.labels for batch in found])
    reds = torch.cat([batch.images for batch in found])[labels == 1].float().mean(dim=(2, 3))
    assert len(labels) == 20
    assert reds.std(dim=0).max() < 15 or len(reds) < 2  # all of the one image left


def test_pretraining_batches_are_unaffected(labelled_source, tiny):
    """The code that both share draws the same numbers for pre-training as before."""
    (batch,) = list(view_batches(labelled_source, tiny, range(1), rank=0, world_size=1, cuda=False))
    rng = np.random.default_rng((tiny.seed, 0, 0))
    expected = rng.random((2, 16), dtype=np.float32)
    from mvmae.data.reading.loader import epoch_order

    place = epoch_order(tiny.seed, 0, len(labelled_source)).tolist().index(0)
    if place < 8:
        assert batch.noise[:, place].numpy() == pytest.approx(expected)


# The middle of test images


def test_share_of_a_test_image_is_its_middle():
    pixels = torch.zeros(3, 64, 96, dtype=torch.uint8)
    pixels[:, 16:48, 32:64] = 200
    half = whole_view(pixels, (32, 32), share=0.5)
    assert (half == 200).all()
    assert (whole_view(pixels, (32, 32)) == 0).any()


def test_share_of_1_is_the_whole_centre(labelled_source):
    for one, other in zip(
        *(
            whole_batches(
                labelled_source,
                (16, 16),
                interpolation="bicubic",
                batch_size=4,
                workers=0,
                cuda=False,
                **options,
            )
            for options in ({}, {"share": 1.0})
        ),
        strict=True,
    ):
        assert torch.equal(one.images, other.images)
