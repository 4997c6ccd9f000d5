"""Encoders from where they are kept: run folders, checkpoints of many makers, timm and the hub."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Generator

from mvmae.config.files import from_json
from mvmae.config.model import ENCODERS, ModelConfig
from mvmae.config.pretrain import PretrainConfig
from mvmae.config.views import ViewsConfig
from mvmae.encoders import hub
from mvmae.encoders.encoder_json import (
    ENCODER_FILE,
    OpenedEncoder,
    Preprocessing,
    attach_preprocessing,
    encoder_from_metadata,
)
from mvmae.encoders.formats import FoundEncoder, Hints, find_encoder
from mvmae.encoders.resize import adapt_channels, height_width, resize_encoder
from mvmae.errors import UserError, nearest
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.vit import Encoder, initialize
from mvmae.training import checkpoint, sharded_checkpoint

RANDOM_PATCH_SIZE = 16  # of random:NAME
ENCODER_SOURCES = "a run folder, a checkpoint file, random:NAME, timm:NAME or hf:NAME"


def load_encoder(
    source: str | Path,
    image_size: int | tuple[int, int] | None = None,
    in_channels: int | None = None,
) -> Encoder:
    """An encoder, ready to embed images.

    Args:
        source: A run folder; a checkpoint file, ours (`last.pt`, `encoder.safetensors`) or one of
            MAE, MoCo v3, DINO, DINOv2, timm or transformers; a folder of transformers; `timm:NAME`
            or `hf:NAME`, which download; `random:vit_small` and the like, or `random:RUN` for the
            shape of a run, whose weights are drawn with seed 0.
        image_size: Side, or height and width, in pixels. Default: what it was trained on, 224 for
            a random one. Positions are resampled to the new grid, bicubic in two dimensions.
        in_channels: Default: what it was trained on, 3 for a random one. The patch embedding is
            adapted as timm does.

    Raises:
        UserError: There is no such encoder, it is damaged, or of a kind that is not supported.
    """
    return open_encoder(source, image_size, in_channels).encoder


def open_encoder(
    source: str | Path,
    image_size: int | tuple[int, int] | None = None,
    in_channels: int | None = None,
) -> OpenedEncoder:
    """`load_encoder`, with the preprocessing and the token to read.

    Args:
        source: As for `load_encoder`.
        image_size: In pixels, as for `load_encoder`.
        in_channels: As for `load_encoder`; mean and deviation are adapted with it.

    Returns:
        The encoder, on the CPU and in eval mode; mean and deviation of each channel, in the unit of
        `depth` (shares of 255 for "8"); the token that training shaped; whose file it was.

    Raises:
        UserError: As `load_encoder`.
    """
    name = str(source)
    if in_channels is not None and in_channels < 1:
        raise UserError(f"in_channels must be at least 1, not {in_channels}")
    if not name.removeprefix("random:"):
        raise UserError(f"ENCODER is empty: name {ENCODER_SOURCES}")
    if name.startswith("random:"):
        return _random(name.removeprefix("random:"), image_size, in_channels)
    if name.startswith("timm:"):
        opened = _from_found(*hub.from_timm(name.removeprefix("timm:")), source=name)
    elif name.startswith("hf:"):
        folder = hub.local_folder(name.removeprefix("hf:"))
        opened = _from_transformers(folder, name)
    else:
        opened = _from_path(Path(source))
    require_finite_weights(opened, name)
    opened = adapt_channels(opened, in_channels)
    return opened._replace(encoder=resize_encoder(opened.encoder, image_size).eval())


def require_finite_weights(opened: OpenedEncoder, source: str) -> None:
    """Stop at weights that are infinite or no numbers: every figure of them would be nonsense.

    Raises:
        UserError: There are some; the message names one.
    """
    bad = [
        key for key, tensor in opened.encoder.state_dict().items() if not tensor.isfinite().all()
    ]
    if bad:
        raise UserError(
            f"the weights of {source} are damaged: {bad[0]} holds infinite numbers, or none"
        )


def _random(
    name: str, image_size: int | tuple[int, int] | None, in_channels: int | None
) -> OpenedEncoder:
    """An untrained encoder of a named size, or of the shape of another encoder."""
    if name not in ENCODERS and (Path(name).exists() or name.startswith(("timm:", "hf:"))):
        like = open_encoder(name, image_size, in_channels)
        encoder = untrained_copy(like.encoder, 0)
        return like._replace(encoder=encoder, maker="random weights", left_out=())
    if name not in ENCODERS:
        raise UserError(
            f"no encoder '{name}'{nearest(name, ENCODERS)} (there are: {', '.join(ENCODERS)}; "
            "random:RUN gives an untrained one of a run's shape)"
        )
    size = height_width(224 if image_size is None else image_size, RANDOM_PATCH_SIZE)
    channels = 3 if in_channels is None else in_channels
    encoder = Encoder(
        ENCODERS[name], image_size=size, patch_size=RANDOM_PATCH_SIZE, in_channels=channels
    )
    initialize(encoder, Generator().manual_seed(0))
    mean, std = ViewsConfig().pixel_statistics(channels)
    preprocessing = Preprocessing(mean, std, "bicubic")
    return OpenedEncoder(encoder.eval(), preprocessing, "mean", "random weights")


def untrained_copy(encoder: Encoder, seed: int) -> Encoder:
    """An encoder of the same shape with random weights."""
    other = encoder.rebuilt()
    initialize(other, Generator().manual_seed(seed))
    return other.eval()


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


def _from_path(path: Path) -> OpenedEncoder:
    """An encoder from a run folder, a folder of transformers, or any checkpoint file."""
    if path.is_dir():
        if (path / ENCODER_FILE).exists():
            path = path / ENCODER_FILE
        elif (whole := _checkpoint_in(path)).exists():
            path = whole
        elif sharded_checkpoint.is_checkpoint(path):
            pass
        elif hub.is_transformers_folder(path):
            return _from_transformers(path, str(path))
        else:
            raise UserError(
                f"{path} holds no encoder: neither {ENCODER_FILE} nor checkpoints/last.pt"
            )
    if not path.exists():
        raise UserError(f"no such encoder: {path} ({ENCODER_SOURCES})")
    if path.name == ENCODER_FILE and not _has_facts(path):
        raise UserError(
            f"no such file: {path.with_suffix('.json')}, which says how {path.name} is used"
        )
    if _has_facts(path):
        tensors, facts = checkpoint.load_tensors(path)
        opened = encoder_from_metadata(facts, source=str(path))
        if "classes" in facts:  # of finetune: a classifier, whose head is no part of the encoder
            head = {key for key in tensors if key.startswith(("fc_norm.", "head."))}
            opened = opened._replace(left_out=tuple(sorted(head)))
            tensors = {key: value for key, value in tensors.items() if key not in head}
        checkpoint.load_weights(opened.encoder, tensors, source=str(path))
        return opened
    state = checkpoint.tensors_of(path) if path.suffix == ".safetensors" else _loaded(path)
    if _is_ours(state):
        return _from_training_state(state, path)
    if facts := checkpoint.facts_within(path):
        return _from_export(state, facts, str(path))
    return _from_found(find_encoder(state, source=str(path)), None, source=str(path))


def _checkpoint_in(run: Path) -> Path:
    """The newest checkpoint of a run folder: a folder where several processes wrote it."""
    last = run / "checkpoints" / "last"
    return last if sharded_checkpoint.is_checkpoint(last) else last.with_suffix(".pt")


def _loaded(path: Path) -> dict[str, Any]:
    return sharded_checkpoint.load(path) if path.is_dir() else checkpoint.load(path)


def _from_transformers(folder: Path, source: str) -> OpenedEncoder:
    """An encoder of transformers; one that `mvmae export` wrote says which token counts."""
    opened = _from_found(*hub.from_transformers(folder), source=source)
    pool = hub.read_json(folder / "config.json").get("mvmae_pool")
    return opened._replace(pool=pool) if pool in ("mean", "cls") else opened


def _from_export(state: dict[str, Any], facts: dict[str, Any], source: str) -> OpenedEncoder:
    """An encoder that `mvmae export` wrote for timm, with what encoder.json said in the file."""
    said = encoder_from_metadata(facts, source=source)
    size, eps = said.encoder.size, said.encoder.variant.norm_eps
    hints = Hints(size.num_heads, eps, said.encoder.image_size)
    found = find_encoder(state, source=source, hints=hints)
    return _from_found(found, said.preprocessing, source=source)._replace(
        pool=said.pool, depth=said.depth
    )


def _has_facts(path: Path) -> bool:
    return path.suffix == ".safetensors" and path.with_suffix(".json").exists()


def _from_found(
    found: FoundEncoder, preprocessing: Preprocessing | None, *, source: str
) -> OpenedEncoder:
    """An encoder with the tensors that were found; every key must fit."""
    encoder = Encoder(
        found.size,
        image_size=found.image_size,
        patch_size=found.patch_size,
        in_channels=found.in_channels,
        variant=found.variant,
    )
    checkpoint.load_weights(encoder, found.tensors, source=source)
    if preprocessing is None:
        mean, std = ViewsConfig().pixel_statistics(found.in_channels)
        preprocessing = Preprocessing(mean, std, "bicubic")
    pool = "cls" if found.variant.cls_token and found.variant.final_norm else "mean"
    return OpenedEncoder(encoder, preprocessing, pool, found.maker, found.left_out)


def _is_ours(state: dict[str, Any]) -> bool:
    return isinstance(state.get("config"), str) and isinstance(state.get("model"), dict)


def _from_training_state(state: dict[str, Any], path: Path) -> OpenedEncoder:
    if '"encoder":' in state["config"].split('\n  "model"')[0]:
        raise UserError(
            f"{path} is of finetune, detect or segment and holds more than an encoder: take the "
            "encoder that the run began with; a finished finetune run has its own"
        )
    config = from_json(state["config"], PretrainConfig, source=str(path))
    opened = attach_preprocessing(random_encoder(config.model, 0), config)
    tensors = {key: value for key, value in state["model"].items() if not _is_decoder(key)}
    checkpoint.load_weights(opened.encoder, tensors, source=str(path))
    return opened


def _began_with_an_encoder(config: str) -> bool:
    """Whether a config is of a supervised run, whose checkpoints hold more than an encoder."""
    with suppress(ValueError, AttributeError):
        return isinstance(json.loads(config).get("encoder"), str)
    return False


def _is_decoder(key: str) -> bool:
    return key.startswith(("decoder", "mask_token", "projection_head"))


class OpenedAutoencoder(NamedTuple):
    """An autoencoder with the config it was trained by."""

    model: MaskedAutoencoder
    config: PretrainConfig


def load_autoencoder(source: str | Path) -> MaskedAutoencoder:
    """A whole masked autoencoder, decoder included.

    Args:
        source: A run folder or its `last.pt`.

    Raises:
        UserError: There is no checkpoint with a decoder, or it is damaged.
    """
    return open_autoencoder(source).model


def open_autoencoder(source: str | Path) -> OpenedAutoencoder:
    """`load_autoencoder`, with its config."""
    if str(source).startswith(("random:", "timm:", "hf:")):
        raise UserError(
            f"{source} is an encoder alone and has no decoder: give the folder of a run of pretrain"
        )
    path = Path(source)
    if path.is_dir() and not sharded_checkpoint.is_checkpoint(path):
        whole = _checkpoint_in(path)
        path = (
            path / ENCODER_FILE if (path / ENCODER_FILE).exists() and not whole.exists() else whole
        )
    if path.suffix == ".safetensors":
        raise UserError(
            f"{path} holds the encoder alone: give the run folder, or checkpoints/last.pt"
        )
    state = _loaded(path)
    if not _is_ours(state):
        raise UserError(
            f"{path} is no checkpoint of mvmae: of another program, or an encoder alone, which has "
            "no decoder; give the folder of a run of pretrain"
        )
    if _began_with_an_encoder(state["config"]):
        raise UserError(f"{path} is of no run of pretrain: it has no decoder")
    config = from_json(state["config"], PretrainConfig, source=str(path))
    model = MaskedAutoencoder(config.model)
    checkpoint.load_weights(model, state["model"], source=str(path))
    return OpenedAutoencoder(model.eval(), config)
