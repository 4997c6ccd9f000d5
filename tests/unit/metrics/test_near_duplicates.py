"""Near duplicates: copies are found, other pictures are not, and no pair is missed on the way."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from mvmae.data.reading.decode import decode
from mvmae.data.reading.inspect_file import THUMB, inspect_file
from mvmae.data.sources.builtin import PHOTOGRAPHS, photos
from mvmae.metrics import near_duplicates

ALIKE = 0.99  # the default


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """A window of each built-in photograph that shows something from afar."""
    source = photos("train", 3)
    windows = [
        Image.fromarray(source.read(200 * number + 7).permute(1, 2, 0).numpy()).resize((160, 120))
        for number in range(len(PHOTOGRAPHS))
    ]
    kept = [one for one in windows if np.array(one.resize((16, 16))).std() > 12]
    assert len(kept) > 10
    return kept


def encode(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def make_thumbs(tmp_path, files: list[bytes]) -> np.ndarray:
    """As the processes that read make them."""
    made = []
    for number, content in enumerate(files):
        (tmp_path / f"{number}.bin").write_bytes(content)
        made.append(np.frombuffer(inspect_file(str(tmp_path / f"{number}.bin")).thumb, np.uint8))
    return np.stack(made).reshape(-1, THUMB, THUMB, 3)


def find_pairs(thumbs: np.ndarray, least: float = ALIKE) -> list[list[int]]:
    usable = near_duplicates.contrast(thumbs) >= near_duplicates.FLAT
    return near_duplicates.find_near_duplicates(thumbs, least, usable)[0].tolist()


COPIES = {
    "lower quality": lambda picture: encode(picture, "JPEG", quality=40),
    "another format": lambda picture: encode(picture, "WEBP", quality=60),
    "half the size": lambda picture: encode(picture.resize((80, 60))),
    "squashed": lambda picture: encode(picture.resize((100, 100))),
    "brighter": lambda picture: encode(ImageEnhance.Brightness(picture).enhance(1.08)),
    "more contrast": lambda picture: encode(ImageEnhance.Contrast(picture).enhance(1.1)),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_near_duplicates_and_nothing_else_is(tmp_path, pictures, how):
    count = len(pictures)
    files = [*map(encode, pictures), *map(COPIES[how], pictures)]
    found = find_pairs(make_thumbs(tmp_path, files))
    copies = [[at, count + at] for at in range(count)]
    assert [pair for pair in found if pair not in copies] == []
    assert len(found) >= count - 1  # pictures of little contrast can be missed


OTHERS = {
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "negative": ImageOps.invert,
    "other colours": lambda picture: Image.merge("RGB", picture.split()[::-1]),
}


@pytest.mark.parametrize("how", OTHERS)
def test_changed_pictures_are_no_duplicates(tmp_path, pictures, how):
    coloured = [p for p in pictures if how != "other colours" or np.ptp(np.array(p), 2).max() > 90]
    files = [*map(encode, coloured), *(encode(OTHERS[how](picture)) for picture in coloured)]
    assert len(coloured) > 5
    assert find_pairs(make_thumbs(tmp_path, files)) == []


def random_thumbs(count: int, seed: int) -> np.ndarray:
    """Blurred noise, and copies of it with a little noise on top."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 226, (count, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    copies = coarse[rng.integers(0, count, count)] + rng.integers(-1, 2, coarse.shape)
    return np.concatenate([coarse, copies]).clip(0, 255).astype(np.uint8)


def test_banding_finds_every_pair_that_comparing_all_finds():
    thumbs = random_thumbs(150, 0)
    hashes = near_duplicates.difference_hashes(thumbs)
    _, first = np.unique(hashes, axis=0, return_index=True)
    distinct = thumbs[np.sort(first)]
    own = near_duplicates.difference_hashes(distinct)
    one, other = np.triu_indices(len(distinct), 1)
    near = near_duplicates.hamming(own[one], own[other]) <= near_duplicates.MAX_BITS
    alike = near_duplicates.colour_correlation(distinct, one, other) >= ALIKE
    expected = np.stack([one, other], axis=1)[near & alike].tolist()
    assert len(expected) > 50
    assert find_pairs(distinct) == expected


def test_a_pair_of_any_distance_up_to_the_limit_shares_a_band():
    rng = np.random.default_rng(1)
    for _ in range(200):
        a = rng.integers(0, 2**63, 2, dtype=np.uint64)
        b = a.copy()
        for bit in rng.choice(112, near_duplicates.MAX_BITS, replace=False).tolist():
            b[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
        bands = np.stack([a, b]).view(np.uint16)[:, : near_duplicates.BANDS]
        assert (bands[0] == bands[1]).any()


def test_hashes_have_112_bits_and_tell_where_it_gets_brighter():
    ramp = np.zeros((3, 16, 16, 3), np.uint8)
    ramp[0] = np.arange(0, 256, 16, dtype=np.uint8)[None, :, None]  # to the right
    ramp[1] = np.arange(0, 256, 16, dtype=np.uint8)[:, None, None]  # downwards
    hashes = near_duplicates.difference_hashes(ramp)
    assert np.bitwise_count(hashes).sum(axis=1).tolist() == [56, 56, 0]
    assert near_duplicates.hamming(hashes[:1], hashes[1:2]).tolist() == [112]


def test_many_images_of_one_hash_are_each_paired_once():
    thumbs = random_thumbs(1, 2)[:1].repeat(500, axis=0)
    assert find_pairs(thumbs) == [[0, at] for at in range(1, 500)]


def test_same_hash_and_other_colours_are_two_groups():
    gray = random_thumbs(1, 3)[0]
    red = gray.copy()
    red[..., 0] = np.minimum(red[..., 0].astype(int) + 60, 255)
    red[..., 1] = np.maximum(red[..., 1].astype(int) - 60, 0)
    pairs = find_pairs(np.stack([gray, red, gray, red]))
    assert [0, 2] in pairs
    assert [1, 3] in pairs
    assert [0, 1] not in pairs


def test_pictures_without_contrast_are_in_no_pair():
    flat = np.full((4, 16, 16, 3), 90, np.uint8)
    flat[1] += 2
    assert near_duplicates.contrast(flat).max() < near_duplicates.FLAT
    assert find_pairs(flat) == []


def test_nothing_and_one_image_have_no_pairs():
    for count in (0, 1):
        assert find_pairs(np.zeros((count, 16, 16, 3), np.uint8)) == []


def test_same_bytes_are_found_by_both_halves_of_a_digest():
    digests = np.array([[1, 2], [1, 3], [1, 2], [2, 2], [1, 3]], np.uint64)
    assert near_duplicates.first_with_same_digest(digests).tolist() == [0, 1, 0, 3, 1]


def test_a_thumbnail_is_of_the_upright_picture(tmp_path, pictures):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "turned.jpg").write_bytes(encode(pictures[0], "JPEG", exif=exif, quality=95))
    found = inspect_file(str(tmp_path / "turned.jpg"))
    pixels = decode((tmp_path / "turned.jpg").read_bytes(), 3)
    assert found.rotated
    assert found.shape == (160, 120) == tuple(pixels.shape[1:])
