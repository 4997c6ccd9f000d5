"""`mvmae data stats`: measure pixel values, to normalise them and to see if their range is used."""

from typing import Any

from rich.console import Console

from mvmae import terminal
from mvmae.config.datatools import DataStatsConfig
from mvmae.config.views import Depth
from mvmae.data.reading.detect_kind import ImageKind, detect_kind, require_channels, sample_indices
from mvmae.data.reading.pixel_statistics import (
    QUANTILES,
    PixelStatistics,
    measure_pixels,
    rounded_statistics,
)
from mvmae.data.sources.base import plain_channels, with_depth
from mvmae.data.sources.open import open_source
from mvmae.errors import UserError
from mvmae.storage import atomic
from mvmae.storage.outputs import require_output

PRINTED_QUANTILES = (0.01, 0.5, 0.99)  # on the screen; the file has all
UNITS: dict[Depth, str] = {
    "8": "fractions of the full 8-bit range",
    "16": "fractions of the full range",
    "float": "the values of the files",
}


def run(config: DataStatsConfig) -> None:
    """Measure DATA.

    Raises:
        UserError: No image can be read, or --out cannot be written.
    """
    if config.out is not None:
        require_output(config.out)
    source = open_source(config.data, plain_channels(config.channels or 3))
    kind = detect_kind(source, config.seed)  # from headers of a sample, as `pretrain` does
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
        raise UserError(
            f"none of the {len(indices)} images can be read, for example {path} ({reason})"
        )
    facts = collect_facts(config, found, kind, len(source))
    console = terminal.console()
    print_facts(console, facts)
    if config.out is not None:
        atomic.write_json(config.out, facts)
        console.print(f"written: {config.out}")
    terminal.emit("result", {name: one for name, one in facts.items() if name != "skipped"})


def collect_facts(
    config: DataStatsConfig, found: PixelStatistics, kind: ImageKind, images: int
) -> dict[str, Any]:
    """Collect everything measured, in the form of the JSON file."""
    mean, std = rounded_statistics(found.channels)
    sides = [sorted(own) for own in zip(*found.sizes.elements(), strict=True)]
    height, width = (
        {"least": own[0], "median": own[len(own) // 2], "most": own[-1]} for own in sides
    )
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
        "height": height,
        "width": width,
        "sizes": len(found.sizes),
        "skipped": [one._asdict() for one in found.skipped],
    }


def print_facts(console: Console, facts: dict[str, Any]) -> None:
    """Print a table, remarks and the options for `pretrain`."""
    height, width = facts["height"], facts["width"]
    console.print(
        f"{facts['measured']} of {facts['images']} images, {facts['in_channels']} channels, "
        f"{'float' if facts['depth'] == 'float' else facts['depth'] + ' bit'}; "
        f"height {height['least']} to {height['most']} (median {height['median']}), "
        f"width {width['least']} to {width['most']} (median {width['median']})"
    )
    console.print(f"in {facts['units']}:")
    for line in (*table_lines(facts), *list_remarks(facts)):
        console.print(line)
    # `rounded_statistics` leaves up to 15 digits, so that this line repeats them exactly.
    mean, std = (" ".join(f"{value:.15g}" for value in facts[name]) for name in ("mean", "std"))
    channels = facts["in_channels"]
    option = "" if channels == 3 else f" --model.in-channels {channels}"
    console.print(
        f"mvmae pretrain {' '.join(facts['data'])}{option} --views.depth {facts['depth']} "
        f"--views.mean {mean} --views.std {std}"
    )


def table_lines(facts: dict[str, Any]) -> list[str]:
    """Build a heading and a line for each channel, in aligned columns."""
    is_float = facts["depth"] == "float"
    quantiles = [f"{100 * q:g} %" for q in PRINTED_QUANTILES]
    rows = [["channel", "mean", "std", "min", *quantiles, "max", "zero"]]
    rows[0] += ["at max"] if is_float else ["saturated", "bits"]
    for number, one in enumerate(facts["channels"], 1):
        values = [one["mean"], one["std"], one["low"]]
        values += [one["quantiles"][str(q)] for q in PRINTED_QUANTILES] + [one["high"]]
        row = [str(number), *(f"{value:.4g}" for value in values)]
        row += [f"{one['zeros']:.1%}", f"{one['saturated']:.1%}"]
        rows.append(row if is_float else [*row, str(one["bits"])])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]


def list_remarks(facts: dict[str, Any]) -> list[str]:
    """List what the user should know before training."""
    remarks = []
    flat = [str(at) for at, one in enumerate(facts["channels"], 1) if one["std"] == 0]
    if flat:
        remarks.append(f"one value only: channel {', '.join(flat)}")
    # 12-bit cameras write 16-bit files whose values end at 4095.
    bits = max(one["bits"] or 0 for one in facts["channels"])
    if facts["depth"] == "16" and 0 < bits < 16:
        remarks.append(
            f"only {bits} of the 16 bits are in use: the measured mean and standard deviation "
            "account for that, ImageNet's would not"
        )
    if facts["transparent"]:
        remarks.append("transparent parts of some images are composited onto white")
    if facts["skipped"]:
        first = facts["skipped"][0]
        remarks.append(
            f"{len(facts['skipped'])} images cannot be read, for example {first['path']} "
            f"({first['reason']})"
        )
    return remarks
