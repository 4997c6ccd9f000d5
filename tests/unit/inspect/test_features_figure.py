"""Colours of patches, maps, outliers and duplicates: the numbers, and how they are drawn."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mvmae.figures import page
from mvmae.figures.page import Cell, Group, Row
from mvmae.inspect.features.colours import summarise_variance
from mvmae.inspect.features.map import (
    COLOURS,
    MARGIN,
    MAX_NAMED,
    choose_thumbnails,
    draw_map,
    fit_to_square,
    select_named_classes,
)
from mvmae.metrics import typicality as typical_module
from mvmae.metrics.plane import embed_in_plane
from mvmae.metrics.principal import colors, principal_basis, principal_colors
from mvmae.metrics.typicality import Pair, centre, near_duplicates, spanning_pairs, typicality


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def area(png: bytes, colour: tuple[int, int, int]) -> int:
    return int((np.abs(pixels(png) - colour).max(axis=2) <= 2).sum())


# colours of patches


def groups_of_tokens(counts=(30, 20, 14)) -> torch.Tensor:
    """Tokens in three orthogonal directions, a little apart; 2 images of 32 patches."""
    rng = np.random.default_rng(0)
    basis = np.eye(12)[[2, 5, 9]] * 4
    which = np.repeat([0, 1, 2], counts)
    tokens = basis[which] + 0.05 * rng.standard_normal((len(which), 12))
    return torch.from_numpy(tokens).float().reshape(2, 32, 12)


def test_tokens_of_three_groups_get_three_clearly_different_colours():
    coloured = principal_colors(groups_of_tokens()).reshape(-1, 3)
    parts = coloured.split((30, 20, 14))
    means = [part.mean(dim=0) for part in parts]
    within = max((part - mean).abs()[:, :2].max() for part, mean in zip(parts, means, strict=True))
    assert within < 0.1
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (means[one] - means[other]).abs().max() > 0.5


def test_components_match_scikit_learn():
    from sklearn.decomposition import PCA

    tokens = torch.randn(3, 40, 10, generator=torch.Generator().manual_seed(1)) * torch.arange(
        1, 11
    )
    tokens = tokens + 50
    basis = principal_basis(tokens)
    pca = PCA(3, svd_solver="full").fit(tokens.flatten(0, 1).double().numpy())
    np.testing.assert_allclose(basis.components, pca.components_, atol=1e-5)
    np.testing.assert_allclose(basis.mean, pca.mean_, atol=1e-4)
    np.testing.assert_allclose(basis.explained, pca.explained_variance_ratio_, rtol=1e-5)
    projected = pca.transform(tokens.flatten(0, 1).numpy())
    np.testing.assert_allclose(basis.low, np.quantile(projected, 0.01, axis=0), atol=1e-3)
    np.testing.assert_allclose(basis.high, np.quantile(projected, 0.99, axis=0), atol=1e-3)


def test_one_basis_serves_all_images_and_new_ones():
    tokens = groups_of_tokens()
    basis = principal_basis(tokens)
    together = principal_colors(tokens)
    for image in range(2):
        alone = colors(tokens[image : image + 1], basis)
        assert torch.allclose(alone[0], together[image], rtol=0, atol=1e-6)
    swapped = principal_colors(tokens.flip(0))
    assert torch.allclose(swapped, together.flip(0), rtol=0, atol=1e-4)
    assert not torch.allclose(principal_colors(tokens[:1])[0], together[0], atol=0.05)


def test_the_same_tokens_have_the_same_colours_to_the_last_bit():
    tokens = torch.randn(2, 50, 16, generator=torch.Generator().manual_seed(2))
    assert torch.equal(principal_colors(tokens), principal_colors(tokens.clone()))
    half = principal_colors(tokens.half())
    assert (half - principal_colors(tokens)).abs().max() < 0.02


def test_a_few_extreme_tokens_leave_the_others_their_colours():
    tokens = torch.randn(1, 1000, 4, generator=torch.Generator().manual_seed(3))
    tokens[0, 7] = 1e4
    spread = principal_colors(tokens)[0, :, 0].std()
    tokens[0, 7] = 0
    assert spread > 0.5 * principal_colors(tokens)[0, :, 0].std()


@pytest.mark.parametrize("width", [1, 2, 3])
def test_narrow_tokens_have_colours(width):
    tokens = torch.randn(2, 30, width, generator=torch.Generator().manual_seed(4))
    coloured = principal_colors(tokens)
    assert coloured.isfinite().all()
    assert (coloured[..., width:] == 0.5).all()
    assert (coloured[..., :width].flatten(0, 1).std(dim=0) > 0.1).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -3e5])
def test_identical_tokens_are_gray(value):
    tokens = torch.full((2, 9, 7), value)
    assert (principal_colors(tokens) == 0.5).all()
    assert (principal_basis(tokens).explained == 0).all()


def test_tokens_that_are_not_finite_are_gray_and_change_no_others():
    tokens = groups_of_tokens()
    broken_ones = torch.cat([tokens, torch.full((1, 32, 12), torch.nan)])
    broken_ones[2, 1] = torch.inf
    coloured = principal_colors(broken_ones)
    assert torch.equal(coloured[:2], principal_colors(tokens))
    assert (coloured[2] == 0.5).all()


def test_colours_are_drawn_where_their_patches_are():
    red, blue = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
    picture = np.array([red, red, red, blue, red, red]).reshape(3, 2, 3)
    image = np.full((24, 16, 3), 130, np.uint8)
    rows = [Row([Group([Cell(image)])], "image"), Row([Group([Cell(picture)])], "run")]
    png = page.draw(rows, title="t", note="n")
    drawn = pixels(png)
    is_red, is_blue = (np.abs(drawn - c).max(axis=2) <= 2 for c in ((255, 0, 0), (0, 0, 255)))
    assert is_red.sum() == pytest.approx(5 * is_blue.sum(), rel=0.05)
    rows, columns = np.nonzero(is_red | is_blue)
    blue_rows, blue_columns = np.nonzero(is_blue)
    assert blue_columns.max() == columns.max()
    assert blue_columns.min() == pytest.approx(columns.mean(), abs=20)
    height = rows.max() - rows.min()
    assert blue_rows.min() == pytest.approx(rows.min() + height / 3, abs=3)
    assert area(png, (130, 130, 130)) == pytest.approx(6 * is_blue.sum(), rel=0.05)


def test_each_encoder_has_a_row_and_many_images_are_split_into_blocks():
    image = Cell(np.full((8, 8, 1), 77, np.uint8), captions=("a" * 99,))
    cells = [np.full((2, 2, 3), 0.5), np.full((2, 2, 3), 0.2)]
    rows = [Row([Group([image] * 9)], "image")]
    rows += [Row([Group([Cell(cell)] * 9)], f"encoder {n}", "1 %") for n, cell in enumerate(cells)]
    blocks = page.in_blocks(rows, 8)
    png = page.draw(blocks, title="t" * 300, note="word " * 90, side=page.SMALL_CELL)
    sizes = [area(png, (shade,) * 3) for shade in (77, 127, 51)]
    assert min(sizes) > 8.5 * 150**2 * 1.2**2
    assert max(sizes) < 9.5 * 150**2 * 1.2**2


# maps


def blobs(per_blob: int = 40) -> tuple[torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(0)
    centres = 6 * np.eye(16)[:3]
    labels = np.repeat(np.arange(3), per_blob)
    return torch.from_numpy(centres[labels] + 0.3 * rng.standard_normal((len(labels), 16))), labels


def test_separate_clusters_are_separate_in_the_drawn_pixels():
    features, labels = blobs()
    points = fit_to_square(embed_in_plane(features, "tsne", 0))
    png = draw_map(points, labels, ["a", "b", "c"], {}, title="t", note="n")
    drawn = pixels(png)[:, : int(6.6 * 150)]  # without the legend
    places = []
    for colour in COLOURS[:3]:
        rgb = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        ink = 0.85 * np.array(rgb) + 0.15 * 255  # alpha
        places.append(np.argwhere(np.abs(drawn - ink).max(axis=2) <= 3))
        assert len(places[-1]) > 40 * 20
    for one, other in ((0, 1), (0, 2), (1, 2)):
        apart = np.linalg.norm(places[one].mean(axis=0) - places[other].mean(axis=0))
        size = max(places[n].std(axis=0).max() for n in (one, other))
        assert apart > 4 * size


def test_a_map_is_the_same_to_the_last_bit_for_a_seed():
    features, _ = blobs(10)
    assert (
        embed_in_plane(features, "tsne", 3).tobytes()
        == embed_in_plane(features.clone(), "tsne", 3).tobytes()
    )


@pytest.mark.parametrize("width", [1, 2])
def test_a_map_of_few_narrow_features_is_finite(width):
    features = torch.randn(5, width, generator=torch.Generator().manual_seed(0))
    assert np.isfinite(embed_in_plane(features, "tsne", 0)).all()


def test_a_map_fills_its_square_and_keeps_its_shape():
    points = fit_to_square(np.array([[0.0, 0.0], [10.0, 0.0], [5.0, 2.0]]))
    np.testing.assert_allclose(points[:, 0], [MARGIN, 1 - MARGIN, 0.5])
    assert points[2, 1] - points[0, 1] == pytest.approx((1 - 2 * MARGIN) / 5)
    assert (fit_to_square(np.full((3, 2), 7.0)) == 0.5).all()


def test_thumbnails_do_not_overlap_and_follow_the_order():
    points = np.random.default_rng(0).random((500, 2))
    kept = choose_thumbnails(points, range(500), 30, (2, 1))
    assert kept[0] == 0
    assert len(kept) == 30
    image = np.full((40, 20, 3), 130, np.uint8)
    drawn = [
        area(draw_map(points, None, [], dict.fromkeys(some, image), title="", note=""), (130,) * 3)
        for some in (kept[:1], kept)
    ]
    # Thumbnails at the border are moved inwards and may then overlap.
    assert drawn[1] > 28 * drawn[0]
    everywhere = choose_thumbnails(points, range(500), 10_000, (2, 1))
    assert 30 < len(everywhere) < 250


def test_the_largest_classes_are_named_and_the_others_gray():
    labels = np.repeat(np.arange(30), [1] * 10 + [3] * 20)
    assert select_named_classes(labels) == list(range(10, 30))
    assert len(select_named_classes(labels)) == MAX_NAMED
    points = np.random.default_rng(0).random((len(labels), 2))
    few = draw_map(points, labels, [f"class {n}" for n in range(30)], {}, title="", note="")
    gray = 0.85 * np.array((0xB9, 0xBE, 0xC4)) + 0.15 * 255
    counted = (np.abs(pixels(few)[:, : int(6.6 * 150)] - gray).max(axis=2) <= 2).sum()
    none = draw_map(
        points[10:], labels[10:], [f"class {n}" for n in range(30)], {}, title="", note=""
    )
    without = (np.abs(pixels(none)[:, : int(6.6 * 150)] - gray).max(axis=2) <= 2).sum()
    assert counted > without + 10 * 20


# outliers and duplicates


def test_an_outlier_is_the_least_typical():
    features, _ = blobs()
    features = torch.cat([features, -6 * torch.eye(16, dtype=features.dtype)[7:8]])
    values = typicality(centre(features))
    assert values.argmin() == len(features) - 1
    assert values.sort().values[1] - values.min() > 0.3


def test_typicality_is_the_mean_cosine_to_the_nearest_others():
    features = torch.randn(60, 8, generator=torch.Generator().manual_seed(5))
    unit = features / features.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T).fill_diagonal_(-2)
    expected = cosines.topk(20, dim=1).values.mean(dim=1)
    assert torch.allclose(typicality(features), expected, atol=1e-6)
    few = cosines[:4, :4].topk(3, dim=1).values.mean(dim=1)
    assert torch.allclose(typicality(features[:4]), few, atol=1e-6)
    assert typicality(features[:1]).tolist() == [0.0]
    assert torch.equal(typicality(features), typicality(features.clone()))


def test_planted_duplicates_are_found_and_nothing_else(monkeypatch):
    monkeypatch.setattr(typical_module, "PIECE", 16)  # so that pairs are in several pieces
    features = torch.randn(70, 32, generator=torch.Generator().manual_seed(6))
    features[61] = 2 * features[3]
    features[18] = features[17] + 0.02 * features[0]
    features[69] = features[40] + 0.1 * features[1]
    pairs = near_duplicates(centre(features), 0.95)
    assert {pair[:2] for pair in pairs} == {(3, 61), (17, 18), (40, 69)}
    assert [pair.first for pair in pairs][2] == 40
    assert [pair.cosine for pair in pairs] == sorted((p.cosine for p in pairs), reverse=True)
    assert near_duplicates(features, 0.999)[0][:2] == (3, 61)
    assert near_duplicates(features[:0], 0.5) == near_duplicates(features[:1], -0.9) == []


def test_the_most_similar_of_too_many_pairs_are_kept():
    features = torch.cat([torch.ones(30, 4), torch.tensor([[1.0, 1, 1, 1.1]])])
    pairs = near_duplicates(features, 0.9, limit=40)
    assert [pair[:2] for pair in pairs[:3]] == [(0, 1), (0, 2), (0, 3)]
    assert len(pairs) == 40
    assert all(pair.second < 30 for pair in pairs)


def test_centring_removes_the_mean_unless_nothing_else_is_left():
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(7)) + 100
    assert centre(features).mean(dim=0).abs().max() < 1e-4
    same = torch.full((4, 6), 0.3)
    assert torch.equal(centre(same), same)
    assert len(near_duplicates(centre(same), 0.99)) == 6


def test_only_the_pairs_that_connect_a_group_are_kept():
    pairs = [Pair(0, 1, 1.0), Pair(1, 2, 0.99), Pair(0, 2, 0.98), Pair(5, 7, 0.97), Pair(2, 7, 0.9)]
    assert spanning_pairs(pairs) == [pairs[0], pairs[1], pairs[3], pairs[4]]


def cells(shade: int, count: int) -> list[Cell]:
    image = np.full((16, 16, 3), shade, np.uint8)
    return [Cell(image, captions=("a name $x$", "0.5"))] * count


def test_least_typical_images_are_drawn_above_the_most_typical():
    rows = [Row([Group(cells(60, 9))], "least"), Row([Group(cells(180, 4))], "most")]
    drawn = pixels(page.draw(page.in_blocks(rows[:1], 8) + rows[1:], title="t", note="n"))
    dark, light = (np.argwhere((drawn == shade).all(axis=2)) for shade in (60, 180))
    assert dark[:, 0].max() < light[:, 0].min()
    assert len(dark) == pytest.approx(9 / 4 * len(light), rel=0.05)


def test_both_images_of_a_pair_are_drawn_side_by_side():
    pair = Group(cells(60, 1) + cells(180, 1), "0.99")
    drawn = pixels(page.draw([Row([pair] * 4), Row([pair])], title="t", note="n", side=1.2))
    first, second = ((drawn == shade).all(axis=2) for shade in (60, 180))
    assert first.sum() == pytest.approx(second.sum(), rel=0.02)
    assert first.sum() > 4.7 * (1.2 * 150) ** 2
    assert (first.any(axis=1) == second.any(axis=1)).all()


def test_the_share_of_variance_is_printed_for_every_encoder():
    facts = [
        {"encoder": "runs/a", "explained_total": 0.17},
        {"encoder": "random:runs/a", "explained_total": 0.59},
    ]
    alone = summarise_variance(facts[:1])
    assert alone == "the colours show 17% (a) of the variance of the patches"
    assert summarise_variance(facts) == (
        "the colours show 17% (runs/a), 59% (random:runs/a) of the variance of the patches"
    )
