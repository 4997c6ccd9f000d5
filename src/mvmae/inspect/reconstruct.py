"""Reconstructions: the paper's Figure 5 for any runs and any images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mvmae import encoders, terminal
from mvmae.config.figures import ReconstructConfig
from mvmae.config.model import ModelConfig, num_visible
from mvmae.config.pretrain import PretrainConfig
from mvmae.data.sources.open import open_source
from mvmae.encoders import OpenedAutoencoder
from mvmae.errors import UserError
from mvmae.inspect import model_pictures
from mvmae.inspect.choose_images import Chosen, choose, displayed, missing, require_channels, views
from mvmae.inspect.model_pictures import Model, Panels
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.patches import masking_from_noise, patchify, unpatchify
from mvmae.method.pixels import Statistics, denormalized_patches
from mvmae.method.views import mask_noise, normalized, shown_range
from mvmae.storage.outputs import headings, picture_file, together, write
from mvmae.training import precision

HIDDEN = 0.5  # gray, in [0, 1]
TOGETHER = 16  # images in a batch


def run(config: ReconstructConfig) -> None:
    """Draw originals, their visible patches, and what the decoder makes of it.

    Raises:
        UserError: There is no decoder, no readable image, or nowhere to write.
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
    picture = model_pictures.draw(
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


def open_with_decoder(name: str) -> OpenedAutoencoder:
    """An autoencoder whose decoder was trained.

    Raises:
        UserError: There is no such checkpoint, it is damaged, or its decoder was not trained.
    """
    opened = encoders.open_autoencoder(name)
    bad = [key for key, one in opened.model.state_dict().items() if not one.isfinite().all()]
    if bad:
        raise UserError(f"{name} is damaged: {bad[0]} holds infinite numbers, or none")
    if opened.config.objective.reconstruction_weight == 0:
        raise UserError(f"{name} was trained without reconstruction: it has no decoder")
    return opened


def visible_count(model: ModelConfig, mask_ratio: float, name: str) -> int:
    """Patches shown.

    Raises:
        UserError: All of them, or none.
    """
    count = num_visible(model.num_patches, mask_ratio)
    if not 0 < count < model.num_patches:
        raise UserError(
            f"mask_ratio {mask_ratio} leaves {count} of {model.num_patches} patches of {name} "
            "visible: there must be a visible and a hidden one"
        )
    return count


def panels_of_run(
    opened: OpenedAutoencoder,
    chosen: Chosen,
    mask_ratio: float,
    config: ReconstructConfig,
    device: torch.device,
) -> Panels:
    """What a run makes of the images; runs with grids alike get the same masks."""
    model, trained = opened
    shape = trained.model
    source = open_source(config.data, shape.in_channels, trained.views.pixel_depth)
    images = views(source, chosen.indices, shape.height_width, trained.views.interpolation)
    noise = mask_noise(np.random.default_rng((config.seed, 1)), len(images), shape.num_patches)
    pieces = [
        panels_of(
            model.to(device),
            images[first : first + TOGETHER],
            noise[first : first + TOGETHER],
            trained,
            num_visible=num_visible(shape.num_patches, mask_ratio),
            statistics=config.statistics,
            device=device,
            channels=config.channels,
        )
        for first in range(0, len(images), TOGETHER)
    ]
    return Panels(*(np.concatenate(parts) for parts in zip(*pieces, strict=True)))


@torch.inference_mode()
def panels_of(
    model: MaskedAutoencoder,
    images: Tensor,
    noise: Tensor,
    trained: PretrainConfig,
    *,
    num_visible: int,
    statistics: Statistics,
    device: torch.device,
    channels: Sequence[int] = (),
) -> Panels:
    """The four pictures of each image.

    Args:
        model: On the device.
        images: Pixels, B x C x H x W; deep ones are drawn as `for_people` shows them.
        noise: What hides the patches, B x N.
        trained: How the model was trained.
        num_visible: Patches shown.
        statistics: Of hidden patches, under normalised targets.
        device: Where to compute.
        channels: Those drawn, counted from 1; see `displayed` for the default.
    """
    mean, std = trained.pixel_statistics
    inputs = normalized(images, mean, std, device)
    masking = masking_from_noise(noise.to(device), num_visible)
    patch, grid = trained.model.patch_size, trained.model.grid
    target = patchify(inputs, patch)
    prediction = model.decode(model.encoder.encode(target, masking.ids_keep), masking)
    if trained.objective.normalize_targets:
        prediction = denormalized_patches(prediction, target, masking.mask, grid, statistics)
    hidden = masking.mask[..., None]

    def picture(patches: Tensor) -> np.ndarray:
        shape = (1, -1, 1, 1)
        pixels = unpatchify(patches, patch, grid)
        pixels = pixels * pixels.new_tensor(std).view(shape) + pixels.new_tensor(mean).view(shape)
        if images.dtype != torch.uint8:
            low, high = (bound.to(pixels) for bound in shown_range(images, mean, std))
            pixels = (pixels - low) / (high - low)
        return pixels.clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()

    original, predicted = picture(target), picture(prediction)
    area = unpatchify(hidden.expand_as(target), patch, grid).permute(0, 2, 3, 1).cpu().numpy()
    squares = target.unflatten(-1, (-1, images.shape[1])).mean(-2, keepdim=True)
    squares = squares.expand(-1, -1, patch**2, -1).flatten(-2)

    def error_of(pixels: np.ndarray) -> np.ndarray:
        return ((pixels - original) ** 2 * area).sum((1, 2, 3)) / area.sum((1, 2, 3))

    shown = displayed(1 - area, channels)
    return Panels(
        original=displayed(original, channels),
        masked=displayed(original, channels) * shown + HIDDEN * (1 - shown),
        prediction=displayed(predicted, channels),
        pasted=displayed(picture(prediction * hidden + target * (1 - hidden)), channels),
        error=error_of(predicted),
        plain=error_of(picture(squares)),
    )


def model_headings(config: ReconstructConfig, opened: Sequence[OpenedAutoencoder]) -> list[str]:
    """What the models are called; with their decoders' depths where these differ (Figure 5)."""
    names = headings((config.encoder, *config.against))
    depths = [one.config.model.decoder_depth for one in opened]
    if len(set(depths)) == 1:
        return names
    return [f"{name} (decoder {depth} deep)" for name, depth in zip(names, depths, strict=True)]


def errors_of(models: Sequence[Model]) -> dict[str, float]:
    """The mean error of each model over the images."""
    return {model.heading: round(float(model.panels.error.mean()), 6) for model in models}


def title_of(config: ReconstructConfig, shapes: Sequence[ModelConfig], mask_ratio: float) -> str:
    """The runs, and how much of each image they saw."""
    names = together(headings((config.encoder, *config.against)))
    shown = {(num_visible(shape.num_patches, mask_ratio), shape.num_patches) for shape in shapes}
    if len(shown) > 1:
        return f"{names}: {mask_ratio:.0%} of the patches hidden"
    ((visible, total),) = shown
    return f"{names}: {visible} of {total} patches visible"


def note_of(config: ReconstructConfig, opened: Sequence[OpenedAutoencoder]) -> str:
    """How the colours and the errors came about."""
    error = (
        "MSE: of drawn pixels, 0 to 1, over hidden patches; colours: of filling each of them with "
        "its own average colour. What is predicted where a patch is "
        "visible was never trained."
    )
    normalized = [one.config.objective.normalize_targets for one in opened]
    if not any(normalized):
        return f"Pixels as predicted. {error}"
    leak = config.statistics == "target"
    how = (
        "each hidden patch's brightness and contrast are its own, which the model never saw, and "
        "flatter the error"
        if leak
        else "each hidden patch's brightness and contrast are estimated from visible patches near "
        "it, and part of the error is theirs"
    )
    if all(normalized):
        return f"{how[0].upper()}{how[1:]}. {error}"
    names = headings((config.encoder, *config.against))
    which = " and ".join(n for n, flag in zip(names, normalized, strict=True) if flag)
    return f"Of {which} {how}; pixels of the others are as predicted. {error}"
