import pytest
import torch
from torch import inf, nan, tensor

from mvmae.metrics.accuracy import (
    confusion_matrix,
    most_confused,
    per_class_accuracy,
    topk_accuracy,
)


def test_top_k_by_hand():
    scores = tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 3.0, 1.0]])
    labels = tensor([0, 1, 2])
    assert topk_accuracy(scores, labels, 1) == pytest.approx(100 / 3)
    assert topk_accuracy(scores, labels, 2) == pytest.approx(200 / 3)
    assert topk_accuracy(scores, labels, 3) == 100
    assert topk_accuracy(scores, labels, 5) == 100


def test_of_equal_scores_the_smaller_class_is_first_as_in_a_prediction():
    scores = torch.zeros(3, 3)
    assert topk_accuracy(scores, tensor([0, 1, 2]), 1) == pytest.approx(100 / 3)
    assert topk_accuracy(scores, tensor([1, 1, 1]), 2) == 100
    assert topk_accuracy(scores, tensor([2, 2, 2]), 2) == 0
    for _ in range(20):
        scores, labels = torch.randint(0, 3, (50, 4)).float(), torch.randint(0, 4, (50,))
        right = (scores.argmax(dim=1) == labels).double().mean().item()
        assert topk_accuracy(scores, labels, 1) == pytest.approx(100 * right)


def test_a_class_that_was_not_named_never_counts():
    scores = tensor([[-inf, 0.0, -inf], [-inf, 0.0, -inf]])
    assert topk_accuracy(scores, tensor([0, 1]), 1) == 50
    assert topk_accuracy(scores, tensor([0, 2]), 3) == 0


def test_confusion_has_a_row_for_what_is_and_a_column_for_what_was_said():
    confusion = confusion_matrix(tensor([0, 2, 2, 1]), tensor([0, 0, 0, 1]), 3)
    assert confusion.tolist() == [[1, 0, 2], [0, 1, 0], [0, 0, 0]]
    empty = torch.empty(0, dtype=torch.int64)
    assert confusion_matrix(empty, empty, 2).tolist() == [[0, 0], [0, 0]]


def test_a_class_without_a_test_image_has_no_accuracy():
    values = per_class_accuracy(tensor([[1, 0, 2], [0, 1, 0], [0, 0, 0]]))
    torch.testing.assert_close(values, tensor([100 / 3, 100, nan]).double(), equal_nan=True)


def test_the_most_frequent_mistakes_come_first():
    confusion = tensor([[9, 1, 4], [0, 9, 0], [2, 2, 9]])
    assert most_confused(confusion, 3) == [(0, 2, 4), (2, 0, 2), (2, 1, 2)]
    assert most_confused(confusion, 99) == [(0, 2, 4), (2, 0, 2), (2, 1, 2), (0, 1, 1)]
    assert confusion[0, 0] == 9  # what was given is left as it was


def test_where_all_is_right_nothing_is_confused():
    assert most_confused(torch.eye(3, dtype=torch.int64), 3) == []
