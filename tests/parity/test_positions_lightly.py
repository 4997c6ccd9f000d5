import pytest
import torch

from mvmae.method.vit import sincos_positions

pytestmark = pytest.mark.parity
utils = pytest.importorskip("lightly.models.utils")


@pytest.mark.parametrize("width", [32, 768])
@pytest.mark.parametrize("side", [2, 14])
def test_positions_are_lightlys(width, side):
    theirs = utils.get_2d_sine_cosine_positional_embedding(width, side, cls_token=False)
    expected = torch.as_tensor(theirs).float()
    torch.testing.assert_close(sincos_positions(width, (side, side)), expected)


def test_positions_of_a_part_of_a_grid_are_those_of_the_part():
    theirs = utils.get_2d_sine_cosine_positional_embedding(64, 9, cls_token=False)
    part = torch.as_tensor(theirs).float().reshape(9, 9, 64)[:3, :7].flatten(0, 1)
    torch.testing.assert_close(sincos_positions(64, (3, 7)), part)
