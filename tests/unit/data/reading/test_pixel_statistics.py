"""Means, deviations and quantiles are numpy's, exactly, for any number of processes."""

import numpy as np
import pytest
import tifffile
import torch

from mvmae.data.reading.detect_kind import detect_kind, sample_indices
from mvmae.data.reading.pixel_statistics import (
    QUANTILES,
    Channel,
    _sums,
    measure_pixels,
    merge_sums,
    rounded_statistics,
)
from mvmae.data.sources.open import open_source


def write_folder(tmp_path, kind, count=20, channels=3, top=None):
    rng = np.random.default_rng(0)
    arrays = []
    for number in range(count):
        shape = (channels, 10 + number % 3, 12)
        if kind is np.float32:
            array = (rng.normal(1e4, 3, shape) * (1 + number)).astype(kind)
        else:
            limit = top or np.iinfo(kind).max
            array = rng.integers(0, limit, shape, dtype=kind, endpoint=True)
        np.save(tmp_path / f"{number:03}.npy", array)
        arrays.append(array.reshape(channels, -1))
    return np.concatenate(arrays, axis=1)


@pytest.mark.parametrize(("kind", "depth"), [(np.uint8, "8"), (np.uint16, "16")])
def test_whole_numbers_are_measured_exactly(tmp_path, kind, depth):
    values = write_folder(tmp_path, kind).astype(np.float64) / np.iinfo(kind).max
    source = open_source([str(tmp_path)], 3, depth)
    found = measure_pixels(source, range(20), depth, workers=0)
    for channel, own in zip(found.channels, values, strict=True):
        assert channel.mean == pytest.approx(own.mean(), rel=1e-14)
        assert channel.std == pytest.approx(own.std(), rel=1e-12)
        assert (channel.low, channel.high) == (own.min(), own.max())
        quantiles = np.quantile(own, QUANTILES, method="lower")
        assert channel.quantiles == pytest.approx(quantiles, rel=1e-12)
        assert channel.zeros == (own == 0).mean()
        assert channel.saturated == (own == 1).mean()
        assert channel.values == own.size
    assert found.sizes == {(10, 12): 7, (11, 12): 7, (12, 12): 6}


def test_floats_far_from_zero_keep_their_deviation(tmp_path):
    values = write_folder(tmp_path, np.float32).astype(np.float64)
    source = open_source([str(tmp_path)], 3, "float")
    found = measure_pixels(source, range(20), "float", workers=0)
    for channel, own in zip(found.channels, values, strict=True):
        assert channel.mean == pytest.approx(own.mean(), rel=1e-12)
        assert channel.std == pytest.approx(own.std(), rel=1e-10)
        assert channel.quantiles == pytest.approx(np.quantile(own, QUANTILES), rel=1e-6)
        assert channel.bits is None


@pytest.mark.parametrize(("kind", "depth"), [(np.uint16, "16"), (np.float32, "float")])
def test_any_number_of_processes_measures_the_same_to_the_last_bit(tmp_path, kind, depth):
    write_folder(tmp_path, kind, count=40)
    source = open_source([str(tmp_path)], 3, depth)
    alone, shared = (measure_pixels(source, range(40), depth, workers=n) for n in (0, 2))
    assert alone == shared


@pytest.mark.parametrize(
    ("top", "step", "bits"), [(4095, 1, 12), (4095, 16, 12), (255, 257, 8), (65535, 1, 16)]
)
def test_the_bits_in_use_are_found_whatever_they_are_multiplied_by(tmp_path, top, step, bits):
    rng = np.random.default_rng(0)
    whole = rng.integers(0, top, (1, 40, 40), endpoint=True) * step
    whole[0, 0, :2] = top * step
    whole[0, 1, :2] = [0, step]
    tifffile.imwrite(tmp_path / "a.tif", whole.astype(np.uint16)[0])
    (channel,) = measure_pixels(
        open_source([str(tmp_path)], 1, "16"), [0], "16", workers=0
    ).channels
    assert channel.bits == bits
    assert channel.saturated == (whole == top * step).mean()


def test_sums_are_joined_as_if_they_were_one():
    rng = np.random.default_rng(0)
    parts = [torch.from_numpy(rng.normal(1e6, 1, (2, 5, n)).astype(np.float32)) for n in (3, 40)]
    joined = merge_sums(*map(_sums, parts))
    whole = _sums(torch.cat(parts, dim=2))
    for ours, theirs in zip(joined, whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_unreadable_images_are_named_and_passed_over(tmp_path):
    write_folder(tmp_path, np.uint8, count=4)
    (tmp_path / "001.npy").write_bytes(b"\x93NUMPY nothing")
    found = measure_pixels(open_source([str(tmp_path)], 3), range(4), "8", workers=0)
    assert [one.path[-7:] for one in found.skipped] == ["001.npy"]
    assert sum(found.sizes.values()) == 3


def test_a_sample_is_a_function_of_its_seed_and_holds_none_twice():
    drawn = sample_indices(1000, 50, seed=3)
    assert drawn == sample_indices(1000, 50, seed=3) != sample_indices(1000, 50, seed=4)
    assert len(set(drawn)) == 50
    assert drawn == sorted(drawn)
    assert sample_indices(5, 50, seed=0) == [0, 1, 2, 3, 4]


def test_the_kind_of_images_is_found_in_their_headers(tmp_path, image_folder):
    photos = detect_kind(open_source([str(image_folder())], 3), 0)
    assert (photos.channels, photos.depth, photos.has_alpha) == (3, "8", False)
    (tmp_path / "deep").mkdir()
    write_folder(tmp_path / "deep", np.uint16, channels=6)
    deep = detect_kind(open_source([str(tmp_path / "deep")], 3), 0)
    assert (deep.channels, deep.depth) == (6, "16")
    assert not deep.fits(3)
    assert deep.fits(6)


@pytest.mark.parametrize(
    ("mean", "std", "kept"),
    [
        (0.4851234567, 0.2291234567, 0.485123),
        (1.23456789e9, 1e3, 1.23456789e9),
        (-1.23456789e9, 1e3, -1.23456789e9),
        (0.0, 1.0, 0.0),
        (7.123456789, 0.0, 7.12346),
    ],
)
def test_a_mean_keeps_the_digits_that_its_deviation_needs(mean, std, kept):
    channel = Channel(mean, std, 0.0, 1.0, (), 0.0, 0.0, bits=8, values=2)
    means, deviations = rounded_statistics([channel])
    assert means == (kept,)
    assert abs(means[0] - mean) <= 1e-5 * (std or abs(mean))
    assert deviations == ((float(f"{std:.6g}") if std else 1.0),)
