import math

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from mvmae.method.losses import normalize_patches, nt_xent, reconstruction_loss

temperatures = st.floats(0.03, 2)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def embeddings(draw, least: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Two views of some images; more or less alike."""
    generator = torch.Generator().manual_seed(draw(seeds))
    shape = draw(st.integers(least, 9)), draw(st.integers(1, 12))
    z, other = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    share = draw(st.floats(0, 1))
    return z, share * z + (1 - share) * other + 1e-3


@st.composite
def patches(draw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A prediction, its target and a mask that hides something."""
    generator = torch.Generator().manual_seed(draw(seeds))
    images, number, size = (draw(st.integers(1, top)) for top in (4, 8, 12))
    prediction, target = torch.randn(2, images, number, size, generator=generator)
    mask = (torch.rand(images, number, generator=generator) < draw(st.floats(0, 1))).float()
    mask[0, 0] = 1
    return prediction, target, mask


@given(embeddings(), temperatures)
def test_nt_xent_does_not_care_which_view_is_first(z, temperature):
    first, second = z
    torch.testing.assert_close(
        nt_xent(first, second, temperature=temperature),
        nt_xent(second, first, temperature=temperature),
    )


@given(embeddings(), temperatures, st.randoms())
def test_nt_xent_does_not_care_for_the_order_of_the_images(z, temperature, random):
    first, second = z
    order = list(range(len(first)))
    random.shuffle(order)
    torch.testing.assert_close(
        nt_xent(first[order], second[order], temperature=temperature),
        nt_xent(first, second, temperature=temperature),
    )


@given(embeddings(least=2), temperatures, st.randoms())
def test_nt_xents_gradient_moves_with_the_images(z, temperature, random):
    first, second = z
    order = list(range(len(first)))
    random.shuffle(order)

    def gradient(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a = a.clone().requires_grad_()
        (grad,) = torch.autograd.grad(nt_xent(a, b, temperature=temperature), a)
        return grad

    torch.testing.assert_close(
        gradient(first[order], second[order]), gradient(first, second)[order]
    )


@given(embeddings(), temperatures, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_nt_xent_does_not_care_for_length(z, temperature, one, other):
    first, second = z
    torch.testing.assert_close(
        nt_xent(one * first, other * second, temperature=temperature),
        nt_xent(first, second, temperature=temperature),
    )


@given(embeddings(), temperatures)
def test_nt_xent_lies_between_nothing_and_the_worst_that_cosines_allow(z, temperature):
    loss = nt_xent(*z, temperature=temperature).item()
    candidates = 2 * len(z[0]) - 1
    # Where the partner is opposite and everything else equal.
    worst = math.log(1 + (candidates - 1) * math.exp(min(700, 2 / temperature)))
    assert 0 <= loss <= worst + 1e-9


@given(embeddings(least=2), temperatures, st.floats(0, 2 * math.pi))
def test_nt_xent_does_not_change_when_all_turn_together(z, temperature, angle):
    first, second = (torch.cat([part, part.square()], dim=1) for part in z)  # a plane at least
    turn = torch.eye(first.shape[1], dtype=torch.float64)
    turn[:2, :2] = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    torch.testing.assert_close(
        nt_xent(first @ turn, second @ turn, temperature=temperature),
        nt_xent(first, second, temperature=temperature),
        rtol=1e-6,
        atol=1e-6,
    )


@given(patches())
def test_reconstruction_loss_is_nothing_for_the_target_itself(case):
    _, target, mask = case
    assert reconstruction_loss(target, target, mask) == 0
    assert reconstruction_loss(target, target) == 0


@given(patches())
def test_reconstruction_loss_is_the_mean_over_what_is_hidden(case):
    prediction, target, mask = case
    hidden = mask == 1
    expected = (prediction[hidden] - target[hidden]).square().mean()
    torch.testing.assert_close(reconstruction_loss(prediction, target, mask), expected)


@given(patches())
def test_reconstruction_loss_with_everything_hidden_is_that_of_all(case):
    prediction, target, mask = case
    everything = reconstruction_loss(prediction, target, torch.ones_like(mask))
    torch.testing.assert_close(everything, reconstruction_loss(prediction, target))


@given(seeds, st.integers(4, 12), st.floats(0.5, 100), st.floats(-10, 10))
def test_normalised_patches_forget_brightness_and_contrast(seed, size, contrast, brightness):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(2, 3, size, dtype=torch.float64, generator=generator)
    assume(pixels.var(-1).min() > 0.05)  # the 1e-6 beneath the root is felt in flat patches
    torch.testing.assert_close(
        normalize_patches(pixels * contrast + brightness),
        normalize_patches(pixels),
        rtol=0,
        atol=1e-3,
    )
