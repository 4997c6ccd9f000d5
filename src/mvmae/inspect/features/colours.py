"""features-pca.png: images, and their patches in colour, for one encoder or several.

Shapes: B images, N patch tokens, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mvmae import encoders
from mvmae.data.reading.decode import UnreadableImageError
from mvmae.data.sources.base import Subset
from mvmae.encoders import OpenedEncoder
from mvmae.errors import UserError
from mvmae.evaluation.shared import short_name
from mvmae.inspect.features.feature_cache import Picture, Setting, name_of, pixels
from mvmae.inspect.features.figures import Coloured, draw_colours, token_picture
from mvmae.metrics.principal import Basis, colors, principal_basis
from mvmae.terminal import Bar

IMAGES = 64  # that make the basis, of which some are drawn
TOKENS = 100_000  # and no more patches than these, but for those that are drawn


def picture_of(setting: Setting) -> Picture:
    """Colours by the three main ways in which patches differ, one basis for all images.

    Raises:
        UserError: No image can be read.
    """
    config = setting.config
    named = {config.encoder: setting.opened, **setting.against}
    largest = max(np.prod(opened.encoder.grid) for opened in named.values())
    places = readable(setting, max(config.count, min(IMAGES, TOKENS // int(largest))))
    drawn = places[: config.count]
    rows, facts = [], []
    with Bar(len(named) * len(places)) as bar:
        for name, opened in named.items():
            called = short_name(name, [*named])
            bar.name(called)
            tokens = patch_tokens(setting, opened, places, bar)
            basis = principal_basis(tokens)
            coloured = colors(tokens[: len(drawn)], basis).cpu().numpy()
            shown = [token_picture(one, opened.encoder.grid) for one in coloured]
            rows.append(Coloured(called, shares_of(basis), shown))
            facts.append(facts_of(name, opened, basis))
    png = draw_colours(
        [pixels(setting, place) for place in drawn],
        [name_of(setting, place) for place in drawn],
        rows,
        title=f"Patches in colour: {setting.source.name}",
        note=note_of(setting, len(places)),
    )
    said = captured(facts)
    about = {"images": len(places), "drawn": len(drawn), "encoders": facts}
    return Picture(png, about, said)


def readable(setting: Setting, count: int) -> list[int]:
    """Places of images at random that can be read.

    Raises:
        UserError: None can be.
    """
    source, places = setting.source, []
    for place in np.random.default_rng((setting.config.seed, 0)).permutation(len(source)).tolist():
        try:
            source.read(place)
        except UnreadableImageError:
            continue
        places.append(place)
        if len(places) == count:
            break
    if not places:
        raise UserError(f"none of the {len(source)} images of {source.name} can be read")
    return places


def patch_tokens(
    setting: Setting, opened: OpenedEncoder, places: list[int], bar: Bar
) -> Float[Tensor, "B N D"]:
    """The patch tokens of some images, on the CPU."""
    config, parts = setting.config, []
    for batch in encoders.encode_source(
        opened.encoder,
        Subset(setting.source, places),
        opened.preprocessing,
        device=setting.device,
        precision_name=config.precision,
        batch_size=min(config.batch_size, len(places)),
        workers=0,  # too few for processes to pay
    ):
        parts.append(batch.tokens[:, opened.encoder.num_prefix :].float().cpu())
        bar.advance(len(batch.indices))
    return torch.cat(parts)


def shares_of(basis: Basis) -> str:
    """How much of the variance is in each colour."""
    return " + ".join(f"{100 * share:.0f}" for share in basis.explained.tolist()) + " %"


def facts_of(name: str, opened: OpenedEncoder, basis: Basis) -> dict[str, Any]:
    """What features.json says of an encoder's colours."""
    shares = basis.explained.tolist()
    return {
        "encoder": name,
        "digest": encoders.weights_digest(opened.encoder),
        "grid": list(opened.encoder.grid),
        "explained": [round(share, 6) for share in shares],
        "explained_total": round(sum(shares), 6),
    }


def captured(facts: list[dict[str, Any]]) -> str:
    """How much of the variance the colours of each encoder have."""
    if len(facts) == 1:
        return f"{facts[0]['explained_total']:.0%} of the variance of patches is in the colours"
    names = [one["encoder"] for one in facts]
    shares = [
        f"{one['explained_total']:.0%} ({short_name(one['encoder'], names)})" for one in facts
    ]
    listed = f"{', '.join(shares[:-1])} and {shares[-1]}"
    return f"of the variance of patches, {listed} are in the colours"


def note_of(setting: Setting, count: int) -> str:
    """What the colours are and how far they can be compared."""
    words = (
        f"Red, green and blue: the first three principal components of the patch tokens of {count} "
        f"image{'' if count == 1 else 's'}, with their shares of the variance. Patches of like "
        "colour are alike to the encoder, wherever they lie."
    )
    if setting.against:
        words += " Colours compare within a row; each encoder has its own."
    return words
