"""Embeddings: one vector an image, or one a patch, written to files that are searched and read.

`run` is read from top to bottom. Batches always begin at multiples of the batch size in the data,
wherever a run goes on: a network's last bits depend on what stands in a batch with an image, and a
resumed folder is to be the same byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mvmae import encoders
from mvmae.config import EmbedConfig
from mvmae.config.files import command_of, to_plain
from mvmae.data.loader import Skipped
from mvmae.data.sources.opening import fingerprint, open_source
from mvmae.data.sources.source import Source, Subset
from mvmae.encoders import OpenedEncoder
from mvmae.engine import precision, results, runs
from mvmae.engine.claiming import locked
from mvmae.engine.interrupt import Interrupt, exit_status
from mvmae.errors import UserError
from mvmae.models.vit import Encoder
from mvmae.tasks.embedding import formats, parts, search
from mvmae.tasks.embedding.formats import Part
from mvmae.tasks.embedding.parts import Index, read_embeddings
from mvmae.tasks.embedding.progress import Meter, conclude, farewell, introduce

__all__ = ["Part", "read_embeddings", "run"]

SAME_NUMBERS = {  # facts that must agree for embeddings to be those asked for, and their names
    "digest": "encoder weights",
    "encoder_facts": "encoder settings",
    "tokens": "--tokens",
    "data_fingerprint": "images",
    "labels_fingerprint": "labels",
}
SAME_BYTES = SAME_NUMBERS | {  # and further for files to be the same byte for byte
    "format": "--format",
    "dtype": "--dtype",
    "precision": "--precision",
    "batch_size": "--batch-size",
    "part_size": "--part-size",
}


def run(config: EmbedConfig) -> int:
    """Embed every image of the data into the folder `config.out`; answer the queries, if any.

    Returns:
        0 when done; 130 or 143 when stopped by SIGINT or SIGTERM, after which --resume goes on.

    Raises:
        UserError: The encoder, the data, a query, the folder or the settings cannot work.
    """
    device = precision.choose_device(config.device)
    folder = folder_of(config)
    claim(folder, config)
    formats.require(config.format)
    opened = encoders.open_encoder(config.encoder, config.image_size, config.in_channels)
    source = open_source(config.data, opened.encoder.in_channels, opened.depth)
    facts = json.loads(json.dumps(facts_of(config, opened, source, device)))  # as it is read back
    queries = search.open_queries(config, opened, device)
    with locked(folder):
        claim(folder, config)  # again: another command may have been here meanwhile
        return write(folder, config, opened, source, facts, queries, device)


def write(
    folder: Path,
    config: EmbedConfig,
    opened: OpenedEncoder,
    source: Source,
    facts: dict[str, Any],
    queries: search.Queries | None,
    device: torch.device,
) -> int:
    """Embed what is to do into a folder that no other command writes into; answer the queries.

    Returns:
        An exit status.

    Raises:
        UserError: What is there or to be made cannot work.
    """
    meter = Meter(len(source))
    if is_made(folder, config, facts):
        meter.say(f"embeddings of {source.name}: {folder}")
        index = parts.read_index(folder)
    else:
        fresh = not config.resume
        index = Index(facts, {}, 0.0) if fresh else resumed(folder, facts)
        parts.check_space(folder, index)
        introduce(meter, index)
        if fresh:
            parts.begin(folder, index)
        try:
            with meter, Interrupt() as interrupt:
                index = embed(folder, index, opened, source, config, device, meter, interrupt)
            if index.todo:
                meter.say(farewell(interrupt.signal, config, index))
                return exit_status(interrupt.signal)
        except UserError:
            if fresh:  # nothing that could be gone on with
                parts.discard(folder)
            raise
        conclude(meter, folder, index)
    if queries:
        search.answer(folder, index, opened, source, queries, config)
    return 0


def folder_of(config: EmbedConfig) -> Path:
    """Where the embeddings go."""
    if config.out is not None:
        return config.out
    return results.home(config.encoder, None) / f"embeddings-{results.slug(' '.join(config.data))}"


def claim(folder: Path, config: EmbedConfig) -> None:
    """Make sure that embeddings may be written into the folder; change nothing yet.

    Raises:
        UserError: The folder holds other embeddings or other files, or nothing to resume.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: --out must name a folder")
    above = (folder.resolve(), *folder.resolve().parents)
    if config.query and any(Path(name).resolve() in above for name in config.data):
        raise UserError(
            f"{folder} lies among the images, where neighbours.png would be one more: "
            "choose an --out elsewhere"
        )
    if parts.is_there(folder):
        if not (config.overwrite and parts.has_parts(folder)):
            parts.read_index(folder)  # or it is of somebody else, and not to be replaced
        if not (config.resume or config.overwrite or config.query):
            raise UserError(
                f"{folder} already holds embeddings: choose another --out, "
                "--resume to finish them, --query to search them, or --overwrite to replace them"
            )
    elif config.resume:
        raise UserError(f"no embeddings in {folder} to resume: leave out --resume to begin")
    elif folder.exists() and any(file.name != runs.LOCK for file in folder.iterdir()):
        raise UserError(f"{folder} holds other files: choose an --out that is new or empty")


def facts_of(
    config: EmbedConfig, opened: OpenedEncoder, source: Source, device: torch.device
) -> dict[str, Any]:
    """What index.json says of the embeddings besides their parts.

    Raises:
        UserError: There is no class token, or a part is too large.
    """
    encoder, tokens = opened.encoder, config.tokens or opened.pool
    if tokens == "cls" and not encoder.variant.cls_token:
        raise UserError(f"{config.encoder} has no class token: choose --tokens mean or patch")
    width, (rows, columns) = encoder.embed_dim, encoder.grid
    shape = (rows * columns, width) if tokens == "patch" else (width,)
    arithmetic = config.precision
    if arithmetic == "auto":
        arithmetic = "bf16" if device.type == "cuda" else "fp32"
    made = replace(config, resume=False, overwrite=False, query=(), k=EmbedConfig(encoder="").k)
    return {
        "verb": "embed",
        "command": command_of("embed", made),
        "config": to_plain(made),
        "encoder": config.encoder,
        "digest": encoders.digest(encoder),
        "encoder_facts": encoders.facts_of(opened),
        "tokens": tokens,
        "width": width,
        "grid": [rows, columns],
        "shape": list(shape),
        "dtype": config.dtype,
        "format": config.format,
        "precision": arithmetic,
        "batch_size": config.batch_size,
        "part_size": parts.part_size_of(shape, config.dtype, config.part_size),
        "data": source.name,
        "num_images": len(source),
        "data_fingerprint": fingerprint(source),
        "labels_fingerprint": labels_fingerprint(source),
        "classes": list(source.classes),
        "environment": runs.environment(device, 1, **formats.versions(config.format)),
    }


def labels_fingerprint(source: Source) -> str:
    """A short hash of the images' classes, which a list can change while its paths stay."""
    names = [source.classes[label] for i in range(len(source)) if (label := source.label(i)) >= 0]
    return hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()[:16]


def is_made(folder: Path, config: EmbedConfig, facts: dict[str, Any]) -> bool:
    """Whether there is nothing to embed before the queries are answered.

    Raises:
        UserError: There are embeddings, and they are of something else or not finished.
    """
    if not config.query or config.resume or config.overwrite or not parts.is_there(folder):
        return False
    index = parts.read_index(folder)
    require_same(folder, index, facts, SAME_NUMBERS)
    if index.todo:
        raise UserError(f"{folder} is not finished: add --resume to finish it and then search")
    return True


def resumed(folder: Path, facts: dict[str, Any]) -> Index:
    """The index of a folder that goes on, damaged parts left out.

    Raises:
        UserError: It is of another encoder, other images or other settings.
    """
    index = parts.read_index(folder)
    require_same(folder, index, facts, SAME_BYTES)
    return parts.without_damaged(folder, index)


def require_same(folder: Path, index: Index, facts: dict[str, Any], names: dict[str, str]) -> None:
    """Refuse what is not the same, and say what.

    Raises:
        UserError: Some fact differs.
    """
    changed = list(differences(index.facts, facts, names))
    if changed:
        raise UserError(
            f"{folder} was made with {'; '.join(changed)}: set them alike, choose another --out, "
            "or --overwrite"
        )


def differences(
    before: dict[str, Any], now: dict[str, Any], names: dict[str, str]
) -> Iterator[str]:
    """What some facts were and are, in words."""
    for name, words in names.items():
        old, new = before.get(name), now[name]
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            keys = sorted(old.keys() | new.keys())
            yield from differences(old, {key: new.get(key) for key in keys}, {k: k for k in keys})
        else:
            yield f"{words} {old}, not {new}"


class Encoded(NamedTuple):
    """A batch of images as places in the data."""

    covered: Sequence[int]
    """All that were read, in order."""

    places: list[int]
    """Those that could be read."""

    vectors: np.ndarray
    """Of these."""

    unreadable: list[tuple[int, Skipped]]


def embed(
    folder: Path,
    index: Index,
    opened: OpenedEncoder,
    source: Source,
    config: EmbedConfig,
    device: torch.device,
    meter: Meter,
    interrupt: Interrupt,
) -> Index:
    """Write the parts that are to do, until done or interrupted.

    Raises:
        UserError: More than half of the images cannot be read, or an embedding is no number.
    """
    began = time.perf_counter() - index.seconds
    todo, skipped = index.todo, index.count("skipped")
    if not todo:
        return index
    filling = parts.Filling(todo[0], index.shape, config.dtype)
    for batch in encoded(index, opened, source, config, device):
        skipped += len(batch.unreadable)
        refuse_unreadable(source, skipped, batch.unreadable)
        while todo and todo[0].start <= batch.covered[-1]:
            filling.add(batch.places, batch.vectors)
            filling.skip(batch.unreadable)
            if batch.covered[-1] < todo[0][-1]:
                break
            seconds = time.perf_counter() - began
            index = parts.finish(folder, index, filling, source, seconds)
            todo = todo[1:]
            if todo:
                filling = parts.Filling(todo[0], index.shape, config.dtype)
        meter.advance(index.count("images") + len(filling.places) * bool(todo))
        if interrupt.signal:
            break
    return index


def encoded(
    index: Index, opened: OpenedEncoder, source: Source, config: EmbedConfig, device: torch.device
) -> Iterator[Encoded]:
    """The batches that hold images of parts to do, each as it is when nothing was done yet."""
    size = config.batch_size
    numbers = sorted({place // size for span in index.todo for place in span})
    order = [
        place
        for number in numbers
        for place in range(number * size, min((number + 1) * size, len(source)))
    ]
    batches = encoders.encoded(
        opened.encoder,
        Subset(source, order),
        opened.preprocessing,
        device=device,
        precision_name=index.facts["precision"],
        batch_size=size,
        workers=config.workers,
    )
    for number, batch in enumerate(batches):
        covered = order[number * size : (number + 1) * size]
        places = [order[at] for at in batch.indices]
        lost = sorted(set(covered) - set(places))
        vectors = vectors_of(opened.encoder, batch.tokens, index.facts["tokens"], config.dtype)
        refuse_what_is_no_number(vectors, places, source, config)
        yield Encoded(covered, places, vectors, list(zip(lost, batch.skipped, strict=True)))


def vectors_of(encoder: Encoder, tokens: torch.Tensor, kind: str, dtype: str) -> np.ndarray:
    """What is kept of a batch: B x D, or B x N x D of patch tokens."""
    if not len(tokens):
        return np.empty(0, dtype)
    tokens = tokens.float()
    kept = (
        tokens[:, encoder.num_prefix :]
        if kind == "patch"
        else encoder.pooled(tokens, "cls" if kind == "cls" else "mean")
    )
    with np.errstate(over="ignore"):  # what is too large for float16 is found and said next
        return kept.cpu().numpy().astype(dtype)


def refuse_what_is_no_number(
    vectors: np.ndarray, places: list[int], source: Source, config: EmbedConfig
) -> None:
    """Stop at an embedding that is infinite or no number.

    Raises:
        UserError: There is one.
    """
    bad = [row for row in range(len(places)) if not np.isfinite(vectors[row]).all()]
    if bad:
        remedy = "are its weights damaged?"
        if config.dtype == "float16":
            remedy = "try --dtype float32, which holds numbers above 65504"
        raise UserError(
            f"{config.encoder} makes no finite embedding of {source.path(places[bad[0]])}: {remedy}"
        )


def refuse_unreadable(
    source: Source, count: int, unreadable: Sequence[tuple[int, Skipped]]
) -> None:
    """Stop as soon as it is certain that more than half cannot be read.

    Raises:
        UserError: They cannot.
    """
    if count > len(source) / 2:
        path, reason = unreadable[-1][1]
        raise UserError(
            f"more than half of the {len(source)} images of {source.name} cannot be read, "
            f"{path} for one ({reason}): is this the right DATA?"
        )
