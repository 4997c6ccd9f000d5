"""Embeddings: one vector an image, or one a patch, written to files that are searched and read.

`run` is read from top to bottom. Batches always begin at multiples of the batch size in the data,
wherever a run goes on: a network's last bits depend on what stands in a batch with an image, and a
resumed folder is to be the same byte for byte. For the same reason several processes share out
whole parts, and make what one makes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mvmae import encoders
from mvmae.config.embed import EmbedConfig
from mvmae.config.files import command_line, to_plain
from mvmae.data.sources.base import Source, fingerprint
from mvmae.data.sources.open import open_source
from mvmae.embed import formats, search, storage
from mvmae.embed.compute import gathered, own_parts, turns
from mvmae.embed.formats import Part
from mvmae.embed.progress import Meter, conclude, farewell, introduce
from mvmae.embed.storage import Index, read_embeddings
from mvmae.encoders import OpenedEncoder
from mvmae.errors import OtherFailedError, UserError
from mvmae.storage import results, run_folder
from mvmae.storage.lock import locked
from mvmae.training import distributed, precision, process_store
from mvmae.training.interrupt import Interrupt, exit_status

__all__ = ["Part", "read_embeddings", "run"]

LEAVE_SECONDS = 60.0  # for the other processes to stop writing before their parts are removed
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
    with distributed.process_group(torch.device("cpu")):  # no tensors are exchanged
        device = precision.choose_device(config.device)
        folder = folder_of(config)
        if distributed.is_main():
            claim(folder, config)
        formats.require(config.format)
        opened = encoders.open_encoder(config.encoder, config.image_size, config.in_channels)
        source = open_source(config.data, opened.encoder.in_channels, opened.depth)
        if not distributed.is_main():
            return assist(folder, config, opened, source, device)
        facts = facts_of(config, opened, source, device)
        facts = json.loads(json.dumps(facts))  # as it is read back
        queries = search.open_queries(config, opened, device)
        with locked(folder):
            claim(folder, config)  # again: another command may have been here meanwhile
            return write(folder, config, opened, source, facts, queries, device)


def assist(
    folder: Path,
    config: EmbedConfig,
    opened: OpenedEncoder,
    source: Source,
    device: torch.device,
) -> int:
    """Write this process's share of the parts, and tell the main process of each.

    Returns:
        An exit status.

    Raises:
        UserError: As `embed`.
    """
    if (said := distributed.from_main(None)) is None:  # there is nothing to embed
        return 0
    index = Index(*said)
    with Interrupt() as interrupt:
        for turn in turns(folder, index, own_parts(index), opened, source, config, device):
            for made in turn.made:
                process_store.post(made)
            if signal := process_store.check(interrupt.signal):
                return exit_status(signal)
    process_store.done()
    return 0


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
        distributed.from_main(None)
        meter.say(f"embeddings of {source.name}: {folder}")
        index = storage.read_index(folder)
    else:
        fresh = not config.resume
        index = Index(facts, {}, 0.0) if fresh else resumed(folder, facts)
        storage.check_space(folder, index)
        introduce(meter, index)
        if fresh:
            storage.begin(folder, index)
        distributed.from_main(tuple(index))
        try:
            with meter, Interrupt() as interrupt:
                index, signal = gathered(
                    folder, index, opened, source, config, device, meter, interrupt
                )
            if signal:
                meter.say(farewell(signal, config, index))
                return exit_status(signal)
        except OtherFailedError:
            raise
        except UserError:
            if fresh:  # nothing that could be gone on with
                process_store.dismiss(LEAVE_SECONDS)
                storage.discard(folder)
            raise
        storage.order_skipped(folder, source)
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
    if storage.is_there(folder):
        if not (config.overwrite and storage.has_parts(folder)):
            storage.read_index(folder)  # or it is of somebody else, and not to be replaced
        if not (config.resume or config.overwrite or config.query):
            raise UserError(
                f"{folder} already holds embeddings: choose another --out, "
                "--resume to finish them, --query to search them, or --overwrite to replace them"
            )
    elif config.resume:
        raise UserError(f"no embeddings in {folder} to resume: leave out --resume to begin")
    elif folder.exists() and any(file.name != run_folder.LOCK for file in folder.iterdir()):
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
        "command": "embed",
        "command_line": command_line("embed", made),
        "config": to_plain(made),
        "encoder": config.encoder,
        "digest": encoders.weights_digest(encoder),
        "encoder_facts": encoders.encoder_metadata(opened),
        "tokens": tokens,
        "width": width,
        "grid": [rows, columns],
        "shape": list(shape),
        "dtype": config.dtype,
        "format": config.format,
        "precision": arithmetic,
        "batch_size": config.batch_size,
        "part_size": storage.part_size_of(shape, config.dtype, config.part_size),
        "data": source.name,
        "num_images": len(source),
        "data_fingerprint": fingerprint(source),
        "labels_fingerprint": labels_fingerprint(source),
        "classes": list(source.classes),
        "environment": run_folder.environment(
            device, distributed.world_size(), **formats.versions(config.format)
        ),
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
    if not config.query or config.resume or config.overwrite or not storage.is_there(folder):
        return False
    index = storage.read_index(folder)
    require_same(folder, index, facts, SAME_NUMBERS)
    if index.todo:
        raise UserError(f"{folder} is not finished: add --resume to finish it and then search")
    return True


def resumed(folder: Path, facts: dict[str, Any]) -> Index:
    """The index of a folder that goes on, damaged parts left out.

    Raises:
        UserError: It is of another encoder, other images or other settings.
    """
    index = storage.read_index(folder)
    require_same(folder, index, facts, SAME_BYTES)
    return storage.without_damaged(folder, index)


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
