"""One reader fed by a fuzzer that looks at which lines each input reaches.

`python fuzz.py READER CORPUS SECONDS`. Whatever is read, it is read or refused with `UserError`:
anything else, 10 seconds for one input, or a GiB of memory ends the process with another status.
"""

import io
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris
import torch._weights_only_unpickler

del sys.modules["tarfile"]  # loaded again, so that its lines are looked at
with atheris.instrument_imports(include=["mvmae", "tarfile"]):
    from mvmae.data.reading.decode import UnreadableImageError
    from mvmae.data.sources import tar_index
    from mvmae.data.sources.arrays import ArrayFile
    from mvmae.data.sources.lists import from_list
    from mvmae.errors import UserError
    from mvmae.training import checkpoint

atheris.instrument_func(torch._weights_only_unpickler.Unpickler.load)
MEMORY = 1 << 30  # bytes beyond what the process has when it begins
SECONDS_EACH = 10
FOLDER = Path(tempfile.mkdtemp(prefix="mvmae-fuzz-"))


def in_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    """A reader of files as one of bytes."""

    def reader(content: bytes) -> None:
        (FOLDER / name).write_bytes(content)
        read(FOLDER / name)

    return reader


def sound(index: tar_index.TarIndex, size: int) -> None:
    """Raise `AssertionError` where an index leads out of the file."""
    assert (index.starts >= 0).all()
    assert (index.sizes >= 0).all()
    assert (index.starts + index.sizes <= size).all()
    assert all(".." not in name.split("/") and name[:1] != "/" for name in index.names)


def tar(content: bytes) -> None:
    """An index must be sound, and the same after it was kept."""
    index = tar_index.index_tar(io.BytesIO(content), len(content), "a.tar")
    sound(index, len(content))
    kept = tar_index.from_bytes(tar_index.to_bytes(index, tar_index.Stamp(len(content), None), ""))
    assert kept is not None
    assert list(kept.index.names) == list(index.names)


def kept_index(content: bytes) -> None:
    """An index with a checksum that fits."""
    size = tar_index.DIGEST
    digest = tar_index.hashlib.blake2b(content, digest_size=size).digest()
    kept = tar_index.from_bytes(tar_index.MAGIC + digest + content)
    if kept is not None:
        assert all(isinstance(name, str) for name in kept.index.names)
        assert (kept.index.starts + kept.index.sizes <= kept.stamp.size).all()


def tensors(file: Path) -> None:
    checkpoint.read_metadata(file)
    checkpoint.read_tensors(file)


def facts(file: Path) -> None:
    (FOLDER / "encoder.safetensors").write_bytes(EMPTY)
    checkpoint.load_tensors(FOLDER / "encoder.safetensors")


def newest(file: Path) -> None:
    checkpoint.load_newest(file.parent)


EMPTY = b"\x02" + bytes(7) + b"{}"  # no tensors
READERS: dict[str, Callable[[bytes], None]] = {
    "txt": in_file("list.txt", lambda file: from_list(str(file), 3, str(FOLDER))),
    "csv": in_file("list.csv", lambda file: from_list(str(file), 3)),
    "parquet": in_file("list.parquet", lambda file: from_list(str(file), 3)),
    "tar": tar,
    "index": kept_index,
    "npy": in_file("x.npy", lambda file: ArrayFile(str(file), 3).read(0)),
    "checkpoint": in_file("last.pt", newest),
    "safetensors": in_file("x.safetensors", tensors),
    "facts": in_file("encoder.json", facts),
}


def once(content: bytes) -> None:
    try:
        READERS[sys.argv[1]](content)
    except (UserError, UnreadableImageError) as error:
        if not 0 < len(str(error)) < 2000:
            raise RuntimeError("no line for the screen") from error


def main() -> None:
    warnings.simplefilter("error")
    (FOLDER / "a.png").write_bytes(b"")
    statm = Path("/proc/self/statm").read_text(encoding="ascii").split()
    limit = int(statm[5]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    reader, corpus, seconds = sys.argv[1:]
    options = [f"-max_total_time={seconds}", f"-timeout={SECONDS_EACH}", "-rss_limit_mb=0"]
    options += ["-seed=1", f"-artifact_prefix={corpus}.", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, corpus], once)
    sys.argv[1:] = [reader]
    atheris.Fuzz()


if __name__ == "__main__":
    main()
