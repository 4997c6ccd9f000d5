"""Write and read encoder.safetensors and encoder.json, the result of a pre-training run."""

import hashlib
from math import inf, isfinite
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from mvmae.config.model import Pool, Size
from mvmae.config.pretrain import PretrainConfig
from mvmae.config.views import Depth
from mvmae.errors import UserError
from mvmae.method.views import INTERPOLATIONS
from mvmae.method.vit import PLAIN, Encoder, Variant
from mvmae.training import checkpoint

ENCODER_FILE = "encoder.safetensors"
FORMAT = 1  # version of encoder.json


class Preprocessing(NamedTuple):
    """How pixels are prepared for an encoder: statistics of each channel, and the resizing."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


class OpenedEncoder(NamedTuple):
    """An encoder and what is needed to use it."""

    encoder: Encoder
    preprocessing: Preprocessing
    pool: Pool
    """The token that training shaped."""

    maker: str = "mvmae"
    """The project that wrote the file, in words."""

    left_out: tuple[str, ...] = ()
    """Keys of the file that are not part of the encoder."""

    depth: Depth = "8"
    """Pixel depth in which mean and deviation were measured: see `ViewsConfig.depth`."""


def save_encoder(folder: Path, opened: OpenedEncoder) -> None:
    """Write encoder.safetensors and encoder.json into a folder."""
    checkpoint.save_tensors(
        folder / ENCODER_FILE, opened.encoder.state_dict(), encoder_metadata(opened)
    )


def encoder_metadata(opened: OpenedEncoder) -> dict[str, Any]:
    """Content of encoder.json: sizes, preprocessing, and differences from MAE's ViT."""
    encoder, preprocessing = opened.encoder, opened.preprocessing
    metadata = {
        "format": FORMAT,
        **encoder.size._asdict(),
        "patch_size": encoder.patch_size,
        "image_size": list(encoder.image_size),
        "in_channels": encoder.in_channels,
        "pool": opened.pool,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "interpolation": preprocessing.interpolation,
    }
    # Left out at its default: files from before deep images lack it, and mean 8 bits.
    if opened.depth != "8":
        metadata["pixel_depth"] = opened.depth
    return metadata | {
        name: value
        for name, value in encoder.variant._asdict().items()
        if value != getattr(PLAIN, name)
    }


def encoder_from_metadata(metadata: dict[str, Any], *, source: str) -> OpenedEncoder:
    """Build the encoder that encoder.json describes, without setting its weights.

    Raises:
        UserError: The metadata does not describe an encoder.
    """
    try:
        _require_valid(metadata)
        encoder = Encoder(
            Size(metadata["width"], metadata["depth"], metadata["num_heads"]),
            image_size=tuple(metadata["image_size"]),
            patch_size=metadata["patch_size"],
            in_channels=metadata["in_channels"],
            variant=Variant(
                **{name: metadata[name] for name in Variant._fields if name in metadata}
            ),
        )
        preprocessing = Preprocessing(
            tuple(metadata["mean"]), tuple(metadata["std"]), metadata["interpolation"]
        )
    # The file may come from anywhere: torch raises RuntimeError for sizes beyond the memory.
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise UserError(
            f"{source}: encoder.json does not describe an encoder: {error!r}"
        ) from error
    depth = metadata.get("pixel_depth", "8")
    return OpenedEncoder(encoder, preprocessing, metadata["pool"], depth=depth)


def _require_valid(metadata: dict[str, Any]) -> None:
    """Reject values that build an encoder which fails, or computes nonsense, only later."""
    if metadata["pool"] not in ("mean", "cls") or metadata["interpolation"] not in INTERPOLATIONS:
        raise ValueError("unknown pool or interpolation")
    if metadata.get("pixel_depth", "8") not in get_args(Depth):
        raise ValueError("pixel_depth must be 8, 16 or float")
    counts = [metadata[n] for n in ("width", "depth", "num_heads", "patch_size", "in_channels")]
    counts += metadata["image_size"]
    # By type: JSON's true is an int for Python.
    if any(type(count) is not int or count < 1 for count in counts):
        raise ValueError("sizes must be whole numbers of at least 1")
    if metadata["width"] % metadata["num_heads"]:
        raise ValueError(f"{metadata['num_heads']} heads do not divide width {metadata['width']}")
    if any(side % metadata["patch_size"] for side in metadata["image_size"]):
        raise ValueError("patch_size does not divide image_size")
    if any(len(metadata[name]) != metadata["in_channels"] for name in ("mean", "std")):
        raise ValueError("mean and std need one number per channel")
    if not all(isfinite(value) for value in metadata["mean"]) or not all(
        0 < value < inf for value in metadata["std"]
    ):
        raise ValueError("mean must be finite, std above 0")


def attach_preprocessing(encoder: Encoder, config: PretrainConfig) -> OpenedEncoder:
    """Combine an encoder that is being pre-trained with the preprocessing of its config."""
    views = config.views
    preprocessing = Preprocessing(*config.pixel_statistics, views.interpolation)
    return OpenedEncoder(encoder, preprocessing, config.model.latent, depth=views.pixel_depth)


def weights_digest(encoder: Encoder) -> str:
    """A short hash of the names, shapes and bytes of the weights, on any device."""
    digest = hashlib.sha256()
    # Sorted by name, because the order of a state dict depends on how the encoder was built.
    for name, tensor in sorted(encoder.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {list(plain.shape)} {plain.dtype}\0".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
