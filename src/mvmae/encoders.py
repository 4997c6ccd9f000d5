"""Encoders from where they are kept, and features from encoders.

Shapes: M images, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from mvmae import config as configs
from mvmae.config import ENCODERS, ModelConfig, Pool, PretrainConfig, Size
from mvmae.data.loader import Skipped, whole_batches
from mvmae.data.sources.source import Source
from mvmae.data.views import MODES, normalized
from mvmae.engine import checkpoint, precision
from mvmae.errors import UserError, nearest
from mvmae.models.mae import MaskedAutoencoder
from mvmae.models.vit import Encoder, initialize, pooled

PRODUCT = "encoder.safetensors"
RANDOM_PATCH = 16  # of random:NAME


class Preprocessing(NamedTuple):
    """How pixels become what an encoder was trained on."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


def load_encoder(
    source: str | Path,
    image_size: int | tuple[int, int] | None = None,
    in_channels: int | None = None,
) -> Encoder:
    """An encoder, ready to embed images.

    Args:
        source: A run folder, a checkpoint (`last.pt`, `encoder.safetensors`), or `random:vit_small`
            and the like, whose weights are drawn with seed 0.
        image_size: Side, or height and width, in pixels. Default: what it was trained on, 224 for
            a random one. Positions are resampled to the new grid, bicubic in two dimensions.
        in_channels: For a random encoder only. Default: 3.

    Raises:
        UserError: There is no such encoder, or it is damaged.
    """
    return open_encoder(source, image_size, in_channels).encoder


class OpenedEncoder(NamedTuple):
    """An encoder with what one must know to use it."""

    encoder: Encoder
    preprocessing: Preprocessing
    pool: Pool
    """The token that training shaped."""


def open_encoder(
    source: str | Path,
    image_size: int | tuple[int, int] | None = None,
    in_channels: int | None = None,
) -> OpenedEncoder:
    """`load_encoder`, with the preprocessing and the token to read."""
    if str(source).startswith("random:"):
        return _random(str(source).removeprefix("random:"), image_size, in_channels or 3)
    tensors, facts = _tensors_and_facts(Path(source))
    try:
        if facts["pool"] not in ("mean", "cls") or facts["interpolation"] not in MODES:
            raise ValueError("pool or interpolation is not one that exists")
        encoder = Encoder(
            Size(facts["width"], facts["depth"], facts["num_heads"]),
            image_size=tuple(facts["image_size"]),
            patch_size=facts["patch_size"],
            in_channels=facts["in_channels"],
        )
        preprocessing = Preprocessing(
            tuple(facts["mean"]), tuple(facts["std"]), facts["interpolation"]
        )
        pool = facts["pool"]
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise UserError(
            f"{source}: encoder.json does not describe an encoder: {error!r}"
        ) from error
    if in_channels not in (None, encoder.in_channels):
        raise UserError(f"{source} takes {encoder.in_channels} channels, not {in_channels}")
    checkpoint.load_weights(encoder, tensors, source=str(source))
    return OpenedEncoder(resized(encoder, image_size).eval(), preprocessing, pool)


def _random(name: str, image_size: int | tuple[int, int] | None, in_channels: int) -> OpenedEncoder:
    if name not in ENCODERS:
        raise UserError(
            f"no encoder '{name}'{nearest(name, ENCODERS)} (there are: {', '.join(ENCODERS)})"
        )
    size = _height_width(image_size or 224, RANDOM_PATCH)
    encoder = Encoder(
        ENCODERS[name], image_size=size, patch_size=RANDOM_PATCH, in_channels=in_channels
    )
    initialize(encoder, Generator().manual_seed(0))
    mean, std = configs.ViewsConfig().pixel_statistics(in_channels)
    preprocessing = Preprocessing(mean, std, "bicubic")
    return OpenedEncoder(encoder.eval(), preprocessing, "mean")


def _height_width(image_size: int | tuple[int, int], patch: int) -> tuple[int, int]:
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(size) < 1 or size[0] % patch or size[1] % patch:
        raise UserError(
            f"image size {size[0]} x {size[1]} is not a multiple of the patch size {patch}: "
            f"{max(1, size[0] // patch) * patch} x {max(1, size[1] // patch) * patch} is"
        )
    return size


def random_encoder(config: ModelConfig, seed: int) -> Encoder:
    """An encoder as it is before training."""
    encoder = Encoder(
        config.size,
        image_size=config.height_width,
        patch_size=config.patch_size,
        in_channels=config.in_channels,
    )
    initialize(encoder, Generator().manual_seed(seed))
    return encoder.eval()


def resized(encoder: Encoder, image_size: int | tuple[int, int] | None) -> Encoder:
    """The same weights for images of another size.

    Raises:
        UserError: The patch does not divide it.
    """
    if image_size is None:
        return encoder
    size = _height_width(image_size, encoder.patch_size)
    if size == encoder.image_size:
        return encoder
    other = Encoder(
        encoder.size,
        image_size=size,
        patch_size=encoder.patch_size,
        in_channels=encoder.in_channels,
    )
    weights = encoder.state_dict() | {
        "pos_embed": _stretched(encoder.pos_embed, encoder.grid, other.grid)
    }
    other.load_state_dict(weights)
    return other


def _stretched(positions: Tensor, grid: tuple[int, int], other: tuple[int, int]) -> Tensor:
    """Positions for another grid: bicubic in two dimensions, as MAE's and timm's."""
    cls, patches = positions[:, :1], positions[:, 1:]
    image = patches.transpose(1, 2).unflatten(2, grid)
    image = nn.functional.interpolate(
        image, size=other, mode="bicubic", antialias=False, align_corners=False
    )
    return torch.cat([cls, image.flatten(2).transpose(1, 2)], dim=1)


def save_encoder(folder: Path, encoder: Encoder, config: PretrainConfig) -> None:
    """Write the product of a run: encoder.safetensors and encoder.json."""
    checkpoint.save_tensors(folder / PRODUCT, encoder.state_dict(), facts_of(config))


def facts_of(config: PretrainConfig) -> dict[str, Any]:
    """What encoder.json says: sizes and preprocessing."""
    mean, std = config.pixel_statistics
    size = config.model.size
    return {
        "format": 1,
        "width": size.width,
        "depth": size.depth,
        "num_heads": size.num_heads,
        "patch_size": config.model.patch_size,
        "image_size": list(config.model.height_width),
        "in_channels": config.model.in_channels,
        "pool": config.model.latent,
        "mean": list(mean),
        "std": list(std),
        "interpolation": config.views.interpolation,
    }


def _tensors_and_facts(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The encoder's weights and what encoder.json says, from any file of a run."""
    if path.is_dir():
        if (path / PRODUCT).exists():
            path = path / PRODUCT
        elif (path / "checkpoints" / "last.pt").exists():
            path = path / "checkpoints" / "last.pt"
        else:
            raise UserError(f"{path} holds no encoder: neither {PRODUCT} nor checkpoints/last.pt")
    if not path.exists():
        raise UserError(
            f"no such encoder: {path} (a run folder, a checkpoint file, or random:NAME)"
        )
    if path.suffix == ".safetensors":
        return checkpoint.load_tensors(path)
    state, config = _training_state(path)
    ours = {key: value for key, value in state.items() if not _is_decoder(key)}
    return ours, facts_of(config)


def _is_decoder(key: str) -> bool:
    return key.startswith(("decoder", "mask_token", "projection_head"))


def _training_state(path: Path) -> tuple[dict[str, Tensor], PretrainConfig]:
    state = checkpoint.load(path)
    if not {"model", "config"} <= state.keys():
        raise UserError(f"{path} is no checkpoint of mvmae: it has no 'model' and 'config'")
    return state["model"], configs.from_json(state["config"], PretrainConfig, source=str(path))


class OpenedAutoencoder(NamedTuple):
    """An autoencoder with the config it was trained by."""

    model: MaskedAutoencoder
    config: PretrainConfig


def load_autoencoder(source: str | Path) -> MaskedAutoencoder:
    """A whole masked autoencoder, decoder included, from a run folder or its checkpoint.

    Raises:
        UserError: There is no checkpoint with a decoder, or it is damaged.
    """
    return open_autoencoder(source).model


def open_autoencoder(source: str | Path) -> OpenedAutoencoder:
    """`load_autoencoder`, with its config."""
    path = Path(source)
    path = path / "checkpoints" / "last.pt" if path.is_dir() else path
    if path.suffix == ".safetensors":
        raise UserError(
            f"{path} holds the encoder alone: give the run folder, or checkpoints/last.pt"
        )
    state, config = _training_state(path)
    model = MaskedAutoencoder(config.model)
    checkpoint.load_weights(model, state, source=str(path))
    return OpenedAutoencoder(model.eval(), config)


class Features(NamedTuple):
    """Vectors of labelled images."""

    mean: Float[Tensor, "M D"]
    """Means of the patch tokens."""

    cls: Float[Tensor, "M D"]
    """Class tokens."""

    labels: Int[Tensor, " M"]
    skipped: list[Skipped]


@torch.inference_mode()
def features(
    encoder: Encoder,
    source: Source,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    precision_name: str,
    batch_size: int,
    workers: int | None,
) -> Features:
    """Encode every image of a source, whole and unmasked.

    Raises:
        UserError: More than half of the images cannot be read.
    """
    was_training = encoder.training
    encoder.eval().to(device)
    means, tokens, labels, skipped = [], [], [], []
    for batch in whole_batches(
        source,
        encoder.image_size,
        interpolation=preprocessing.interpolation,
        batch_size=batch_size,
        workers=workers,
        cuda=device.type == "cuda",
    ):
        skipped += batch.skipped
        if not len(batch.images):
            continue
        images = normalized(batch.images, preprocessing.mean, preprocessing.std, device)
        with precision.autocast(device, precision_name):
            output = encoder(images)
        means.append(pooled(output, "mean").float().cpu())
        tokens.append(pooled(output, "cls").float().cpu())
        labels += [source.label(index) for index in batch.indices.tolist()]
    encoder.train(was_training)
    if len(skipped) > len(source) / 2:
        raise UserError(
            f"{len(skipped)} of the {len(source)} images of {source.name} cannot be read, "
            f"{skipped[0].path} for one ({skipped[0].reason})"
        )
    return Features(torch.cat(means), torch.cat(tokens), torch.tensor(labels), skipped)


def raw_pixels(
    source: Source, *, side: int, batch_size: int = 256, workers: int | None = None
) -> Features:
    """Images shrunk to `side` as vectors: what any encoder must beat. Both tokens are the same."""
    images, labels, skipped = [], [], []
    batches = whole_batches(
        source,
        (side, side),
        interpolation="bicubic",
        batch_size=batch_size,
        workers=workers,
        cuda=False,
    )
    for batch in batches:
        images.append(batch.images.flatten(1).float() / 255)
        labels += [source.label(index) for index in batch.indices.tolist()]
        skipped += batch.skipped
    pixels = torch.cat([part for part in images if part.numel()])
    return Features(pixels, pixels, torch.tensor(labels), skipped)
