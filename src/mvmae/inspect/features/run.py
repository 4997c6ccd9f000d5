"""Draw what an encoder sees: in patches, in images, in a whole folder of images."""

from collections.abc import Iterator
from pathlib import Path

import torch

from mvmae import encoders, terminal
from mvmae.config.figures import FeaturesConfig
from mvmae.config.files import command_line, to_plain
from mvmae.data.sources.base import fingerprint
from mvmae.data.sources.open import open_source
from mvmae.encoders import OpenedEncoder
from mvmae.errors import UserError
from mvmae.evaluation.result_text import print_skipped
from mvmae.evaluation.shared import random_subset, require_results_outside
from mvmae.inspect.features import colours, map, typical
from mvmae.inspect.features.feature_cache import (
    Drawing,
    ImageFeatures,
    Job,
    compute_image_features,
    sample_indices,
)
from mvmae.metrics.plane import require_map_library
from mvmae.storage import atomic, results, run_folder
from mvmae.storage.atomic import write_whole
from mvmae.storage.outputs import add_mark, is_ours, require_output
from mvmae.training import distributed, precision

IMAGE_PICTURES = {  # pictures of image features; `pca` needs patches instead
    "map": map.draw,
    "typical": typical.draw_typicality,
    "duplicates": typical.draw_duplicates,
}


def run(config: FeaturesConfig) -> None:
    """Draw the requested pictures; print what they show and where they are.

    Raises:
        UserError: An encoder, the images or the folder cannot be used.
    """
    with distributed.process_group(torch.device("cpu")):  # no tensors are exchanged
        job = open_job(config)
        indices = needed_images(job)
        images = compute_image_features(job, indices) if indices else None
        if distributed.is_main():
            write_pictures(job, images)


def open_job(config: FeaturesConfig) -> Job:
    """Open the encoders and the images, and check everything before any work is done.

    Raises:
        UserError: Something cannot be used.
    """
    if "map" in config.draw:
        require_map_library(config.map)
    device = precision.choose_device(config.device)
    folder = output_folder(config)
    opened = encoders.open_encoder(config.encoder, config.image_size, config.in_channels)
    pool = config.pool or opened.pool
    if pool == "cls" and not opened.encoder.variant.cls_token:
        raise UserError(f"{config.encoder} has no class token: use --pool mean")
    channels = opened.encoder.in_channels
    against: dict[str, OpenedEncoder] = {}
    for name in config.against:
        if name == config.encoder:
            raise UserError(f"--against {name} is ENCODER itself: name another encoder")
        against[name] = encoders.open_encoder(name, config.image_size, channels)
    # Pictures among the images would be images of the next command.
    for name in config.data:
        require_results_outside(folder, name)
    whole = open_source(config.data, channels, opened.depth)
    source = random_subset(whole, config.max_images, config.seed)
    return Job(config, opened, against, pool, source, device, folder)


def output_folder(config: FeaturesConfig) -> Path:
    """Folder of the pictures.

    Raises:
        UserError: It is a file, is inside a file, cannot be written to, or holds files with the
            names of our pictures that mvmae did not write.
    """
    if config.out and config.out.suffix.lower() in (".png", ".json", ".csv"):
        raise UserError(f"--out {config.out} must name a folder for the pictures, not a file")
    home = results.home(config.encoder, config.out)
    if not config.out:
        return home / "figures"
    _require_own_files(home)
    return home


def _require_own_files(folder: Path) -> None:
    """Check that mvmae wrote the files that the pictures would replace.

    A CSV table carries no mark, so a marked features.json or picture beside it vouches for it.

    Raises:
        UserError: A file is not ours.
    """
    facts = folder / "features.json"
    files = sorted(folder.glob("features-*.png")) + sorted(folder.glob("features-*.csv"))
    if facts.is_file() and is_ours(facts) and facts.stat().st_size:
        return
    if any(file.suffix == ".png" and is_ours(file) for file in files):  # left by an interruption
        return
    for file in (facts, *files):
        require_output(file)


def needed_images(job: Job) -> list[int]:
    """Images whose features are needed: all for `typical` and `duplicates`, a sample for `map`."""
    count, requested = len(job.source), set(job.config.draw)
    if requested & {"typical", "duplicates"}:
        return list(range(count))
    return sample_indices(count, job.config.most, job.config.seed) if "map" in requested else []


def write_pictures(job: Job, images: ImageFeatures | None) -> None:
    """Draw the pictures, and write them and features.json.

    Raises:
        UserError: The images or the folder cannot be used.
    """
    console = terminal.console()
    if images:
        print_skipped(console, images.skipped)
    run_folder.make(job.folder)
    facts = {}
    for name in job.config.draw:
        if name == "pca":
            drawing = colours.draw(job)
        elif images:
            with console.status(name):
                drawing = IMAGE_PICTURES[name](job, images)
        else:
            continue
        console.print(f"{name}: {drawing.summary}")
        for file in _write_drawing(job.folder, name, drawing):
            console.print(f"written: {file}")
        facts[name] = drawing.facts
    result = _describe_job(job, images) | facts
    atomic.write_json(job.folder / "features.json", result)
    console.print(f"written: {job.folder / 'features.json'}")
    terminal.emit("result", result)


def _write_drawing(folder: Path, name: str, drawing: Drawing) -> Iterator[Path]:
    """Write a picture and its table, and remove those of an earlier command that have none now."""
    for suffix, content in ((".png", drawing.png), (".csv", drawing.table)):
        file = folder / f"features-{name}{suffix}"
        if content is None:
            file.unlink(missing_ok=True)
            continue
        content = add_mark(content) if suffix == ".png" else content
        write_whole(file, lambda stream, content=content: stream.write(content))
        yield file


def _describe_job(job: Job, images: ImageFeatures | None) -> dict[str, object]:
    """The content of features.json, except the pictures."""
    config = job.config
    return {
        "command": "features",
        "command_line": command_line("features", config),
        "config": to_plain(config),
        "encoder": config.encoder,
        "digest": encoders.weights_digest(job.opened.encoder),
        "pool": job.pool,
        "data": job.source.name,
        "num_images": len(job.source),
        "data_fingerprint": fingerprint(job.source),
        "skipped": [skip._asdict() for skip in (images.skipped if images else [])],
        "environment": run_folder.environment(job.device, distributed.world_size()),
    }
