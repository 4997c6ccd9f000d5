"""`--decode fast`: the views of `exact`, the same pixels where nothing is reduced."""

import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mvmae.config.model import ModelConfig
from mvmae.config.pretrain import PretrainConfig
from mvmae.config.views import ViewsConfig
from mvmae.data.reading import reduced_jpeg
from mvmae.data.reading.decode import UnreadableImageError, decode
from mvmae.data.reading.jpeg_header import Header, announced_pixels, exif_orientation, read_header
from mvmae.data.reading.loader import ViewsDataset, view_batches
from mvmae.data.reading.reduced_jpeg import choose_reduction, fast_views, plain_header, reduced_box
from mvmae.data.sources.open import open_source
from mvmae.method.views import Box, Crop, random_views

ORIENTATION = 0x0112  # EXIF tag
NOTHING = b"\xff\xd8\xff\xda\x00\x02"


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Waves and edges, lopsided, in other colours for each seed."""
    row, column = np.mgrid[0:height, 0:width] / max(height, width)
    rng = np.random.default_rng(seed)
    planes = []
    for _ in range(channels):
        a, b, c = rng.uniform(2, 12, 3)
        wave = np.sin(a * row + b * column * row) + np.cos(c * column) + (row > 0.3 + column / 2)
        planes.append(128 + 40 * wave)
    pixels = np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)
    return pixels if channels > 1 else pixels[..., 0]


def jpeg(height: int, width: int, channels: int = 3, orientation: int | None = None, **options):
    buffer, exif = io.BytesIO(), Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    image = Image.fromarray(picture(height, width, channels))
    image.save(buffer, "JPEG", **({"quality": 90, "exif": exif} | options))
    return buffer.getvalue()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def make_config(size: int | tuple[int, int], channels: int = 3, **views) -> PretrainConfig:
    model = ModelConfig(image_size=size, patch_size=4, in_channels=channels)
    return PretrainConfig(model=model, views=ViewsConfig(**views), decode="fast")


def both(data: bytes, config: PretrainConfig, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Views by the fast way and by the exact one."""
    found = fast_views(data, config, rng(seed))
    assert found is not None
    image = decode(data, config.model.in_channels)
    return found, random_views(image, config.views, config.model.height_width, rng(seed))


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    return (ours.int() - theirs.int()).abs().float()


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_what_is_not_reduced_has_the_pixels_of_exact(orientation, channels, options):
    data = jpeg(61, 83, channels, orientation, **(options if channels == 3 else {}))
    for wanted in (1, 3):
        ours, theirs = both(data, make_config((48, 64), wanted))
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("targets", ["two", "one"])
@pytest.mark.parametrize("flip", ["none", "horizontal", "both"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_settings_of_the_views_are_followed(targets, flip, interpolation):
    config = make_config(16, targets=targets, flip=flip, interpolation=interpolation)
    for seed in range(4):
        small, reduced = jpeg(37, 29), jpeg(256, 200)
        ours, theirs = both(small, config, seed)
        assert torch.equal(ours, theirs)
        ours, theirs = both(reduced, config, seed)
        assert gap(ours, theirs).mean() < 2
        assert ours.shape == theirs.shape == (2, 3, 16, 16)
        assert ours.is_contiguous()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("height", "width"), [(400, 560), (403, 557), (399, 562)])
def test_a_reduced_picture_shows_the_same_crop_to_a_fraction_of_a_pixel(orientation, height, width):
    """Sizes that no reduction divides, turned every way: an error of half a pixel would show."""
    data, config = jpeg(height, width, orientation=orientation), make_config(32)
    for seed in range(6):
        ours, theirs = both(data, config, seed)
        assert gap(ours, theirs).mean() < 0.8
        moved = theirs.roll(1, dims=-1)
        assert gap(ours, theirs).mean() < gap(ours, moved).mean() / 8


def test_the_same_is_drawn_as_by_exact():
    ours, theirs = rng(3), rng(3)
    config = make_config(32)
    data = jpeg(400, 560)
    fast_views(data, config, ours)
    random_views(decode(data, 3), config.views, (32, 32), theirs)
    assert ours.random() == theirs.random()


@pytest.mark.parametrize(
    ("boxes", "reduction"),
    [
        ([(256, 256), (256, 256)], 8),
        ([(256, 256), (256, 255)], 4),
        ([(255, 400), (128, 128)], 4),
        ([(127, 400), (400, 400)], 2),
        ([(63, 400), (400, 400)], 1),
        ([(10, 10)], 1),
    ],
)
def test_the_reduction_leaves_every_crop_the_pixels_of_its_view(boxes, reduction):
    crops = [Crop(Box(0, 0, *box), ()) for box in boxes]
    assert choose_reduction(crops, (32, 32)) == reduction


def test_a_reduced_box_lies_where_the_pixels_are():
    """Of 10 columns a fourth makes 3, of which the last stands for 2: the first if mirrored."""
    box = Box(0, 2, 4, 8)
    plain, mirrored = (Header(4, 10, 3, True, turn) for turn in (1, 2))
    assert reduced_box(box, plain, 4) == (0.5, 0, 2.5, 1)
    assert reduced_box(box, mirrored, 4) == (1, 0, 3, 1)


def test_a_large_photograph_is_decoded_to_few_pixels(monkeypatch):
    seen = []
    original = reduced_jpeg.decode_simplejpeg

    def note_shape(*args):
        seen.append(original(*args).shape)
        return original(*args)

    monkeypatch.setattr(reduced_jpeg, "decode_simplejpeg", note_shape)
    fast_views(jpeg(1200, 1600), make_config(32), rng())
    assert seen == [(3, 150, 200)]


# what is left to the exact decoder


def damage(data: bytes, seed: int) -> bytes:
    draw = rng(seed)
    changed = bytearray(data)
    for place in draw.integers(len(data) // 4, len(data), 1 + seed % 4):
        changed[place] = draw.integers(256)
    return bytes(changed)


def test_a_damaged_file_is_what_it_is_to_exact():
    """Whatever libjpeg complains of is left to the exact decoder, which decides what is read."""
    config, taken = make_config((40, 48)), 0
    files = [jpeg(41, 53), jpeg(41, 53, progressive=True), jpeg(41, 53, 1), jpeg(41, 53, 3, 6)]
    for seed in range(150):
        data = damage(files[seed % 4], seed)
        ours = fast_views(data, config, rng())
        if ours is not None:
            taken += 1
            assert torch.equal(ours, random_views(decode(data, 3), config.views, (40, 48), rng()))
    assert 10 < taken < 140


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_file_is_left_to_exact_which_refuses_it(progressive):
    data, draw = jpeg(41, 53, progressive=progressive), rng()
    before = draw.bit_generator.state
    for end in (*range(2, len(data) - 2, 97), len(data) - 2, len(data) - 1):
        assert fast_views(data[:end], make_config(16), draw) is None
        with pytest.raises(UnreadableImageError):
            decode(data[:end], 3)
    assert draw.bit_generator.state == before


def test_what_is_no_usual_jpeg_is_left_to_exact():
    cmyk, png = io.BytesIO(), io.BytesIO()
    Image.new("CMYK", (20, 20)).save(cmyk, "JPEG")
    Image.new("RGB", (20, 20)).save(png, "PNG")
    twelve_bit, frame = bytearray(jpeg(20, 20)), jpeg(20, 20).index(b"\xff\xc0")
    twelve_bit[frame + 4] = 12
    arithmetic = bytearray(jpeg(20, 20))
    arithmetic[frame + 1] = 0xC9
    bomb = bytearray(jpeg(20, 20))
    bomb[frame + 5 : frame + 9] = 2 * (13400).to_bytes(2, "big")
    for data in (cmyk, png):
        assert plain_header(data.getvalue()) is None
    for data in (twelve_bit, arithmetic, bomb, b"", NOTHING, b"\xff\xd8\xff"):
        assert plain_header(bytes(data)) is None
    assert plain_header(jpeg(7, 7)) is None  # which simplejpeg reads as 7/8 of a larger one
    assert plain_header(jpeg(8, 1)) is not None


def test_tiny_files_are_those_of_exact(tmp_path):
    for side in range(1, 18):
        for other in (1, 3, 8, 17):
            (tmp_path / f"{side}x{other}.jpg").write_bytes(jpeg(side, other))
    assert_same_batches(str(tmp_path), make_config(12), size_of_batch=4)


def assert_same_batches(data: str, config: PretrainConfig, size_of_batch: int) -> None:
    """Whatever the ways, to the last bit."""
    source = open_source([data], config.model.in_channels)
    steps = range(len(source) // size_of_batch)
    found = []
    for way in ("exact", "fast"):
        told = replace(config, decode=way, batch_size=size_of_batch, workers=0)
        found.append(list(view_batches(source, told, steps, rank=0, world_size=1, cuda=False)))
    for exact, quick in zip(*found, strict=True):
        assert torch.equal(exact.views, quick.views)
        assert torch.equal(exact.noise, quick.noise)
        assert exact.skipped == quick.skipped


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_batches_are_those_of_exact_beside_broken_files_and_others(image_folder, suffix):
    folder = image_folder(suffix=suffix, per_class=5)
    broken = jpeg(20, 24)
    (folder / "red" / "broken.jpg").write_bytes(broken[: len(broken) // 2])
    (folder / "red" / "text.jpg").write_text("no picture")
    assert_same_batches(str(folder), make_config(16), size_of_batch=4)


def test_deep_images_are_those_of_exact(tmp_path):
    values = rng().integers(0, 65536, (6, 20, 24, 3)).astype(np.uint16)
    np.save(tmp_path / "stack.npy", values)
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(40, 30 + number))
    config = make_config(16, depth="16", mean=(0.5,) * 3, std=(0.2,) * 3)
    assert not reduced_jpeg.applies(config)
    assert_same_batches(str(tmp_path / "stack.npy"), config, size_of_batch=2)
    assert ViewsDataset(open_source([str(tmp_path)], 3), config).fast_views is None


def test_processes_that_read_give_the_same(image_folder, tiny):
    source = open_source([str(image_folder(size=(200, 180)))], 3)
    config = replace(tiny, decode="fast", batch_size=4)
    one, several = (
        list(
            view_batches(
                source,
                replace(config, workers=workers),
                range(2),
                rank=0,
                world_size=1,
                cuda=False,
            )
        )
        for workers in (0, 2)
    )
    for alone, together in zip(one, several, strict=True):
        assert torch.equal(alone.views, together.views)


def test_odd_files_of_the_wild_are_those_of_exact(data_root, tmp_path, monkeypatch):
    """Of cameras, of test suites of other decoders; nothing is reduced, so every bit counts."""
    with tarfile.open(data_root / "weird.tar.gz") as archive:
        names = [name for name in archive.getnames() if name.lower().endswith((".jpg", ".jpeg"))]
        archive.extractall(tmp_path, names, filter="data")
    monkeypatch.setattr(reduced_jpeg, "REDUCTIONS", ())
    source, config = open_source([str(tmp_path)], 3), make_config(16)
    exact, quick = (ViewsDataset(source, replace(config, decode=way)) for way in ("exact", "fast"))
    for index in range(len(source)):
        ours, theirs = quick[0, index], exact[0, index]
        assert (ours.skipped, ours.index) == (theirs.skipped, theirs.index), source.path(index)
        assert torch.equal(ours.views, theirs.views), source.path(index)
    taken = [fast_views(source.content(index), config, rng()) for index in range(len(source))]
    assert sum(views is not None for views in taken) > len(source) / 2


# headers


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_header_tells_size_and_turn(orientation):
    header = read_header(jpeg(20, 30, orientation=orientation))
    assert header == Header(20, 30, 3, True, orientation)
    assert header.size == ((20, 30) if orientation < 5 else (30, 20))


def test_the_header_tells_colours_that_are_kept_as_they_are():
    assert read_header(jpeg(20, 30)).is_ycc
    assert not read_header(jpeg(20, 30, keep_rgb=True)).is_ycc
    assert read_header(jpeg(20, 30, 1)) == Header(20, 30, 1, True, 1)


def test_fill_bytes_before_a_marker_are_passed_over():
    data = jpeg(20, 30)
    frame = data.index(b"\xff\xc0")
    filled = data[:frame] + b"\xff\xff\xff" + data[frame:]
    assert read_header(filled) == read_header(data)
    assert announced_pixels(filled) == 600
    assert torch.equal(decode(filled, 3), decode(data, 3))


@pytest.mark.parametrize(
    ("content", "orientation"),
    [
        (b"http://ns.adobe.com/xap/1.0/\0", 1),
        (b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0", 6),
        (b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0", 8),
        (b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x00\0\0", 1),
        (b"Exif\0\0MM\0*\0\0\0\x08\0\x00", 1),
        (b"Exif\0\0XX\0*\0\0\0\x08\0\x00", None),
        (b"Exif\0\0MM\0*\0\0\0\xff\0\x00", None),
        (b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12", None),
        (b"Exif\0\0MM", None),
    ],
)
def test_the_turn_is_read_of_either_byte_order_and_damage_is_noticed(content, orientation):
    assert exif_orientation(content) == orientation
