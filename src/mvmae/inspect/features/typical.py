"""Typical images and outliers (features-typical), and near-duplicates (features-duplicates)."""

from typing import Any

import numpy as np

from mvmae.config.figures import MIN_IMAGES
from mvmae.figures import page
from mvmae.figures.page import Group, Row
from mvmae.inspect.features.feature_cache import Drawing, ImageFeatures, Job, to_csv
from mvmae.metrics.typicality import (
    MAX_PAIRS,
    NUM_NEIGHBOURS,
    centre,
    near_duplicates,
    spanning_pairs,
    typicality,
)

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
MAX_COLUMNS, MAX_PAIRS_ACROSS = 8, 4
PAIRS_DRAWN = 3  # times --count
IMPLAUSIBLE_SHARE = 0.3  # of images with a duplicate: more are rarely real
PAIRS_HEADER = ("cosine", "first", "first_label", "second", "second_label")


def draw_typicality(job: Job, images: ImageFeatures) -> Drawing:
    """Draw the least typical images above the most typical ones."""
    count = len(images.indices)
    if count < MIN_IMAGES:
        summary = f"typical images and outliers need at least {MIN_IMAGES} images"
        return Drawing(None, {"images": count}, summary)
    values = typicality(centre(images.features), device=job.device).tolist()
    order = sorted(range(count), key=lambda row: values[row])
    paths = [job.source.path(index) for index in images.indices]
    # Outliers are what people look for, so there are twice as many of them.
    least = order[: min(2 * job.config.count, count // 3)]
    most = order[::-1][: min(job.config.count, count // 3)]
    rows = []
    for name, drawn in (("least typical", least), ("most typical", most)):
        cells = [
            job.cell(images.indices[row], f"{images.label(row)}  {values[row]:.2f}".strip())
            for row in drawn
        ]
        rows += page.in_blocks([Row([Group(cells)], name)], MAX_COLUMNS)
    neighbours = min(NUM_NEIGHBOURS, count - 1)
    png = page.draw(
        rows,
        title=f"Least and most typical of {job.source.name}, {job.encoder_name}",
        note=(
            f"Mean cosine of an image's features to its {neighbours} nearest of {count:,} images, "
            "after subtracting the mean of all. Least typical images are broken, rare or unlike "
            "any other; many images broken in the same way count as typical of each other."
        ),
        side=page.SMALL_CELL,
    )
    quantiles = np.quantile(np.array(values, np.float32), QUANTILES).round(6).tolist()
    facts: dict[str, Any] = {
        "images": count,
        "neighbours": neighbours,
        "quantiles": dict(zip(map(str, QUANTILES), quantiles, strict=True)),
    }
    for name, drawn in (("least", least), ("most", most)):
        facts[name] = [{"path": paths[row], "typicality": round(values[row], 6)} for row in drawn]
    table = [(paths[row], images.label(row), f"{values[row]:.6f}") for row in order]
    summary = f"least typical: {' '.join(paths[order[0]].split())}"  # a name may hold line breaks
    return Drawing(png, facts, summary, to_csv(("path", "label", "typicality"), table))


def draw_duplicates(job: Job, images: ImageFeatures) -> Drawing:
    """Draw pairs at or above the threshold, most similar first; of a group only a spanning tree."""
    threshold, count = job.config.threshold, len(images.indices)
    if count < 2:
        summary = "a single image has no duplicate"
        return Drawing(None, {"images": count}, summary, to_csv(PAIRS_HEADER, []))
    pairs = near_duplicates(centre(images.features), threshold, device=job.device)
    joined = spanning_pairs(pairs)
    grouped = {row for pair in joined for row in (pair.first, pair.second)}
    facts = {
        "images": count,
        "threshold": threshold,
        "pairs": len(pairs),
        "complete": len(pairs) < MAX_PAIRS,
        "in_groups": len(grouped),
        "groups": len(grouped) - len(joined),  # a tree has one edge fewer than members
    }
    rows = []
    for pair in pairs:
        cells = [f"{pair.cosine:.6f}"]
        for row in (pair.first, pair.second):
            cells += [job.source.path(images.indices[row]), images.label(row)]
        rows.append(cells)
    table = to_csv(PAIRS_HEADER, rows)
    if not pairs:
        summary = f"no two of {count:,} images have a cosine of {threshold:g} or more"
        return Drawing(None, facts, summary, table)
    groups = []
    for pair in joined[: PAIRS_DRAWN * job.config.count]:
        both = (pair.first, pair.second)
        cells = [job.cell(images.indices[row], images.label(row)) for row in both]
        groups.append(Group(cells, f"{pair.cosine:.3f}"))
    png = page.draw(
        [
            Row(groups[at.start : at.stop])
            for at in page.split_evenly(len(groups), MAX_PAIRS_ACROSS)
        ],
        title=f"Near-duplicates in {job.source.name}, {job.encoder_name}",
        note=write_pairs_note(threshold, len(pairs), len(joined), len(groups)),
        side=page.SMALL_CELL,
    )
    return Drawing(png, facts, summarise_pairs(facts), table)


def summarise_pairs(facts: dict[str, Any]) -> str:
    """Say what was found, and warn if it is too much to be true."""
    pairs, groups, grouped = facts["pairs"], facts["groups"], facts["in_groups"]
    more = "" if facts["complete"] else " (the most similar; there may be more)"
    summary = (
        f"{pairs:,} pair{'' if pairs == 1 else 's'}{more}, "
        f"{grouped:,} of {facts['images']:,} images in {groups:,} group{'' if groups == 1 else 's'}"
    )
    if grouped > IMPLAUSIBLE_SHARE * facts["images"]:
        summary += (
            "; this is suspiciously many: the encoder may not tell these images apart. Try a "
            f"--threshold above {facts['threshold']:g}, or an encoder trained on such images"
        )
    return summary


def write_pairs_note(threshold: float, pairs: int, joined: int, drawn: int) -> str:
    """The note below the pairs: how they were found, and what is not drawn."""
    note = (
        "Cosine of the images' features, after subtracting the mean of all, of at least "
        f"{threshold:g}. To the encoder these are the same picture; look before you delete any."
    )
    if pairs > joined:
        note += f" {pairs:,} pairs, of which {joined:,} are enough to connect every group."
    if joined > drawn:
        note += f" The first {drawn} are drawn."
    return note
