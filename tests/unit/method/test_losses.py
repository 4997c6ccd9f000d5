import math

import pytest
import torch
from jaxtyping import TypeCheckError

from mvmae.method.losses import normalize_patches, nt_xent, reconstruction_loss


def test_reconstruction_loss_counts_only_hidden_patches():
    target = torch.zeros(1, 2, 4)
    prediction = torch.stack([torch.full((4,), 3.0), torch.full((4,), 1.0)])[None]
    mask = torch.tensor([[0.0, 1.0]])
    assert reconstruction_loss(prediction, target, mask) == 1.0
    assert reconstruction_loss(prediction, target) == 5.0


def test_reconstruction_loss_weighs_every_hidden_patch_alike():
    target = torch.zeros(2, 3, 1)
    prediction = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert reconstruction_loss(prediction, target, mask) == (1 + 4 + 36) / 3


def test_normalized_patches_have_mean_0_and_unbiased_variance_1():
    patches = normalize_patches(7 + 3 * torch.randn(2, 5, 48))
    torch.testing.assert_close(patches.mean(-1), torch.zeros(2, 5), rtol=0, atol=1e-5)
    torch.testing.assert_close(patches.var(-1, unbiased=True), torch.ones(2, 5))


def test_normalized_patches_of_one_colour_are_nothing():
    assert torch.equal(normalize_patches(torch.full((1, 1, 48), 0.25)), torch.zeros(1, 1, 48))


def test_normalized_patches_do_not_see_each_other():
    patches = torch.randn(1, 3, 12)
    alone = normalize_patches(patches[:, 1:2])
    torch.testing.assert_close(normalize_patches(patches)[:, 1:2], alone)


def test_nt_xent_of_two_images_in_the_plane():
    z1 = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    z2 = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    # Cosines with the partner and the two others: 0, (0, 0); -1, (0, 1); 0, (1, -1); -1, (0, -1).
    candidates = [(0, 0, 0), (-1, 0, 1), (0, 1, -1), (-1, 0, -1)]
    losses = [
        -math.log(math.exp(2 * row[0]) / sum(math.exp(2 * cosine) for cosine in row))
        for row in candidates
    ]
    expected = pytest.approx(sum(losses) / 4, rel=1e-6)
    assert nt_xent(z1, z2, temperature=0.5).item() == expected


def test_nt_xent_of_one_image_has_nothing_to_tell_apart():
    assert nt_xent(torch.randn(1, 8), torch.randn(1, 8)) == 0


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_nt_xent_of_opposite_views_of_orthogonal_images(temperature):
    z = torch.eye(4, 8)
    expected = math.log(math.exp(-1 / temperature) + 6) + 1 / temperature
    assert nt_xent(z, -z, temperature=temperature).item() == pytest.approx(expected, rel=1e-5)


def test_nt_xent_falls_when_partners_approach():
    z, noise = torch.randn(8, 16), torch.randn(8, 16)
    losses = [nt_xent(z, z + scale * noise).item() for scale in (3.0, 1.0, 0.3, 0.0)]
    assert losses == sorted(losses, reverse=True)


def test_nt_xent_divides_by_007_unless_told_otherwise():
    z1, z2 = torch.randn(2, 5, 8)
    assert nt_xent(z1, z2) == nt_xent(z1, z2, temperature=0.07)
    assert nt_xent(z1, z2) != nt_xent(z1, z2, temperature=0.1)


def test_nt_xent_over_shares_of_the_rows_is_the_whole():
    z1, z2 = torch.randn(2, 6, 8)
    shares = [
        nt_xent(z1[rows], z2[rows], gathered=(z1, z2), offset=rows.start)
        for rows in (slice(0, 2), slice(2, 4), slice(4, 6))
    ]
    torch.testing.assert_close(torch.stack(shares).mean(), nt_xent(z1, z2))


def test_nt_xent_leaves_its_inputs_alone():
    z1, z2 = torch.randn(2, 3, 8)
    before = z1.clone(), z2.clone()
    nt_xent(z1, z2)
    assert torch.equal(z1, before[0])
    assert torch.equal(z2, before[1])


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_nt_xent_and_its_gradient_are_finite_for_tiny_and_huge_embeddings(scale):
    z1, z2 = (scale * torch.randn(2, 5, 8)).requires_grad_()
    loss = nt_xent(z1, z2, temperature=0.01)
    (gradient,) = torch.autograd.grad(loss, z1)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_nt_xent_is_finite_where_an_embedding_is_zero():
    z = torch.randn(4, 8)
    assert nt_xent(torch.zeros(4, 8), z).isfinite()


def test_nt_xents_gradient_is_that_of_finite_differences():
    z = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: nt_xent(*z.chunk(2), temperature=0.5), z)


def test_shapes_that_do_not_fit_are_an_error_in_tests():
    with pytest.raises(TypeCheckError):
        nt_xent(torch.randn(3, 8), torch.randn(4, 8))
    with pytest.raises(TypeCheckError):
        reconstruction_loss(torch.randn(2, 4, 8), torch.randn(2, 1, 8))
