"""Every kind of image file becomes the pixels a person sees, or says why it cannot."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from mvmae.data.reading.decode import UnreadableImageError, decode
from mvmae.data.reading.pixel_depth import rgb_to_gray

ORIENTATION = 0x0112  # EXIF tag


def encode_image(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def expected_colours(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def scene(width: int = 24, height: int = 16) -> Image.Image:
    """Smooth, lopsided in both directions, with three different channels."""
    row, column = np.mgrid[0:height, 0:width]
    red, green = 255 * column / (width - 1), 255 * row / (height - 1)
    blue = 255 * (1 - column / (width - 1)) * (row / (height - 1))
    return Image.fromarray(np.stack([red, green, blue], axis=-1).round().astype(np.uint8))


def noise(width: int = 40, height: int = 32) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "TGA"])
def test_colour_of_a_lossless_file_is_exact(kind):
    assert torch.equal(decode(encode_image(scene(), kind), 3), expected_colours(scene()))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
def test_gray_becomes_three_equal_channels(kind):
    gray = scene().convert("L")
    image = decode(encode_image(gray, kind), 3)
    assert image.shape == (3, 16, 24)
    assert torch.equal(image, torch.from_numpy(np.array(gray)).expand(3, -1, -1))


def test_gray_stays_one_channel_where_one_is_asked_for():
    gray = scene().convert("L")
    image = decode(encode_image(gray, "PNG"), 1)
    assert torch.equal(image, torch.from_numpy(np.array(gray))[None])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_colour_becomes_the_gray_that_pillow_makes(kind):
    data = encode_image(scene(), kind)
    with Image.open(io.BytesIO(data)) as file:
        theirs = np.array(file.convert("L")).astype(int)
    difference = np.abs(decode(data, 1)[0].numpy() - theirs)
    assert difference.max() <= 4  # two JPEG decoders and two roundings
    assert difference.mean() < 1


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg_is_close_to_pillows(quality, subsampling):
    data = encode_image(scene(96, 64), "JPEG", quality=quality, subsampling=subsampling)
    with Image.open(io.BytesIO(data)) as file:
        theirs = expected_colours(file)
    difference = (decode(data, 3).int() - theirs.int()).abs()
    assert difference.max() <= 4
    assert difference.float().mean() < 0.5


def test_progressive_jpeg_is_close_to_pillows():
    data = encode_image(scene(96, 64), "JPEG", progressive=True)
    with Image.open(io.BytesIO(data)) as file:
        theirs = expected_colours(file)
    assert (decode(data, 3).int() - theirs.int()).abs().float().mean() < 0.5


def test_gray_jpeg_is_read_with_one_and_with_three_channels():
    data = encode_image(scene(96, 64).convert("L"), "JPEG")
    one, three = decode(data, 1), decode(data, 3)
    assert one.shape == (1, 64, 96)
    assert torch.equal(three, one.expand(3, -1, -1))


@pytest.mark.parametrize(
    ("inks", "colour"),
    [
        ((0, 255, 255, 0), (255, 0, 0)),
        ((255, 0, 255, 0), (0, 255, 0)),
        ((255, 255, 0, 0), (0, 0, 255)),
        ((0, 0, 0, 0), (255, 255, 255)),
        ((0, 0, 0, 255), (0, 0, 0)),
    ],
)
def test_cmyk_jpeg_has_the_right_colours(inks, colour):
    data = encode_image(Image.new("CMYK", (16, 16), inks), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as file:
        assert file.mode == "CMYK"
        theirs = expected_colours(file)
    image = decode(data, 3)
    assert torch.equal(image, theirs)
    assert (image.float().mean(dim=(1, 2)) - torch.tensor(colour)).abs().max() < 6


def test_palette_is_looked_up():
    picture = scene().quantize(16)
    assert picture.mode == "P"
    assert torch.equal(decode(encode_image(picture, "PNG"), 3), expected_colours(picture))


def test_transparent_palette_entry_is_laid_on_white():
    picture = Image.new("P", (4, 2))
    picture.putpalette([255, 0, 0, 0, 0, 255])  # 0 red, 1 blue
    picture.putdata([0, 0, 1, 1, 0, 1, 0, 1])
    image = decode(encode_image(picture, "PNG", transparency=0), 3)
    white, blue = [255, 255, 255], [0, 0, 255]
    rows = [[white, white, blue, blue], [white, blue, white, blue]]
    assert image.permute(1, 2, 0).tolist() == rows


def test_transparent_colour_of_an_rgb_png_is_laid_on_white():
    picture = Image.new("RGB", (2, 1), (10, 20, 30))
    picture.putpixel((1, 0), (200, 0, 0))
    image = decode(encode_image(picture, "PNG", transparency=(10, 20, 30)), 3)
    assert image[:, 0].T.tolist() == [[255, 255, 255], [200, 0, 0]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_rgba_is_laid_on_white(kind):
    picture = Image.new("RGBA", (3, 1))
    picture.putdata([(200, 100, 0, 255), (200, 100, 0, 0), (200, 100, 0, 51)])
    image = decode(encode_image(picture, kind), 3)[:, 0].T.tolist()
    assert image[:2] == [[200, 100, 0], [255, 255, 255]]
    fifth = [255 + (value - 255) * 0.2 for value in (200, 100, 0)]
    assert image[2] == pytest.approx(fifth, abs=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_gray_with_alpha_is_laid_on_white(channels):
    picture = Image.new("LA", (3, 1))
    picture.putdata([(100, 255), (100, 0), (100, 51)])
    image = decode(encode_image(picture, "PNG"), channels)
    assert image.shape == (channels, 1, 3)
    assert image[0, 0].tolist() == pytest.approx([100, 255, 224], abs=1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_gray_uses_the_full_range(kind):
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    image = decode(encode_image(Image.fromarray(values), kind), 1)
    assert image.flatten().tolist() == list(range(256))


def test_sixteen_bit_gray_of_the_other_byte_order_is_the_same():
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    picture = Image.frombytes("I;16B", (16, 16), values.astype(">u2").tobytes())
    assert decode(encode_image(picture, "TIFF"), 1).flatten().tolist() == list(range(256))


def test_thirty_two_bit_integers_that_fit_sixteen_are_read():
    values = np.array([[0, 65535]], dtype=np.int32)
    assert decode(encode_image(Image.fromarray(values), "TIFF"), 1).tolist() == [[[0, 255]]]


@pytest.mark.parametrize("value", [-1, 65536, 2**31 - 1])
def test_thirty_two_bit_integers_beyond_sixteen_are_refused(value):
    picture = Image.fromarray(np.array([[0, value]], dtype=np.int32))
    with pytest.raises(UnreadableImageError, match="beyond 16 bit"):
        decode(encode_image(picture, "TIFF"), 3)


def test_floating_point_pixels_are_refused():
    picture = Image.fromarray(np.zeros((4, 4), dtype=np.float32))
    with pytest.raises(UnreadableImageError, match="floating-point"):
        decode(encode_image(picture, "TIFF"), 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_picture_is_turned_upright_as_exif_says(kind, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encode_image(scene(), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as file:
        upright = ImageOps.exif_transpose(file)
    assert upright.size == ((24, 16) if orientation <= 4 else (16, 24))
    image = decode(data, 3)
    assert image.shape == (3, *upright.size[::-1])
    difference = (image.int() - expected_colours(upright).int()).abs().float().mean()
    assert difference <= (0 if kind == "PNG" else 1)


def test_the_eight_orientations_are_eight_pictures():
    pictures = set()
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        image = decode(encode_image(scene(), "PNG", exif=exif), 3)
        pictures.add((tuple(image.shape), image.numpy().tobytes()))
    assert len(pictures) == 8


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode_image(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as file:
        assert file.n_frames == 3
    assert torch.equal(decode(data, 3), expected_colours(frames[0]))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "BMP"])
def test_one_bit_is_black_and_white(kind):
    picture = Image.new("1", (3, 1))
    picture.putdata([255, 0, 255])
    assert decode(encode_image(picture, kind), 1).tolist() == [[[255, 0, 255]]]


def test_result_can_be_written_to():
    image = decode(encode_image(scene(), "PNG"), 3)
    image[0] = 7
    assert image[0].unique().tolist() == [7]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_truncated_file_is_unreadable(kind, share):
    data = encode_image(noise(), kind)
    with pytest.raises(UnreadableImageError):
        decode(data[: int(share * len(data))], 3)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"only some words\n" * 100],
    ids=["empty", "a zero", "JPEG magic alone", "PNG magic alone", "text"],
)
def test_what_is_no_image_is_unreadable(data):
    with pytest.raises(UnreadableImageError) as caught:
        decode(data, 3)
    reason = str(caught.value)
    assert reason
    assert "\n" not in reason


@pytest.mark.parametrize("data", [b"", b"text"])
def test_reason_names_no_object_in_memory(data):
    with pytest.raises(UnreadableImageError) as caught:
        decode(data, 3)
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
def test_damaged_bytes_never_raise_anything_else(kind):
    data = encode_image(noise(), kind)
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(data)
        for place in rng.integers(len(data) // 4, len(data), 8):
            damaged[place] = rng.integers(256)
        try:
            image = decode(bytes(damaged), 3)
        except UnreadableImageError:
            continue
        assert image.dtype == torch.uint8
        assert len(image) == 3


def test_a_bomb_is_unreadable():
    """A few bytes that would become 3.6 gigapixels."""
    header = encode_image(Image.new("1", (1, 1)), "PPM")
    assert header.startswith(b"P4\n1 1\n")
    with pytest.raises(UnreadableImageError, match="decompression bomb"):
        decode(header.replace(b"1 1\n", b"60000 60000\n", 1), 3)


def test_a_jpeg_bomb_is_unreadable():
    """A kilobyte that becomes 180 megapixels, just above what Pillow refuses."""
    data = bytearray(encode_image(Image.new("L", (64, 64)), "JPEG"))
    frame = data.index(b"\xff\xc0")  # length, precision, then height and width
    data[frame + 5 : frame + 9] = 2 * (13400).to_bytes(2, "big")
    with pytest.raises(UnreadableImageError, match="decompression bomb"):
        decode(bytes(data), 1)


def test_postscript_under_another_name_never_reaches_ghostscript():
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(UnreadableImageError) as caught:
        decode(script, 3)
    assert "Ghostscript" not in str(caught.value)


def test_libtiff_does_not_write_to_the_terminal(capfd):
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    image = Image.fromarray(noise).convert("P")  # which Pillow reads, by libtiff
    image.save(stream, "TIFF", compression="tiff_lzw")
    damaged = bytearray(stream.getvalue())
    damaged[200:900] = b"\xff" * 700
    with pytest.raises(UnreadableImageError):
        decode(bytes(damaged), 3)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["imagenette128.tar.gz", "weird.tar.gz"])
def test_real_jpeg_files_have_the_pixels_of_pillow(data_root, name):
    """Every 40th photograph, and all odd files that Pillow reads."""
    compared = 0
    with tarfile.open(data_root / name) as tar:
        for number, member in enumerate(tar):
            if not member.name.lower().endswith((".jpg", ".jpeg")):
                continue
            if name.startswith("imagenette") and number % 40:
                continue
            data = tar.extractfile(member).read()
            try:
                with Image.open(io.BytesIO(data)) as file:
                    if file.mode not in ("L", "RGB") or file.format == "MPO":
                        continue
                    theirs = expected_colours(ImageOps.exif_transpose(file))
            except OSError:
                continue
            assert torch.equal(decode(data, 3), theirs), member.name
            compared += 1
    assert compared > 5


def test_a_damaged_exif_block_does_not_matter():
    for kind in ("PNG", "WEBP", "JPEG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encode_image(noise(), kind, exif=b"Exif\0\0LoremIpsum", **options)
        assert torch.equal(decode(data, 3), decode(encode_image(noise(), kind, **options), 3)), kind


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (37, 53)])
def test_gray_of_colour_is_that_of_torchvision(size):
    from torchvision.transforms.v2 import functional as tv

    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    assert torch.equal(rgb_to_gray(image), tv.rgb_to_grayscale(image))
