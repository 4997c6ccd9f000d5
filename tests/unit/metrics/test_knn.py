import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mvmae.metrics import knn
from mvmae.metrics.accuracy import topk_accuracy
from mvmae.metrics.knn import (
    QUERIES,
    Neighbours,
    knn_predictions,
    knn_votes,
    nearest_neighbours,
    top1_accuracy,
)


def test_the_nearest_vector_by_angle_decides_alone():
    features = torch.tensor([[1.0, 0.0], [0.0, 10.0], [-1.0, -1.0]])
    queries = torch.tensor([[5.0, 1.0], [0.1, 0.2], [-3.0, -2.0]])
    predictions = knn_predictions(features, torch.tensor([4, 2, 0]), queries, k=1)
    assert predictions.tolist() == [4, 2, 0]


def test_votes_weigh_by_similarity():
    near, far = [1.0, 0.0], [0.6, 0.8]  # cosines 1 and 0.6 to the query
    features = torch.tensor([near, far, far])
    labels, query = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]])
    # exp(1 / T) against 2 exp(0.6 / T): one near vote wins if and only if T < 0.4 / ln 2 = 0.577.
    assert knn_predictions(features, labels, query, k=3, temperature=0.55).item() == 0
    assert knn_predictions(features, labels, query, k=3, temperature=0.60).item() == 1


def test_only_k_neighbours_vote():
    features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.6, 0.8]])
    labels, query = torch.tensor([0, 0, 1, 1]), torch.tensor([[1.0, 0.0]])
    assert knn_predictions(features, labels, query, k=2, temperature=100.0).item() == 0
    labels = torch.tensor([0, 1, 1, 1])
    assert knn_predictions(features, labels, query, k=1, temperature=100.0).item() == 0
    assert knn_predictions(features, labels, query, k=4, temperature=100.0).item() == 1


def test_fewer_vectors_than_k_all_vote():
    features = torch.randn(3, 4)
    assert knn_predictions(features, torch.tensor([1, 1, 1]), features, k=20).tolist() == [1, 1, 1]


def test_many_queries_are_answered_in_their_order():
    queries = torch.randn(2 * QUERIES + 3, 8)
    features, labels = torch.randn(50, 8), torch.randint(0, 5, (50,))
    together = knn_predictions(features, labels, queries)
    apart = [knn_predictions(features, labels, part) for part in queries.split(700)]
    assert torch.equal(together, torch.cat(apart))


def test_top1_is_a_percentage():
    assert top1_accuracy(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 0])) == 75.0


def test_a_low_temperature_lets_the_nearest_decide():
    features = torch.tensor([[0.98, 0.2], [1.0, 0.0]])
    labels, query = torch.tensor([0, 1]), torch.tensor([[1.0, 0.0]])
    for temperature in (0.07, 0.01, 1e-3, 1e-6):
        prediction = knn_predictions(features, labels, query, k=2, temperature=temperature)
        assert prediction.item() == 1, temperature


# Pieces


def test_neighbours_are_the_largest_cosines_nearest_first():
    features, queries = torch.randn(40, 6), 7 * torch.randn(9, 6)
    near = nearest_neighbours(features, queries, 4)
    cosines = F.normalize(queries, dim=1) @ F.normalize(features, dim=1).T
    expected, places = cosines.sort(dim=1, descending=True)
    torch.testing.assert_close(near.similarity, expected[:, :4])
    assert torch.equal(near.indices, places[:, :4])


@pytest.mark.parametrize(("bank", "pieces"), [(1, 1), (7, 5), (50, 3), (49, 64), (1000, 1000)])
@pytest.mark.parametrize("k", [1, 10, 50, 99])
def test_pieces_find_what_the_whole_finds(monkeypatch, bank, pieces, k):
    features, queries = torch.randn(50, 6), torch.randn(64, 6)
    whole = nearest_neighbours(features, queries, k)
    monkeypatch.setattr(knn, "BANK", bank)
    monkeypatch.setattr(knn, "QUERIES", pieces)
    parts = nearest_neighbours(features, queries, k)
    assert torch.equal(parts.indices, whole.indices)
    torch.testing.assert_close(parts.similarity, whole.similarity)
    assert whole.indices.shape == (64, min(k, 50))


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 40), st.integers(1, 40))
def test_pieces_of_any_size_leave_no_vector_out_and_take_none_twice(number, k, bank, pieces):
    features = torch.randn(number, 4, generator=torch.Generator().manual_seed(number))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn, "BANK", bank)
        patch.setattr(knn, "QUERIES", pieces)
        near = nearest_neighbours(features, features, k)
    assert near.indices.shape == (number, min(k, number))
    assert near.indices[:, 0].tolist() == list(range(number))  # each is nearest to itself
    assert all(len(set(row)) == len(row) for row in near.indices.tolist())
    assert (near.similarity.diff(dim=1) <= 0).all()
    assert near.similarity.isfinite().all()


def test_vectors_of_nothing_are_like_none():
    near = nearest_neighbours(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0]]), 2)
    assert near.indices.tolist() == [[1, 0]]
    assert near.similarity.tolist() == [[1, 0]]


# Votes


def votes(similarity: list[float], labels: list[int], **options) -> list[float]:
    """Of neighbours of one query in this order, among four classes."""
    near = Neighbours(torch.tensor([similarity]), torch.arange(len(labels))[None])
    (row,) = knn_votes(near, torch.tensor(labels), 4, **options)
    return row.tolist()


def test_votes_by_hand():
    given = votes([0.9, 0.8, 0.5], [2, 0, 2], k=3, temperature=0.1)
    assert given[0] == pytest.approx(torch.tensor(-1.0).exp().item(), rel=1e-5)
    assert given[2] == pytest.approx(1 + torch.tensor(-4.0).exp().item(), rel=1e-5)
    assert given[1] == given[3] == -torch.inf


def test_neighbours_behind_the_kth_give_nothing():
    assert votes([0.9, 0.8, 0.5], [2, 0, 1], k=2, temperature=0.1)[1] == -torch.inf
    assert votes([0.9, 0.8, 0.5], [2, 0, 1], k=99, temperature=0.1)[1] > 0


def test_a_neighbour_whose_vote_weighs_nothing_has_named_its_class():
    given = votes([1.0, -1.0], [3, 1], k=2, temperature=1e-4)
    assert given == [-torch.inf, 0, -torch.inf, 1]


def test_classes_without_a_neighbour_never_count_in_top_5():
    """With fewer than five classes voted for, the others do not count."""
    near = Neighbours(torch.tensor([[1.0, 0.9]] * 3), torch.tensor([[0, 1]] * 3))
    given = knn_votes(near, torch.tensor([4, 6]), 8, k=2, temperature=0.07)
    labels = torch.tensor([4, 6, 0])
    assert topk_accuracy(given, labels, 1) == pytest.approx(100 / 3)
    assert topk_accuracy(given, labels, 5) == pytest.approx(200 / 3)
    assert topk_accuracy(given, labels, 8) == pytest.approx(200 / 3)
