"""Images into tar files: fewer files, read in long pieces, with labels and groups in them.

`run` is read from top to bottom. Images are opened in processes that may die or hang
(`data/guarded.py`) and written in their order by this one; what `torchrun` starts besides makes
images ready too (`packing/sharing.py`).
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
from mvmae.datatools.pack.claiming import FACTS, claim, keep_apart, replaced, unfinished
from mvmae.datatools.pack.encode import Packed
from mvmae.datatools.pack.naming import Naming
from mvmae.datatools.pack.order import in_order
from mvmae.datatools.pack.share import assist, from_all
from mvmae.datatools.pack.write import SKIPPED, STATE, State, Writer, read_state
from mvmae.errors import UserError
from mvmae.storage.atomic import write_bytes, write_text
from mvmae.storage.lock import locked
from mvmae.training import distributed
from mvmae.training.interrupt import Interrupt, exit_status


def run(config: DataPackConfig) -> int:
    """Pack the images of SRC into tar files in DST.

    Returns:
        0 when done; 130 or 143 when stopped, after which the same command goes on.

    Raises:
        UserError: There are no images, none can be read, or DST holds something else.
    """
    with distributed.process_group(torch.device("cpu")):  # no tensors are exchanged
        if distributed.is_main():
            claim(config)
        source, folder = opened(config), unfinished(config.out)
        if not distributed.is_main():
            signal = assist(source, config, folder)
            return exit_status(signal) if signal else 0
        keep_apart(source, config)
        return write(source, config, folder)


def write(source: Source, config: DataPackConfig, folder: Path) -> int:
    """Pack into a folder that gets its name when it is whole.

    Returns:
        An exit status.

    Raises:
        UserError: As `run`.
    """
    # beside the folder, which gets another name at the end
    with locked(folder, folder.with_name(f"{folder.name}.lock"), flag="DST"):
        state = begun(folder, source, config)
        if state.done:
            terminal.people().print(f"going on behind image {state.done:,} of {len(source):,}")
        writer = Writer(folder, state, config.shard_size * 1e6)
        distributed.from_main(state.done)  # the others begin when the folder is in order
        with Interrupt() as interrupt, writer:
            pack(source, config, writer, interrupt)
        if interrupt.signal:
            terminal.people().print(
                f"stopped; {state.done:,} of {len(source):,} images are kept in {folder}, and the "
                "same command goes on"
            )
            return exit_status(interrupt.signal)
        conclude(folder, source, state, config)
    return 0


def opened(config: DataPackConfig) -> Source:
    """The images of SRC.

    Raises:
        UserError: There are none, or one lies outside of --root, or a class cannot be listed.
    """
    is_list = Path(config.data).suffix.lower() in LISTS and Path(config.data).is_file()
    if config.root is not None and not is_list:
        raise UserError(f"--root is for lists of paths, and {config.data} is none")
    if config.root is not None:
        source: Source = from_list(config.data, 3, config.root)
    else:
        source = open_source((config.data,), 3)
    class_list_text(source.classes)  # or it would fail when all is packed
    return source


def begun(folder: Path, source: Source, config: DataPackConfig) -> State:
    """How far a stopped run came, or the beginning.

    Raises:
        UserError: It was of other settings or images, and --overwrite does not say that it may go.
    """
    settings = settings_of(source, config)
    try:
        if (state := read_state(folder, settings)) is not None:
            return state
    except UserError:
        if not config.overwrite:
            raise
    for path in folder.iterdir():
        path.unlink()
    return State(settings=settings)


def settings_of(source: Source, config: DataPackConfig) -> dict[str, Any]:
    """What the bytes depend on, by the names that a person knows."""
    return {
        "images": stamp(source),
        "--shard-size": config.shard_size,
        "--short-side": config.short_side,
        "--format": config.format,
        "--quality": config.quality,
    }


def pack(source: Source, config: DataPackConfig, writer: Writer, interrupt: Interrupt) -> None:
    """Write every image that is left, or until a signal comes."""
    naming, begin = Naming(source), writer.state.done
    if distributed.world_size() > 1:
        images = from_all(source, config, writer.folder, begin, interrupt)
    else:
        images = in_order(source, config, range(begin, len(source)))
    first = list(itertools.islice(images, 1))  # before the clock runs: processes begin with this
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
                writer.add(naming.key(index), packed, label, source.group(index), index)
            else:
                writer.skip(source.path(index), packed.reason)
            bar.advance(1)
        if bar.done < bar.total:  # another process got a signal
            return
    writer.finish(len(source))


def conclude(folder: Path, source: Source, state: State, config: DataPackConfig) -> None:
    """Give the finished folder its name, and say what is in it.

    Raises:
        UserError: None of the images can be read, or something else came to lie in DST.
    """
    if not state.packed:
        with (folder / SKIPPED).open(newline="", encoding="utf-8") as rows:
            path, reason = list(itertools.islice(csv.reader(rows), 2))[-1]
        shutil.rmtree(folder)
        raise UserError(
            f"none of the {len(source):,} images of {source.name} can be read: {path} for one "
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
    check(folder, source, state)
    write_text(folder / FACTS, json.dumps(facts, indent=2) + "\n")
    claim(config)  # again: packing may have taken hours
    _rename(folder, config.out)
    (config.out.resolve() / STATE).unlink()  # now, or what ended before could not be gone on with
    _say(facts, source, config)


def check(folder: Path, source: Source, state: State) -> None:
    """Read back what is in the tar files: as many images, of the same classes.

    Raises:
        RuntimeError: It is something else, and our fault.
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


def _rename(folder: Path, out: Path) -> None:
    whole = out.resolve()
    old = replaced(out)
    shutil.rmtree(old, ignore_errors=True)
    if whole.exists():
        whole.rename(old)
    folder.rename(whole)
    shutil.rmtree(old, ignore_errors=True)


def _say(facts: dict[str, Any], source: Source, config: DataPackConfig) -> None:
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
            "other channels than gray and colour"
        )
    if facts["skipped"]:
        terminal.warn(
            f"{facts['skipped']:,} of {len(source):,} images cannot be read and are left out: "
            f"{config.out / SKIPPED} says why"
        )
    terminal.emit("result", {"command": "data pack", "folder": str(config.out)} | facts)
