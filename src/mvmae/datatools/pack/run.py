"""`mvmae data pack`: write images into tar files, with their labels and groups.

Images are opened in processes that may crash or hang, and written in their order by this process.
Under `torchrun`, the other processes pack images too (`order.py`).
"""

import contextlib
import csv
import itertools
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from mvmae import terminal
from mvmae.config.datatools import DataPackConfig
from mvmae.data.sources.base import Source, stamp
from mvmae.data.sources.class_list import CLASSES, class_list_text
from mvmae.data.sources.hub import PREFIX
from mvmae.data.sources.lists import from_list
from mvmae.data.sources.open import LISTS, open_source
from mvmae.data.sources.shards import open_images
from mvmae.data.sources.tar_index import SUFFIX
from mvmae.datatools.pack.encode import ImageNames, Packed
from mvmae.datatools.pack.order import FINISHED, assist_main, pack_in_order, pack_with_all
from mvmae.datatools.pack.write import SKIPPED, STATE, State, Writer, read_state
from mvmae.errors import UserError
from mvmae.storage.atomic import read_object, write_bytes, write_json
from mvmae.storage.lock import locked
from mvmae.training import distributed, process_store
from mvmae.training.interrupt import Interrupt, exit_status

FACTS = "pack.json"
OLD = ".old"  # ends the name of the old DST while the new one takes its place
OURS = (FACTS, CLASSES, SKIPPED, STATE)
SHARD = re.compile(rf"(\d{{6,}})\.tar({re.escape(SUFFIX)})?")


def run(config: DataPackConfig) -> int:
    """Pack the images of SRC into tar files in DST.

    Returns:
        0 when done; 130 or 143 when stopped; the same command then resumes.

    Raises:
        UserError: There are no images, none can be read, or DST holds something else.
    """
    with distributed.process_group(torch.device("cpu")):  # no tensors are exchanged
        if distributed.is_main():
            require_destination(config)  # one process asks, so that one message is printed
        source, folder = open_src(config), unfinished_folder(config.out)
        if not distributed.is_main():
            signal = assist_main(source, config, folder)
            return exit_status(signal) if signal else 0
        require_source_survives(source, config)
        # The lock is beside the folder, because the folder is renamed at the end.
        with locked(folder, folder.with_name(f"{folder.name}.lock"), flag="DST"):
            return write(source, config, folder)


def write(source: Source, config: DataPackConfig, folder: Path) -> int:
    """Pack into a locked folder, which gets its name when it is complete.

    Returns:
        An exit status.

    Raises:
        UserError: As `run`.
    """
    state = load_or_start(folder, source, config)
    if state.done:
        terminal.console().print(f"resuming after image {state.done:,} of {len(source):,}")
    writer = Writer(folder, state, config.shard_size * 1e6)
    distributed.from_main(state.done)  # the other processes start when the folder is ready
    with Interrupt() as interrupt, writer:
        pack(source, config, writer, interrupt)
    if interrupt.signal:
        process_store.current().check(interrupt.signal)  # tells the other processes
        terminal.console().print(
            f"stopped; {state.done:,} of {len(source):,} images are kept in {folder}, and the "
            "same command resumes"
        )
        return exit_status(interrupt.signal)
    finish(folder, source, state, config)
    process_store.current().publish("packed", FINISHED)
    return 0


def open_src(config: DataPackConfig) -> Source:
    """Open the images of SRC.

    Raises:
        UserError: There are none, one lies outside --root, or a class name cannot be written.
    """
    if config.root is None:
        source = open_source((config.data,), 3)
    elif Path(config.data).suffix.lower() in LISTS and Path(config.data).is_file():
        source = from_list(config.data, 3, config.root)
    else:
        raise UserError(f"--root is for lists of paths, and {config.data} is not a list")
    class_list_text(source.classes)  # fails now instead of after hours of packing
    return source


def load_or_start(folder: Path, source: Source, config: DataPackConfig) -> State:
    """Load the progress of a stopped run, or start a new one.

    Raises:
        UserError: It had other settings or images, and --overwrite is not given.
    """
    settings = {  # everything that the bytes depend on, by its name on the command line
        "images": stamp(source),
        "--shard-size": config.shard_size,
        "--short-side": config.short_side,
        "--format": config.format,
        "--quality": config.quality,
    }
    if (state := read_state(folder, settings, overwrite=config.overwrite)) is not None:
        return state
    for path in folder.iterdir():
        path.unlink()
    return State(settings=settings)


def pack(source: Source, config: DataPackConfig, writer: Writer, interrupt: Interrupt) -> None:
    """Write all remaining images, or until a signal comes."""
    names, begin = ImageNames(source), writer.state.done
    if distributed.world_size() > 1:
        images = pack_with_all(source, config, writer.folder, begin, interrupt)
    else:
        images = pack_in_order(source, config, writer.folder, range(begin, len(source)))
    first = list(itertools.islice(images, 1))  # starts the processes, before the bar's clock runs
    with contextlib.closing(images), terminal.Bar(len(source) - begin, "images") as bar:
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
        RuntimeError: The tar files do not hold what was packed, which is a bug.
    """
    if not state.packed:
        with (folder / SKIPPED).open(newline="", encoding="utf-8") as rows:
            path, reason = list(itertools.islice(csv.reader(rows), 2))[-1]
        shutil.rmtree(folder)
        raise UserError(
            f"none of the {len(source):,} images of {source.name} can be read: for example {path} "
            f"({reason})"
        )
    write_bytes(folder / CLASSES, class_list_text(source.classes))
    facts = {
        "images": state.packed,
        "skipped": state.skipped,
        "as they were": state.stays,
        "bytes": state.bytes,
        "shards": len(state.shards),
        "classes": len(source.classes),
        "settings": state.settings,
    }
    # Read back while the old DST is still there: SRC may be deleted once this command succeeds.
    packed = open_images([str(folder / name) for name in state.shards], 3)
    if len(packed) != state.packed or tuple(packed.classes) != tuple(source.classes):
        raise RuntimeError(
            f"{folder} holds {len(packed)} images of the classes {packed.classes}, not "
            f"{state.packed} of {source.classes}"
        )
    write_json(folder / FACTS, facts)
    require_destination(config)  # again, because packing may have taken hours
    # Two renames instead of a copy: a kill in between leaves one of the two folders whole.
    whole, old = config.out.resolve(), folder.with_name(folder.name + OLD)
    shutil.rmtree(old, ignore_errors=True)
    if whole.exists():
        whole.rename(old)
    folder.rename(whole)
    shutil.rmtree(old, ignore_errors=True)
    (whole / STATE).unlink()  # last, so that a run stopped before this line can resume
    _print_result(facts, source, config)


def _print_result(facts: dict[str, Any], source: Source, config: DataPackConfig) -> None:
    console = terminal.console()
    console.print(
        f"written: {config.out}, {facts['images']:,} images in {facts['shards']:,} tar "
        f"file{'s' * (facts['shards'] != 1)}, {facts['bytes'] / 1e6:,.1f} MB"
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


# Whether DST may be written, and whether all of SRC would survive that


def unfinished_folder(out: Path) -> Path:
    """Where the tar files are until all of them are complete."""
    whole = out.resolve()
    return whole.with_name(f".{whole.name}.unfinished")


def require_destination(config: DataPackConfig) -> None:
    """Make sure that DST may be written, without changing anything.

    Raises:
        UserError: It is a file, holds files that may not be replaced, or is in a folder that is
            read as a whole.
    """
    out = config.out
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: DST must be a folder")
    there = list(out.iterdir()) if out.exists() else []
    shards = _count_own_shards(out)
    others = [path.name for path in there if not _is_ours(path, shards)]
    if others:
        raise UserError(
            f"{out} holds other files ({min(others)}): choose a DST that is new or empty"
        )
    if there and not config.overwrite:
        raise UserError(f"{out} already holds tar files: choose another DST, or --overwrite them")
    whole, data = out.resolve(), Path(config.data.removeprefix(PREFIX))
    if data.exists() and data.resolve() == whole:
        raise UserError(f"SRC and DST are both {out}: choose another DST")
    if data.is_dir() and whole.is_relative_to(data.resolve()):
        raise UserError(f"{out} lies inside {data}: choose a DST outside of SRC")
    for folder in whole.parents:
        if _count_own_shards(folder):
            raise UserError(
                f"{out} lies inside {folder}, whose tar files could not be read with a folder "
                "beside them: choose another DST"
            )


def _count_own_shards(folder: Path) -> int:
    """Number of tar files that this command wrote to a folder, from its own note there."""
    shards = read_object(folder / FACTS).get("shards")
    return max(0, shards) if isinstance(shards, int) else 0


def _is_ours(path: Path, shards: int) -> bool:
    """Whether this command wrote a file; tar files beyond its own belong to someone else."""
    if not shards or path.is_dir():
        return False
    match = SHARD.fullmatch(path.name)
    return path.name in OURS or (match is not None and int(match[1]) < shards)


def require_source_survives(source: Source, config: DataPackConfig) -> None:
    """Make sure that no file of SRC is removed with what DST replaces, also through links.

    Raises:
        UserError: One would be.
    """
    unfinished = unfinished_folder(config.out)
    folders = (config.out.resolve(), unfinished, unfinished.with_name(unfinished.name + OLD))
    gone = tuple(f"{folder}{os.sep}" for folder in folders if folder.is_dir())
    if not gone:
        return
    real: dict[str, str] = {}  # folders, each resolved once for its many files
    data = [config.data] if Path(config.data).exists() else []
    for path in itertools.chain(source.files(), data):
        folder, name = os.path.split(path)
        if folder not in real:
            real[folder] = os.path.realpath(folder).rstrip(os.sep) + os.sep
        whole = real[folder] + name
        is_link = os.path.islink(whole)  # noqa: PTH114  # ten million paths
        if whole.startswith(gone) or (is_link and os.path.realpath(whole).startswith(gone)):
            raise UserError(
                f"{path} is part of SRC and lies where DST is written: choose another DST"
            )
