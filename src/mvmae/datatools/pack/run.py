"""`mvmae data pack`: write images into tar files, with their labels and groups.

Images are opened in processes that may crash or hang, and written in their order by this process.
Under `torchrun`, the other processes pack images too (`share.py`).
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from mvmae import terminal
from mvmae.config.datatools import DataPackConfig
from mvmae.data.sources.base import Source, stamp
from mvmae.data.sources.class_list import CLASSES, class_list_text
from mvmae.data.sources.lists import from_list
from mvmae.data.sources.open import LISTS, open_source
from mvmae.data.sources.shards import open_images
from mvmae.datatools.pack.destination import (
    FACTS,
    replaced_folder,
    require_destination,
    require_source_survives,
    unfinished_folder,
)
from mvmae.datatools.pack.encode import ImageNames, Packed
from mvmae.datatools.pack.order import pack_in_order
from mvmae.datatools.pack.share import assist_main, pack_with_all
from mvmae.datatools.pack.write import SKIPPED, STATE, State, Writer, read_state
from mvmae.errors import UserError
from mvmae.storage.atomic import write_bytes, write_text
from mvmae.storage.lock import locked
from mvmae.training import distributed
from mvmae.training.interrupt import Interrupt, exit_status


def run(config: DataPackConfig) -> int:
    """Pack the images of SRC into tar files in DST.

    Returns:
        0 when done; 130 or 143 when stopped; the same command then resumes.

    Raises:
        UserError: There are no images, none can be read, or DST holds something else.
    """
    with distributed.process_group(torch.device("cpu")):  # no tensors are exchanged
        if distributed.is_main():
            require_destination(config)
        source, folder = open_images_of(config), unfinished_folder(config.out)
        if not distributed.is_main():
            signal = assist_main(source, config, folder)
            return exit_status(signal) if signal else 0
        require_source_survives(source, config)
        return write(source, config, folder)


def write(source: Source, config: DataPackConfig, folder: Path) -> int:
    """Pack into a folder that gets its name when it is complete.

    Returns:
        An exit status.

    Raises:
        UserError: As `run`.
    """
    # The lock is beside the folder, because the folder is renamed at the end.
    with locked(folder, folder.with_name(f"{folder.name}.lock"), flag="DST"):
        state = load_or_start(folder, source, config)
        if state.done:
            terminal.people().print(f"resuming after image {state.done:,} of {len(source):,}")
        writer = Writer(folder, state, config.shard_size * 1e6)
        distributed.from_main(state.done)  # the other processes start when the folder is ready
        with Interrupt() as interrupt, writer:
            pack(source, config, writer, interrupt)
        if interrupt.signal:
            terminal.people().print(
                f"stopped; {state.done:,} of {len(source):,} images are kept in {folder}, and the "
                "same command resumes"
            )
            return exit_status(interrupt.signal)
        finish(folder, source, state, config)
    return 0


def open_images_of(config: DataPackConfig) -> Source:
    """Open the images of SRC.

    Raises:
        UserError: There are none, one lies outside --root, or a class name cannot be written.
    """
    is_list = Path(config.data).suffix.lower() in LISTS and Path(config.data).is_file()
    if config.root is not None and not is_list:
        raise UserError(f"--root is for lists of paths, and {config.data} is not a list")
    if config.root is not None:
        source: Source = from_list(config.data, 3, config.root)
    else:
        source = open_source((config.data,), 3)
    class_list_text(source.classes)  # fails now instead of after hours of packing
    return source


def load_or_start(folder: Path, source: Source, config: DataPackConfig) -> State:
    """Load the progress of a stopped run, or start a new one.

    Raises:
        UserError: It had other settings or images, and --overwrite is not given.
    """
    settings = settings_for_resume(source, config)
    try:
        if (state := read_state(folder, settings)) is not None:
            return state
    except UserError:
        if not config.overwrite:
            raise
    for path in folder.iterdir():
        path.unlink()
    return State(settings=settings)


def settings_for_resume(source: Source, config: DataPackConfig) -> dict[str, Any]:
    """Everything that the bytes depend on, by its name on the command line."""
    return {
        "images": stamp(source),
        "--shard-size": config.shard_size,
        "--short-side": config.short_side,
        "--format": config.format,
        "--quality": config.quality,
    }


def pack(source: Source, config: DataPackConfig, writer: Writer, interrupt: Interrupt) -> None:
    """Write all remaining images, or until a signal comes."""
    names, begin = ImageNames(source), writer.state.done
    if distributed.world_size() > 1:
        images = pack_with_all(source, config, writer.folder, begin, interrupt)
    else:
        images = pack_in_order(source, config, range(begin, len(source)))
    first = list(itertools.islice(images, 1))  # starts the processes, before the bar's clock runs
    with (
        contextlib.closing(images),
        terminal.Bar(len(source) - writer.state.done, "images") as bar,
    ):
        bar.name("packing")
        for index, packed in itertools.chain(first, images):
            if interrupt.signal:
                return
            if isinstance(packed, Packed):
                label = source.label(index)
                writer.add(names.key(index), packed, label, source.group(index), index)
            else:
                writer.skip(source.path(index), packed.reason)
            bar.advance(1)
        if bar.done < bar.total:  # another process got a signal
            return
    writer.finish(len(source))


def finish(folder: Path, source: Source, state: State, config: DataPackConfig) -> None:
    """Give the finished folder its name, and print what is in it.

    Raises:
        UserError: None of the images can be read, or other files appeared in DST.
    """
    if not state.packed:
        with (folder / SKIPPED).open(newline="", encoding="utf-8") as rows:
            path, reason = list(itertools.islice(csv.reader(rows), 2))[-1]
        shutil.rmtree(folder)
        raise UserError(
            f"none of the {len(source):,} images of {source.name} can be read: for example {path} "
            f"({reason})"
        )
    names = class_list_text(source.classes)
    write_bytes(folder / CLASSES, names)
    facts = {
        "images": state.packed,
        "skipped": state.skipped,
        "as they were": state.stays,
        "bytes": state.bytes,
        "shards": len(state.shards),
        "classes": len(source.classes),
        "settings": state.settings,
    }
    verify(folder, source, state)
    write_text(folder / FACTS, json.dumps(facts, indent=2) + "\n")
    require_destination(config)  # again, because packing may have taken hours
    _move_into_place(folder, config.out)
    (
        config.out.resolve() / STATE
    ).unlink()  # last, so that a run stopped before this line can resume
    _print_result(facts, source, config)


def verify(folder: Path, source: Source, state: State) -> None:
    """Read the tar files back: the same number of images, of the same classes.

    Raises:
        RuntimeError: They differ, which is a bug.
    """
    packed = open_images([str(folder / name) for name in state.shards], 3)
    if len(packed) != state.packed:
        raise RuntimeError(f"{folder} holds {len(packed)} images, not {state.packed}")
    ours, theirs = tuple(packed.classes), tuple(source.classes)
    if ours != theirs:
        odd = sorted(set(ours) ^ set(theirs)) or ["in another order"]
        raise RuntimeError(
            f"{folder} holds {len(ours)} classes and {source.name} {len(theirs)}: {odd[0]!r}"
        )


def _move_into_place(folder: Path, out: Path) -> None:
    whole = out.resolve()
    old = replaced_folder(out)
    shutil.rmtree(old, ignore_errors=True)
    if whole.exists():
        whole.rename(old)
    folder.rename(whole)
    shutil.rmtree(old, ignore_errors=True)


def _print_result(facts: dict[str, Any], source: Source, config: DataPackConfig) -> None:
    console = terminal.people()
    size = facts["bytes"] / 1e6
    console.print(
        f"written: {config.out}, {facts['images']:,} images in {facts['shards']:,} tar "
        f"file{'s' * (facts['shards'] != 1)}, {size:,.1f} MB"
        + (f", {facts['classes']:,} classes" if facts["classes"] else "")
    )
    if facts["as they were"]:
        console.print(
            f"{facts['as they were']:,} images stay as they were: they have more than 8 bits, or "
            "channels other than gray and colour"
        )
    if facts["skipped"]:
        terminal.warn(
            f"{facts['skipped']:,} of {len(source):,} images cannot be read and are left out: "
            f"{config.out / SKIPPED} says why"
        )
    terminal.emit("result", {"command": "data pack", "folder": str(config.out)} | facts)
