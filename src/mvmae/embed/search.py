"""Nearest neighbours of images among embeddings that are read a part at a time.

Every similarity is computed: exact cosine, in float64, rounded to six decimals, so that the order
does not hang on the size of a part. Shapes: Q queries, M images, N patch tokens, D width.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mvmae import encoders, terminal
from mvmae.config.embed import EmbedConfig
from mvmae.config.files import command_line, to_plain
from mvmae.data.reading.decode import UnreadableImageError
from mvmae.data.sources.base import Source, plain_channels, with_depth
from mvmae.data.sources.folders import Files
from mvmae.embed import storage
from mvmae.embed.formats import plain_text
from mvmae.embed.storage import Index
from mvmae.encoders import OpenedEncoder
from mvmae.errors import UserError, printable
from mvmae.figures import neighbours
from mvmae.figures.neighbours import Cell, Row
from mvmae.inspect.choose_images import displayed
from mvmae.method.views import for_people, whole_view
from mvmae.storage import run_folder
from mvmae.training.checkpoint import write_whole

DECIMALS = 6
ROWS = 1024  # compared at a time
SIDE = 192  # pixels of a picture's longer side
MOST_DRAWN = 24  # queries; all are in the JSON
MOST_ACROSS = 12  # neighbours drawn of each


class Queries(NamedTuple):
    """Images whose neighbours are sought."""

    source: Source
    vectors: Float[np.ndarray, "Q D"]


class Neighbour(NamedTuple):
    """An image that was found."""

    similarity: float
    """Cosine."""

    label: str | None
    path: str


class Best(NamedTuple):
    """The most similar rows so far, best first."""

    similarity: Float[np.ndarray, "Q n"]
    row: Int[np.ndarray, "Q n"]
    """Number among all embeddings."""

    def merged(self, similarity: np.ndarray, row: np.ndarray, k: int) -> Best:
        """With further rows, which come after these in the data."""
        similarity = np.concatenate([self.similarity, similarity], axis=1)
        row = np.concatenate([self.row, np.broadcast_to(row, (len(similarity), len(row)))], axis=1)
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        return Best(*(np.take_along_axis(each, order, axis=1) for each in (similarity, row)))


class Found(NamedTuple):
    """What was found for a query."""

    itself: Neighbour | None
    """The query, where it is among the images; it counts as no neighbour."""

    nearest: list[Neighbour]


def open_queries(
    config: EmbedConfig, opened: OpenedEncoder, device: torch.device
) -> Queries | None:
    """The queries, embedded as the images are; patch tokens are averaged.

    Raises:
        UserError: A query is not there or cannot be read.
    """
    if not config.query:
        return None
    channels, depth = opened.encoder.in_channels, opened.depth
    source = with_depth(Files("--query", config.query, plain_channels(channels)), channels, depth)
    pool = "cls" if (config.tokens or opened.pool) == "cls" else "mean"
    rows = []
    for batch in encoders.encode_source(
        opened.encoder,
        source,
        opened.preprocessing,
        device=device,
        precision_name=config.precision,
        batch_size=config.batch_size,
        workers=0,
    ):
        for path, reason in batch.skipped:
            raise UserError(f"--query {path} cannot be read as an image: {reason}")
        rows.append(opened.encoder.pooled(batch.tokens.float(), pool).cpu().numpy())
    return Queries(source, np.concatenate(rows))


def answer(
    folder: Path,
    index: Index,
    opened: OpenedEncoder,
    source: Source,
    queries: Queries,
    config: EmbedConfig,
) -> None:
    """Print the neighbours of each query; write neighbours.json and neighbours.png.

    Raises:
        UserError: A part is missing or damaged.
    """
    found = search(folder, index, source, queries, config.k)
    console = terminal.people()
    if index.facts["tokens"] == "patch":
        console.print("patch tokens are searched by their mean")
    # Rows stay whole where no terminal breaks them.
    wide = Console() if console.is_terminal else Console(width=1000)
    for query, one in zip(config.query, found, strict=True):
        console.print(f"\nnearest to {query}", style="bold")
        wide.print(table_of(one))
    if len(found[0].nearest) < config.k:
        console.print(f"there are {len(found[0].nearest)} neighbours, not {config.k}")
    picture = picture_of(found, opened, source, queries, config, index)
    run_folder.write_json(folder / "neighbours.json", result_of(found, config, index))
    write_whole(folder / "neighbours.png", lambda stream: stream.write(picture))
    terminal.emit("result", result_of(found, config, index))
    console.print(f"written: {folder / 'neighbours.json'}, {folder / 'neighbours.png'}")


def search(folder: Path, index: Index, source: Source, queries: Queries, k: int) -> list[Found]:
    """The `k` images most like each query, and the query itself where it is one of them.

    Of images equally like it those that stand first in the data are taken.
    """
    unit, own = unit_rows(queries.vectors), own_paths(queries.source, source)
    best = Best(np.empty((len(unit), 0)), np.empty((len(unit), 0), dtype=np.int64))
    themselves: list[Neighbour | None] = [None] * len(unit)
    images: dict[int, tuple[str | None, str]] = {}
    seen = 0
    for _, part in storage.read_parts(folder, index):
        for first in range(0, len(part.paths), ROWS):
            paths, labels = part.paths[first : first + ROWS], part.labels[first : first + ROWS]
            scores = cosine(unit, part.embeddings[first : first + ROWS])
            for query, mine in enumerate(own):
                for at in [at for at, path in enumerate(paths) if path in mine]:
                    itself = Neighbour(float(scores[query, at]), labels[at], paths[at])
                    themselves[query] = themselves[query] or itself
                    scores[query, at] = -np.inf
            rows = np.arange(seen, seen + len(paths))
            best, seen = best.merged(scores, rows, k), seen + len(paths)
            images |= dict(zip(rows.tolist(), zip(labels, paths, strict=True), strict=True))
            images = {row: images[row] for row in set(best.row.flat)}
    return [
        Found(
            itself,
            [
                Neighbour(float(score), *images[row])
                for score, row in zip(scores, rows, strict=True)
                if np.isfinite(score)
            ],
        )
        for itself, scores, rows in zip(themselves, best.similarity, best.row, strict=True)
    ]


def unit_rows(vectors: Float[np.ndarray, "M ..."]) -> Float[np.ndarray, "M D"]:
    """Vectors of length 1 in float64; those of patches are averaged first."""
    if vectors.ndim == 3:
        vectors = vectors.mean(axis=1, dtype=np.float64)
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)


def cosine(
    unit: Float[np.ndarray, "Q D"], vectors: Float[np.ndarray, "M ..."]
) -> Float[np.ndarray, "Q M"]:
    """Similarity of every query to every image, between -1 and 1."""
    return np.clip(unit @ unit_rows(vectors).T, -1, 1).round(DECIMALS)


def own_paths(queries: Source, source: Source) -> list[set[str]]:
    """For each query the images that are the same file, as they are called in the parts."""
    paths = [queries.path(number) for number in range(len(queries))]
    names = {os.path.basename(path) for path in paths}  # noqa: PTH119  (Path is ten times slower)
    own: list[set[str]] = [set() for _ in paths]
    for place in range(len(source)):
        path = source.path(place)
        if os.path.basename(path) not in names or not Path(path).exists():  # noqa: PTH119
            continue
        for query, mine in zip(paths, own, strict=True):
            if Path(path).samefile(query):
                mine.add(plain_text(path))
    return own


def table_of(found: Found) -> Table:
    """What was found for a query, as a table for the terminal."""
    table = Table()
    table.add_column("rank", justify="right")
    table.add_column("similarity", justify="right")
    table.add_column("label")
    table.add_column("path", overflow="fold")
    ranked = [("itself", found.itself)] if found.itself else []
    ranked += [(str(rank), one) for rank, one in enumerate(found.nearest, 1)]
    for rank, one in ranked:
        label, path = (escape(printable(text)) for text in (one.label or "-", one.path))
        words = (rank, f"{one.similarity:.3f}", label, path)
        table.add_row(*words, style="dim" if rank == "itself" else None)
    return table


def result_of(found: list[Found], config: EmbedConfig, index: Index) -> dict[str, Any]:
    """What neighbours.json says."""
    kept = ("encoder", "digest", "tokens", "data", "data_fingerprint")
    asked = replace(config, resume=False, overwrite=False)
    return {
        "command": "embed",
        "command_line": command_line("embed", asked),
        "config": to_plain(asked),
        **{name: index.facts[name] for name in kept},
        "similarity": "cosine of the mean tokens" if index.facts["tokens"] == "patch" else "cosine",
        "queries": [
            {
                "query": query,
                "itself": one.itself._asdict() if one.itself else None,
                "neighbours": [
                    {"rank": rank, **near._asdict()} for rank, near in enumerate(one.nearest, 1)
                ],
            }
            for query, one in zip(config.query, found, strict=True)
        ],
    }


def picture_of(
    found: list[Found],
    opened: OpenedEncoder,
    source: Source,
    queries: Queries,
    config: EmbedConfig,
    index: Index,
) -> bytes:
    """The neighbours as a PNG; of very many the first."""
    drawn = [one.nearest[:MOST_ACROSS] for one in found[:MOST_DRAWN]]
    wanted = {near.path for nearest in drawn for near in nearest}
    names = ((plain_text(source.path(place)), place) for place in range(len(source)))
    places = {path: place for path, place in names if path in wanted}
    rows = []
    for number, nearest in enumerate(drawn):
        name = Path(queries.source.path(number)).name
        said = "query, in the data" if found[number].itself else "query"
        query = Cell(seen(queries.source, number, opened), name, said)
        cells = [
            Cell(
                seen(source, places[near.path], opened),
                near.label or Path(near.path).name,
                f"{near.similarity:.3f}",
            )
            for near in nearest
        ]
        rows.append(Row(query, cells))
    title = f"Nearest among {index.count('rows')} images of {index.facts['data']}"
    return neighbours.draw(rows, title=title, note=note_of(found, config, index))


def seen(source: Source, place: int, opened: OpenedEncoder) -> np.ndarray:
    """The part of an image that the encoder sees, H x W x 1 or 3, finer than it sees it."""
    height, width = opened.encoder.image_size
    scale = SIDE / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    try:
        view = whole_view(source.read(place), size, opened.preprocessing.interpolation)
    except UnreadableImageError:  # it could be read when it was embedded
        view = torch.full((opened.encoder.in_channels, *size), 255, dtype=torch.uint8)
    mean, std = opened.preprocessing.mean, opened.preprocessing.std
    shown = for_people(view[None], mean, std)[0]
    return displayed((shown * 255).round().byte().permute(1, 2, 0).numpy())


def note_of(found: list[Found], config: EmbedConfig, index: Index) -> str:
    """How the picture came about, and what it leaves out."""
    tokens = {"cls": "class tokens"}.get(index.facts["tokens"], "means of the patch tokens")
    words = f"cosine of {tokens}, encoder {config.encoder}"
    if len(found) > MOST_DRAWN:
        words += f"; the first {MOST_DRAWN} of {len(found)} queries"
    most = max(len(one.nearest) for one in found)
    if most > MOST_ACROSS:
        words += f"; the first {MOST_ACROSS} of {most} neighbours"
    return words
