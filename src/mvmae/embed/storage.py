"""The folder of embeddings: index.json, the parts, skipped.csv; claiming, checking, reading.

index.json             what the numbers are, and which parts are whole
parts/part-00000.*     `part_size` images each, less what could not be read
skipped.csv            what could not be read, and why
"""

from __future__ import annotations

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
from mvmae.embed.formats import Part, from_bytes, plain_text, to_bytes
from mvmae.errors import UserError
from mvmae.storage import run_folder
from mvmae.training.checkpoint import write_whole

KIND = "mvmae embeddings"
INDEX = "index.json"
PARTS = "parts"
PART_BYTES = 64e6
PART_IMAGES = 4096  # a part of small embeddings: what an interruption can cost
MOST_BYTES = 2e9  # of a part, which is held in memory
OURS = (INDEX, "skipped.csv", "neighbours.json", "neighbours.png")
PROGRESS = ("complete", "num_embedded", "num_skipped", "parts", "seconds")  # the rest are facts


class Index(NamedTuple):
    """index.json, in memory."""

    facts: dict[str, Any]
    """What the numbers are; nothing in it changes while they are made."""

    parts: dict[int, dict[str, Any]]
    """What is said of each whole part, by the place of its first image in the data."""

    seconds: float
    """That were spent on the parts."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one embedding."""
        return tuple(self.facts["shape"])

    @property
    def spans(self) -> list[range]:
        """The images of each part, as places in the data."""
        total, size = self.facts["num_images"], self.facts["part_size"]
        return [range(first, min(first + size, total)) for first in range(0, total, size)]

    @property
    def todo(self) -> list[range]:
        """Parts that are not there yet."""
        return [span for span in self.spans if span.start not in self.parts]

    def count(self, name: str) -> int:
        """Sum over the parts of `images`, `rows`, `skipped` or `bytes`."""
        return sum(part[name] for part in self.parts.values())


def part_size_of(shape: tuple[int, ...], dtype: str, asked: int | None) -> int:
    """Images in a part.

    Raises:
        UserError: So many do not fit into memory.
    """
    each = prod(shape) * np.dtype(dtype).itemsize
    if asked is None:
        return max(1, min(PART_IMAGES, int(PART_BYTES // each)))
    if asked * each > MOST_BYTES:
        raise UserError(
            f"--part-size {asked} makes files of {asked * each / 1e9:.1f} GB: "
            f"{int(MOST_BYTES // each)} images are the most"
        )
    return asked


def is_there(folder: Path) -> bool:
    """Whether a folder holds embeddings, finished or not."""
    return (folder / INDEX).is_file()


def has_parts(folder: Path) -> bool:
    """Whether an index.json that cannot be read is ours by what lies beside it."""
    try:
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    is_other = isinstance(content, dict) and content.get("kind", KIND) != KIND
    return not is_other and any(_parts_in(folder))


def _parts_in(folder: Path) -> Iterator[Path]:
    """The files of parts, whatever index.json says."""
    for file in (folder / PARTS).glob("part-*"):
        if file.suffix in (".parquet", ".npz", ".safetensors"):
            yield file


def read_index(folder: Path) -> Index:
    """What index.json says.

    Raises:
        UserError: It is missing, damaged, or of something else.
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
        if not (parts.keys() <= known and index.shape and index.facts["format"]):
            raise ValueError("parts are not those of the facts")
        for name in ("images", "rows", "skipped", "bytes"):
            index.count(name)
    except FileNotFoundError as error:
        raise UserError(f"no embeddings in {folder}: `mvmae embed` makes them") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = (
            "--overwrite makes the embeddings anew" if has_parts(folder) else "choose another --out"
        )
        raise UserError(f"{file} is damaged or not of mvmae embed: {remedy}") from error
    return index


def write_index(folder: Path, index: Index) -> None:
    """Write index.json whole."""
    progress = {
        "complete": not index.todo,
        "num_embedded": index.count("rows"),
        "num_skipped": index.count("skipped"),
        "parts": [index.parts[first] for first in sorted(index.parts)],
        "seconds": round(index.seconds, 1),
    }
    run_folder.write_json(folder / INDEX, {"kind": KIND} | index.facts | progress)


def part_file(folder: Path, index: Index, first: int) -> Path:
    """Where the part lies that begins with an image."""
    number = first // index.facts["part_size"]
    return folder / PARTS / f"part-{number:05}.{index.facts['format']}"


def begin(folder: Path, index: Index) -> None:
    """Make a folder of no embeddings yet; what embeddings were there before are removed."""
    clear(folder)
    run_folder.make(folder / PARTS)
    write_index(folder, index)


def clear(folder: Path) -> None:
    """Remove the files that `embed` wrote, and nothing else."""
    for file in _parts_in(folder):
        file.unlink()
    for name in OURS:
        (folder / name).unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Remove what was begun; the folders too, where they are then empty and may be removed."""
    clear(folder)
    with contextlib.suppress(OSError):
        (folder / PARTS).rmdir()
        folder.rmdir()


def check_space(folder: Path, index: Index) -> None:
    """Make sure that the disk has room for the parts to come.

    Raises:
        UserError: It has not.
    """
    images = sum(len(span) for span in index.todo)
    need = images * prod(index.shape) * np.dtype(index.facts["dtype"]).itemsize
    free = shutil.disk_usage(next(at for at in (folder, *folder.parents) if at.is_dir())).free
    if not index.parts:  # what is there is replaced
        free += sum(file.stat().st_size for file in (folder / PARTS).glob("part-*"))
    if 0 < free < need:  # some network disks say 0
        raise UserError(
            f"the embeddings take {need / 1e9:.2f} GB and {folder} has {free / 1e9:.2f} GB free: "
            "choose another --out, --dtype float16, or --tokens mean"
        )


class Filling:
    """A part whose images are coming in.

    Args:
        span: Its images, as places in the data.
        shape: Of one embedding.
        dtype: Of its numbers.
    """

    def __init__(self, span: range, shape: tuple[int, ...], dtype: str) -> None:
        self.span, self.places, self.skipped = span, [], []
        self.rows = np.empty((len(span), *shape), dtype)

    def add(self, places: Sequence[int], vectors: np.ndarray) -> None:
        """Take those rows that are of this part."""
        own = [row for row, place in enumerate(places) if place in self.span]
        if own:
            taken = vectors[own[0] : own[-1] + 1]
            self.rows[len(self.places) : len(self.places) + len(own)] = taken
            self.places += [places[row] for row in own]

    def skip(self, unreadable: Sequence[tuple[int, Skipped]]) -> None:
        """Note those that could not be read and are of this part."""
        self.skipped += [skip for place, skip in unreadable if place in self.span]


class Made(NamedTuple):
    """A part that is on the disk, and perhaps not in the index yet."""

    said: dict[str, Any]
    """What index.json says of it."""

    skipped: list[Skipped]


def finish(folder: Path, index: Index, filling: Filling, source: Source) -> Made:
    """Write a part whole."""
    labels = [source.label(place) for place in filling.places]
    part = Part(
        [plain_text(source.path(place)) for place in filling.places],
        [plain_text(source.classes[label]) if label >= 0 else None for label in labels],
        filling.rows[: len(filling.places)],
    )
    data = to_bytes(part, index.facts["format"])
    file = part_file(folder, index, filling.span.start)
    run_folder.make(file.parent)
    write_whole(file, lambda stream: stream.write(data))
    said = {
        "file": f"{PARTS}/{file.name}",
        "first": filling.span.start,
        "images": len(filling.span),
        "rows": len(part.paths),
        "skipped": len(filling.skipped),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    return Made(said, filling.skipped)


def enter(folder: Path, index: Index, made: Sequence[Made], seconds: float) -> Index:
    """The index with further parts, on the disk too; and in skipped.csv what they lack."""
    run_folder.append_skipped(folder, [skip for one in made for skip in one.skipped])
    entered = index.parts | {one.said["first"]: one.said for one in made}
    index = index._replace(parts=entered, seconds=seconds)
    write_index(folder, index)
    return index


def order_skipped(folder: Path, source: Source) -> None:
    """Put skipped.csv in the order of the data, where several processes wrote of their parts."""
    file = folder / "skipped.csv"
    if not file.exists():
        return
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        head, *rows = csv.reader(stream)
    names = {row[0] for row in rows}
    places = {path: at for at in range(len(source)) if (path := source.path(at)) in names}
    ordered = sorted(rows, key=lambda row: places.get(row[0], -1))
    if ordered == rows:
        return
    text = io.StringIO()
    csv.writer(text).writerows([head, *ordered])
    content = text.getvalue().encode(errors="surrogateescape")
    write_whole(file, lambda stream: stream.write(content))


def without_damaged(folder: Path, index: Index) -> Index:
    """The index with those parts alone that are as they were written; reads them all."""
    whole = {first: said for first, said in index.parts.items() if _is_whole(folder, index, first)}
    return index._replace(parts=whole)


def _is_whole(folder: Path, index: Index, first: int) -> bool:
    try:
        with part_file(folder, index, first).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return False
    return found == index.parts[first].get("sha256")


def read_parts(folder: Path, index: Index) -> Iterator[tuple[range, Part]]:
    """The parts in order, each with its images as places in the data.

    Raises:
        UserError: Some are still to be made, or one is missing or damaged.
    """
    if index.todo:
        done, total = index.count("images"), index.facts["num_images"]
        raise UserError(
            f"{folder} holds {done} of {total} images: "
            f"finish it with {index.facts['command_line']} --resume"
        )
    for span in index.spans:
        yield span, _read_part(folder, index, span.start)


def _read_part(folder: Path, index: Index, first: int) -> Part:
    file, said = part_file(folder, index, first), index.parts[first]
    remedy = f"{index.facts['command_line']} --resume makes it anew"
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing: {remedy}") from error
    if hashlib.sha256(data).hexdigest() != said.get("sha256"):
        raise UserError(f"{file} is damaged: {remedy}")
    return from_bytes(data, index.facts["format"], index.shape)


def read_embeddings(folder: str | Path) -> Iterator[Part]:
    """The embeddings that `mvmae embed` wrote, a part at a time: paths, labels, embeddings.

    Args:
        folder: Which holds index.json.

    Yields:
        Parts in the order of the data; embeddings are M x width, or M x patches x width.

    Raises:
        UserError: There are none, they are not finished, or a part is missing or damaged.
    """
    for _, part in read_parts(Path(folder), read_index(Path(folder))):
        yield part
