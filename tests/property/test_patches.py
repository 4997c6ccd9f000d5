import torch
from hypothesis import given
from hypothesis import strategies as st

from mvmae.config.model import num_visible
from mvmae.method.patches import masking_from_noise, patchify, take_rows, unpatchify

small = st.integers(1, 5)
seeds = st.integers(0, 2**32 - 1)


def make_noise(seed: int, images: int, patches: int) -> torch.Tensor:
    return torch.rand(images, patches, generator=torch.Generator().manual_seed(seed))


@st.composite
def noises_and_counts(draw) -> tuple[torch.Tensor, int]:
    """Noise of some images, and how many of their patches stay visible."""
    noise = make_noise(draw(seeds), draw(small), draw(st.integers(2, 64)))
    return noise, draw(st.integers(1, noise.shape[1] - 1))


@given(batch=small, rows=small, columns=small, patch=small, channels=st.integers(1, 5))
def test_unpatchify_undoes_patchify(batch, rows, columns, patch, channels):
    images = torch.randn(batch, channels, rows * patch, columns * patch)
    patches = patchify(images, patch)
    assert patches.shape == (batch, rows * columns, patch * patch * channels)
    assert torch.equal(unpatchify(patches, patch, (rows, columns)), images)


@given(batch=small, rows=small, columns=small, patch=small, channels=st.integers(1, 5))
def test_patchify_undoes_unpatchify(batch, rows, columns, patch, channels):
    patches = torch.randn(batch, rows * columns, patch * patch * channels)
    images = unpatchify(patches, patch, (rows, columns))
    assert images.shape == (batch, channels, rows * patch, columns * patch)
    assert torch.equal(patchify(images, patch), patches)


@given(row=small, column=small, patch=small, channels=st.integers(1, 3), seed=seeds)
def test_a_patch_is_a_square_of_the_image(row, column, patch, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, channels, 6 * patch, 7 * patch, generator=generator)
    square = image[0, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
    found = patchify(image, patch)[0, row * 7 + column]
    assert torch.equal(found.reshape(patch, patch, channels), square.permute(1, 2, 0))


@given(noises_and_counts())
def test_a_mask_parts_the_patches_into_visible_and_hidden(case):
    noise, visible = case
    masking = masking_from_noise(noise, visible)
    everything = torch.arange(noise.shape[1])
    for keep, hidden, restore, mask in zip(*masking, strict=True):
        assert torch.equal(hidden.sort().values, mask.nonzero().flatten())
        assert len(keep) == visible
        assert len(keep) + len(hidden) == noise.shape[1]
        assert torch.equal(torch.cat([keep, hidden]).sort().values, everything)
        assert torch.equal(restore.sort().values, everything)


@given(noises_and_counts())
def test_no_hidden_patch_drew_less_than_a_visible_one(case):
    noise, visible = case
    mask = masking_from_noise(noise, visible).mask
    shown = noise.masked_fill(mask == 1, 0).max(dim=1).values
    hidden = noise.masked_fill(mask == 0, 1).min(dim=1).values
    assert (shown <= hidden).all()


@given(noises_and_counts())
def test_shuffled_rows_are_restored(case):
    noise, visible = case
    masking = masking_from_noise(noise, visible)
    x = torch.randn(*noise.shape, 3)
    order = noise.argsort(dim=1)
    assert torch.equal(take_rows(take_rows(x, order), masking.ids_restore), x)
    assert torch.equal(take_rows(x, order)[:, :visible], take_rows(x, masking.ids_keep))


@given(noises_and_counts(), st.floats(0.1, 10), st.floats(-5, 5))
def test_masks_depend_on_the_order_of_the_noise_alone(case, factor, offset):
    noise, visible = case
    changed = (noise.double() * factor + offset).float()
    if all(len(row.unique()) == len(row) for row in changed):  # rounding may make draws equal
        first, second = (masking_from_noise(n, visible) for n in (noise, changed))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@given(patches=st.integers(2, 2000), ratio=st.floats(0.01, 0.99))
def test_visible_and_hidden_patches_are_all_of_them(patches, ratio):
    visible = num_visible(patches, ratio)
    hidden = patches - visible
    assert 0 <= visible < patches
    assert hidden / patches >= ratio - 1e-6
    assert (hidden - 1) / patches < ratio


@given(patches=st.integers(2, 500), ratios=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)))
def test_a_larger_ratio_never_shows_more(patches, ratios):
    assert num_visible(patches, max(ratios)) <= num_visible(patches, min(ratios))
