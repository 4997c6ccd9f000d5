"""Search embeddings for the nearest neighbours of query images, one part at a time.

The search is exact: every cosine is computed in float64 and rounded to six decimals, so that the
ranking does not depend on the size of the parts. Shapes: Q queries, M images, N patch tokens,
D width, n neighbours.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mvmae import encoders, terminal
from mvmae.config.embed import EmbedConfig
from mvmae.config.files import command_line, to_plain
from mvmae.data.sources.base import Source, plain_channels, with_depth
from mvmae.data.sources.folders import Files
from mvmae.embed import storage
from mvmae.embed.compute import Job
from mvmae.embed.storage import Index
from mvmae.errors import UserError, encodable, printable
from mvmae.figures import page
from mvmae.figures.page import Cell, Group, Row
from mvmae.figures.text import ACCENT
from mvmae.inspect.choose_images import render_image
from mvmae.storage import atomic
from mvmae.storage.atomic import write_bytes

DECIMALS = 6  # more would depend on how a product is split into blocks
BLOCK = 1024  # images compared at a time
MAX_DRAWN_QUERIES = 24  # the JSON holds all of them
MAX_DRAWN_NEIGHBOURS = 12  # per query


class Queries(NamedTuple):
    """Images whose neighbours are searched for."""

    source: Source
    vectors: Float[np.ndarray, "Q D"]


class Neighbour(NamedTuple):
    """An image that was found."""

    similarity: float
    """Cosine."""

    label: str | None
    path: str


class Best(NamedTuple):
    """The most similar images so far, most similar first."""

    similarity: Float[np.ndarray, "Q n"]
    row: Int[np.ndarray, "Q n"]
    """Number of the image among all embeddings."""

    def merge(self, similarity: np.ndarray, row: np.ndarray, k: int) -> Best:
        """Add images that come later in the data; on a tie the earlier image wins."""
        similarity = np.concatenate([self.similarity, similarity], axis=1)
        row = np.concatenate([self.row, np.broadcast_to(row, (len(similarity), len(row)))], axis=1)
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        return Best(*(np.take_along_axis(each, order, axis=1) for each in (similarity, row)))


class Result(NamedTuple):
    """What was found for one query."""

    itself: Neighbour | None
    """The query, if it is one of the images; it does not count as a neighbour."""

    nearest: list[Neighbour]


def open_queries(job: Job) -> Queries | None:
    """Embed the queries as the images are embedded; patch tokens are averaged.

    Raises:
        UserError: A query is missing or cannot be read.
    """
    config, _, opened, _, device = job
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
        rows.append(opened.encoder.pool(batch.tokens.float(), pool).cpu().numpy())
    return Queries(source, np.concatenate(rows))


def answer_queries(job: Job, index: Index, queries: Queries) -> None:
    """Print the neighbours of each query; write neighbours.json and neighbours.png.

    Raises:
        UserError: A part is missing or damaged.
    """
    config, folder = job.config, job.folder
    results = search(folder, index, job.source, queries, config.k)
    console = terminal.console()
    if index.facts["tokens"] == "patch":
        console.print("patch tokens are searched by their mean")
    # In a file or a pipe a table row must not be wrapped.
    wide = Console(emoji=False, width=None if console.is_terminal else 1000)
    for query, result in zip(config.query, results, strict=True):
        console.print(f"\nnearest to {query}", style="bold")
        wide.print(make_table(result))
    if len(results[0].nearest) < config.k:
        console.print(f"there are {len(results[0].nearest)} neighbours, not {config.k}")
    picture = draw_results(results, job, index, queries)
    content = results_to_json(results, config, index)
    atomic.write_json(folder / "neighbours.json", content)
    write_bytes(folder / "neighbours.png", picture)
    terminal.emit("result", content)
    console.print(f"written: {folder / 'neighbours.json'}, {folder / 'neighbours.png'}")


def search(folder: Path, index: Index, source: Source, queries: Queries, k: int) -> list[Result]:
    """Find the `k` images most similar to each query, and the query itself among the images.

    Of equally similar images, those that come first in the data are taken.
    """
    unit, own = unit_rows(queries.vectors), _find_own_paths(queries.source, source)
    best = Best(np.empty((len(unit), 0)), np.empty((len(unit), 0), dtype=np.int64))
    itself: list[Neighbour | None] = [None] * len(unit)
    images: dict[int, tuple[str | None, str]] = {}
    seen = 0
    for part in storage.read_parts(folder, index):
        for first in range(0, len(part.paths), BLOCK):
            block = slice(first, first + BLOCK)
            paths, labels = part.paths[block], part.labels[block]
            scores = cosine(unit, part.embeddings[block])
            for query, own_paths in enumerate(own):
                # An image may be listed under several paths; none of them is its own neighbour.
                for at in [at for at, path in enumerate(paths) if path in own_paths]:
                    found = Neighbour(float(scores[query, at]), labels[at], paths[at])
                    itself[query] = itself[query] or found
                    scores[query, at] = -np.inf
            rows = np.arange(seen, seen + len(paths))
            best, seen = best.merge(scores, rows, k), seen + len(paths)
            images |= dict(zip(rows.tolist(), zip(labels, paths, strict=True), strict=True))
            images = {row: images[row] for row in set(best.row.flat)}  # forget the others
    results = []
    for query, (scores, rows) in enumerate(zip(best.similarity, best.row, strict=True)):
        nearest = [
            Neighbour(float(score), *images[row])
            for score, row in zip(scores, rows, strict=True)
            if np.isfinite(score)
        ]
        results.append(Result(itself[query], nearest))
    return results


def unit_rows(vectors: Float[np.ndarray, "M ..."]) -> Float[np.ndarray, "M D"]:
    """Normalise vectors to length 1 in float64; patch tokens are averaged first."""
    if vectors.ndim == 3:
        vectors = vectors.mean(axis=1, dtype=np.float64)
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)


def cosine(
    unit: Float[np.ndarray, "Q D"], vectors: Float[np.ndarray, "M ..."]
) -> Float[np.ndarray, "Q M"]:
    """Cosine of every query, of length 1, to every image."""
    return np.clip(unit @ unit_rows(vectors).T, -1, 1).round(DECIMALS)


def _find_own_paths(queries: Source, source: Source) -> list[set[str]]:
    """For each query, the paths under which the same file is among the images."""
    paths = [queries.path(number) for number in range(len(queries))]
    names = {os.path.basename(path) for path in paths}  # noqa: PTH119  (Path is ten times slower)
    own: list[set[str]] = [set() for _ in paths]
    # Names first: asking the disk about each of a million files would take minutes.
    for image in range(len(source)):
        path = source.path(image)
        if os.path.basename(path) not in names or not Path(path).exists():  # noqa: PTH119
            continue
        for query, own_paths in zip(paths, own, strict=True):
            if Path(path).samefile(query):
                own_paths.add(encodable(path))
    return own


def make_table(result: Result) -> Table:
    """The result of one query as a table for the terminal."""
    table = Table()
    table.add_column("rank", justify="right")
    table.add_column("similarity", justify="right")
    table.add_column("label")
    table.add_column("path", overflow="fold")
    ranked = [("itself", result.itself)] if result.itself else []
    ranked += [(str(rank), near) for rank, near in enumerate(result.nearest, 1)]
    for rank, near in ranked:
        label, path = (escape(printable(text)) for text in (near.label or "-", near.path))
        cells = (rank, f"{near.similarity:.3f}", label, path)
        table.add_row(*cells, style="dim" if rank == "itself" else None)
    return table


def results_to_json(results: list[Result], config: EmbedConfig, index: Index) -> dict[str, Any]:
    """The content of neighbours.json."""
    kept = ("encoder", "digest", "tokens", "data", "data_fingerprint")
    repeated = replace(config, resume=False, overwrite=False)
    return {
        "command": "embed",
        "command_line": command_line("embed", repeated),
        "config": to_plain(repeated),
        **{name: index.facts[name] for name in kept},
        "similarity": "cosine of the mean tokens" if index.facts["tokens"] == "patch" else "cosine",
        "queries": [
            {
                "query": query,
                "itself": result.itself._asdict() if result.itself else None,
                "neighbours": [
                    {"rank": rank, **near._asdict()} for rank, near in enumerate(result.nearest, 1)
                ],
            }
            for query, result in zip(config.query, results, strict=True)
        ],
    }


def draw_results(results: list[Result], job: Job, index: Index, queries: Queries) -> bytes:
    """Draw the first queries and their first neighbours as a PNG."""
    drawn = [result.nearest[:MAX_DRAWN_NEIGHBOURS] for result in results[:MAX_DRAWN_QUERIES]]
    wanted = {near.path for nearest in drawn for near in nearest}
    # The index knows paths only, and the sheet needs the images themselves.
    paths = ((encodable(job.source.path(image)), image) for image in range(len(job.source)))
    images = {path: image for path, image in paths if path in wanted}
    rows = []
    for number, nearest in enumerate(drawn):
        role = "query, in the data" if results[number].itself else "query"
        captions = (Path(queries.source.path(number)).name, role)
        query = Cell(
            render_image(queries.source, number, job.opened), captions=captions, frame=ACCENT
        )
        cells = [
            Cell(
                render_image(job.source, images[near.path], job.opened),
                captions=(near.label or Path(near.path).name, f"{near.similarity:.3f}"),
            )
            for near in nearest
        ]
        rows.append(Row([Group([query]), Group(cells)]))
    title = f"Nearest among {index.total('rows')} images of {index.facts['data']}"
    return page.draw(
        rows, title=title, note=write_note(results, job.config, index), side=page.SMALL_CELL
    )


def write_note(results: list[Result], config: EmbedConfig, index: Index) -> str:
    """The note below the picture: how similarity is measured, and what is not drawn."""
    tokens = {"cls": "class tokens"}.get(index.facts["tokens"], "means of the patch tokens")
    note = f"cosine of {tokens}, encoder {config.encoder}"
    if len(results) > MAX_DRAWN_QUERIES:
        note += f"; the first {MAX_DRAWN_QUERIES} of {len(results)} queries"
    most = max(len(result.nearest) for result in results)
    if most > MAX_DRAWN_NEIGHBOURS:
        note += f"; the first {MAX_DRAWN_NEIGHBOURS} of {most} neighbours"
    return note
