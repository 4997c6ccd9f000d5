"""`--decode gpu`, with a CPU in the GPU's place: the same path, but for who decodes."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mvmae.config.model import ModelConfig
from mvmae.config.pretrain import PretrainConfig
from mvmae.config.views import ViewsConfig
from mvmae.data.reading import gpu_decode
from mvmae.data.reading.gpu_decode import decodes, plain_file, require_decoder
from mvmae.data.reading.loader import Batch, view_batches
from mvmae.data.reading.samples import File, ViewsDataset
from mvmae.data.sources.groups import group_numbers
from mvmae.data.sources.open import open_source
from mvmae.errors import UserError

CPU = torch.device("cpu")
ORIENTATION = 0x0112  # EXIF tag


def picture(height: int, width: int, channels: int = 3) -> Image.Image:
    """Soft waves: what is resized never leaves the range of 8 bit."""
    row, column = np.mgrid[0:height, 0:width] / 12
    waves = [np.sin(row) + np.cos(column), np.sin(row * 2 + column), np.cos(row - 2 * column)]
    pixels = (128 + 30 * np.stack(waves, axis=-1)).astype(np.uint8)
    return Image.fromarray(pixels if channels == 3 else pixels[..., 0])


def jpeg(height: int, width: int, channels: int = 3, **options) -> bytes:
    buffer = io.BytesIO()
    picture(height, width, channels).save(buffer, "JPEG", **({"quality": 92} | options))
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


@pytest.fixture
def folder(tmp_path):
    """Twelve usual photographs in three folders."""
    for number in range(12):
        path = tmp_path / "photos" / f"patient_{number % 3}" / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(60 + number, 90 - 2 * number))
    return tmp_path / "photos"


def config_for(**options) -> PretrainConfig:
    model = ModelConfig(image_size=(24, 32), patch_size=8)
    return PretrainConfig(model=model, batch_size=6, workers=0, **options)


def batches(folder, config: PretrainConfig, decode: str, workers: int = 0) -> list[Batch]:
    source = open_source([str(folder)], config.model.in_channels)
    found = view_batches(
        source,
        replace(config, decode=decode, workers=workers),
        range(2 * (len(source) // config.batch_size)),
        rank=0,
        world_size=1,
        cuda=False,
        groups=group_numbers(source, r"patient_(\d)"),
        device=CPU,
    )
    return list(found)


def assert_alike(ours: list[Batch], theirs: list[Batch], most: int = 1) -> None:
    """The same images, crops and noise, of pixels that may be rounded otherwise."""
    assert len(ours) == len(theirs) > 0
    for mine, exact in zip(ours, theirs, strict=True):
        assert mine.views.shape == exact.views.shape
        assert mine.views.dtype == torch.uint8
        assert (mine.views.int() - exact.views.int()).abs().max() <= most
        assert torch.equal(mine.noise, exact.noise)
        assert torch.equal(mine.groups, exact.groups)
        assert sorted(mine.skipped) == sorted(exact.skipped)
        assert mine.is_whole == exact.is_whole


@pytest.mark.parametrize("targets", ["two", "one"])
@pytest.mark.parametrize(
    "views", [{}, {"flip": "both"}, {"flip": "none", "interpolation": "bilinear"}]
)
def test_views_are_those_of_exact_to_a_rounding(folder, targets, views):
    config = config_for(views=ViewsConfig(targets=targets, **views))
    assert_alike(batches(folder, config, "gpu"), batches(folder, config, "exact"))


@pytest.mark.parametrize("workers", [0, 2])
def test_usual_files_and_all_others_share_a_batch(folder, workers):
    """What is stored on its side, is no colour or no JPEG comes as views from who reads."""
    (folder / "patient_0" / "side.jpg").write_bytes(jpeg(50, 70, exif=turned(6)))
    (folder / "patient_0" / "gray.jpg").write_bytes(jpeg(50, 70, 1))
    (folder / "patient_1" / "flat.png").write_bytes(b"\x89PNG and no more")
    picture(40, 50).save(folder / "patient_2" / "plain.png")
    Image.new("CMYK", (30, 40)).save(folder / "patient_2" / "inks.jpg")
    (folder / "patient_2" / "rgb.jpg").write_bytes(jpeg(50, 70, keep_rgb=True))
    config = config_for()
    assert_alike(batches(folder, config, "gpu", workers), batches(folder, config, "exact"))


def test_a_batch_without_a_usual_file_is_that_of_exact(image_folder):
    config = replace(config_for(), batch_size=4)
    folder = image_folder(suffix=".png", classes=("patient_0", "patient_1"))
    ours, theirs = batches(folder, config, "gpu"), batches(folder, config, "exact")
    for mine, exact in zip(ours, theirs, strict=True):
        assert torch.equal(mine.views, exact.views)


def test_what_the_device_refuses_is_decoded_as_usual(folder):
    """Damage that only its decoder can notice: torchvision stops there, and so does exact.

    Others are noticed by who reads; a damaged one may come in the place of such a one.
    """
    whole = jpeg(64, 80)
    tables = whole.index(b"\xff\xc4")  # the first table of the Huffman code
    damaged = whole[: tables + 5] + b"\xff" * 16 + whole[tables + 21 :]
    for number in range(4):
        (folder / f"patient_{number % 3}" / f"damaged{number}.jpg").write_bytes(damaged)
        (folder / f"patient_{number % 3}" / f"text{number}.jpg").write_text("no picture")
    config = config_for()
    assert isinstance(plain_file(damaged, config, np.random.default_rng(0)), File)
    ours, theirs = batches(folder, config, "gpu"), batches(folder, config, "exact")
    assert sum(len(batch.skipped) for batch in theirs) > 0
    assert_alike(ours, theirs)


def test_a_picture_of_another_size_than_its_header_says_is_decoded_as_usual(folder, monkeypatch):
    original = gpu_decode.decoded_images

    def one_smaller(*args):
        images = original(*args)
        return [images[0][:, 1:], *images[1:]]

    monkeypatch.setattr(gpu_decode, "decoded_images", one_smaller)
    config = config_for()
    assert_alike(batches(folder, config, "gpu"), batches(folder, config, "exact"))


def test_large_pictures_are_decoded_a_few_at_a_time(folder, monkeypatch):
    seen = []
    original = gpu_decode.decoded_images

    def noted(files, *args):
        seen.append(len(files))
        return original(files, *args)

    monkeypatch.setattr(gpu_decode, "decoded_images", noted)
    monkeypatch.setattr(gpu_decode, "AT_ONCE", 3 * 70 * 80)
    config = config_for()
    assert_alike(batches(folder, config, "gpu"), batches(folder, config, "exact"))
    assert max(seen) in (2, 3)
    assert sum(seen) == 2 * 12


@pytest.mark.parametrize(
    ("pixels", "parts"),
    [
        ([], []),
        ([5], [(0, 1)]),
        ([50], [(0, 1)]),
        ([4, 4, 4], [(0, 2), (2, 3)]),
        ([9, 50, 1, 9, 1], [(0, 1), (1, 2), (2, 4), (4, 5)]),
    ],
)
def test_every_picture_is_in_one_part_that_fits(pixels, parts, monkeypatch):
    monkeypatch.setattr(gpu_decode, "AT_ONCE", 10)
    assert [(part.start, part.stop) for part in gpu_decode.parts_of(pixels)] == parts


def test_a_batch_with_a_gap_says_so(folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for number in range(6):
        (empty / f"{number}.jpg").write_bytes(b"\xff\xd8\xff no picture")
    source = open_source([str(empty)], 3)
    config = replace(config_for(), decode="gpu")
    (batch,) = view_batches(source, config, range(1), rank=0, world_size=1, cuda=False, device=CPU)
    assert not batch.is_whole
    assert batch.skipped


@pytest.mark.parametrize(
    ("data", "is_taken"),
    [
        (jpeg(40, 50), True),
        (jpeg(40, 50, progressive=True), True),
        (jpeg(40, 50)[:-2], False),
        (jpeg(40, 50) + b"\0", False),
        (jpeg(40, 50, 1), False),
        (jpeg(40, 50, keep_rgb=True), False),
        (jpeg(40, 50, exif=turned(1)), True),
        (jpeg(40, 50, exif=turned(3)), False),
        (jpeg(40, 32 * 32), True),
        (jpeg(40, 32 * 32 + 1), False),
        (b"", False),
    ],
)
def test_only_what_a_gpu_decodes_alike_is_sent_as_a_file(data, is_taken):
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    file = plain_file(data, config_for(), rng)
    assert (file is not None) == is_taken
    assert (rng.bit_generator.state == before) != is_taken


def test_gray_is_decoded_where_gray_is_wanted(tmp_path):
    for number in range(6):
        (tmp_path / f"patient_{number}.jpg").write_bytes(jpeg(40 + number, 50, 1))
    config = replace(config_for(), model=ModelConfig(image_size=24, patch_size=8, in_channels=1))
    dataset = ViewsDataset(open_source([str(tmp_path)], 1), config, plain_file)
    assert isinstance(dataset[0, 0].views, File)
    assert_alike(batches(tmp_path, config, "gpu"), batches(tmp_path, config, "exact"))


def test_a_batch_of_files_survives_being_passed_between_processes(folder):
    """As a loader passes it, whose tensors lie in shared memory."""
    config = replace(config_for(), decode="gpu")
    reading = ViewsDataset(open_source([str(folder)], 3), config, plain_file)
    order = [[(0, index) for index in range(6)]]
    alone, passed = (
        next(
            iter(
                DataLoader(
                    reading,
                    batch_sampler=order,
                    collate_fn=gpu_decode.collate,
                    num_workers=workers,
                )
            )
        )
        for workers in (0, 1)
    )
    for mine, theirs in zip(alone[1:], passed[1:], strict=True):
        assert torch.equal(mine, theirs)
    assert len(alone.lengths) == 6


def test_the_device_is_asked_for_before_anything_else():
    assert decodes(CPU)
    require_decoder(config_for(decode="exact"), CPU)
    with pytest.raises(UserError, match="--decode gpu needs a CUDA device"):
        require_decoder(config_for(decode="gpu"), CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nvjpeg_gives_nearly_the_pixels_of_exact(folder):
    device, config = torch.device("cuda"), config_for(decode="gpu")
    require_decoder(config, device)
    source = open_source([str(folder)], 3)
    reading, exact = ViewsDataset(source, config, plain_file), ViewsDataset(source, config)
    indices = [(0, index) for index in range(len(source))]
    batch = gpu_decode.on_device(gpu_decode.collate([reading[at] for at in indices]), exact, device)
    theirs = torch.stack([exact[at].views for at in indices], dim=1)
    difference = (batch.views.cpu().int() - theirs.int()).abs().float()
    assert batch.views.device.type == "cuda"
    assert difference.mean() < 1.5
    assert difference.quantile(0.999) < 16
