"""The product of a run: encoder.safetensors, and encoder.json that says how to use it."""

from __future__ import annotations

import hashlib
from math import inf, isfinite
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from mvmae.config.model import Pool, Size
from mvmae.config.pretrain import PretrainConfig
from mvmae.config.views import Depth
from mvmae.errors import UserError
from mvmae.method.views import MODES
from mvmae.method.vit import PLAIN, Encoder, Variant
from mvmae.training import checkpoint

ENCODER_FILE = "encoder.safetensors"
FORMAT = 1  # of encoder.json


class Preprocessing(NamedTuple):
    """How pixels become what an encoder was trained on."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


class OpenedEncoder(NamedTuple):
    """An encoder with what one must know to use it."""

    encoder: Encoder
    preprocessing: Preprocessing
    pool: Pool
    """The token that training shaped."""

    maker: str = "mvmae"
    """Whose file it is from, in words."""

    left_out: tuple[str, ...] = ()
    """Keys of the file that are no part of the encoder."""

    depth: Depth = "8"
    """Of the pixels, in which mean and deviation were measured: see `ViewsConfig.depth`."""


def save_encoder(folder: Path, opened: OpenedEncoder) -> None:
    """Write encoder.safetensors and encoder.json into a folder."""
    checkpoint.save_tensors(
        folder / ENCODER_FILE, opened.encoder.state_dict(), encoder_metadata(opened)
    )


def encoder_metadata(opened: OpenedEncoder) -> dict[str, Any]:
    """What encoder.json says: sizes and preprocessing."""
    encoder, preprocessing = opened.encoder, opened.preprocessing
    facts = {
        "format": FORMAT,
        "width": encoder.size.width,
        "depth": encoder.size.depth,
        "num_heads": encoder.size.num_heads,
        "patch_size": encoder.patch_size,
        "image_size": list(encoder.image_size),
        "in_channels": encoder.in_channels,
        "pool": opened.pool,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "interpolation": preprocessing.interpolation,
    }
    if opened.depth != "8":
        facts["pixel_depth"] = opened.depth
    return facts | {
        name: value
        for name, value in encoder.variant._asdict().items()
        if value != getattr(PLAIN, name)
    }


def encoder_from_metadata(facts: dict[str, Any], *, source: str) -> OpenedEncoder:
    """An encoder as encoder.json describes it; its weights are not set.

    Raises:
        UserError: The facts do not describe an encoder.
    """
    try:
        _require_sane(facts)
        encoder = Encoder(
            Size(facts["width"], facts["depth"], facts["num_heads"]),
            image_size=tuple(facts["image_size"]),
            patch_size=facts["patch_size"],
            in_channels=facts["in_channels"],
            variant=Variant(**{name: facts[name] for name in Variant._fields if name in facts}),
        )
        preprocessing = Preprocessing(
            tuple(facts["mean"]), tuple(facts["std"]), facts["interpolation"]
        )
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise UserError(
            f"{source}: encoder.json does not describe an encoder: {error!r}"
        ) from error
    depth = facts.get("pixel_depth", "8")
    return OpenedEncoder(encoder, preprocessing, facts["pool"], depth=depth)


def _require_sane(facts: dict[str, Any]) -> None:
    """Refuse what could be built and would fail, or compute nonsense, only later."""
    if facts["pool"] not in ("mean", "cls") or facts["interpolation"] not in MODES:
        raise ValueError("pool or interpolation is not one that exists")
    if facts.get("pixel_depth", "8") not in get_args(Depth):
        raise ValueError("pixel_depth is none of 8, 16 and float")
    counts = [facts[n] for n in ("width", "depth", "num_heads", "patch_size", "in_channels")]
    counts += facts["image_size"]
    if any(type(count) is not int or count < 1 for count in counts):
        raise ValueError("sizes must be whole numbers from 1 on")
    if facts["width"] % facts["num_heads"]:
        raise ValueError(f"{facts['num_heads']} heads do not divide {facts['width']} numbers")
    if any(side % facts["patch_size"] for side in facts["image_size"]):
        raise ValueError("patch_size does not divide image_size")
    if any(len(facts[name]) != facts["in_channels"] for name in ("mean", "std")):
        raise ValueError("mean and std need a number for each channel")
    if not all(isfinite(value) for value in facts["mean"]) or not all(
        0 < value < inf for value in facts["std"]
    ):
        raise ValueError("mean must be finite, std above 0")


def attach_preprocessing(encoder: Encoder, config: PretrainConfig) -> OpenedEncoder:
    """An encoder that is being pre-trained, as it will be used."""
    views = config.views
    preprocessing = Preprocessing(*config.pixel_statistics, views.interpolation)
    return OpenedEncoder(encoder, preprocessing, config.model.latent, depth=views.pixel_depth)


def weights_digest(encoder: Encoder) -> str:
    """A short hash of the weights, the same wherever they lie: names, shapes and bytes."""
    whole = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        whole.update(f"{name} {list(plain.shape)} {plain.dtype}\0".encode())
        whole.update(plain.reshape(-1).view(torch.uint8).numpy())
    return whole.hexdigest()[:16]
