"""Embed images: write one vector per image or patch to files, and search them.

Read `run` from top to bottom. Each part, a file of consecutive images, is written by one process.
So any number of processes writes the same bytes.
"""

import hashlib
import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mvmae import encoders, terminal
from mvmae.config.embed import EmbedConfig
from mvmae.config.files import command_line, to_plain
from mvmae.data.sources.base import fingerprint
from mvmae.data.sources.open import open_source
from mvmae.embed import formats, search, storage
from mvmae.embed.compute import Job, compute_embeddings, write_parts
from mvmae.embed.storage import PARTS, Index
from mvmae.errors import OtherFailedError, UserError, pluralize
from mvmae.storage import results, run_folder
from mvmae.storage.lock import locked
from mvmae.terminal import Bar
from mvmae.training import distributed, precision, process_store
from mvmae.training.interrupt import Interrupt, exit_status

LEAVE_SECONDS = 60.0  # to wait for other processes to stop writing, before parts are removed
SAME_NUMBERS = {  # facts on which the embeddings depend, and their names in messages
    "digest": "encoder weights",
    "encoder_facts": "encoder settings",
    "tokens": "--tokens",
    "data_fingerprint": "images",
    "labels_fingerprint": "labels",
}
SAME_BYTES = SAME_NUMBERS | {  # facts on which the bytes of the files depend as well
    "format": "--format",
    "dtype": "--dtype",
    "precision": "--precision",
    "batch_size": "--batch-size",
    "part_size": "--part-size",
}
TOKENS = {"mean": "mean of the patch tokens", "cls": "class token", "patch": "all patch tokens"}


def run(config: EmbedConfig) -> int:
    """Embed every image of the data and answer the queries, if there are any.

    Returns:
        0 when done; 130 or 143 when stopped by SIGINT or SIGTERM, after which --resume continues.

    Raises:
        UserError: The encoder, the data, a query, the folder or the settings cannot be used.
    """
    # On the CPU also for GPUs, because processes exchange no tensors.
    with distributed.process_group(torch.device("cpu")):
        device = precision.choose_device(config.device)
        folder = config.out or (
            results.home(config.encoder, None) / f"embeddings-{results.slug(' '.join(config.data))}"
        )
        # Check before the encoder is loaded, which may be a download.
        if distributed.is_main():
            check_folder(folder, config)
        formats.package_versions(config.format)  # fails now if the package is missing
        opened = encoders.open_encoder(config.encoder, config.image_size, config.in_channels)
        source = open_source(config.data, opened.encoder.in_channels, opened.depth)
        job = Job(config, folder, opened, source, device)
        if not distributed.is_main():
            return write_share(job)
        facts = describe_embeddings(job)
        facts = json.loads(json.dumps(facts))  # tuples become lists, as in a file that is read
        queries = search.open_queries(job)
        with locked(folder):
            check_folder(folder, config)  # again, in case another command wrote meanwhile
            return write_and_search(job, facts, queries)


def write_share(job: Job) -> int:
    """Write this process's share of the parts, and report each to the main process.

    Returns:
        Exit status.

    Raises:
        UserError: The images or the folder cannot be used, or another process failed.
    """
    if (content := distributed.from_main(None)) is None:  # there is nothing to embed
        return 0
    with Interrupt() as interrupt:
        for result in write_parts(job, Index(*content)):
            for part in result.written:
                process_store.current().post(part)
            if stopped_by := process_store.current().check(interrupt.signal):
                return exit_status(stopped_by)
    process_store.current().finish_phase()
    return 0


def write_and_search(job: Job, facts: dict[str, Any], queries: search.Queries | None) -> int:
    """Embed what is missing into a locked folder, then answer the queries.

    Returns:
        Exit status.

    Raises:
        UserError: The folder or the images cannot be used.
    """
    config, folder, source = job.config, job.folder, job.source
    # Without --resume and --overwrite, a query of embeddings that exist computes nothing.
    is_there = storage.has_index(folder) and not (config.resume or config.overwrite)
    if config.query and is_there:
        index = storage.read_index(folder)
        _require_same(folder, index, facts, SAME_NUMBERS)
        if index.missing:
            raise UserError(f"{folder} is not finished: add --resume to finish it and then search")
        distributed.from_main(None)  # the other processes wait for it in `write_share`
        terminal.console().print(f"embeddings of {source.name}: {folder}")
    else:
        index = Index(facts, {}, 0.0)
        if config.resume:
            index = storage.read_index(folder)
            _require_same(folder, index, facts, SAME_BYTES)
            index = storage.drop_damaged(folder, index)
        storage.check_space(folder, index)
        print_start(index)
        # The index comes first: it marks the folder as ours, so that --resume can continue.
        if not config.resume:
            storage.clear(folder)
            run_folder.make(folder / PARTS)
            storage.write_index(folder, index)
        distributed.from_main(tuple(index))
        try:
            with Bar(len(source), done=index.total("images")) as bar, Interrupt() as interrupt:
                bar.name("embed")
                index, stopped_by = compute_embeddings(job, index, bar, interrupt)
        except OtherFailedError:  # keep the parts that this process wrote: they are good
            raise
        except UserError:
            if not config.resume:  # there is nothing worth keeping
                process_store.current().stop_others(LEAVE_SECONDS)
                storage.discard(folder)
            raise
        if stopped_by:
            command = command_line("embed", replace(config, resume=True, overwrite=False))
            terminal.console().print(
                f"stopped by {signal.Signals(stopped_by).name}: {index.total('images')} of "
                f"{len(source)} images are in complete parts; continue with {command}"
            )
            return exit_status(stopped_by)
        storage.sort_skipped(folder, source)
        print_end(folder, index)
    if queries:
        search.answer_queries(job, index, queries)
    return 0


def check_folder(folder: Path, config: EmbedConfig) -> None:
    """Check that embeddings may be written into the folder; change nothing.

    Raises:
        UserError: The folder holds other embeddings or other files, or nothing to resume.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: --out must name a folder")
    ancestors = (folder.resolve(), *folder.resolve().parents)
    if config.query and any(Path(name).resolve() in ancestors for name in config.data):
        raise UserError(
            f"{folder} is among the images, where neighbours.png would count as an image: "
            "choose an --out elsewhere"
        )
    if storage.has_index(folder):
        if not (config.overwrite and storage.is_replaceable(folder)):
            storage.read_index(folder)  # refuses the index of another program
        if not (config.resume or config.overwrite or config.query):
            raise UserError(
                f"{folder} already holds embeddings: choose another --out, "
                "--resume to finish them, --query to search them, or --overwrite to replace them"
            )
    elif config.resume:
        raise UserError(f"{folder} holds no embeddings to resume: leave out --resume to start")
    elif folder.exists() and any(
        not file.name.startswith(run_folder.LOCK) for file in folder.iterdir()
    ):
        raise UserError(f"{folder} holds other files: choose an --out that is new or empty")


def describe_embeddings(job: Job) -> dict[str, Any]:
    """Return the facts of index.json: what the embeddings are, and what they depend on.

    Raises:
        UserError: There is no class token, or a part is too large.
    """
    config, _, opened, source, device = job
    # Hash class names and not paths, because a list file can change classes while its paths stay.
    names = [source.classes[label] for i in range(len(source)) if (label := source.label(i)) >= 0]
    names_digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape"))
    encoder, tokens = opened.encoder, config.tokens or opened.pool
    if tokens == "cls" and not encoder.variant.cls_token:
        raise UserError(f"{config.encoder} has no class token: choose --tokens mean or patch")
    width, (rows, columns) = encoder.embed_dim, encoder.grid
    shape = (rows * columns, width) if tokens == "patch" else (width,)
    # "auto" is resolved, because the numbers depend on it and --resume compares it.
    arithmetic = config.precision
    if arithmetic == "auto":
        arithmetic = "bf16" if device.type == "cuda" else "fp32"
    # The command that makes these embeddings from scratch, wherever they were resumed or searched.
    repeated = replace(config, resume=False, overwrite=False, query=(), k=EmbedConfig.k)
    return {
        "command": "embed",
        "command_line": command_line("embed", repeated),
        "config": to_plain(repeated),
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
        "part_size": storage.choose_part_size(shape, config.dtype, config.part_size),
        "data": source.name,
        "num_images": len(source),
        "data_fingerprint": fingerprint(source),
        "labels_fingerprint": names_digest.hexdigest()[:16],
        "classes": list(source.classes),
        "environment": run_folder.environment(
            device, distributed.world_size(), **formats.package_versions(config.format)
        ),
    }


def _require_same(folder: Path, index: Index, facts: dict[str, Any], names: dict[str, str]) -> None:
    """Refuse existing embeddings that were made with other facts; `names` are those that count.

    Raises:
        UserError: A fact differs.
    """
    changed = list(_list_differences(index.facts, facts, names))
    if changed:
        raise UserError(
            f"{folder} was made with {'; '.join(changed)}: use the same settings, choose another "
            "--out, or --overwrite"
        )


def _list_differences(
    before: dict[str, Any], now: dict[str, Any], names: dict[str, str]
) -> Iterator[str]:
    for name, label in names.items():
        old, new = before.get(name), now[name]
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            keys = sorted(old.keys() | new.keys())
            inner = {key: new.get(key) for key in keys}
            yield from _list_differences(old, inner, {key: key for key in keys})
        else:
            yield f"{label} {old}, not {new}"


def print_start(index: Index) -> None:
    """Print what is going to be computed."""
    console, facts = terminal.console(), index.facts
    size = " x ".join(str(number) for number in facts["shape"])
    height, width = facts["encoder_facts"]["image_size"]
    console.print(
        f"{pluralize(facts['num_images'], 'image')} at {height} x {width}, "
        f"{TOKENS[facts['tokens']]}: {size} numbers each ({facts['dtype']})"
    )
    if index.parts:
        console.print(
            f"{index.total('images')} images are done, "
            f"{len(index.missing)} of {len(index.spans)} parts are missing"
        )


def print_end(folder: Path, index: Index) -> None:
    """Print what was written."""
    skipped, megabytes = index.total("skipped"), index.total("bytes") / 1e6
    lost = f"; {skipped} could not be read: {folder / 'skipped.csv'}" if skipped else ""
    terminal.console().print(
        f"written: {folder / PARTS} ({pluralize(index.total('rows'), 'image')} in "
        f"{pluralize(len(index.parts), 'part')}, {megabytes:.1f} MB{lost})"
    )
    result = {"command": "embed", "folder": str(folder), "images": index.total("rows")}
    terminal.emit("result", result | {"skipped": skipped, "parts": len(index.parts)})
