import pytest
import torch

from mvmae.method.patches import masking_from_noise, patchify, take_rows, unpatchify


def test_patches_run_row_by_row_with_channels_fastest():
    # A pixel's value tells where it is: 100 x channel + 10 x row + column.
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    image = torch.stack([10 * rows + columns, 100 + 10 * rows + columns])[None]
    patches = patchify(image, 2)
    assert patches.shape == (1, 6, 8)
    assert patches[0, 0].tolist() == [0, 100, 1, 101, 10, 110, 11, 111]
    assert patches[0, 2].tolist() == [4, 104, 5, 105, 14, 114, 15, 115]  # end of the first row
    assert patches[0, 3].tolist() == [20, 120, 21, 121, 30, 130, 31, 131]  # the second row


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.int64])
def test_unpatchify_undoes_patchify_of_any_kind_of_number(dtype):
    images = torch.arange(2 * 3 * 8 * 12).reshape(2, 3, 8, 12).to(dtype)
    patches = patchify(images, 4)
    assert patches.dtype == dtype
    assert torch.equal(unpatchify(patches, 4, (2, 3)), images)


def test_the_smallest_noise_stays_visible_in_its_order():
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.3, 0.7], [0.2, 0.4, 0.1, 0.8, 0.6]])
    masking = masking_from_noise(noise, 2)
    assert masking.ids_keep.tolist() == [[1, 3], [2, 0]]
    assert masking.mask.tolist() == [[1, 0, 1, 0, 1], [0, 1, 0, 1, 1]]


def test_ids_restore_undoes_the_shuffle():
    noise = torch.rand(3, 10)
    masking = masking_from_noise(noise, 4)
    shuffled = noise.sort(dim=1).values
    assert torch.equal(shuffled.gather(1, masking.ids_restore), noise)


def test_rows_are_taken_of_each_image_at_its_own_indices():
    x = torch.tensor([[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 10], [11, 12]]])
    taken = take_rows(x, torch.tensor([[2, 0], [1, 1]]))
    assert taken.tolist() == [[[5, 6], [1, 2]], [[9, 10], [9, 10]]]


def test_visible_rows_and_hidden_rows_go_back_to_their_places():
    noise, x = torch.rand(2, 9), torch.randn(2, 9, 4)
    masking = masking_from_noise(noise, 3)
    visible = take_rows(x, masking.ids_keep)
    whole = take_rows(torch.cat([visible, torch.zeros(2, 6, 4)], dim=1), masking.ids_restore)
    assert torch.equal(whole, x * (1 - masking.mask)[..., None])
