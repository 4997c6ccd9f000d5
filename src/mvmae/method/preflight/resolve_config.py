"""What a config leaves to the images: how deep they are, and the mean and deviation of channels."""

from __future__ import annotations

from dataclasses import replace
from math import floor, log10
from typing import NamedTuple

from mvmae.config.checks import AUTO
from mvmae.config.files import from_json
from mvmae.config.pretrain import PretrainConfig
from mvmae.config.views import ViewsConfig
from mvmae.data.reading import reduced_jpeg
from mvmae.data.reading.detect_kind import Kind, kind_of, require_channels, some
from mvmae.data.reading.pixel_statistics import Channel, measured
from mvmae.data.sources.base import Source, with_depth
from mvmae.errors import UserError
from mvmae.storage import run_folder
from mvmae.training import distributed

MEASURED = 512  # images from which mean and deviation are measured


class Settled(NamedTuple):
    """A config that repeats the run, and what is to be said of how it came about."""

    views: ViewsConfig
    remarks: list[str]


def settle(config: PretrainConfig, source: Source) -> tuple[PretrainConfig, Source, list[str]]:
    """Find out what the config leaves open; a run that is resumed keeps what it found out.

    Args:
        config: What was asked for.
        source: The images, at any depth.

    Returns:
        The config with nothing left open; the images as deep as it says; remarks for the screen.

    Raises:
        UserError: The images cannot be read as the config says.
    """
    if config.resume:
        return resumed(config, source)
    # One process looks, and what it complains of is raised by all, or the others would wait.
    outcome: Settled | str | None = None
    if distributed.is_main():
        try:
            outcome = looked(config, source)
        except UserError as error:
            outcome = str(error)
    outcome = distributed.from_main(outcome)
    if isinstance(outcome, str):
        raise UserError(outcome)
    assert outcome is not None
    config = replace(config, views=outcome.views)
    depth = config.views.pixel_depth
    remarks = [*outcome.remarks, *on_decoding(config)]
    return config, with_depth(source, config.model.in_channels, depth), remarks


def resumed(config: PretrainConfig, source: Source) -> tuple[PretrainConfig, Source, list[str]]:
    """What is not given is as the run's config.json says."""
    file = config.out / run_folder.CONFIG
    if file.is_file():
        text = file.read_text(encoding="utf-8")
        config = as_found_out(config, from_json(text, PretrainConfig, source=str(file)))
    return config, with_depth(source, config.model.in_channels, config.views.pixel_depth), []


def as_found_out(config: PretrainConfig, before: PretrainConfig) -> PretrainConfig:
    """What a config leaves open, as the run that was begun with it found it out."""
    views = config.views
    views = replace(
        views,
        depth=before.views.depth if views.depth == "auto" else views.depth,
        mean=before.views.mean if views.mean is None else views.mean,
        std=before.views.std if views.std is None else views.std,
    )
    batch_size = before.batch_size if config.batch_size == AUTO else config.batch_size
    return replace(config, views=views, batch_size=batch_size)


def looked(config: PretrainConfig, source: Source) -> Settled:
    """Look at some headers and, where that is called for, at the pixels of some images."""
    views, channels = config.views, config.model.in_channels
    kind = kind_of(source, config.seed)
    require_channels(kind, channels, config.data, "--model.in-channels")
    views = replace(views, depth=kind.depth if views.depth == "auto" else views.depth)
    remarks = remarks_on(kind, channels)
    if not is_measured(views, channels):
        return Settled(views, remarks)
    deep = with_depth(source, channels, views.pixel_depth)
    found = measured(
        deep,
        some(len(source), MEASURED, config.seed),
        views.pixel_depth,
        workers=config.workers,
        timeout=config.read_timeout,
    )
    if not found.channels:
        path, reason = found.skipped[0]
        raise UserError(
            f"none of {len(found.skipped)} images looked at can be read, {path} for one ({reason})"
        )
    mean, std = statistics_of(found.channels)
    views = replace(views, mean=views.mean or mean, std=views.std or std)
    count = sum(found.sizes.values())
    return Settled(views, [*remarks, in_words(views, count), *of_constants(found.channels)])


def is_measured(views: ViewsConfig, channels: int) -> bool:
    """Whether mean or deviation come from the images."""
    if views.mean is not None and views.std is not None:
        return False
    usual = views.pixel_depth == "8" and channels in (1, 3)
    return views.statistics == "measured" or (views.statistics == "auto" and not usual)


def statistics_of(channels: list[Channel]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation, in six digits; a channel of one value only has the deviation 1.

    Of a mean far above its deviation more digits count: six of the deviation.
    """
    mean = tuple(float(f"{one.mean:.{_digits(one)}g}") for one in channels)
    return mean, tuple(float(f"{one.std:.6g}") if one.std > 0 else 1.0 for one in channels)


def _digits(one: Channel) -> int:
    ratio = abs(one.mean) / one.std if one.std > 0 else 1.0
    return 6 + max(0, min(9, floor(log10(ratio)))) if ratio > 0 else 6


def remarks_on(kind: Kind, channels: int) -> list[str]:
    """What may surprise."""
    said = []
    if kind.pages > 1 and channels in (1, 3) and kind.channels != channels:
        said.append(
            f"some files have {kind.pages} pages, of which the first is read: "
            f"--model.in-channels {kind.channels} reads them as channels"
        )
    if kind.has_alpha and channels in (1, 3):
        said.append("what is transparent in some images is laid on white")
    return said


def on_decoding(config: PretrainConfig) -> list[str]:
    """Whether another way of decoding is asked for in vain."""
    if config.decode == "exact" or reduced_jpeg.applies(config):
        return []
    return [
        f"--decode {config.decode} has no effect: it is for gray and colour images kept at 8 bit "
        "(--views.depth 8)"
    ]


def in_words(views: ViewsConfig, count: int) -> str:
    """Depth and statistics, a line."""
    kept = {"8": "8 bit", "16": "16 bit", "float": "values as they are in the files"}
    mean, std = (" ".join(f"{value:.4g}" for value in of or ()) for of in (views.mean, views.std))
    return f"pixels: {kept[views.pixel_depth]}; of {count} images mean {mean}, deviation {std}"


def of_constants(channels: list[Channel]) -> list[str]:
    """Channels from which nothing can be learnt."""
    flat = [str(at) for at, one in enumerate(channels, 1) if one.std == 0]
    if not flat:
        return []
    which = f"channels {', '.join(flat)} have" if len(flat) > 1 else f"channel {flat[0]} has"
    return [f"{which} the same value in every pixel looked at"]
