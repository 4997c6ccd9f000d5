"""Convert a part of the embeddings to file bytes and back: Parquet, NPZ, safetensors.

The same part gives the same bytes every time, so folders can be compared by their hashes.
Shapes: M images, D width, N patch tokens.
"""

import io
import json
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from jaxtyping import Float

from mvmae.errors import UserError

Bytes = bytes | memoryview  # a view avoids copying the whole file


class Part(NamedTuple):
    """Embeddings of some images, in the order of the data."""

    paths: list[str]
    labels: list[str | None]
    """Class names; None for images without a label."""

    embeddings: Float[np.ndarray, "M ..."]
    """M x D, or M x N x D of patch tokens."""


def _to_parquet(part: Part) -> Bytes:
    pa, parquet = _arrow()
    # A list column of fixed size is one flat buffer: pyarrow copies nothing.
    flat = np.ascontiguousarray(part.embeddings).reshape(-1)
    width = part.embeddings[0].size if len(part.paths) else int(np.prod(part.embeddings.shape[1:]))
    columns = {
        "path": pa.array(part.paths, pa.string()),
        "label": pa.array(part.labels, pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat), width),
    }
    sink = pa.BufferOutputStream()
    # Dictionaries and statistics of embeddings take time and tell a reader nothing.
    parquet.write_table(
        pa.table(columns), sink, use_dictionary=["label"], write_statistics=["path", "label"]
    )
    return memoryview(sink.getvalue())


def _from_parquet(data: Bytes, shape: tuple[int, ...]) -> Part:
    pa, parquet = _arrow()
    table = parquet.read_table(pa.BufferReader(data))
    embedding = table["embedding"].combine_chunks()
    if isinstance(embedding, pa.ChunkedArray):  # combine_chunks keeps a column without rows chunked
        embedding = pa.concat_arrays(embedding.chunks)
    rows = embedding.flatten().to_numpy().reshape(len(table), *shape)
    return Part(table["path"].to_pylist(), table["label"].to_pylist(), rows)


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "--format parquet needs pyarrow: pip install pyarrow, or choose --format npz"
        ) from error
    return pyarrow, pyarrow.parquet


def _to_npz(part: Part) -> Bytes:
    stream = io.BytesIO()
    arrays = {  # Unicode arrays rather than objects, so that they load without pickle
        "paths": np.array(part.paths, dtype=np.str_),
        "labels": np.array([label or "" for label in part.labels], dtype=np.str_),
        "embeddings": part.embeddings,
    }
    np.savez(stream, **arrays)
    return stream.getbuffer()


def _from_npz(data: Bytes, _shape: tuple[int, ...]) -> Part:
    with np.load(io.BytesIO(data)) as arrays:
        labels = [label or None for label in arrays["labels"].tolist()]
        return Part(arrays["paths"].tolist(), labels, arrays["embeddings"])


def _to_safetensors(part: Part) -> bytes:
    """Write the format by hand: the package orders metadata differently in every process."""
    values = np.ascontiguousarray(part.embeddings)
    header = {
        "__metadata__": {"paths": json.dumps(part.paths), "labels": json.dumps(part.labels)},
        "embeddings": {
            "dtype": {"float32": "F32", "float16": "F16"}[values.dtype.name],
            "shape": list(values.shape),
            "data_offsets": [0, values.nbytes],
        },
    }
    head = json.dumps(header).encode()
    # Spaces align the tensors to 8 bytes, as in files of the package.
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + values.tobytes()


def _from_safetensors(data: Bytes, _shape: tuple[int, ...]) -> Part:
    length = struct.unpack("<Q", data[:8])[0]
    metadata = json.loads(bytes(data[8 : 8 + length]))["__metadata__"]
    embeddings = safetensors.numpy.load(bytes(data))["embeddings"]
    return Part(json.loads(metadata["paths"]), json.loads(metadata["labels"]), embeddings)


_FORMATS: dict[str, tuple[Callable[[Part], Bytes], Callable[[Bytes, tuple[int, ...]], Part]]] = {
    "parquet": (_to_parquet, _from_parquet),
    "npz": (_to_npz, _from_npz),
    "safetensors": (_to_safetensors, _from_safetensors),
}


def package_versions(name: str) -> dict[str, str]:
    """Version of the package that writes a format.

    Raises:
        UserError: It is not installed.
    """
    return {"pyarrow": _arrow()[0].__version__} if name == "parquet" else {"numpy": np.__version__}


def part_to_bytes(part: Part, name: str) -> Bytes:
    """Encode a part in a format of `EmbedConfig.format`."""
    return _FORMATS[name][0](part)


def part_from_bytes(data: Bytes, name: str, shape: tuple[int, ...]) -> Part:
    """Decode what `part_to_bytes` wrote; `shape` is that of one embedding.

    Raises:
        Exception: The bytes are damaged; the type depends on the format.
    """
    return _FORMATS[name][1](data, shape)
