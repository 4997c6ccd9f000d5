"""Parts of embeddings as bytes and back, and the search in them."""

import subprocess
import sys

import numpy as np
import pytest

from mvmae.config.embed import EmbedConfig
from mvmae.embed.formats import Part, part_from_bytes, part_to_bytes
from mvmae.embed.search import Best, Neighbour, Result, cosine, unit_rows, write_note
from mvmae.embed.storage import Index, PartBuffer, choose_part_size
from mvmae.encoders import load_encoder, weights_digest
from mvmae.errors import UserError, encodable

FORMATS = ["parquet", "npz", "safetensors"]


def part(count: int = 5, shape: tuple[int, ...] = (6,), dtype: str = "float32") -> Part:
    rng = np.random.default_rng(0)
    labels: list[str | None] = [None if number % 2 else "é" for number in range(count)]
    rows = rng.normal(size=(count, *shape)).astype(dtype)
    return Part([f"folder/{number} 漢.jpg" for number in range(count)], labels, rows)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(6,), (3, 4)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_part_survives_writing_and_reading(format, shape, dtype, count):
    given = part(count, shape, dtype)
    back = part_from_bytes(part_to_bytes(given, format), format, shape)
    assert (back.paths, back.labels) == (given.paths, given.labels)
    assert back.embeddings.dtype == given.embeddings.dtype
    assert back.embeddings.shape == given.embeddings.shape
    assert np.array_equal(back.embeddings, given.embeddings)


WRITE = """
import hashlib, numpy as np
from mvmae.embed.formats import Part, part_to_bytes
part = Part(["a", "b"], ["x", None], np.ones((2, 3), np.float32))
formats = ("parquet", "npz", "safetensors")
print([hashlib.sha256(part_to_bytes(part, name)).hexdigest() for name in formats])
"""


@pytest.mark.slow
def test_every_process_writes_the_same_bytes():
    printed = {
        subprocess.run(
            [sys.executable, "-c", WRITE], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(4)
    }
    assert len(printed) == 1


def test_a_part_is_about_64_megabytes_and_at_most_4096_images():
    assert choose_part_size((768,), "float32", None) == 4096
    assert choose_part_size((196, 768), "float32", None) == 106
    assert choose_part_size((196, 768), "float16", None) == 212
    assert choose_part_size((10_000, 4096), "float32", None) == 1
    assert choose_part_size((768,), "float32", 7) == 7
    with pytest.raises(UserError, match="use at most 651041 images"):
        choose_part_size((768,), "float32", 10**6)


def test_a_part_buffer_takes_only_its_own_rows():
    buffer = PartBuffer(range(3, 6), (1,), "float32")
    buffer.add([0, 2, 3], np.array([[0.0], [2.0], [3.0]], np.float32))
    buffer.add([5, 6], np.array([[5.0], [6.0]], np.float32))
    buffer.add([], np.empty(0, np.float32))
    assert buffer.indices == [3, 5]
    assert buffer.rows[:2].tolist() == [[3.0], [5.0]]


def test_the_note_counts_the_neighbours_that_exist():
    config, index = EmbedConfig(encoder="a", k=20), Index({"tokens": "mean"}, {}, 0.0)
    for count, printed in ((10, ""), (12, ""), (15, "12 of 15 neighbours"), (20, "12 of 20")):
        note = write_note([Result(None, [Neighbour(1.0, None, "a.jpg")] * count)], config, index)
        assert ("; the first " in note) == bool(printed)
        assert printed in note


def test_names_that_are_not_utf8_become_text():
    assert encodable("a é \udcff") == "a é \\udcff"


def test_the_digest_covers_names_shapes_and_bytes():
    encoder = load_encoder("random:vit_pico", 32)
    before = weights_digest(encoder)
    assert len(before) == 16
    assert weights_digest(load_encoder("random:vit_pico", 32)) == before
    assert weights_digest(load_encoder("random:vit_pico", 48)) != before
    encoder.norm.weight.data[3] += 1e-6
    assert weights_digest(encoder) != before
    encoder.norm.weight.data[3] = 1
    assert weights_digest(encoder) == before
    assert weights_digest(encoder.bfloat16()) != before


# search


def test_the_size_of_the_parts_changes_no_neighbour():
    """On a tie the image that comes first in the data wins."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(40, 5)).round(0)[rng.integers(0, 40, 100)]
    queries = unit_rows(rng.normal(size=(3, 5)))
    found = []
    for size in (1, 7, 100):
        best = Best(np.empty((3, 0)), np.empty((3, 0), np.int64))
        for first in range(0, 100, size):
            here = rows[first : first + size]
            best = best.merge(cosine(queries, here), np.arange(first, first + len(here)), 9)
        found.append(best)
    order = np.argsort(-cosine(queries, rows), axis=1, kind="stable")[:, :9]
    for best in found:
        assert np.array_equal(best.row, order)


def test_similarity_is_the_cosine_and_zero_for_a_zero_vector():
    rows = np.array([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [0.0, 0.0], [1.0, 1.0]], np.float32)
    assert cosine(unit_rows(np.array([[5.0, 0.0]])), rows)[0].tolist() == [1, 0, -1, 0, 0.707107]


def test_patches_are_averaged_before_they_are_compared():
    patches = np.array([[[2.0, 0.0], [0.0, 2.0]]], np.float32)
    np.testing.assert_allclose(unit_rows(patches), [[0.5**0.5, 0.5**0.5]])
