"""Reading continues when a reader process dies or hangs, and the image is named."""

import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from torch.utils.data import get_worker_info

from mvmae.data.reading.loader import view_batches
from mvmae.data.reading.resilient_loader import MAX_FAILURES
from mvmae.data.sources.base import SourceWrapper
from mvmae.data.sources.open import open_source
from mvmae.errors import UserError


class Deadly(SourceWrapper):
    """A source of which some images kill or block their reader a given number of times."""

    classes = ()
    name = "deadly"

    def __init__(self, source, folder, kills=(), keeps=(), times=10**6) -> None:
        super().__init__(source)
        self.folder, self.times = folder, times
        self.kills, self.keeps = kills, keeps
        folder.mkdir(exist_ok=True)

    def read(self, index):
        if index in (*self.kills, *self.keeps):
            assert get_worker_info() is not None, "would end the tests"
            before = len(list(self.folder.glob(f"{index}-*")))
            (self.folder / f"{index}-{before}").touch()
            if before < self.times:
                if index in self.kills:
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(1000)
        return self.source.read(index)


@pytest.fixture
def images(image_folder):
    return open_source([str(image_folder(per_class=10))], 3)


def read(source, config, start=0):
    steps = range(start, 4)
    return list(view_batches(source, config, steps, rank=0, world_size=1, cuda=False))


def assert_equal(ours, theirs) -> None:
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.views, other.views)
        assert torch.equal(one.noise, other.noise)


@pytest.mark.slow  # readers are looked at every 5 s
def test_image_that_kills_its_reader_is_tried_twice_and_passed_over(images, tiny, tmp_path, capfd):
    source = Deadly(images, tmp_path / "marks", kills=(3,))
    config = replace(tiny, workers=2)
    batches = read(source, config)
    assert [len(batch.noise[0]) for batch in batches] == [8] * 4
    skipped = {skip for batch in batches for skip in batch.skipped}
    assert skipped == {(images.path(3), "kills its reader")}
    said = capfd.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("mvmae: ")] == [
        f"mvmae: {images.path(3)}: kills its reader; tried once more",
        f"mvmae: {images.path(3)}: kills its reader; skipped",
    ]
    # another number of readers, and a beginning in the middle, see the same
    again = Deadly(images, tmp_path / "again", kills=(3,))
    assert_equal(read(again, replace(tiny, workers=1)), batches)
    resumed = Deadly(images, tmp_path / "resumed", kills=(3,))
    assert_equal(read(resumed, config, start=2), batches[2:])


@pytest.mark.slow
def test_reader_killed_by_chance_changes_nothing(images, tiny, tmp_path):
    source = Deadly(images, tmp_path / "marks", kills=(3, 12), times=1)
    batches = read(source, replace(tiny, workers=2))
    assert not any(batch.skipped for batch in batches)
    assert_equal(batches, read(images, tiny))


@pytest.mark.slow
def test_image_that_is_never_read_is_passed_over(images, tiny, tmp_path, capfd):
    source = Deadly(images, tmp_path / "marks", keeps=(5,))
    batches = read(source, replace(tiny, workers=1, read_timeout=1.0))
    skipped = {skip for batch in batches for skip in batch.skipped}
    assert skipped == {(images.path(5), "not read within 1 s")}
    assert f"{images.path(5)}: not read within 1 s; skipped" in capfd.readouterr().err


class Slow(Deadly):
    """Images each of which takes its time, but less than the timeout."""

    def read(self, index):
        time.sleep(0.2)
        return self.source.read(index)


def test_slow_images_are_waited_for(images, tiny, tmp_path, capfd):
    config = replace(tiny, workers=1, read_timeout=1.0)  # a batch takes 1.6 s
    batches = list(
        view_batches(
            Slow(images, tmp_path / "marks"), config, range(2), rank=0, world_size=1, cuda=False
        )
    )
    assert_equal(batches, read(images, tiny)[:2])
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_readers_that_die_again_and_again_stop_the_run(images, tiny, tmp_path):
    source = Deadly(images, tmp_path / "marks", keeps=range(20))
    with pytest.raises(UserError, match=f"reader processes died or hung {MAX_FAILURES} times"):
        read(source, replace(tiny, workers=1, read_timeout=1.0))


def test_fault_of_ours_in_a_reader_is_not_taken_for_its_death(images, tiny, tmp_path):
    class Broken(Deadly):
        def read(self, index):
            raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        read(Broken(images, tmp_path / "marks"), replace(tiny, workers=1))
