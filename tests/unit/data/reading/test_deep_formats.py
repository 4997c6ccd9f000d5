"""Sixteen bits, floats and many channels come out of a file as they went in."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from mvmae.data.reading.decode import (
    UnreadableImageError,
    Wanted,
    decode,
    decode_deep,
    plain_reason,
)
from mvmae.data.reading.deep_formats import read_format, read_values

ORIENTATION = 274


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def deep(channels: int = 5, kind=np.uint16, height: int = 16, width: int = 24) -> np.ndarray:
    """Channels x height x width, each value of its kind likely."""
    if np.issubdtype(kind, np.floating):
        return rng().normal(0, 100, (channels, height, width)).astype(kind)
    limits = np.iinfo(kind)
    shape = (channels, height, width)
    return rng().integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)


def tiff(array: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **{"photometric": "minisblack", **options})
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def make_chunk(name: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def png16(array: np.ndarray, *, orientation: int = 1, is_interlaced: bool = False) -> bytes:
    """Height x width x channels with 16 bits, written by hand."""
    height, width, channels = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    rows = adam7(array) if is_interlaced else rows
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    turn = make_chunk(b"eXIf", exif.tobytes()[6:]) if orientation > 1 else b""

    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, is_interlaced)
    return (
        b"\x89PNG\r\n\x1a\n"
        + make_chunk(b"IHDR", header)
        + turn
        + make_chunk(b"IDAT", zlib.compress(rows))
        + make_chunk(b"IEND", b"")
    )


def shares(array: np.ndarray) -> torch.Tensor:
    """What depth 16 gives of whole numbers."""
    return torch.from_numpy(array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max))


WAYS = {
    "pages": lambda array: tiff(array),
    "bands, one after the other": lambda array: tiff(array, planarconfig="separate"),
    "bands, pixel by pixel": lambda array: tiff(np.moveaxis(array, 0, -1), planarconfig="contig"),
    "compressed tiles": lambda array: tiff(
        array, compression="zlib", predictor=array.dtype.kind != "f", tile=(16, 16)
    ),
    "big-endian BigTIFF": lambda array: tiff(array, byteorder=">", bigtiff=True),
    "npy, channels first": npy,
    "npy, channels last": lambda array: npy(np.ascontiguousarray(np.moveaxis(array, 0, -1))),
    "npy, Fortran's order": lambda array: npy(np.asfortranarray(array)),
    "npy, the other order of bytes": lambda array: npy(array.astype(array.dtype.newbyteorder(">"))),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("channels", [2, 4, 5, 12])
def test_sixteen_bit_channels_are_exact_shares_of_the_full_range(way, channels):
    array = deep(channels)
    image = decode_deep(WAYS[way](array), Wanted(channels, "16"))
    assert image.dtype == torch.float32
    assert torch.equal(image, shares(array))
    assert torch.equal((image.double() * 65535).round().int(), torch.from_numpy(array).int())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.float32])
def test_floating_point_depth_gives_the_numbers_of_the_file(way, kind):
    array = deep(6, kind)
    image = decode_deep(WAYS[way](array), Wanted(6, "float"))
    assert torch.equal(image, torch.from_numpy(array.astype(np.float32)))


@pytest.mark.parametrize("way", WAYS)
def test_eight_bit_of_many_channels_stays_eight_bit(way):
    array = deep(7, np.uint8)
    image = decode_deep(WAYS[way](array), Wanted(7, "8"))
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(array))


def adam7(array: np.ndarray) -> bytes:
    """Rows of the seven passes of an interlaced PNG, each with the filter byte 0."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4))
    passes += ((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    parts = [array[top::down, left::right] for top, left, down, right in passes]
    return b"".join(
        b"\0" + row.astype(">u2").tobytes() for part in parts if part.size for row in part
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("is_interlaced", [False, True])
def test_a_png_of_sixteen_bit_keeps_every_value(channels, orientation, is_interlaced):
    array = np.moveaxis(deep(channels), 0, -1)
    values = read_values(png16(array, orientation=orientation, is_interlaced=is_interlaced), None)
    upright = array if orientation == 1 else np.rot90(array, -1)
    assert values.array.dtype == np.uint16
    assert values.alpha == (channels in (2, 4))
    assert np.array_equal(values.array, upright)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_damaged_png_of_sixteen_bit_ends_no_process(channels):
    data = png16(np.moveaxis(deep(channels), 0, -1))
    for number in range(60):
        damaged = bytearray(data)
        damaged[41 + 7 * number] ^= 1 << number % 8  # from where the pixels begin
        try:
            values = read_values(bytes(damaged), None)
        except Exception:
            continue
        assert values.array.shape == (16, 24, channels)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_of_sixteen_bit_loses_nothing(channels):
    array = deep(channels)
    image = decode_deep(png16(np.moveaxis(array, 0, -1)), Wanted(channels, "16"))
    assert torch.equal(image, shares(array))


def test_eight_bit_files_at_depth_sixteen_are_the_same_shares_as_ever():
    picture = Image.fromarray(np.moveaxis(deep(3, np.uint8), 0, -1).copy())
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    eight, sixteen = decode(stream.getvalue(), 3), decode_deep(stream.getvalue(), Wanted(3, "16"))
    assert torch.equal(sixteen, eight.float() / 255)


def test_deeper_files_at_depth_eight_are_cut_to_it():
    array = deep(5)
    image = decode_deep(tiff(array), Wanted(5, "8"))
    assert torch.equal(image, torch.from_numpy((array // 257).astype(np.uint8)))


def test_three_gray_pages_are_three_channels_at_eight_bit_too():
    array = deep(3, np.uint8)
    assert torch.equal(decode(tiff(array), 3), torch.from_numpy(array))


@pytest.mark.parametrize("channels", [1, 3])
def test_of_another_number_of_pages_the_first_is_taken_for_gray_or_colour(channels):
    array = deep(5, np.uint8)
    image = decode(tiff(array), channels)
    assert torch.equal(image, torch.from_numpy(array[:1]).expand(channels, -1, -1))
    image = decode_deep(tiff(deep(5)), Wanted(channels, "16"))
    assert torch.equal(image, shares(deep(5)[:1]).expand(channels, -1, -1))


@pytest.mark.parametrize("compression", ["tiff_lzw", "zstd", "tiff_adobe_deflate"])
def test_gray_pages_are_read_however_they_are_compressed(compression):
    array = deep(4)
    pages = [Image.fromarray(page) for page in array]
    stream = io.BytesIO()
    pages[0].save(stream, "TIFF", compression=compression, save_all=True, append_images=pages[1:])
    assert torch.equal(decode_deep(stream.getvalue(), Wanted(4, "16")), shares(array))


def test_a_pyramid_is_read_at_its_full_size():
    array = deep(4, np.uint16, 64, 64)
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        options = {"photometric": "minisblack", "planarconfig": "separate", "tile": (32, 32)}
        writer.write(array, subifds=1, **options)
        writer.write(array[:, ::2, ::2], subfiletype=1, **options)
    image = decode_deep(stream.getvalue(), Wanted(4, "16"))
    assert torch.equal(image, shares(array))


def test_nodata_and_no_numbers_become_the_mean_of_the_rest_of_the_channel():
    array = deep(2, np.float32)
    array[0, :4], array[1, 0, 0], array[1, 0, 1] = -9999, np.nan, np.inf
    data = tiff(array, extratags=[(42113, "s", 0, "-9999", True)])
    image = decode_deep(data, Wanted(2, "float"))
    assert torch.isfinite(image).all()
    assert image[0, :4].unique().tolist() == pytest.approx([array[0, 4:].mean()], rel=1e-5)
    known = array[1].flatten()[2:]
    assert image[1, 0, :2].tolist() == pytest.approx([known.mean()] * 2, rel=1e-5)
    assert torch.equal(image[1].flatten()[2:], torch.from_numpy(known))


def test_a_channel_without_any_number_is_refused():
    array = deep(2, np.float32)
    array[1] = np.nan
    with pytest.raises(UnreadableImageError, match="channel 2 has no finite values"):
        decode_deep(npy(array), Wanted(2, "float"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_deep_tiff_is_turned_upright_as_pillow_turns_one(orientation):
    array = deep(1, np.uint8)[0]
    data = tiff(array, extratags=[(ORIENTATION, "H", 1, orientation, True)])
    upright = decode(data, 1)
    assert torch.equal(decode_deep(data, Wanted(1, "8")), upright)
    assert upright.shape[1:] == ((16, 24) if orientation <= 4 else (24, 16))


def test_transparency_is_laid_on_white_and_four_channels_are_left_alone():
    array = np.zeros((1, 3, 4), np.uint16)
    array[0] = [[65535, 0, 0, 65535], [65535, 0, 0, 0], [65535, 0, 0, 13107]]
    three = decode_deep(png16(array), Wanted(3, "16"))[:, 0].T
    expected = torch.tensor([[1, 0, 0], [1, 1, 1], [1, 0.8, 0.8]])
    torch.testing.assert_close(three, expected)
    assert torch.equal(decode_deep(png16(array), Wanted(4, "16")), shares(array).permute(2, 0, 1))
    assert decode_deep(png16(array), Wanted(3, "float"))[:, 0, 1].tolist() == [65535] * 3


def test_deep_colour_becomes_gray_by_its_luminance_and_gray_colour():
    array = deep(3)
    gray = decode_deep(png16(np.moveaxis(array, 0, -1)), Wanted(1, "16"))
    luma = 0.299 * array[0] + 0.587 * array[1] + 0.114 * array[2]
    np.testing.assert_allclose(gray[0].numpy(), luma / 65535, atol=1e-6)
    colour = decode_deep(png16(np.moveaxis(array[:1], 0, -1)), Wanted(3, "16"))
    assert torch.equal(colour, shares(array[:1]).expand(3, -1, -1))


@pytest.mark.parametrize(
    ("data", "wanted", "reason"),
    [
        (npy(deep(5)), Wanted(4, "16"), "the file has 5 channels, not 4"),
        (npy(deep(5)), Wanted(1, "16"), "the file has 5 channels, not 1"),
        (npy(deep(4, np.float32)), Wanted(4, "16"), "float32 are not supported at depth 16"),
        (npy(deep(4, np.int16)), Wanted(4, "8"), "--views.depth float reads them"),
        (npy(np.zeros((2, 2, 2, 2))), Wanted(2, "float"), "shape 2 x 2 x 2 x 2 is not an image"),
        (npy(np.zeros((0, 4), np.uint8)), Wanted(1, "8"), "shape 0 x 4 is not an image"),
        (npy(np.zeros((4, 4), complex)), Wanted(1, "float"), "complex128 is not an image"),
        (npy(deep(4))[:-1], Wanted(4, "16"), "truncated: 1 bytes are missing"),
        (b"\x93NUMPY\x01\x00\x10\x00nonsense", Wanted(1, "8"), ""),
        (tiff(deep(4))[:100], Wanted(4, "16"), ""),
    ],
)
def test_what_cannot_be_read_says_why_in_one_plain_line(data, wanted, reason):
    with pytest.raises(UnreadableImageError) as caught:
        decode_deep(data, wanted)
    assert reason in str(caught.value)
    assert str(caught.value)
    assert "\n" not in str(caught.value)
    assert "/" not in str(caught.value)


def test_pickled_objects_are_never_loaded():
    with pytest.raises(UnreadableImageError, match="object is not an image"):
        decode(npy(np.array([[print]], dtype=object)), 1)


def test_an_array_that_only_announces_pixels_is_refused_before_any_memory_is_taken():
    header = npy(np.zeros((1, 1), np.uint8)).replace(b"(1, 1), }      ", b"(99999, 99999), }")
    with pytest.raises(UnreadableImageError, match=r"decompression bomb|truncated"):
        decode(header, 1)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("way", ["pages", "bands, one after the other", "compressed tiles"])
def test_a_truncated_tiff_of_many_channels_is_unreadable(way, share):
    data = WAYS[way](deep(5, np.uint16, 64, 64))
    with pytest.raises(UnreadableImageError):
        decode_deep(data[: int(share * len(data))], Wanted(5, "16"))


@pytest.mark.parametrize("way", WAYS)
def test_damaged_bytes_never_raise_anything_else(way):
    data, draw = WAYS[way](deep(4, np.uint16, 32, 32)), rng()
    for _ in range(40):
        damaged = bytearray(data)
        for place in draw.integers(0, len(data), 6):
            damaged[place] = draw.integers(256)
        try:
            image = decode_deep(bytes(damaged), Wanted(4, "16"))
        except UnreadableImageError:
            continue
        assert len(image) == 4


@pytest.mark.parametrize(
    ("data", "channels", "depth"),
    [
        (npy(deep(5)), 5, "16"),
        (npy(deep(5, np.float32)[0]), 1, "float"),
        (tiff(deep(5, np.uint8)), 5, "8"),
        (tiff(deep(5, np.int16)), 5, "float"),
        (png16(np.moveaxis(deep(4), 0, -1)), 3, "16"),
        (png16(np.moveaxis(deep(1), 0, -1)), 1, "16"),
    ],
)
def test_the_header_alone_says_how_deep_a_file_is_and_how_many_channels_it_has(
    data, channels, depth
):
    found = read_format(data)
    assert (found.channels, found.depth) == (channels, depth)


def test_reasons_name_no_place_in_a_library():
    assert plain_reason("[Errno 5] cannot identify image file <_io.BytesIO object at 0x7f12>") == (
        "[Errno 5] cannot identify image file"
    )
    assert (
        plain_reason("broken\n  data   stream. You may want to try something")
        == "broken data stream"
    )
