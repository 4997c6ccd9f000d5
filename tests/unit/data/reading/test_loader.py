"""Batches are the same whoever reads them, and unreadable images are replaced and named."""

from dataclasses import replace
from itertools import chain

import pytest
import torch

from mvmae.config.pretrain import ObjectiveConfig
from mvmae.config.views import ViewsConfig
from mvmae.data.reading.loader import MAX_ATTEMPTS, Batch, view_batches, whole_batches
from mvmae.data.sources.open import open_source
from mvmae.method.views import whole_view


def batches(source, config, steps=range(6), rank=0, world_size=1) -> list[Batch]:
    loader = view_batches(source, config, steps, rank=rank, world_size=world_size, cuda=False)
    return list(loader)


def paths(batch) -> list[str]:
    return [skip.path for skip in batch.skipped]


def assert_equal(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.views, other.views)
        assert torch.equal(one.noise, other.noise)
        assert paths(one) == paths(other)
        assert one.is_whole == other.is_whole


def whole(source, workers=0, size=(16, 16), batch_size=3):
    return list(
        whole_batches(
            source,
            size,
            interpolation="bicubic",
            batch_size=batch_size,
            workers=workers,
            cuda=False,
        )
    )


@pytest.fixture
def source(image_folder):
    return open_source([str(image_folder(per_class=10))], 3)


@pytest.fixture
def damaged_source(image_folder):
    """20 images, of which one is empty, one cut short and one no image."""
    folder = image_folder(per_class=10)
    (folder / "blue" / "3.jpg").write_bytes(b"")
    (folder / "red" / "7.jpg").write_text("text")
    intact = (folder / "red" / "1.jpg").read_bytes()
    (folder / "red" / "1.jpg").write_bytes(intact[: len(intact) // 2])
    return open_source([str(folder)], 3)


def test_batch_is_both_views_of_each_image_and_their_noise(source, tiny):
    (batch,) = batches(source, tiny, range(1))
    assert batch.views.shape == (2, 8, 3, 16, 16)
    assert batch.views.dtype == torch.uint8
    assert batch.noise.shape == (2, 8, 16)
    assert batch.skipped == []
    assert batch.is_whole


def test_batch_of_one_view(source, tiny):
    objective = ObjectiveConfig(contrastive_weight=0.0)
    config = replace(tiny, views=ViewsConfig(num_views=1), objective=objective)
    (batch,) = batches(source, config, range(1))
    assert batch.views.shape == (1, 8, 3, 16, 16)
    assert batch.noise.shape == (1, 8, 16)


def test_no_workers_and_two_workers_read_the_same(damaged_source, tiny):
    alone = batches(damaged_source, replace(tiny, workers=0))
    assert any(batch.skipped for batch in alone)
    assert_equal(batches(damaged_source, replace(tiny, workers=2)), alone)


@pytest.mark.parametrize("start", [1, 2, 3, 5])
def test_start_at_a_later_step_reads_what_would_have_come(damaged_source, tiny, start):
    assert_equal(
        batches(damaged_source, tiny, range(start, 6)), batches(damaged_source, tiny)[start:]
    )


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_shares_of_several_processes_are_the_batch_of_one(damaged_source, tiny, world_size):
    alone = batches(damaged_source, tiny, range(4))
    shares = [
        batches(damaged_source, tiny, range(4), rank, world_size) for rank in range(world_size)
    ]
    joined = [
        Batch(
            torch.cat([part.views for part in parts], dim=1),
            torch.cat([part.noise for part in parts], dim=1),
            [skip for part in parts for skip in part.skipped],
            all(part.is_whole for part in parts),
        )
        for parts in zip(*shares, strict=True)
    ]
    assert_equal(joined, alone)


def test_another_seed_reads_something_else(source, tiny):
    (first,) = batches(source, tiny, range(1))
    (second,) = batches(source, replace(tiny, seed=1), range(1))
    assert not torch.equal(first.views, second.views)
    assert not torch.equal(first.noise, second.noise)


def test_unreadable_images_are_named_with_the_reason_each_time_they_are_drawn(damaged_source, tiny):
    read = batches(damaged_source, replace(tiny, batch_size=20), range(3))  # three whole epochs
    names = {"blue/3.jpg", "red/1.jpg", "red/7.jpg"}
    for batch in read:
        assert batch.is_whole
        skipped = {"/".join(skip.path.split("/")[-2:]) for skip in batch.skipped}
        assert skipped == names
        assert all(skip.reason for skip in batch.skipped)


def test_replacement_for_an_unreadable_image_is_a_readable_one(tmp_path, image_folder, tiny):
    """Of 8 images only two can be read, so that all views are of their two colours."""
    folder = image_folder(per_class=4)
    kept = {folder / "blue" / "0.jpg", folder / "red" / "0.jpg"}
    for file in set(folder.rglob("*.jpg")) - kept:
        file.write_bytes(b"")
    source = open_source([str(folder)], 3)
    (batch,) = batches(source, tiny, range(1))
    colours = torch.stack([source.read(index).float().mean(dim=(1, 2)) for index in (0, 4)])
    shown = batch.views.float().mean(dim=(0, 3, 4))
    nearest = torch.cdist(shown, colours).min(dim=1)
    assert nearest.values.max() < 15
    assert nearest.indices.unique().tolist() == [0, 1]
    assert len(batch.skipped) >= 6


def test_image_that_takes_a_place_keeps_the_noise_of_the_place(image_folder, tiny):
    folder = image_folder(per_class=10)
    (intact,) = batches(open_source([str(folder)], 3), tiny, range(1))
    (folder / "blue" / "3.jpg").write_bytes(b"")
    (batch,) = batches(open_source([str(folder)], 3), tiny, range(1))
    assert torch.equal(batch.noise, intact.noise)


def test_batch_without_anything_readable_says_so(image_folder, tiny):
    folder = image_folder()
    for file in folder.rglob("*.jpg"):
        file.write_bytes(b"")
    (batch,) = batches(open_source([str(folder)], 3), tiny, range(1))
    assert not batch.is_whole
    assert len(batch.skipped) == 8 * MAX_ATTEMPTS
    assert len(batch.views) == 0


def test_whole_batches_are_every_image_once_in_order(source):
    read = whole(source)
    assert [len(batch.images) for batch in read] == [3, 3, 3, 3, 3, 3, 2]
    assert torch.cat([batch.indices for batch in read]).tolist() == list(range(20))
    images = torch.cat([batch.images for batch in read])
    assert torch.equal(images[7], whole_view(source.read(7), (16, 16)))


def test_whole_batches_leave_out_and_name_what_cannot_be_read(damaged_source):
    read = whole(damaged_source)
    indices = torch.cat([batch.indices for batch in read]).tolist()
    assert indices == [index for index in range(20) if index not in (3, 11, 17)]
    assert list(chain(*map(paths, read))) == [damaged_source.path(index) for index in (3, 11, 17)]


def test_whole_batches_of_no_workers_and_two_workers_are_the_same(damaged_source):
    for one, other in zip(whole(damaged_source, 0), whole(damaged_source, 2), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.indices, other.indices)
        assert paths(one) == paths(other)


def test_whole_batch_without_anything_readable_is_empty(image_folder):
    folder = image_folder(per_class=2)
    for file in folder.rglob("*.jpg"):
        file.write_bytes(b"")
    (batch,) = whole(open_source([str(folder)], 3), batch_size=4)
    assert len(batch.images) == len(batch.indices) == 0
    assert len(batch.skipped) == 4
