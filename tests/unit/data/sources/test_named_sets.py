"""torchvision:NAME and hf:NAME: what is on the disk, and nothing that nobody asked to download."""

import io
import pickle

import numpy as np
import pytest
import torch
from named_sets import CLASSES, cifar10
from PIL import Image
from torchvision import datasets as known

from mvmae.data.reading.decode import UnreadableImageError
from mvmae.data.sources import torchvision_sets
from mvmae.data.sources.base import fingerprint, labels
from mvmae.data.sources.labelled import open_labelled
from mvmae.data.sources.open import open_source
from mvmae.errors import UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MVMAE_CACHE", str(tmp_path / "cache"))
    for name in ("MVMAE_TORCHVISION", "MVMAE_DOWNLOAD"):
        monkeypatch.delenv(name, raising=False)


def test_cifar_is_read_from_torchvisions_folder(tmp_path, monkeypatch):
    cifar10(tmp_path / "sets", monkeypatch)
    source = open_source(["torchvision:cifar10"], 3)
    theirs = known.CIFAR10(str(tmp_path / "sets"))
    assert (len(source), list(source.classes)) == (20, CLASSES)
    for index in (0, 19):
        image, label = theirs[index]
        assert np.array_equal(source.read(index).permute(1, 2, 0).numpy(), np.asarray(image))
        assert source.label(index) == label
    assert len({source.path(index) for index in range(20)}) == 20
    assert source.path(3) == f"torchvision:CIFAR10:train/{CLASSES[source.label(3)]}/3"
    assert open_source(["torchvision:CIFAR10"], 1).read(0).shape == (1, 32, 32)
    assert torch.equal(pickle.loads(pickle.dumps(source)).read(5), source.read(5))


def test_its_own_parts_train_and_test(tmp_path, monkeypatch):
    cifar10(tmp_path / "sets", monkeypatch)
    both = open_labelled("torchvision:CIFAR10", 3)
    assert (len(both.train), len(both.test), both.split) == (20, 4, "its own parts")
    assert fingerprint(both.train) != fingerprint(both.test)


def test_what_is_not_there_is_not_downloaded_and_the_message_says_where(tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"cannot be read from .*cache/torchvision: the folder or file is missing"
    ):
        open_source(["torchvision:CIFAR10"], 3)
    assert not (tmp_path / "cache").exists()
    asked = []
    monkeypatch.setattr(known.CIFAR10, "download", lambda self: asked.append(self.root))
    monkeypatch.setenv("MVMAE_DOWNLOAD", "1")
    with pytest.raises(UserError):  # nothing came
        open_source(["torchvision:CIFAR10"], 3)
    assert asked == [str(tmp_path / "cache" / "torchvision")]


def test_a_damaged_set_says_so(tmp_path, monkeypatch):
    cifar10(tmp_path / "sets", monkeypatch)
    (tmp_path / "sets" / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"cut")
    with pytest.raises(UserError, match="cannot be read from"):
        open_source(["torchvision:CIFAR10"], 3)


@pytest.mark.parametrize("name", ["", "CIFAR1", "VisionDataset", "../x"])
def test_other_names_are_refused_with_those_that_there_are(name):
    with pytest.raises(UserError, match=r"supported: CIFAR10, CIFAR100"):
        open_source([f"torchvision:{name}"], 3)


@pytest.mark.parametrize("name", sorted(torchvision_sets.PARTS))
def test_every_set_is_in_torchvision_and_takes_what_it_is_given(name):
    """None of them is in the folder: each must say so, and not stumble over its options."""
    torchvision_sets.folder().mkdir(parents=True)
    with pytest.raises(UserError, match=r"is missing|needs another package|cannot be read"):
        open_labelled(f"torchvision:{name}", 3)


class Eight(list):
    """As torchvision keeps QMNIST's labels: eight numbers of each image."""

    targets = torch.arange(16).reshape(2, 8)


def test_of_several_numbers_of_an_image_the_first_is_its_label():
    assert torchvision_sets._read_labels(Eight([None, None])).tolist() == [0, 8]


# Sets of the package datasets


def encode_png(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def saved_set(tmp_path):
    """A folder of save_to_disk with two parts."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"id": datasets.Value("int64"), "image": datasets.Image()}
        | {"label": datasets.ClassLabel(names=["zebra", "ape"])}
    )
    parts = {
        name: datasets.Dataset.from_dict(
            {
                "id": list(range(count)),
                "image": [{"bytes": encode_png(number), "path": None} for number in range(count)],
                "label": [number % 2 for number in range(count)],
            },
            features=features,
        )
        for name, count in (("train", 6), ("validation", 2))
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "set"))
    return tmp_path / "set"


def test_a_folder_of_save_to_disk_is_its_image_files(saved_set):
    source = open_source([f"hf:{saved_set}"], 3)
    assert (len(source), source.classes) == (6, ("zebra", "ape"))
    assert labels(source).tolist() == [0, 1, 0, 1, 0, 1]
    assert source.content(4) == encode_png(4)
    assert torch.equal(pickle.loads(pickle.dumps(source)).read(4), source.read(4))
    both = open_labelled(f"hf:{saved_set}", 3)
    assert (len(both.test), both.split) == (2, "its own parts")


def test_a_row_without_an_image_is_an_unreadable_image(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict(
        {"image": [None], "label": ["x"]}, features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.Value("string")}
        )
    )  # fmt: skip
    rows.save_to_disk(str(tmp_path / "set"))
    source = open_source([f"hf:{tmp_path / 'set'}"], 3)
    assert source.classes == ("x",)
    with pytest.raises(UnreadableImageError, match="no image in this row"):
        source.read(0)


def test_sets_without_images_and_sets_that_are_not_here_say_so(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(UserError, match="no column of images: its columns are text"):
        open_source([f"hf:{tmp_path / 'set'}"], 3)
    with pytest.raises(UserError, match=r"cannot be opened.*MVMAE_DOWNLOAD=1"):
        open_source(["hf:nobody/has-this-set"], 3)


def test_a_missing_package_is_named(tmp_path):
    try:
        import datasets  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"pip install 'mvmae.hf.'"):
            open_source(["hf:mnist"], 3)
    with pytest.raises(UserError, match="is not followed by a name"):
        open_source(["hf:"], 3)
