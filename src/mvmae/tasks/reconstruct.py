"""Reconstructions: the paper's Figure 5 for any run and any images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from mvmae import encoders
from mvmae.config import ModelConfig, PretrainConfig, ReconstructConfig, num_visible
from mvmae.data.decode import UnreadableImageError
from mvmae.data.sources.opening import open_source
from mvmae.data.sources.source import Source
from mvmae.data.views import mask_noise, normalized, whole_view
from mvmae.engine import precision, runs
from mvmae.engine.checkpoint import write_whole
from mvmae.errors import UserError
from mvmae.figures import reconstruction
from mvmae.figures.reconstruction import Panels
from mvmae.models.mae import MaskedAutoencoder
from mvmae.models.patches import masking_from_noise, patchify, unpatchify
from mvmae.models.pixels import Statistics, denormalized_patches

HIDDEN = 0.5  # gray, in [0, 1]


def run(config: ReconstructConfig) -> None:
    """Draw originals, what the encoder sees, and what the decoder makes of it.

    Raises:
        UserError: There is no decoder, no readable image, or nowhere to write.
    """
    device = precision.choose_device(config.device)
    model, trained = encoders.open_autoencoder(config.encoder)
    if trained.objective.reconstruction_weight == 0:
        raise UserError(f"{config.encoder} was trained without reconstruction: it has no decoder")
    visible = visible_count(trained.model, config.mask_ratio)
    source = open_source(config.data, trained.model.in_channels)
    images, names = drawn_images(source, trained, config)
    noise = mask_noise(
        np.random.default_rng((config.seed, 1)), len(images), trained.model.num_patches
    )
    panels = panels_of(
        model.to(device),
        images,
        noise,
        trained,
        num_visible=visible,
        statistics=config.statistics,
        device=device,
    )
    file = output_file(config)
    picture = reconstruction.draw(
        panels, names=names, title=title_of(config, trained, visible), note=note_of(config, trained)
    )
    runs.make(file.parent)
    write_whole(file, lambda stream: stream.write(picture))
    Console(soft_wrap=True).print(f"written: {file}", markup=False, highlight=False)


def visible_count(model: ModelConfig, mask_ratio: float | None) -> int:
    """Patches shown."""
    count = num_visible(model.num_patches, mask_ratio or model.mask_ratio)
    if not 0 < count < model.num_patches:
        raise UserError(
            f"mask_ratio {mask_ratio} leaves {count} of {model.num_patches} patches visible: there "
            "must be a visible and a hidden one"
        )
    return count


def drawn_images(
    source: Source, trained: PretrainConfig, config: ReconstructConfig
) -> tuple[Tensor, list[str]]:
    """Images at random, those that cannot be read passed over, and their names."""
    images, names = [], []
    for index in np.random.default_rng((config.seed, 0)).permutation(len(source)).tolist():
        try:
            pixels = source.read(index)
        except UnreadableImageError:
            continue
        images.append(whole_view(pixels, trained.model.height_width, trained.views.interpolation))
        names.append("/".join(Path(source.path(index)).parts[-2:])[-28:])
        if len(images) == config.count:
            break
    if not images:
        raise UserError(f"none of the {len(source)} images of {source.name} can be read")
    return torch.stack(images), names


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
) -> Panels:
    """The four pictures of each image; `images` are 8-bit pixels, B x C x H x W."""
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
        return pixels.clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()

    original = picture(target)
    shown = (
        unpatchify((1 - hidden).expand_as(target), patch, grid).permute(0, 2, 3, 1).cpu().numpy()
    )
    return Panels(
        original=original,
        masked=original * shown + HIDDEN * (1 - shown),
        prediction=picture(prediction),
        pasted=picture(prediction * hidden + target * (1 - hidden)),
    )


def title_of(config: ReconstructConfig, trained: PretrainConfig, visible: int) -> str:
    """The run, and how much of each image it saw."""
    total = trained.model.num_patches
    return f"{Path(config.encoder).name}: {visible} of {total} patches visible"


def note_of(config: ReconstructConfig, trained: PretrainConfig) -> str:
    """How the colours came about."""
    if not trained.objective.normalize_targets:
        return "pixels as predicted"
    if config.statistics == "target":
        return "each hidden patch's brightness and contrast are its own, which the model never saw"
    return "each hidden patch's brightness and contrast are estimated from visible patches near it"


def output_file(config: ReconstructConfig) -> Path:
    """Where the picture goes.

    Raises:
        UserError: ENCODER is no run folder and no --out is given, or --out is no PNG.
    """
    if config.out is None:
        if not runs.is_run(Path(config.encoder)):
            raise UserError(
                f"{config.encoder} is no run folder: say where to draw with --out FILE.png"
            )
        return Path(config.encoder) / "figures" / "reconstructions.png"
    if config.out.suffix.lower() != ".png":
        raise UserError(f"--out {config.out} must end in .png")
    return config.out
