"""Reconstructions: the paper's Figure 5 for any runs and any images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mvmae import terminal
from mvmae.config.figures import ReconstructConfig
from mvmae.config.model import ModelConfig, num_visible
from mvmae.data.sources.open import open_source
from mvmae.encoders import OpenedAutoencoder
from mvmae.errors import UserError
from mvmae.figures import page
from mvmae.figures.page import Column
from mvmae.inspect.choose_images import choose, report_missing, require_channels
from mvmae.inspect.model_pictures import Panels, open_with_decoder, reconstruct_images
from mvmae.storage.outputs import join_names, picture_file, short_names, write
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
    encoders = (config.encoder, *config.against)
    opened = [open_with_decoder(name) for name in encoders]
    file = picture_file(config.encoder, config.out, "reconstructions.png", config.data)
    shapes = [one.config.model for one in opened]
    # All runs hide the same share, so that their errors can be compared.
    ratio = config.mask_ratio or shapes[0].mask_ratio
    # Checked for every run before any image is read.
    for name, shape in zip(encoders, shapes, strict=True):
        require_visible_and_hidden(shape, ratio, name)
        require_channels(config.channels, shape.in_channels, name)
    source = open_source(config.data, shapes[0].in_channels, opened[0].config.views.pixel_depth)
    chosen = choose(source, config.count, config.seed)
    names = short_names(encoders)
    if len({shape.decoder_depth for shape in shapes}) > 1:  # the paper's Figure 5 compares depths
        names = [
            f"{name} (decoder {shape.decoder_depth} deep)"
            for name, shape in zip(names, shapes, strict=True)
        ]
    models = [
        Model(
            name,
            reconstruct_images(
                one,
                config.data,
                chosen.indices,
                seed=config.seed,
                mask_ratio=ratio,
                device=device,
                statistics=config.statistics,
                channels=config.channels,
            ),
        )
        for name, one in zip(names, opened, strict=True)
    ]
    title, note = write_title(config, shapes, ratio), write_note(config, opened)
    write(file, draw(models, names=chosen.names, title=title, note=note))
    report_missing(chosen, config.count)
    terminal.console().print(f"written: {file}")
    mse = {name: round(float(panels.error.mean()), 6) for name, panels in models}
    terminal.emit("result", {"command": "reconstruct", "file": str(file), "mse": mse})


def require_visible_and_hidden(shape: ModelConfig, mask_ratio: float, name: str) -> None:
    """Check that a mask leaves at least one patch visible and hides at least one.

    Raises:
        UserError: It does not.
    """
    count = num_visible(shape.num_patches, mask_ratio)
    if not 0 < count < shape.num_patches:
        raise UserError(
            f"mask_ratio {mask_ratio} leaves {count} of {shape.num_patches} patches of {name} "
            "visible: at least one must be visible and one hidden"
        )


def write_title(config: ReconstructConfig, shapes: Sequence[ModelConfig], mask_ratio: float) -> str:
    """Name the runs, and say how much of each image they saw."""
    names = join_names(short_names((config.encoder, *config.against)))
    shown = {(num_visible(shape.num_patches, mask_ratio), shape.num_patches) for shape in shapes}
    if len(shown) > 1:
        return f"{names}: {mask_ratio:.0%} of the patches hidden"
    ((visible, total),) = shown
    return f"{names}: {visible} of {total} patches visible"


def write_note(config: ReconstructConfig, opened: Sequence[OpenedAutoencoder]) -> str:
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
    names = short_names((config.encoder, *config.against))
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
    for heading, panels in models:
        own = [
            field
            for field in ("original", "masked")
            if not _same(getattr(panels, field), getattr(first, field))
        ]
        columns = [_column(panels, field) for field in (*own, "prediction", "pasted")]
        groups.append((heading, columns))
    shared = [_column(first, field) for field in ("original", "masked")]
    return page.draw(page.columns_to_rows(shared, names, groups), title=title, note=note)


def _column(panels: Panels, field: str) -> Column:
    errors = zip(panels.error, panels.plain, strict=True)
    captions = [f"MSE {error:.4f}, colours {plain:.4f}" for error, plain in errors]
    return Column(COLUMNS[field], getattr(panels, field), captions if field == "prediction" else ())


def _same(pictures: np.ndarray, others: np.ndarray) -> bool:
    """Whether two columns show the same pixels, up to rounding in different normalisations."""
    return pictures.shape == others.shape and bool(np.allclose(pictures, others, atol=1e-3))
