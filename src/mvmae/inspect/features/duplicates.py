"""features-duplicates.png and .csv: pairs of images that are one picture, or nearly."""

from __future__ import annotations

from typing import Any

from mvmae.inspect.features.feature_cache import Images, Picture, Setting, csv_of, name_of, pixels
from mvmae.inspect.features.figures import Shot, draw_pairs
from mvmae.metrics.typicality import MAX_PAIRS, centre, near_duplicates, spanning_pairs

PAIRS = 3  # drawn, times --count
MANY = 0.3  # of the images: more are hardly there twice
HEADER = ("cosine", "first", "first_label", "second", "second_label")


def picture_of(setting: Setting, images: Images) -> Picture:
    """Pairs at or above the threshold, best first; of a group only those that join it."""
    threshold, count = setting.config.threshold, len(images.places)
    if count < 2:
        return Picture(None, {"images": count}, "one image has no duplicate", csv_of(HEADER, []))
    pairs = near_duplicates(centre(images.features), threshold, device=setting.device)
    joined = spanning_pairs(pairs)
    inside = {place for pair in joined for place in (pair.first, pair.second)}
    groups = len(inside) - len(joined)
    about = {
        "images": count,
        "threshold": threshold,
        "pairs": len(pairs),
        "complete": len(pairs) < MAX_PAIRS,
        "in_groups": len(inside),
        "groups": groups,
    }
    rows = [
        (
            f"{pair.cosine:.6f}",
            *(
                words
                for row in pair[:2]
                for words in (setting.source.path(images.places[row]), images.name(row))
            ),
        )
        for pair in pairs
    ]
    table = csv_of(HEADER, rows)
    if not pairs:
        said = f"no two of {count:,} images have a cosine of {threshold:g} or more"
        return Picture(None, about, said, table)

    def shot(row: int) -> Shot:
        place = images.places[row]
        return Shot(pixels(setting, place), name_of(setting, place), images.name(row))

    drawn = joined[: PAIRS * setting.config.count]
    png = draw_pairs(
        [(shot(pair.first), shot(pair.second)) for pair in drawn],
        [f"{pair.cosine:.3f}" for pair in drawn],
        title=f"Near-duplicates in {setting.source.name}, {setting.name}",
        note=note_of(setting, len(pairs), len(joined), len(drawn)),
    )
    return Picture(png, about, words_of(about), table)


def words_of(about: dict[str, Any]) -> str:
    """What was found, and whether it is to be believed."""
    pairs, groups, inside = about["pairs"], about["groups"], about["in_groups"]
    more = "" if about["complete"] else " (the best; there may be more)"
    said = (
        f"{pairs:,} pair{'' if pairs == 1 else 's'}{more}, "
        f"{inside:,} of {about['images']:,} images in {groups:,} group{'' if groups == 1 else 's'}"
    )
    if inside > MANY * about["images"]:
        said += "; so many that the encoder may tell these images badly apart: try a --threshold "
        said += f"above {about['threshold']:g}, or an encoder trained on such images"
    return said


def note_of(setting: Setting, pairs: int, joined: int, drawn: int) -> str:
    """How the pairs were found, and what was left out of the picture."""
    words = (
        "Cosine of the images' features, the mean of all taken off, at least "
        f"{setting.config.threshold:g}. The encoder holds these for one picture; look before you "
        "throw away."
    )
    if pairs > joined:
        words += (
            f" {pairs:,} pairs; of images that are all alike, as many as join them: {joined:,}."
        )
    if joined > drawn:
        words += f" The first {drawn} are drawn."
    return words
