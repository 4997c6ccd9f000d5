"""Reconstructions: the paper's Figure 5 for any runs and any images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from mvmae import terminal
from mvmae.config.figures import ReconstructConfig
from mvmae.config.model import ModelConfig, num_visible
from mvmae.data.sources.open import open_source
from mvmae.encoders import OpenedAutoencoder
from mvmae.errors import UserError
from mvmae.figures import page
from mvmae.figures.page import Column, Group
from mvmae.inspect.choose_images import Chosen, choose, missing, require_channels, views
from mvmae.inspect.model_pictures import Panels, open_with_decoder, panels_of
from mvmae.method.views import mask_noise
from mvmae.storage.outputs import headings, join_names, picture_file, write
from mvmae.training import precision


class Model(NamedTuple):
    """One model's reconstructions of the images."""

    heading: str
    panels: Panels


COLUMNS = {
    "original": "original",
    "masked": "visible patches",
    "prediction": "prediction",
    "pasted": "prediction + visible",
}


def run(config: ReconstructConfig) -> None:
    """Draw originals, their visible patches, and what the decoder predicts from these.

    Raises:
        UserError: A decoder or an image cannot be read, or the figure cannot be written.
    """
    device = precision.choose_device(config.device)
    opened = [open_with_decoder(name) for name in (config.encoder, *config.against)]
    file = picture_file(config.encoder, config.out, "reconstructions.png", config.data)
    first = opened[0].config.model
    ratio = config.mask_ratio or first.mask_ratio
    for name, one in zip((config.encoder, *config.against), opened, strict=True):
        visible_count(one.config.model, ratio, name)
        require_channels(config.channels, one.config.model.in_channels, name)
    chosen = choose(
        open_source(config.data, first.in_channels, opened[0].config.views.pixel_depth),
        config.count,
        config.seed,
    )
    models = [
        Model(heading, panels_of_run(one, chosen, ratio, config, device))
        for heading, one in zip(model_headings(config, opened), opened, strict=True)
    ]
    picture = draw(
        models,
        names=chosen.names,
        title=title_of(config, [one.config.model for one in opened], ratio),
        note=note_of(config, opened),
    )
    write(file, picture)
    console = terminal.people()
    for remark in missing(chosen, config.count):
        console.print(remark)
    console.print(f"written: {file}")
    terminal.emit("result", {"command": "reconstruct", "file": str(file), "mse": errors_of(models)})


def visible_count(model: ModelConfig, mask_ratio: float, name: str) -> int:
    """Return the number of patches that the encoder sees.

    Raises:
        UserError: It is all of them, or none.
    """
    count = num_visible(model.num_patches, mask_ratio)
    if not 0 < count < model.num_patches:
        raise UserError(
            f"mask_ratio {mask_ratio} leaves {count} of {model.num_patches} patches of {name} "
            "visible: at least one must be visible and one hidden"
        )
    return count


def panels_of_run(
    opened: OpenedAutoencoder,
    chosen: Chosen,
    mask_ratio: float,
    config: ReconstructConfig,
    device: torch.device,
) -> Panels:
    """Reconstruct the chosen images; runs with the same grid of patches get the same masks."""
    model, trained = opened
    shape = trained.model
    source = open_source(config.data, shape.in_channels, trained.views.pixel_depth)
    images = views(source, chosen.indices, shape.height_width, trained.views.interpolation)
    noise = mask_noise(np.random.default_rng((config.seed, 1)), len(images), shape.num_patches)
    return panels_of(
        model.to(device),
        images,
        noise,
        trained,
        num_visible=num_visible(shape.num_patches, mask_ratio),
        statistics=config.statistics,
        device=device,
        channels=config.channels,
    )


def model_headings(config: ReconstructConfig, opened: Sequence[OpenedAutoencoder]) -> list[str]:
    """Name the models, with the depths of their decoders where these differ (Figure 5)."""
    names = headings((config.encoder, *config.against))
    depths = [one.config.model.decoder_depth for one in opened]
    if len(set(depths)) == 1:
        return names
    return [f"{name} (decoder {depth} deep)" for name, depth in zip(names, depths, strict=True)]


def errors_of(models: Sequence[Model]) -> dict[str, float]:
    """Return each model's mean error over the images."""
    return {model.heading: round(float(model.panels.error.mean()), 6) for model in models}


def title_of(config: ReconstructConfig, shapes: Sequence[ModelConfig], mask_ratio: float) -> str:
    """Name the runs, and say how much of each image they saw."""
    names = join_names(headings((config.encoder, *config.against)))
    shown = {(num_visible(shape.num_patches, mask_ratio), shape.num_patches) for shape in shapes}
    if len(shown) > 1:
        return f"{names}: {mask_ratio:.0%} of the patches hidden"
    ((visible, total),) = shown
    return f"{names}: {visible} of {total} patches visible"


def note_of(config: ReconstructConfig, opened: Sequence[OpenedAutoencoder]) -> str:
    """Say where the colours and the errors come from."""
    error = (
        "MSE: of drawn pixels, 0 to 1, over hidden patches; colours: the MSE of filling each of "
        "these with its own average colour. Predictions of visible patches were never trained."
    )
    normalized = [one.config.objective.normalize_targets for one in opened]
    if not any(normalized):
        return f"Pixels as predicted. {error}"
    how = (
        "the brightness and contrast of each hidden patch are the true ones, which the model never "
        "saw, and flatter the error"
        if config.statistics == "target"
        else "the brightness and contrast of each hidden patch are estimated from visible patches "
        "nearby, which adds to the error"
    )
    if all(normalized):
        return f"{how[0].upper()}{how[1:]}. {error}"
    names = headings((config.encoder, *config.against))
    which = " and ".join(n for n, flag in zip(names, normalized, strict=True) if flag)
    return f"For {which}, {how}; pixels of the others are as predicted. {error}"


def draw(models: Sequence[Model], *, names: Sequence[str], title: str, note: str) -> bytes:
    """Draw a PNG with one row for each image and each model's prediction, alone and pasted.

    The original and the masked image come first, and again before a later model that saw another
    part of the image or another mask.

    Args:
        models: At least one; all of the same images.
        names: What each row shows, in small print beside it.
        title: Above the figure.
        note: Below it, how it was made.
    """
    first = models[0].panels
    groups = []
    for place, model in enumerate(models):
        columns = [_column(model.panels, field) for field in ("prediction", "pasted")]
        if place and not _same(model.panels.masked, first.masked):
            columns.insert(0, _column(model.panels, "masked"))
        if place and not _same(model.panels.original, first.original):
            columns.insert(0, _column(model.panels, "original"))
        groups.append(Group(model.heading if len(models) > 1 else "", columns))
    shown = [_column(first, field) for field in ("original", "masked")]
    if len(models) == 1:
        groups = [Group("", [*shown, *groups[0].columns])]
    else:
        groups = [Group("", shown), *groups]
    return page.draw(groups, names=names, title=title, note=note)


def _column(panels: Panels, field: str) -> Column:
    errors = zip(panels.error, panels.plain, strict=True)
    captions = [f"MSE {error:.4f}, colours {plain:.4f}" for error, plain in errors]
    captions = captions if field == "prediction" else []
    return Column(COLUMNS[field], getattr(panels, field), captions)


def _same(pictures: np.ndarray, others: np.ndarray) -> bool:
    """Whether two columns show the same pixels, up to rounding in different normalisations."""
    return pictures.shape == others.shape and bool(np.allclose(pictures, others, atol=1e-3))
