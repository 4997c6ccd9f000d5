"""Images of one group are never each other's negatives, nor on both sides of a split."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from mvmae.data.reading.loader import view_batches
from mvmae.data.sources.groups import describe_groups, group_numbers
from mvmae.data.sources.labelled import open_labelled
from mvmae.data.sources.open import open_source
from mvmae.errors import UserError
from mvmae.method.health import chance_level, contrast_health
from mvmae.method.losses import nt_xent


def nt_xent_loop(z1: np.ndarray, z2: np.ndarray, groups: list[int], temperature: float) -> float:
    """Equation 6 in loops: an image's own other view above, other groups' images below."""
    z = np.concatenate([z1, z2]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    count, total = len(z1), 0.0
    for i in range(2 * count):
        partner = (i + count) % (2 * count)
        above = math.exp(z[i] @ z[partner] / temperature)
        below = above
        for k in range(2 * count):
            if groups[k % count] != groups[i % count]:
                below += math.exp(z[i] @ z[k] / temperature)
        total -= math.log(above / below)
    return total / (2 * count)


@pytest.mark.parametrize(
    "groups",
    [
        [0, 0, 1, 1, 2, 2],
        [5, -3, 5, 5, 9, -4],
        [0, 1, 2, 3, 4, 5],
        [7, 7, 7, 7, 7, 7],
    ],
    ids=["pairs", "three and others alone", "all alone", "one group"],
)
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_grouped_loss_is_that_of_a_loop(groups, temperature):
    z1, z2 = torch.randn(2, 6, 8)
    loss = nt_xent(z1, z2, temperature=temperature, groups=torch.tensor(groups))
    expected = nt_xent_loop(z1.numpy(), z2.numpy(), groups, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_groups_of_one_change_nothing_to_the_last_bit():
    z1, z2 = torch.randn(2, 6, 8)
    assert torch.equal(nt_xent(z1, z2), nt_xent(z1, z2, groups=torch.arange(6)))


def test_shares_of_several_processes_are_the_whole_with_groups_too():
    z1, z2 = torch.randn(2, 6, 8)
    groups = torch.tensor([0, 1, 0, 2, 1, 0])  # across the shares
    shares = [
        nt_xent(z1[rows], z2[rows], gathered=(z1, z2), offset=rows.start, groups=groups)
        for rows in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(torch.stack(shares).mean(), nt_xent(z1, z2, groups=groups))


def test_no_gradient_pushes_images_of_one_group_apart():
    z1 = torch.randn(4, 8, requires_grad=True)
    z2 = torch.randn(4, 8, requires_grad=True)
    groups = torch.tensor([0, 0, 1, 2])
    nt_xent(z1[:1], z2[:1], gathered=(z1, z2), groups=groups).backward()
    assert z1.grad[1].abs().max() == z2.grad[1].abs().max() == 0
    assert z1.grad[2].abs().max() > 0


def test_chance_with_groups_is_the_loss_of_equal_embeddings():
    z = torch.ones(5, 4)
    groups = torch.tensor([0, 0, 0, 1, 2])
    assert chance_level(5, groups) == pytest.approx(nt_xent(z, z, groups=groups).item(), rel=1e-6)
    assert chance_level(5, torch.arange(5)) == pytest.approx(chance_level(5))


def test_health_does_not_compare_images_of_a_group():
    z1, z2 = F.normalize(torch.randn(2, 6, 3, generator=Generator().manual_seed(0)), dim=-1)
    z1[1] = z2[1] = z2[0] = z1[0]  # one patient twice: neither's view is the other's nearest
    groups = torch.tensor([4, 4, 1, 2, 2, -5])
    z, of = torch.cat([z1, z2]), groups.repeat(2)
    cosines = [(z[i] @ z[k]).item() for i in range(12) for k in range(12) if of[i] != of[k]]
    found = [
        max(
            (k for k in range(12) if of[k] != of[i] or k == (i + 6) % 12), key=lambda k: z[i] @ z[k]
        )
        for i in range(12)
    ]
    health = contrast_health(z1, z2, groups)
    assert health["negative_similarity"] == pytest.approx(sum(cosines) / len(cosines), rel=1e-5)
    hits = sum(k == (i + 6) % 12 for i, k in enumerate(found))
    assert health["contrastive_top1"] == pytest.approx(100 * hits / 12)
    assert contrast_health(z1, z2)["contrastive_top1"] < health["contrastive_top1"]


@pytest.fixture
def patients(image_folder, tmp_path):
    """40 images of two classes; a list gives each patient four of them."""
    folder = image_folder(per_class=20)
    lines = ["path,label,group"]
    for label in ("blue", "red"):
        lines += [f"{label}/{n}.jpg,{label},{label}{n // 4}" for n in range(20)]
    (folder / "all.csv").write_text("\n".join(lines))
    return folder


def test_groups_come_from_a_lists_column(patients):
    source = open_source([str(patients / "all.csv")], 3)
    numbers = group_numbers(source, None)
    assert numbers is not None
    assert [len(set(numbers[at : at + 4])) for at in range(0, 40, 4)] == [1] * 10
    assert len(set(numbers)) == 10
    assert describe_groups(numbers) == "10 groups of 4 to 4 images"


def test_groups_come_from_brackets_in_the_path(patients):
    source = open_source([str(patients)], 3)
    numbers = group_numbers(source, r"(blue|red)/1\d")
    assert numbers is not None
    inside = [number for number in numbers if number >= 0]
    assert (len(inside), len(set(inside))) == (20, 2)
    alone = [number for number in numbers if number < 0]
    assert len(set(alone)) == len(alone) == 20
    assert describe_groups(numbers) == "2 groups of 10 to 10 images, 20 images belong to none"


def test_without_groups_there_are_none(patients):
    assert group_numbers(open_source([str(patients)], 3), None) is None


def test_an_expression_that_no_path_has_is_refused(patients):
    with pytest.raises(UserError, match=r"'patient_\(\\d\+\)' matches none of the 40 paths"):
        group_numbers(open_source([str(patients)], 3), r"patient_(\d+)")


def test_a_batch_carries_the_groups_of_what_was_really_read(patients, tiny):
    (patients / "blue" / "0.jpg").write_bytes(b"no image")
    source = open_source([str(patients / "all.csv")], 3)
    numbers = group_numbers(source, None)
    assert numbers is not None
    seen = 0
    for batch in view_batches(
        source, tiny, range(5), rank=0, world_size=1, cuda=False, groups=numbers
    ):
        assert batch.groups is not None
        assert batch.groups.shape == (8,)
        seen += len(batch.groups)
    assert seen == 40


def test_a_split_never_parts_a_group(patients):
    data = open_labelled(str(patients / "all.csv"), 3)
    parts = [{part.group(n) for n in range(len(part))} for part in (data.train, data.test)]
    assert not parts[0] & parts[1]
    assert parts[1] == {"blue1", "red1"}
    assert (len(data.train), len(data.test)) == (32, 8)
    assert data.split == "every fifth group of images of each class is for testing"
