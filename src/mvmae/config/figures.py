"""Pictures of what an encoder sees: what `reconstruct` and `attention` are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mvmae.config.checks import require
from mvmae.config.evaluation import EncoderArgument
from mvmae.config.pretrain import DataArgument

MOST_ROWS = 200  # of a figure: beyond, no viewer opens it
MOST_AGAINST = 11  # encoders besides the first


def _require_drawable(
    encoder: str, data: Sequence[str], against: Sequence[str], channels: Sequence[int]
) -> None:
    """What both commands check; `count` and `seed` have words of their own."""
    require(
        len(data) > 0 and all(data), "DATA is empty: name a folder, a list file, photos or digits"
    )
    require(
        encoder != "",
        "ENCODER is empty: name a run folder, a checkpoint file, timm:NAME or hf:NAME",
    )
    require(all(against), "--against is empty: name an encoder")
    shown = (encoder, *against)
    require(len(set(shown)) == len(shown), "--against names an encoder twice")
    require(
        len(against) <= MOST_AGAINST,
        f"--against names {len(against)}: a figure has room for {MOST_AGAINST}",
    )
    require(
        len(channels) in (0, 1, 3),
        f"--channels must name 1 channel, shown gray, or 3 for red, green and blue, "
        f"not {len(channels)}",
    )
    require(all(channel >= 1 for channel in channels), "--channels are counted from 1")


def _require_count_and_seed(count: int, seed: int) -> None:
    require(count >= 1, f"count must be at least 1, not {count}")
    require(count <= MOST_ROWS, f"count must be at most {MOST_ROWS}, not {count}")
    require(0 <= seed < 2**63, "seed must lie between 0 and 2**63 - 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconstructConfig:
    """Draw what the decoder makes of masked images (the paper's Figure 5)."""

    encoder: EncoderArgument
    """Run folder, or a checkpoint file with a decoder (RUN/checkpoints/previous.pt)."""

    data: DataArgument = ("photos",)
    """Images: folders, list files, photos or digits."""

    against: tuple[str, ...] = ()
    """Other runs or checkpoints to draw beside it, of the same images; under the same masks where
    their grids of patches are alike."""

    count: int = 6
    """Images drawn."""

    mask_ratio: float | None = None
    """Share of patches hidden. Default: that of ENCODER, for all runs."""

    statistics: Literal["visible", "target"] = "visible"
    """Under normalised targets a patch's brightness and contrast are not predicted. They are
    estimated from the visible patches around it, or taken from the hidden patch itself, which is a
    leak and makes the prettier pictures of the literature."""

    channels: tuple[int, ...] = ()
    """Channels drawn, counted from 1: three as red, green and blue, or one as gray. Default: the
    first three, or the first where there are fewer."""

    seed: int = 0
    """Of the choice of images and of the masks."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: CUDA where there is one."""

    out: Path | None = None
    """The picture. Default: figures/reconstructions.png in the run folder."""

    def __post_init__(self) -> None:
        _require_drawable(self.encoder, self.data, self.against, self.channels)
        _require_count_and_seed(self.count, self.seed)
        require(
            self.mask_ratio is None or 0 < self.mask_ratio < 1,
            f"mask_ratio must lie between 0 and 1, not {self.mask_ratio}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionConfig:
    """Draw where an encoder looks (the paper's Figure 2)."""

    encoder: EncoderArgument
    """Run folder, checkpoint file (ours, MAE's, MoCo v3's, DINO's, timm's, transformers'),
    timm:NAME, hf:NAME, or random:NAME."""

    data: DataArgument = ("photos",)
    """Images: folders, list files, photos or digits."""

    kind: Literal["rollout", "last", "heads"] = "rollout"
    """rollout: attention followed through all blocks, mean of the heads.
    last: what the class token of the last block attends to, mean of the heads.
    heads: the same, each head in a column of its own.
    Where there is no class token: what the patches attend to on average."""

    against: tuple[str, ...] = ()
    """Other encoders to draw beside it: run folders, files, timm:NAME, random:RUN, ..."""

    count: int = 6
    """Images drawn."""

    image_size: int | tuple[int, int] | None = None
    """Side of the input in pixels, or height and width: larger ones make finer maps. Default: the
    encoder's own."""

    scale: Literal["row", "own"] = "row"
    """row: one scale of colours for all maps of an image, so that they can be compared; it reaches
    from half to twice even attention at least, so that a map that prefers nothing is of one colour.
    own: each map from its own low to its own high, which shows a pattern even in a random encoder's
    nearly even attention."""

    channels: tuple[int, ...] = ()
    """Channels of the image drawn, counted from 1: three as red, green and blue, or one as gray.
    Default: the first three, or the first where there are fewer."""

    seed: int = 0
    """Of the choice of images."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: CUDA where there is one."""

    out: Path | None = None
    """The picture. Default: figures/attention.png in the run folder."""

    def __post_init__(self) -> None:
        _require_drawable(self.encoder, self.data, self.against, self.channels)
        _require_count_and_seed(self.count, self.seed)
