"""Features that are kept in parts, so that an interrupted command resumes."""

import sys
from pathlib import Path

import pytest
import torch
from pixel_source import PixelSource
from torch import Generator, Tensor

from mvmae import encoders
from mvmae.config.model import Size
from mvmae.data.reading.decode import UnreadableImageError
from mvmae.encoders import Features, Preprocessing
from mvmae.errors import UserError
from mvmae.method.vit import Encoder, Variant, initialize

MODULE = sys.modules["mvmae.encoders.features"]  # its name in the package is the function's


class Images(PixelSource):
    """Noise by number; counts what is read of it."""

    name, classes = "noise", ("even", "odd")

    def __init__(self, count: int, *, unreadable: tuple[int, ...] = (), stop: int = -1) -> None:
        self.count, self.unreadable, self.stop = count, unreadable, stop
        self.reads: list[int] = []

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Tensor:
        if index == self.stop:
            raise KeyboardInterrupt
        self.reads.append(index)
        if index in self.unreadable:
            raise UnreadableImageError("no image")
        generator = Generator().manual_seed(index)
        return torch.randint(0, 256, (3, 9, 11), generator=generator, dtype=torch.uint8)

    def label(self, index: int) -> int:
        return index % 2


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(MODULE, "MAX_IMAGES_PER_FILE", 4)


def make_encoder(*, cls_token: bool = True) -> Encoder:
    encoder = Encoder(
        Size(32, 1, 1),
        image_size=(8, 8),
        patch_size=4,
        in_channels=3,
        variant=Variant(cls_token=cls_token),
    )
    initialize(encoder, Generator().manual_seed(0))
    return encoder


def features(source: Images, keep: Path | None, *, cls_token: bool = True, **options) -> Features:
    return encoders.compute_features(
        make_encoder(cls_token=cls_token),
        source,
        Preprocessing((0.5,) * 3, (0.2,) * 3, "bicubic"),
        device=torch.device("cpu"),
        precision_name="fp32",
        batch_size=3,
        workers=0,
        keep=keep,
        **options,
    )


def assert_same(one: Features, other: Features) -> None:
    assert torch.equal(one.mean, other.mean)
    assert (one.cls is None) == (other.cls is None)
    if one.cls is not None and other.cls is not None:
        assert torch.equal(one.cls, other.cls)
    assert torch.equal(one.labels, other.labels)
    assert one.skipped == other.skipped


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("cls_token", [True, False])
def test_kept_or_not_they_are_the_same(tmp_path, count, cls_token):
    options = {"cls_token": cls_token}
    alone = features(Images(count), None, **options)
    assert_same(features(Images(count), tmp_path / "keep", **options), alone)
    assert_same(features(Images(count), tmp_path / "keep", **options), alone)
    assert alone.mean.shape == (count, 32)
    assert (alone.cls is not None) == cls_token
    assert alone.labels.tolist() == [index % 2 for index in range(count)]


def test_parts_are_those_of_the_whole(monkeypatch, tmp_path):
    parts = features(Images(11), tmp_path)
    monkeypatch.setattr(MODULE, "MAX_IMAGES_PER_FILE", 100)
    whole = features(Images(11), tmp_path / "other")
    assert torch.equal(parts.mean, whole.mean)  # batches are the same
    assert torch.equal(parts.labels, whole.labels)
    assert not (tmp_path / "other").exists()  # so few are soon done again


def test_what_was_done_before_an_interruption_is_not_done_again(tmp_path):
    stopped = Images(11, stop=9)
    with pytest.raises(KeyboardInterrupt):
        features(stopped, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "000000000-000000003.safetensors",
        "000000003-000000006.safetensors",
        "000000006-000000009.safetensors",
    ]
    again = Images(11)
    result = features(again, tmp_path)
    assert again.reads == [9, 10]
    assert_same(result, features(Images(11), None))


@pytest.mark.parametrize("content", [b"", b"no tensors", "half"])
def test_a_damaged_part_is_computed_again(tmp_path, content):
    first = features(Images(11), tmp_path)
    file = tmp_path / "000000003-000000006.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    again = Images(11)
    assert_same(features(again, tmp_path), first)
    assert again.reads == [3, 4, 5]
    assert file.read_bytes() == whole


def test_a_part_of_another_make_is_computed_again(tmp_path):
    import safetensors.torch

    first = features(Images(11), tmp_path)
    file = tmp_path / "000000000-000000003.safetensors"
    safetensors.torch.save_file({"x": torch.ones(2)}, file)
    assert_same(features(Images(11), tmp_path), first)


def test_images_that_cannot_be_read_are_kept_with_their_part(tmp_path):
    first = features(Images(11, unreadable=(1, 10)), tmp_path)
    assert [skip.path for skip in first.skipped] == ["noise/1", "noise/10"]
    assert first.labels.tolist() == [0, 0, 1, 0, 1, 0, 1, 0, 1]
    again = Images(11)  # all readable now, and none of it is read
    assert_same(features(again, tmp_path), first)
    assert again.reads == []


def test_a_part_without_a_readable_image_is_a_part(tmp_path):
    source = Images(12, unreadable=(4, 5, 6, 7))
    first = features(source, tmp_path)
    assert_same(features(Images(12), tmp_path), first)
    assert len(first.labels) == 8


def test_more_unreadable_than_not_is_refused_kept_or_not(tmp_path):
    source = Images(11, unreadable=tuple(range(6)))
    for _ in range(2):
        with pytest.raises(UserError, match="6 of the 11 images of noise cannot be read"):
            features(source, tmp_path)


def test_progress_counts_every_image_once_kept_or_not(tmp_path):
    for _ in range(2):
        told: list[int] = []
        features(Images(11, unreadable=(2,)), tmp_path, advance=told.append)
        assert sum(told) == 11


def test_the_encoder_is_left_as_it_was():
    encoder = make_encoder().train()
    encoders.compute_features(
        encoder,
        Images(5),
        Preprocessing((0.5,) * 3, (0.2,) * 3, "bicubic"),
        device=torch.device("cpu"),
        precision_name="fp32",
        batch_size=2,
        workers=0,
    )
    assert encoder.training
