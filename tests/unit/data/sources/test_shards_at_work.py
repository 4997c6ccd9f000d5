"""Tar files read by several processes and threads, and many images in little memory."""

import pickle
import sys
import threading

import numpy as np
import pytest
import torch
from shard_files import image, tar

from mvmae.data.sources import shard_names, tar_index
from mvmae.data.sources.open import open_source
from mvmae.data.sources.tar_index import index_tar


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MVMAE_CACHE", str(tmp_path_factory.mktemp("cache")))


def open_shards(name):
    return open_source([str(name)], 3)


def test_the_source_goes_to_another_process_without_open_files(tmp_path):
    source = open_shards(tar(tmp_path / "a.tar", {"a.png": image(1), "b.png": image(2)}))
    source.read(0)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.storage._opened == {}
    assert torch.equal(copy.read(1), source.read(1))
    assert copy.path(1) == source.path(1)


def test_many_tar_files_are_read_by_threads_with_few_of_them_open(tmp_path, monkeypatch):
    monkeypatch.setattr("mvmae.data.sources.shards.MAX_OPEN", 2)
    for number in range(9):
        tar(tmp_path / "s" / f"{number}.tar", {"a.png": image(number)})
    source = open_shards(tmp_path / "s")
    wrong: list[int] = []

    def read(seed: int) -> None:
        order = np.random.default_rng(seed).integers(0, 9, 200).tolist()
        wrong.extend(index for index in order if source.content(index) != image_of[index])

    image_of = [image(number) for number in range(9)]
    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(source.storage._opened) <= 2


def test_a_list_of_ten_thousand_members_takes_little_time_and_memory(tmp_path):
    content = image()
    file = tar(tmp_path / "a.tar", {f"c{n % 10}/{n:05}.png": content for n in range(10_000)})
    with file.open("rb") as stream:
        index = index_tar(stream, file.stat().st_size, "a.tar")
    assert len(index.names) == 10_000
    kept = tar_index.to_bytes(index, tar_index.Stamp(file.stat().st_size, None), "")
    assert len(kept) < 50 * 10_000
    assert sys.getsizeof(index.names.blob) < 15 * 10_000


def test_nothing_but_tar_files_is_taken_for_them():
    assert not shard_names.names_shards("photos")
    assert shard_names.names_shards("https://host/a.tar")
