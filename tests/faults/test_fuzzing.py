"""Readers of files that others made, fed by a fuzzer that looks for what they do not expect."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from shard_files import image, tar

from mvmae.data.sources import tar_index
from mvmae.training import checkpoint

SECONDS = 30


def tars(folder: Path) -> None:
    members = {
        "a/1.png": image(1),
        "a/1.cls": b"3",
        "b/2.x.jpg": image(2),
        "b/2.json": b'{"label": "y", "group": 7}',
        "/" + "long" * 30 + "/../ü.png": b"x",
    }
    for name in ("ustar", "gnu", "pax"):
        kind = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT}.get(name)
        few = dict(list(members.items())[: 4 if name == "ustar" else 5])
        tar(folder / name, few, tarfile.PAX_FORMAT if kind is None else kind)


def indexes(folder: Path) -> None:
    tars(folder)
    for file in list(folder.iterdir()):
        content = file.read_bytes()
        index = tar_index.index_tar(io.BytesIO(content), len(content), "a")
        kept = tar_index.to_bytes(index, tar_index.Stamp(len(content), None), "probe")
        file.write_bytes(kept[len(tar_index.MAGIC) + tar_index.DIGEST :])


def checkpoints(folder: Path) -> None:
    state = {"model": {"w": torch.ones(2, 3), "b": torch.zeros(1)}, "step": 3, "name": "x"}
    state["rng"] = torch.arange(4, dtype=torch.uint8)
    checkpoint.save(folder, state)
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)


def arrays(folder: Path) -> None:
    np.save(folder / "gray.npy", np.zeros((2, 3, 4), np.uint8))
    np.save(folder / "deep.npy", np.zeros((1, 3, 4, 3), np.float32))


def lists(folder: Path) -> None:
    (folder / "a.csv").write_text('path,label,group\na.png,x,y\n"a.png",z,\n')
    (folder / "b.csv").write_bytes(b"\xef\xbb\xbfa.png,1\r\n\r\n./a.png,2")


def parquets(folder: Path) -> None:
    table = pa.table({"path": ["a.png", "a.png"], "label": [1, 2], "group": ["x", None]})
    for name in ("none", "snappy"):
        pq.write_table(table, folder / name, compression=name)


def tensors(folder: Path) -> None:
    own = {"w": torch.ones(2, 3), "b": torch.zeros(1, dtype=torch.float16)}
    safetensors.torch.save_file(own, folder / "a", metadata={"encoder": json.dumps({"x": 1})})


def facts(folder: Path) -> None:
    (folder / "a").write_text(json.dumps({"encoder": "vit_pico", "sizes": [1, 2.5, None]}))


SEEDS = {
    "txt": lists,
    "csv": lists,
    "parquet": parquets,
    "tar": tars,
    "index": indexes,
    "npy": arrays,
    "checkpoint": checkpoints,
    "safetensors": tensors,
    "facts": facts,
}


@pytest.mark.slow
@pytest.mark.parametrize("reader", SEEDS)
def test_any_bytes_are_read_or_refused_in_one_line(reader, tmp_path):
    """For half a minute each: nothing else is raised, nothing hangs, nothing takes a GiB."""
    pytest.importorskip("atheris")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    SEEDS[reader](corpus)
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("fuzz.py")),
            reader,
            str(corpus),
            str(SECONDS),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=SECONDS + 200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
