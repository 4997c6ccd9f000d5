"""Settle what the config leaves to the images: bit depth, mean and standard deviation."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

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


class Inferred(NamedTuple):
    """Settings of views that the images decide, and notes for the screen."""

    views: ViewsConfig
    notes: list[str]


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
    if config.resume:
        return _resolve_from_run(config, source)
    # One process looks at the images. All raise its error, or the others would wait for it.
    outcome: Inferred | str | None = None
    if distributed.is_main():
        try:
            outcome = _infer(config, source)
        except UserError as error:
            outcome = str(error)
    outcome = distributed.from_main(outcome)
    if isinstance(outcome, str):
        raise UserError(outcome)
    assert outcome is not None
    config = replace(config, views=outcome.views)
    depth = config.views.pixel_depth
    notes = [*outcome.notes, *_decoding_notes(config)]
    return config, with_depth(source, config.model.in_channels, depth), notes


def _resolve_from_run(
    config: PretrainConfig, source: Source
) -> tuple[PretrainConfig, Source, list[str]]:
    """Take what is not given from the config.json of the run."""
    file = config.out / run_folder.CONFIG
    if file.is_file():
        text = file.read_text(encoding="utf-8")
        config = fill_from_run(config, from_json(text, PretrainConfig, source=str(file)))
    return config, with_depth(source, config.model.in_channels, config.views.pixel_depth), []


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


def _infer(config: PretrainConfig, source: Source) -> Inferred:
    """Look at some headers and, where needed, at the pixels of some images."""
    views, channels = config.views, config.model.in_channels
    kind = detect_kind(source, config.seed)
    require_channels(kind, channels, config.data, "--model.in-channels")
    views = replace(views, depth=kind.depth if views.depth == "auto" else views.depth)
    notes = _kind_notes(kind, channels)
    if not _needs_measuring(views, channels):
        return Inferred(views, notes)
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
    return Inferred(views, notes)


def _needs_measuring(views: ViewsConfig, channels: int) -> bool:
    """Whether mean or standard deviation come from the images."""
    if views.mean is not None and views.std is not None:
        return False
    usual = views.pixel_depth == "8" and channels in (1, 3)
    return views.statistics == "measured" or (views.statistics == "auto" and not usual)


def _kind_notes(kind: ImageKind, channels: int) -> list[str]:
    """Notes on pages and transparency, which may surprise."""
    notes = []
    if kind.pages > 1 and channels in (1, 3) and kind.channels != channels:
        notes.append(
            f"some files have {kind.pages} pages; only the first is read: "
            f"--model.in-channels {kind.channels} reads them as channels"
        )
    if kind.has_alpha and channels in (1, 3):
        notes.append("transparent parts of some images become white")
    return notes


def _decoding_notes(config: PretrainConfig) -> list[str]:
    """A note where --decode has no effect."""
    if config.decode == "exact":
        return []
    from mvmae.data.reading import reduced_jpeg

    if reduced_jpeg.applies(config):
        return []
    return [
        f"--decode {config.decode} has no effect: it works only for gray and colour images at 8 "
        "bit (--views.depth 8)"
    ]


def _statistics_note(views: ViewsConfig, count: int) -> str:
    kept = {"8": "8 bit", "16": "16 bit", "float": "values as in the files"}
    mean, std = (
        " ".join(f"{value:.4g}" for value in values or ()) for values in (views.mean, views.std)
    )
    return f"pixels: {kept[views.pixel_depth]}; over {count} images mean {mean}, deviation {std}"
