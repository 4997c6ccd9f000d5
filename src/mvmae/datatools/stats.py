"""The pixels of images in numbers: what to normalise them by, and whether their range is used."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from mvmae import terminal
from mvmae.config.datatools import DataStatsConfig
from mvmae.config.views import Depth
from mvmae.data.reading.detect_kind import ImageKind, detect_kind, require_channels, sample_indices
from mvmae.data.reading.pixel_statistics import QUANTILES, PixelStatistics, measure_pixels
from mvmae.data.sources.base import plain_channels, with_depth
from mvmae.data.sources.open import open_source
from mvmae.errors import UserError
from mvmae.method.preflight.resolve_config import rounded_statistics
from mvmae.storage import atomic
from mvmae.storage.marks import require_place, require_replaceable

SHOWN = (0.01, 0.5, 0.99)  # of the quantiles, on the screen
UNITS: dict[Depth, str] = {
    "8": "shares of the full range of 8 bit",
    "16": "shares of the full range",
    "float": "the values of the files",
}


def run(config: DataStatsConfig) -> None:
    """Measure DATA.

    Raises:
        UserError: There is nothing that can be read, or nowhere to write.
    """
    if config.out is not None:
        require_place(config.out)
        require_replaceable(config.out)
    source = open_source(config.data, plain_channels(config.channels or 3))
    kind = detect_kind(source, config.seed)
    channels = config.channels or kind.channels
    require_channels(kind, channels, config.data, "--channels")
    depth: Depth = kind.depth if config.depth == "auto" else config.depth
    indices = sample_indices(len(source), config.max_images or len(source), config.seed)
    with terminal.Bar(len(indices), "images") as bar:
        found = measure_pixels(
            with_depth(source, channels, depth),
            indices,
            depth,
            workers=config.workers,
            timeout=config.timeout,
            advance=bar.advance,
        )
    if not found.channels:
        path, reason = found.skipped[0]
        raise UserError(f"none of the {len(indices)} images can be read, {path} for one ({reason})")
    told = facts_of(config, found, kind, len(source))
    console = terminal.people()
    say(console, told)
    if config.out is not None:
        atomic.write_json(config.out, told)
        console.print(f"written: {config.out}")
    terminal.emit("result", {name: one for name, one in told.items() if name != "skipped"})


def facts_of(
    config: DataStatsConfig, found: PixelStatistics, kind: ImageKind, images: int
) -> dict[str, Any]:
    """All that is known, as JSON has it."""
    mean, std = rounded_statistics(found.channels)
    heights, widths = zip(*found.sizes.elements(), strict=True)
    return {
        "command": "data stats",
        "data": list(config.data),
        "images": images,
        "measured": sum(found.sizes.values()),
        "depth": found.depth,
        "in_channels": len(found.channels),
        "units": UNITS[found.depth],
        "transparent": kind.has_alpha,
        "mean": list(mean),
        "std": list(std),
        "channels": [
            one._asdict()
            | {"quantiles": dict(zip(map(str, QUANTILES), one.quantiles, strict=True))}
            for one in found.channels
        ],
        "height": _spread(heights),
        "width": _spread(widths),
        "sizes": len(found.sizes),
        "skipped": [one._asdict() for one in found.skipped],
    }


def _spread(sides: tuple[int, ...]) -> dict[str, int]:
    ordered = sorted(sides)
    return {"least": ordered[0], "median": ordered[len(ordered) // 2], "most": ordered[-1]}


def say(console: Console, told: dict[str, Any]) -> None:
    """Tables and sentences for people."""
    height, width = told["height"], told["width"]
    console.print(
        f"{told['measured']} of {told['images']} images, {told['in_channels']} channels, "
        f"{'float' if told['depth'] == 'float' else told['depth'] + ' bit'}; "
        f"height {height['least']} to {height['most']} (median {height['median']}), "
        f"width {width['least']} to {width['most']} (median {width['median']})"
    )
    console.print(f"in {told['units']}:")
    for line in table_of(told):
        console.print(line)
    for remark in remarks_on(told):
        console.print(remark)
    words = [" ".join(f"{value:.15g}" for value in told[name]) for name in ("mean", "std")]
    own = told["in_channels"] not in (1, 3)
    asked = f" --model.in-channels {told['in_channels']}" if own or told["in_channels"] == 1 else ""
    console.print(
        f"mvmae pretrain {' '.join(told['data'])}{asked} --views.depth {told['depth']} "
        f"--views.mean {words[0]} --views.std {words[1]}"
    )


def table_of(told: dict[str, Any]) -> list[str]:
    """A line for each channel, under a heading; a terminal that is narrow breaks them."""
    is_float = told["depth"] == "float"
    shares = ["zero", "at max" if is_float else "saturated", *([] if is_float else ["bits"])]
    rows = [["channel", "mean", "std", "min", *(f"{100 * q:g} %" for q in SHOWN), "max", *shares]]
    for number, one in enumerate(told["channels"], 1):
        values = [one["mean"], one["std"], one["low"]]
        values += [one["quantiles"][str(q)] for q in SHOWN] + [one["high"]]
        row = [str(number), *(f"{value:.4g}" for value in values)]
        row += [f"{one['zeros']:.1%}", f"{one['saturated']:.1%}"]
        rows.append(row if is_float else [*row, str(one["bits"])])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]


def remarks_on(told: dict[str, Any]) -> list[str]:
    """What is worth a thought."""
    said = []
    flat = [str(at) for at, one in enumerate(told["channels"], 1) if one["std"] == 0]
    if flat:
        said.append(f"one value only: channel {', '.join(flat)}")
    bits = max(one["bits"] or 0 for one in told["channels"])
    if told["depth"] == "16" and 0 < bits < 16:
        said.append(
            f"no more than {bits} of 16 bits are in use: mean and deviation as measured make up "
            "for it, ImageNet's would not"
        )
    if told["transparent"]:
        said.append("what is transparent in some images is laid on white")
    if told["skipped"]:
        first = told["skipped"][0]
        said.append(
            f"{len(told['skipped'])} images cannot be read, {first['path']} for one "
            f"({first['reason']})"
        )
    return said
