"""The folder of embeddings: its index, its part files and the images left out.

index.json             what the numbers are, and which parts are complete
parts/part-00000.*     `part_size` images each, less those that cannot be read
skipped.csv            images that could not be read, and why
"""

import contextlib
import csv
import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mvmae.data.reading.loader import Skipped
from mvmae.data.sources.base import Source
from mvmae.embed.formats import Part, part_from_bytes, part_to_bytes
from mvmae.errors import UserError, encodable
from mvmae.storage import atomic, run_folder
from mvmae.storage.atomic import write_bytes

KIND = "mvmae embeddings"
INDEX = "index.json"
PARTS = "parts"
DEFAULT_PART_BYTES = 64e6
DEFAULT_PART_IMAGES = 4096  # caps parts of short embeddings: an interruption loses at most one
MAX_PART_BYTES = 2e9  # a part is held in memory
SUFFIXES = (".parquet", ".npz", ".safetensors")
OWN_FILES = (INDEX, "skipped.csv", "neighbours.json", "neighbours.png")
PROGRESS = ("complete", "num_embedded", "num_skipped", "parts", "seconds")  # not facts


class Index(NamedTuple):
    """The content of index.json."""

    facts: dict[str, Any]
    """What the numbers are; does not change while they are computed."""

    parts: dict[int, dict[str, Any]]
    """Entry of each complete part, by the position of its first image in the data."""

    seconds: float
    """Time spent on the parts."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one embedding."""
        return tuple(self.facts["shape"])

    @property
    def spans(self) -> list[range]:
        """Images of each part, as positions in the data."""
        total, size = self.facts["num_images"], self.facts["part_size"]
        return [range(first, min(first + size, total)) for first in range(0, total, size)]

    @property
    def missing(self) -> list[range]:
        """Parts that are not complete yet."""
        return [span for span in self.spans if span.start not in self.parts]

    def total(self, name: str) -> int:
        """Sum of `images`, `rows`, `skipped` or `bytes` over the complete parts."""
        return sum(part[name] for part in self.parts.values())


def choose_part_size(shape: tuple[int, ...], dtype: str, requested: int | None) -> int:
    """Number of images in a part.

    Raises:
        UserError: The requested number does not fit into memory.
    """
    # Parts of about the same number of bytes: patch tokens take hundreds of times as many.
    size = prod(shape) * np.dtype(dtype).itemsize
    if requested is None:
        return max(1, min(DEFAULT_PART_IMAGES, int(DEFAULT_PART_BYTES // size)))
    if requested * size > MAX_PART_BYTES:
        raise UserError(
            f"--part-size {requested} makes files of {requested * size / 1e9:.1f} GB: "
            f"use at most {int(MAX_PART_BYTES // size)} images"
        )
    return requested


def has_index(folder: Path) -> bool:
    """Whether a folder holds embeddings, finished or not."""
    return (folder / INDEX).is_file()


def is_replaceable(folder: Path) -> bool:
    """Whether a folder whose index.json may be unreadable clearly holds our part files."""
    kind = atomic.read_object(folder / INDEX).get("kind", KIND)
    return kind == KIND and any(_find_parts(folder))


def _find_parts(folder: Path) -> Iterator[Path]:
    """The part files, whatever index.json says."""
    for file in (folder / PARTS).glob("part-*"):
        if file.suffix in SUFFIXES:
            yield file


def read_index(folder: Path) -> Index:
    """Read index.json.

    Raises:
        UserError: It is missing, damaged, or from another program.
    """
    file = folder / INDEX
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["kind"] != KIND:
            raise ValueError(f"kind is {content['kind']!r}")
        parts = {int(part["first"]): part for part in content["parts"]}
        facts = {name: value for name, value in content.items() if name not in PROGRESS}
        index = Index(facts, parts, float(content["seconds"]))
        known = {span.start for span in index.spans}
        # Everything that later code takes for granted, so that damage is reported here.
        if not (parts.keys() <= known and index.shape and index.facts["format"]):
            raise ValueError("the parts do not match the facts")
        for name in ("images", "rows", "skipped", "bytes"):
            index.total(name)
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no embeddings: make them with `mvmae embed`") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = (
            "replace the embeddings with --overwrite"
            if is_replaceable(folder)
            else "choose another --out"
        )
        raise UserError(f"{file} is damaged or was not written by mvmae embed: {remedy}") from error
    return index


def write_index(folder: Path, index: Index) -> None:
    """Write index.json completely or not at all."""
    progress = {
        "complete": not index.missing,
        "num_embedded": index.total("rows"),
        "num_skipped": index.total("skipped"),
        "parts": [index.parts[first] for first in sorted(index.parts)],
        "seconds": round(index.seconds, 1),
    }
    atomic.write_json(folder / INDEX, {"kind": KIND} | index.facts | progress)


def part_file(folder: Path, index: Index, first: int) -> Path:
    """Path of the part that begins with image `first`."""
    number = first // index.facts["part_size"]
    return folder / PARTS / f"part-{number:05}.{index.facts['format']}"


def clear(folder: Path) -> None:
    """Remove the files that `mvmae embed` wrote, and nothing else."""
    for file in _find_parts(folder):
        file.unlink()
    for name in OWN_FILES:
        (folder / name).unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Remove unfinished embeddings, and the folders if that leaves them empty."""
    clear(folder)
    with contextlib.suppress(OSError):
        (folder / PARTS).rmdir()
        folder.rmdir()


def check_space(folder: Path, index: Index) -> None:
    """Check that the disk has room for the missing parts.

    Raises:
        UserError: It does not.
    """
    images = sum(len(span) for span in index.missing)
    need = images * prod(index.shape) * np.dtype(index.facts["dtype"]).itemsize
    free = shutil.disk_usage(next(at for at in (folder, *folder.parents) if at.is_dir())).free
    if not index.parts:  # old parts will be replaced
        free += sum(file.stat().st_size for file in (folder / PARTS).glob("part-*"))
    if 0 < free < need:  # some network disks report 0
        raise UserError(
            f"the embeddings need {need / 1e9:.2f} GB, but {folder} has {free / 1e9:.2f} GB free: "
            "choose another --out, --dtype float16, or --tokens mean"
        )


class PartBuffer:
    """Collect the embeddings of one part until it is complete.

    Args:
        span: Images of the part, as positions in the data.
        shape: Shape of one embedding.
        dtype: Type of its numbers.
    """

    def __init__(self, span: range, shape: tuple[int, ...], dtype: str) -> None:
        self.span = span
        self.indices: list[int] = []
        self.skipped: list[Skipped] = []
        self.rows = np.empty((len(span), *shape), dtype)

    def add(self, indices: Sequence[int], vectors: np.ndarray) -> None:
        """Copy the rows that belong to this part."""
        own = [row for row, index in enumerate(indices) if index in self.span]
        if own:
            begin = len(self.indices)
            self.rows[begin : begin + len(own)] = vectors[own[0] : own[-1] + 1]
            self.indices += [indices[row] for row in own]

    def skip(self, unreadable: Sequence[tuple[int, Skipped]]) -> None:
        """Note the unreadable images that belong to this part."""
        self.skipped += [skip for index, skip in unreadable if index in self.span]


class WrittenPart(NamedTuple):
    """A part that is on the disk but maybe not in the index yet."""

    entry: dict[str, Any]
    """Its entry in index.json."""

    skipped: list[Skipped]


def write_part(folder: Path, index: Index, buffer: PartBuffer, source: Source) -> WrittenPart:
    """Write a complete part."""
    labels = [source.label(image) for image in buffer.indices]
    part = Part(
        [encodable(source.path(image)) for image in buffer.indices],
        [encodable(source.classes[label]) if label >= 0 else None for label in labels],
        buffer.rows[: len(buffer.indices)],
    )
    data = part_to_bytes(part, index.facts["format"])
    file = part_file(folder, index, buffer.span.start)
    run_folder.make(file.parent)
    write_bytes(file, data)
    entry = {
        "file": f"{PARTS}/{file.name}",
        "first": buffer.span.start,
        "images": len(buffer.span),
        "rows": len(part.paths),
        "skipped": len(buffer.skipped),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    return WrittenPart(entry, buffer.skipped)


def record_parts(
    folder: Path, index: Index, written: Sequence[WrittenPart], seconds: float
) -> Index:
    """Add parts to index.json and their unreadable images to skipped.csv; return the new index."""
    # Before the index: a kill in between repeats lines, which are written once, but loses none.
    run_folder.append_skipped(folder, [skip for part in written for skip in part.skipped])
    parts = index.parts | {part.entry["first"]: part.entry for part in written}
    index = index._replace(parts=parts, seconds=seconds)
    write_index(folder, index)
    return index


def sort_skipped(folder: Path, source: Source) -> None:
    """Put skipped.csv in the order of the data; several processes add to it as they finish."""
    file = folder / "skipped.csv"
    if not file.exists():
        return
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        header, *rows = csv.reader(stream)
    # Positions of the few skipped images only: the data may have millions.
    names = {row[0] for row in rows}
    positions = {path: at for at in range(len(source)) if (path := source.path(at)) in names}
    ordered = sorted(rows, key=lambda row: positions.get(row[0], -1))
    if ordered == rows:
        return
    text = io.StringIO()
    csv.writer(text).writerows([header, *ordered])
    content = text.getvalue().encode(errors="surrogateescape")
    write_bytes(file, content)


def drop_damaged(folder: Path, index: Index) -> Index:
    """The index without parts that are missing or changed on the disk; reads every part."""
    intact = {}
    for first, part in index.parts.items():
        with contextlib.suppress(OSError), part_file(folder, index, first).open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() == part.get("sha256"):
                intact[first] = part
    return index._replace(parts=intact)


def read_parts(folder: Path, index: Index) -> Iterator[Part]:
    """Read the parts in the order of the data.

    Raises:
        UserError: The embeddings are not finished, or a part is missing or damaged.
    """
    if index.missing:
        done, total = index.total("images"), index.facts["num_images"]
        raise UserError(
            f"{folder} holds {done} of {total} images: "
            f"finish it with {index.facts['command_line']} --resume"
        )
    remedy = f"{index.facts['command_line']} --resume makes it again"
    for span in index.spans:
        file = part_file(folder, index, span.start)
        try:
            data = file.read_bytes()
        except FileNotFoundError as error:
            raise UserError(f"{file} is missing: {remedy}") from error
        if hashlib.sha256(data).hexdigest() != index.parts[span.start].get("sha256"):
            raise UserError(f"{file} is damaged: {remedy}")
        yield part_from_bytes(data, index.facts["format"], index.shape)


def read_embeddings(folder: str | Path) -> Iterator[Part]:
    """Read the embeddings that `mvmae embed` wrote, one part at a time.

    Args:
        folder: Folder that holds index.json.

    Yields:
        Paths, labels and embeddings in the order of the data. Embeddings are M x width, or
        M x patches x width for `--tokens patch`.

    Raises:
        UserError: There are none, they are not finished, or a part is missing or damaged.
    """
    yield from read_parts(Path(folder), read_index(Path(folder)))
