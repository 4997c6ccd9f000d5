"""Infer what the config leaves to the images: bit depth, mean and standard deviation."""

from dataclasses import replace

from mvmae.config.checks import AUTO
from mvmae.config.files import from_json
from mvmae.config.pretrain import PretrainConfig
from mvmae.config.views import ViewsConfig
from mvmae.data.reading.detect_kind import ImageKind, detect_kind, require_channels, sample_indices
from mvmae.data.sources.base import Source, with_depth
from mvmae.errors import UserError
from mvmae.storage import run_folder
from mvmae.training import distributed

NUM_MEASURED = 512  # images from which mean and standard deviation are measured


def resolve_config(
    config: PretrainConfig, source: Source
) -> tuple[PretrainConfig, Source, list[str]]:
    """Infer what the config leaves open; a resumed run keeps what was inferred before.

    Args:
        config: As given.
        source: The images, at any depth.

    Returns:
        The complete config; the images at its depth; notes for the screen.

    Raises:
        UserError: The images cannot be read as the config says.
    """
    notes: list[str] = []
    if config.resume:
        file = config.out / run_folder.CONFIG
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            config = fill_from_run(config, from_json(text, PretrainConfig, source=str(file)))
    else:
        # One process looks at the images, because measuring them takes seconds.
        inferred = _infer(config, source) if distributed.is_main() else None
        views, notes = distributed.from_main(inferred)
        config = replace(config, views=views)
        if config.decode != "exact":
            from mvmae.data.reading import reduced_jpeg

            if not reduced_jpeg.applies(config):
                notes.append(
                    f"--decode {config.decode} has no effect: it works only for gray and colour "
                    "images at 8 bit (--views.depth 8)"
                )
    return config, with_depth(source, config.model.in_channels, config.views.pixel_depth), notes


def fill_from_run(config: PretrainConfig, before: PretrainConfig) -> PretrainConfig:
    """Fill what a config leaves open from the config of the run to resume."""
    views = config.views
    views = replace(
        views,
        depth=before.views.depth if views.depth == "auto" else views.depth,
        mean=before.views.mean if views.mean is None else views.mean,
        std=before.views.std if views.std is None else views.std,
    )
    batch_size = before.batch_size if config.batch_size == AUTO else config.batch_size
    return replace(config, views=views, batch_size=batch_size)


def _infer(config: PretrainConfig, source: Source) -> tuple[ViewsConfig, list[str]]:
    """Look at some headers and, if needed, at the pixels of some images.

    Returns:
        The views' settings that the images decide; notes for the screen.

    Raises:
        UserError: The images cannot be read as the config says.
    """
    views, channels = config.views, config.model.in_channels
    kind = detect_kind(source, config.seed)
    require_channels(kind, channels, config.data, "--model.in-channels")
    views = replace(views, depth=kind.depth if views.depth == "auto" else views.depth)
    notes = _kind_notes(kind, channels)
    # ImageNet's statistics are those of 8-bit gray and colour images.
    is_usual = views.pixel_depth == "8" and channels in (1, 3)
    is_wanted = views.statistics == "measured" or (views.statistics == "auto" and not is_usual)
    if not is_wanted or (views.mean is not None and views.std is not None):
        return views, notes
    from mvmae.data.reading import pixel_statistics

    deep = with_depth(source, channels, views.pixel_depth)
    found = pixel_statistics.measure_pixels(
        deep,
        sample_indices(len(source), NUM_MEASURED, config.seed),
        views.pixel_depth,
        workers=config.workers,
        timeout=config.read_timeout,
    )
    if not found.channels:
        path, reason = found.skipped[0]
        raise UserError(
            f"none of the {len(found.skipped)} images tried can be read, for example {path} "
            f"({reason})"
        )
    mean, std = pixel_statistics.rounded_statistics(found.channels)
    views = replace(views, mean=views.mean or mean, std=views.std or std)
    count = sum(found.sizes.values())
    notes += [_statistics_note(views, count), *pixel_statistics.constant_notes(found.channels)]
    return views, notes


def _kind_notes(kind: ImageKind, channels: int) -> list[str]:
    """Notes on pages and transparency, which may be read in an unexpected way."""
    notes = []
    if kind.pages > 1 and channels in (1, 3) and kind.channels != channels:
        notes.append(
            f"some files have {kind.pages} pages; only the first is read: "
            f"--model.in-channels {kind.channels} reads them as channels"
        )
    if kind.has_alpha and channels in (1, 3):
        notes.append("transparent parts of some images become white")
    return notes


def _statistics_note(views: ViewsConfig, count: int) -> str:
    kept = {"8": "8 bit", "16": "16 bit", "float": "values as in the files"}
    mean, std = (
        " ".join(f"{value:.4g}" for value in values or ()) for values in (views.mean, views.std)
    )
    return f"pixels: {kept[views.pixel_depth]}; over {count} images mean {mean}, deviation {std}"
