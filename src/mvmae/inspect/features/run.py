"""Pictures of features: what an encoder sees in patches, in images, in a whole folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from mvmae import encoders, terminal
from mvmae.config.features import FeaturesConfig
from mvmae.config.files import command_line, to_plain
from mvmae.data.sources.base import fingerprint
from mvmae.data.sources.open import open_source
from mvmae.encoders import OpenedEncoder
from mvmae.errors import UserError
from mvmae.evaluation.shared import print_skipped, random_subset, require_results_outside
from mvmae.inspect.features import colours, duplicates, map, typical
from mvmae.inspect.features.feature_cache import Images, Picture, Setting, read, sample
from mvmae.metrics.plane import require_map_library
from mvmae.storage import results, run_folder
from mvmae.storage.marks import is_ours, require_replaceable, signed
from mvmae.training import distributed, precision
from mvmae.training.checkpoint import write_whole

OF_ALL = ("typical", "duplicates")  # pictures that need every image
OF_IMAGES = {
    "map": map.picture_of,
    "typical": typical.picture_of,
    "duplicates": duplicates.picture_of,
}


def run(config: FeaturesConfig) -> None:
    """Draw the pictures that are asked for; say what they show and where they are.

    Raises:
        UserError: An encoder, the images or the folder cannot work.
    """
    with distributed.process_group(torch.device("cpu")):  # no tensors are exchanged
        setting = setting_of(config)
        places = places_of(setting) if set(config.draw) & set(OF_IMAGES) else []
        images = read(setting, places) if places else None
        if distributed.is_main():
            draw(setting, images)


def draw(setting: Setting, images: Images | None) -> None:
    """Draw the pictures and write what is told of them.

    Raises:
        UserError: The images or the folder cannot work.
    """
    console = terminal.people()
    if images:
        print_skipped(console, images.skipped)
    run_folder.make(setting.folder)
    facts = {}
    for name, picture in pictures(setting, images):
        console.print(f"{name}: {picture.said}")
        for file in write(setting.folder, name, picture):
            console.print(f"written: {file}")
        facts[name] = picture.facts
    told = about(setting, images) | facts
    run_folder.write_json(setting.folder / "features.json", told)
    console.print(f"written: {setting.folder / 'features.json'}")
    terminal.emit("result", told)


def setting_of(config: FeaturesConfig) -> Setting:
    """Open what is asked for, as long as nothing is computed.

    Raises:
        UserError: Something cannot work.
    """
    if "map" in config.draw:
        require_map_library(config.map)
    device = precision.choose_device(config.device)
    folder = folder_of(config)
    opened = encoders.open_encoder(config.encoder, config.image_size, config.in_channels)
    pool = config.pool or opened.pool
    if pool == "cls" and not opened.encoder.variant.cls_token:
        raise UserError(f"{config.encoder} has no class token: use --pool mean")
    channels = opened.encoder.in_channels
    against: dict[str, OpenedEncoder] = {}
    for name in config.against:
        if name == config.encoder:
            raise UserError(f"--against {name} is ENCODER itself: name another")
        against[name] = encoders.open_encoder(name, config.image_size, channels)
    for name in config.data:
        require_results_outside(folder, name)
    whole = open_source(config.data, channels, opened.depth)
    source = random_subset(whole, config.max_images, config.seed)
    return Setting(config, opened, against, pool, source, device, folder)


def folder_of(config: FeaturesConfig) -> Path:
    """Where the pictures go.

    Raises:
        UserError: It is a file, lies below one, may not be written to, or holds files of those
            names that are not ours.
    """
    if config.out and config.out.suffix.lower() in (".png", ".json", ".csv"):
        raise UserError(f"--out {config.out} must name a folder, which gets the pictures")
    home = results.home(config.encoder, config.out)
    if config.out:
        require_own(home)
    return home if config.out else home / "figures"


def require_own(folder: Path) -> None:
    """Make sure that what lies in a folder under the names of our files is ours.

    Raises:
        UserError: It is not.
    """
    facts = folder / "features.json"
    there = sorted(folder.glob("features-*.png")) + sorted(folder.glob("features-*.csv"))
    if facts.is_file() and is_ours(facts) and facts.stat().st_size:
        return
    if any(file.suffix == ".png" and is_ours(file) for file in there):  # and was interrupted
        return
    for file in (facts, *there):
        require_replaceable(file)


def places_of(setting: Setting) -> list[int]:
    """The images whose features are needed."""
    count = len(setting.source)
    if set(setting.config.draw) & set(OF_ALL):
        return list(range(count))
    return sample(count, setting.config.most, setting.config.seed)


def pictures(setting: Setting, images: Images | None) -> Iterator[tuple[str, Picture]]:
    """What is asked for, in the order in which it is asked for."""
    for name in setting.config.draw:
        if name == "pca":
            yield name, colours.picture_of(setting)
        elif images:
            with terminal.people().status(name):  # shown where there is a terminal
                picture = OF_IMAGES[name](setting, images)
            yield name, picture


def write(folder: Path, name: str, picture: Picture) -> Iterator[Path]:
    """Write a picture and its table; what an earlier command drew and is no more goes."""
    for suffix, content in ((".png", picture.png), (".csv", picture.table)):
        file = folder / f"features-{name}{suffix}"
        if content is None:
            file.unlink(missing_ok=True)
            continue
        content = signed(content) if suffix == ".png" else content
        write_whole(file, lambda stream, content=content: stream.write(content))
        yield file


def about(setting: Setting, images: Images | None) -> dict[str, object]:
    """What features.json says besides the pictures."""
    config = setting.config
    skipped = images.skipped if images else []
    return {
        "command": "features",
        "command_line": command_line("features", config),
        "config": to_plain(config),
        "encoder": config.encoder,
        "digest": encoders.weights_digest(setting.opened.encoder),
        "pool": setting.pool,
        "data": setting.source.name,
        "num_images": len(setting.source),
        "data_fingerprint": fingerprint(setting.source),
        "skipped": [skip._asdict() for skip in skipped],
        "environment": run_folder.environment(setting.device, distributed.world_size()),
    }
