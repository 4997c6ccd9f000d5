"""features-typical.png and .csv: images that have many like them, and images that have none."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mvmae.config.features import FEWEST
from mvmae.inspect.features.feature_cache import Images, Picture, Setting, csv_of, name_of, pixels
from mvmae.inspect.features.figures import Shot, draw_typical
from mvmae.metrics.typicality import NUM_NEIGHBOURS, centre, typicality

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


def picture_of(setting: Setting, images: Images) -> Picture:
    """The least typical images, and the most typical ones."""
    count = len(images.places)
    if count < FEWEST:
        return Picture(None, {"images": count}, f"nothing is typical of fewer than {FEWEST} images")
    values = typicality(centre(images.features), device=setting.device)
    order = values.argsort(stable=True).tolist()
    most = min(setting.config.count, count // 3)
    least = min(2 * setting.config.count, count // 3)

    def shots(rows: list[int]) -> list[Shot]:
        return [shot_of(setting, images, row, values) for row in rows]

    png = draw_typical(
        least=shots(order[:least]),
        most=shots(order[::-1][:most]),
        title=f"Least and most typical of {setting.source.name}, {setting.name}",
        note=note_of(count),
    )
    quantiles = np.quantile(values.numpy(), QUANTILES).round(6).tolist()
    about = {
        "images": count,
        "neighbours": min(NUM_NEIGHBOURS, count - 1),
        "quantiles": dict(zip(map(str, QUANTILES), quantiles, strict=True)),
        "least": [path_and_value(setting, images, row, values) for row in order[:least]],
        "most": [path_and_value(setting, images, row, values) for row in order[::-1][:most]],
    }
    first = " ".join(setting.source.path(images.places[order[0]]).split())
    rows = [
        (setting.source.path(images.places[row]), images.name(row), f"{values[row]:.6f}")
        for row in order
    ]
    table = csv_of(("path", "label", "typicality"), rows)
    return Picture(png, about, f"least typical: {first}", table)


def shot_of(setting: Setting, images: Images, row: int, values: Tensor) -> Shot:
    """An image with its name and how typical it is."""
    place = images.places[row]
    label = images.name(row)
    said = f"{label}  {values[row]:.2f}" if label else f"{values[row]:.2f}"
    return Shot(pixels(setting, place), name_of(setting, place), said)


def path_and_value(
    setting: Setting, images: Images, row: int, values: torch.Tensor
) -> dict[str, str | float]:
    """What features.json says of an image."""
    path = setting.source.path(images.places[row])
    return {"path": path, "typicality": round(float(values[row]), 6)}


def note_of(count: int) -> str:
    """What the numbers are, and what they do not find."""
    nearest = min(NUM_NEIGHBOURS, count - 1)
    return (
        f"Mean cosine of an image's features to its {nearest} nearest of {count:,} images, the "
        "mean of all taken off. Least typical: broken, rare, or of no other's kind; many broken "
        "alike are typical of each other."
    )
