"""Tar files are read as folders are, and damage to an index is seen, for any of them."""

import hashlib
import io
import os
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pixel_source import PixelSource
from shard_files import image

from mvmae.data.sources import tar_index
from mvmae.data.sources.base import labels
from mvmae.data.sources.open import open_source
from mvmae.data.sources.shards import Shards
from mvmae.data.sources.tar_index import Stamp, from_bytes, index_tar, split_name, to_bytes
from mvmae.datatools.pack.encode import ImageNames, Packed
from mvmae.datatools.pack.write import State, Writer

PARTS = st.text(st.characters(codec="utf-8", exclude_characters="/\0\n\r"), min_size=1, max_size=12)
PARTS = PARTS.filter(lambda part: not part.startswith(".") and len(part.encode()) < 60)
NAMES = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    before = os.environ.get("MVMAE_CACHE")
    os.environ["MVMAE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["MVMAE_CACHE"]
    if before is not None:
        os.environ["MVMAE_CACHE"] = before


@given(name=NAMES)
def test_a_name_is_its_key_a_dot_and_the_rest(name):
    key, dot, suffix = split_name(name)
    assert key + dot + suffix == name
    assert "." not in key.rpartition("/")[2]
    assert key.rpartition("/")[0] == name.rpartition("/")[0]
    assert bool(dot) == ("." in name.rpartition("/")[2])


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    names=st.lists(NAMES, min_size=1, max_size=8, unique=True),
    format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    in_two=st.booleans(),
)
def test_tar_files_are_read_as_the_folder_they_were_made_of(names, format, in_two):
    """Whatever is in the names: blanks, quotes, letters of any script, dots."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "folder")
        for number, name in enumerate(names):
            file = folder / f"{name}.png"
            if file.exists() or any(above.is_file() for above in file.parents):
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image(number))
        plain = open_source([str(folder)], 3)
        inside = [plain.path(index)[len(str(folder)) + 1 :] for index in range(len(plain))]
        cut = len(inside) // 2 if in_two else len(inside)
        for shard, part in enumerate((inside[:cut], inside[cut:])):
            with tarfile.open(Path(place, f"{shard}.tar"), "w", format=format) as made:
                for name in part:
                    made.add(folder / name, name)
        source = open_source([f"{place}/{{0..1}}.tar"], 3)
        assert isinstance(source, Shards)
        assert [source.member(index) for index in range(len(source))] == inside
        for index in range(len(source)):
            assert source.content(index) == (folder / inside[index]).read_bytes()
        if plain.classes and source.classes:
            of = [plain.classes[label] for label in labels(plain)]
            common = len(set(of)) == 1  # then it is what all have in common, and no class
            assert common or [source.classes[label] for label in labels(source)] == of


def made_index() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as made:
        for number in range(5):
            for suffix, content in ((".png", image(number)), (".cls", b"%d" % (number % 2))):
                info = tarfile.TarInfo(f"{number}{suffix}")
                info.size = len(content)
                made.addfile(info, io.BytesIO(content))
    size = len(stream.getvalue())
    return to_bytes(index_tar(stream, size, "a.tar"), Stamp(size, None), "probe")


INDEX = made_index()


@settings(max_examples=300)
@given(at=st.integers(0, len(INDEX) * 8 - 1))
def test_any_flipped_bit_of_an_index_is_seen(at):
    assert from_bytes(INDEX) is not None
    damaged = bytearray(INDEX)
    damaged[at // 8] ^= 1 << at % 8
    assert from_bytes(bytes(damaged)) is None


@given(length=st.integers(0, len(INDEX) - 1), more=st.binary(min_size=1, max_size=9))
def test_an_index_that_is_cut_short_or_goes_on_is_seen(length, more):
    assert from_bytes(INDEX[:length]) is None
    assert from_bytes(INDEX + more) is None


@settings(max_examples=300)
@given(data=st.data())
def test_an_index_with_a_fitting_checksum_is_still_not_trusted(data):
    """Whatever it says, it says nothing that leads out of the file."""
    start = len(tar_index.MAGIC) + tar_index.DIGEST
    whole = bytearray(INDEX[start:])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    digest = hashlib.blake2b(bytes(whole), digest_size=tar_index.DIGEST).digest()
    kept = from_bytes(tar_index.MAGIC + digest + bytes(whole))
    if kept is None:
        return
    index = kept.index
    assert (index.starts >= 0).all()
    assert (index.sizes >= 0).all()
    assert (index.starts + index.sizes <= kept.stamp.size).all()
    assert (index.labels.codes < len(index.labels.table)).all()
    assert len(index.starts) == len(index.sizes) == len(index.labels.codes) == len(index.names)


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=30),
    limit=st.integers(3000, 20_000),
    stops=st.sets(st.integers(0, 29), max_size=4),
)
def test_tar_files_do_not_depend_on_where_a_run_was_stopped(sizes, limit, stops):
    def write(folder: Path, stops: set[int]) -> dict[str, bytes]:
        """As `data pack` writes; it dies behind some images and begins again."""
        folder.mkdir()
        state, left = State(settings={}), set(stops)
        while True:
            writer = Writer(folder, state, float(limit))
            for index in range(state.done, len(sizes)):
                content = np.random.default_rng(index).bytes(sizes[index])
                if index % 7 == 3:
                    writer.skip(f"{index}", "broken")
                else:
                    writer.add(f"x/{index % 5}", Packed(content, ".png"), index % 3, None, index)
                if index in left:
                    left.remove(index)
                    if writer._file is not None:
                        writer._file.close()
                    break
            else:
                writer.finish(len(sizes))
                return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}

    with tempfile.TemporaryDirectory() as place:
        whole = write(Path(place, "whole"), set())
        assert write(Path(place, "parts"), stops) == whole
        for name, content in whole.items():
            if name.endswith(".tar"):
                assert len(content) <= limit or content.count(b".png") == 1


@given(names=st.lists(NAMES, min_size=1, max_size=6, unique=True))
def test_keys_are_names_that_can_be_unpacked(names):
    class Some(PixelSource):
        def __len__(self) -> int:
            return len(names)

        def read(self, index: int):
            raise NotImplementedError

        def path(self, index: int) -> str:
            return f"set/{names[index]}.png"

    naming = ImageNames(Some())
    for index in range(len(names)):
        key = naming.key(index)
        assert split_name(key + ".png")[0] == key
        assert ".." not in key.split("/")
        assert not key.startswith("/")
        assert all(part and not part.startswith(".") for part in key.split("/"))
