"""Load encoders from run folders, checkpoints of many projects, timm and the Hugging Face hub."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Generator, nn

from mvmae.config.files import from_json
from mvmae.config.model import ENCODERS, ModelConfig
from mvmae.config.pretrain import PretrainConfig
from mvmae.encoders.encoder_json import (
    ENCODER_FILE,
    OpenedEncoder,
    attach_preprocessing,
    encoder_from_metadata,
)
from mvmae.encoders.formats import Hints, default_preprocessing, find_encoder
from mvmae.encoders.hub import from_timm, from_transformers, local_folder
from mvmae.encoders.resize import adapt_channels, height_width, resize_encoder
from mvmae.errors import UserError, suggest
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.vit import Encoder, initialize
from mvmae.storage import run_folder
from mvmae.storage.atomic import read_object
from mvmae.training import checkpoint, sharded_checkpoint

RANDOM_PATCH_SIZE = 16  # of random:NAME, in pixels
RANDOM_IMAGE_SIZE = 224  # of random:NAME, as most published encoders have
ENCODER_SOURCES = "a run folder, a checkpoint file, random:NAME, timm:NAME or hf:NAME"
DECODER_PREFIXES = ("decoder", "mask_token", "projection_head")


def load_encoder(
    source: str | Path,
    image_size: int | tuple[int, int] | None = None,
    in_channels: int | None = None,
) -> Encoder:
    """Load an encoder, ready to embed images.

    Args:
        source: A run folder; a checkpoint file written by mvmae (`last.pt`, `encoder.safetensors`)
            or by MAE, MoCo v3, DINO, DINOv2, timm or transformers; a transformers folder;
            `timm:NAME` or `hf:NAME`, which download; `random:vit_small` and other sizes, or
            `random:RUN` for the shape of a run, with weights drawn with seed 0.
        image_size: Side, or height and width, in pixels. Default: the size it was trained on, 224
            for a random encoder. Position embeddings are resampled to the new grid (bicubic, 2-D).
        in_channels: Number of channels. Default: the number it was trained on, 3 for a random
            encoder. The patch embedding is adapted as in timm.

    Raises:
        UserError: The encoder does not exist, is damaged, or is of an unsupported architecture.
    """
    return open_encoder(source, image_size, in_channels).encoder


def open_encoder(
    source: str | Path,
    image_size: int | tuple[int, int] | None = None,
    in_channels: int | None = None,
) -> OpenedEncoder:
    """Load an encoder together with its preprocessing and the token to read.

    Args:
        source: As for `load_encoder`.
        image_size: In pixels, as for `load_encoder`.
        in_channels: As for `load_encoder`; mean and deviation are adapted too.

    Returns:
        The encoder, on the CPU and in eval mode; mean and deviation of each channel, in the unit of
        `depth` (shares of 255 for "8"); the token that training optimised; the project that wrote
        the weights.

    Raises:
        UserError: As `load_encoder`.
    """
    name = str(source)
    if in_channels is not None and in_channels < 1:
        raise UserError(f"in_channels must be at least 1, not {in_channels}")
    if not name.removeprefix("random:"):
        raise UserError(f"ENCODER is empty: name {ENCODER_SOURCES}")
    # Before the other sources: weights drawn for the requested size need no resampling.
    if name.startswith("random:"):
        return _open_random(name.removeprefix("random:"), image_size, in_channels)
    if name.startswith("timm:"):
        opened = from_timm(name.removeprefix("timm:"))
    elif name.startswith("hf:"):
        opened = from_transformers(local_folder(name.removeprefix("hf:")))
    else:
        opened = _open_path(Path(source))
    for key, tensor in opened.encoder.state_dict().items():
        if not tensor.isfinite().all():  # every result would be infinite or NaN
            raise UserError(
                f"the weights of {source} are damaged: {key} holds infinite or NaN values"
            )
    opened = adapt_channels(opened, in_channels)
    return opened._replace(encoder=resize_encoder(opened.encoder, image_size).eval())


def _open_random(
    name: str, image_size: int | tuple[int, int] | None, in_channels: int | None
) -> OpenedEncoder:
    """Build an untrained encoder of a named size, or of the shape of another encoder."""
    if name not in ENCODERS and (Path(name).exists() or name.startswith(("timm:", "hf:"))):
        like = open_encoder(name, image_size, in_channels)
        encoder = untrained_copy(like.encoder, 0)
        return like._replace(encoder=encoder, maker="random weights", left_out=())
    if name not in ENCODERS:
        raise UserError(
            f"no encoder '{name}'{suggest(name, ENCODERS)} (sizes: {', '.join(ENCODERS)}; "
            "random:RUN builds an untrained encoder of a run's shape)"
        )
    # No resampling: positions are a function of the grid, computed for the requested size.
    size = height_width(RANDOM_IMAGE_SIZE if image_size is None else image_size, RANDOM_PATCH_SIZE)
    channels = 3 if in_channels is None else in_channels
    encoder = Encoder(
        ENCODERS[name], image_size=size, patch_size=RANDOM_PATCH_SIZE, in_channels=channels
    )
    initialize(encoder, Generator().manual_seed(0))
    return OpenedEncoder(
        encoder.eval(), default_preprocessing(channels), "mean", maker="random weights"
    )


def untrained_copy(encoder: Encoder, seed: int) -> Encoder:
    """Build an encoder of the same shape with random weights."""
    other = encoder.new_like()
    initialize(other, Generator().manual_seed(seed))
    return other.eval()


def finetuning_copy(encoder: Encoder) -> Encoder:
    """Return a copy without the last norm, and with position embeddings that are trained.

    A fine-tuned model normalises after pooling instead. Pre-training keeps the positions fixed.
    """
    copy = Encoder(
        encoder.size,
        image_size=encoder.image_size,
        patch_size=encoder.patch_size,
        in_channels=encoder.in_channels,
        variant=encoder.variant._replace(final_norm=False),
    )
    weights = {k: v for k, v in encoder.state_dict().items() if not k.startswith("norm.")}
    copy.load_state_dict(weights)
    positions = copy.pos_embed
    del copy.pos_embed  # a buffer, which a parameter cannot replace by assignment
    copy.pos_embed = nn.Parameter(positions.clone())
    return copy


def random_encoder(config: ModelConfig, seed: int) -> Encoder:
    """Build the untrained encoder of a config; `seed` draws its weights."""
    encoder = Encoder(
        config.size,
        image_size=config.height_width,
        patch_size=config.patch_size,
        in_channels=config.in_channels,
    )
    initialize(encoder, Generator().manual_seed(seed))
    return encoder.eval()


def _open_path(path: Path) -> OpenedEncoder:
    """Load an encoder from a run folder, a transformers folder or a checkpoint file."""
    # The encoder first: a checkpoint also holds the decoder and the optimiser's state.
    if path.is_dir():
        run_folder.require_format(path)
        if (path / ENCODER_FILE).exists():
            path = path / ENCODER_FILE
        elif (newest := _checkpoint_in(path)).exists():
            path = newest
        elif sharded_checkpoint.is_checkpoint(path):
            pass
        elif "model_type" in read_object(path / "config.json"):  # from transformers
            return from_transformers(path)
        else:
            raise UserError(
                f"{path} holds no encoder: neither {ENCODER_FILE} nor checkpoints/last.pt"
            )
    if not path.exists():
        raise UserError(f"no such encoder: {path} (expected {ENCODER_SOURCES})")
    is_tensors = path.suffix == ".safetensors"
    if is_tensors and path.with_suffix(".json").exists():
        return _open_with_metadata(path)
    if path.name == ENCODER_FILE:
        raise UserError(
            f"no such file: {path.with_suffix('.json')}, which describes {path.name}: keep both "
            "files together"
        )
    state = checkpoint.read_tensors(path) if is_tensors else _load_checkpoint(path)
    if _is_training_state(state):
        return _open_training_state(state, path)
    if not (metadata := checkpoint.read_metadata(path)):
        return find_encoder(state, source=str(path))
    # Exported for timm: the file's header carries the content of encoder.json.
    described = encoder_from_metadata(metadata, source=str(path))
    shape = described.encoder
    hints = Hints(shape.size.num_heads, shape.variant.norm_eps, shape.image_size)
    found = find_encoder(state, source=str(path), hints=hints)
    return described._replace(encoder=found.encoder, maker=found.maker, left_out=found.left_out)


def _checkpoint_in(run: Path) -> Path:
    """Path of a run's newest checkpoint: a folder if several processes wrote it."""
    last = run / "checkpoints" / "last"
    return last if sharded_checkpoint.is_checkpoint(last) else last.with_suffix(".pt")


def _load_checkpoint(path: Path) -> dict[str, Any]:
    return sharded_checkpoint.load(path) if path.is_dir() else checkpoint.load(path)


def _open_with_metadata(path: Path) -> OpenedEncoder:
    """Load a .safetensors file that has a .json beside it: an encoder, or `finetune`'s model."""
    tensors, metadata = checkpoint.load_tensors(path)
    opened = encoder_from_metadata(metadata, source=str(path))
    if "classes" in metadata:  # a fine-tuned classifier, whose head is not part of the encoder
        head = {key for key in tensors if key.startswith(("fc_norm.", "head."))}
        opened = opened._replace(left_out=tuple(sorted(head)))
        tensors = {key: value for key, value in tensors.items() if key not in head}
    checkpoint.load_weights(opened.encoder, tensors, source=str(path))
    return opened


def _is_training_state(state: dict[str, Any]) -> bool:
    return isinstance(state.get("config"), str) and isinstance(state.get("model"), dict)


def _open_training_state(state: dict[str, Any], path: Path) -> OpenedEncoder:
    """Load the encoder from a training checkpoint of `pretrain`."""
    if _is_supervised(state["config"]):
        raise UserError(
            f"{path} is a checkpoint of finetune, detect or segment and holds more than an "
            "encoder: give the encoder that the run started from, or the folder of a finished "
            "finetune run"
        )
    config = from_json(state["config"], PretrainConfig, source=str(path))
    # Built by its config rather than by its tensors, so that a missing key is an error.
    opened = attach_preprocessing(random_encoder(config.model, 0), config)
    tensors = {k: v for k, v in state["model"].items() if not k.startswith(DECODER_PREFIXES)}
    checkpoint.load_weights(opened.encoder, tensors, source=str(path))
    return opened


class OpenedAutoencoder(NamedTuple):
    """A masked autoencoder and the config that it was trained with."""

    model: MaskedAutoencoder
    config: PretrainConfig


def load_autoencoder(source: str | Path) -> MaskedAutoencoder:
    """Load a whole masked autoencoder, decoder included.

    Args:
        source: A run folder or its `last.pt`.

    Raises:
        UserError: There is no checkpoint with a decoder, or it is damaged.
    """
    return open_autoencoder(source).model


def open_autoencoder(source: str | Path) -> OpenedAutoencoder:
    """Load a whole masked autoencoder together with its config.

    Raises:
        UserError: As `load_autoencoder`.
    """
    if str(source).startswith(("random:", "timm:", "hf:")):
        raise UserError(
            f"{source} is an encoder alone and has no decoder: give the folder of a pretrain run"
        )
    path = Path(source)
    if path.is_dir() and not sharded_checkpoint.is_checkpoint(path):
        run_folder.require_format(path)
        newest, encoder = _checkpoint_in(path), path / ENCODER_FILE
        path = encoder if encoder.exists() and not newest.exists() else newest
    if path.suffix == ".safetensors":
        raise UserError(
            f"{path} holds the encoder alone: give the run folder, or checkpoints/last.pt"
        )
    state = _load_checkpoint(path)
    if not _is_training_state(state) or _is_supervised(state["config"]):
        raise UserError(
            f"{path} is not a training checkpoint of a pretrain run and has no decoder: give the "
            "folder of a pretrain run"
        )
    config = from_json(state["config"], PretrainConfig, source=str(path))
    model = MaskedAutoencoder(config.model)
    checkpoint.load_weights(model, state["model"], source=str(path))
    return OpenedAutoencoder(model.eval(), config)


def _is_supervised(config: str) -> bool:
    """Whether a config belongs to finetune, detect or segment rather than to pretrain."""
    # Those start from an encoder, which their configs name.
    with suppress(ValueError, AttributeError):
        return isinstance(json.loads(config).get("encoder"), str)
    return False
