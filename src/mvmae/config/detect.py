"""Options of `mvmae detect`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mvmae.config import checks
from mvmae.config.checks import Count, CountOrNone, require
from mvmae.config.dense import DenseTraining
from mvmae.config.options import EncoderArgument, require_warmup


@dataclass(frozen=True, kw_only=True)
class DetectConfig(DenseTraining):
    """Train a detector on an encoder: Mask R-CNN, or Faster R-CNN where there are no masks.

    mvmae detect ENCODER DATA trains; mvmae detect RUN --predict IMAGES --out FOLDER uses the
    trained detector. --recipe NAME (`mvmae recipes` lists them) or --recipe RUN/config.json sets
    what is not given; without it: `small`, or `li2021` on a machine with CUDA. The defaults shown
    are those of `li2021`, with which MAE and the paper were judged on COCO.
    """

    encoder: EncoderArgument
    """Run folder, checkpoint file (ours, MAE's, MoCo v3's, DINO's, timm's, transformers'),
    timm:NAME, hf:NAME, or random:NAME. With --predict: the run folder of a detector."""

    data: Annotated[Positional[str], arg(metavar="DATA")] = ""
    """Folder in COCO's layout: annotations/instances_SPLIT.json, and images/SPLIT or SPLIT. Boxes
    with masks (polygons or RLE), or boxes only."""

    out: Path | None = None
    """Run folder, which gets everything that the run writes. Default: runs/detect. With --predict:
    a new folder for the detections. Default: RUN/predictions."""

    train_split: str | None = None
    """Split to train on. Default: the one whose name begins with train."""

    val_split: str | None = None
    """Split to evaluate on. Default: the one whose name begins with val, else with test."""

    boxes_only: bool = False
    """Ignore the masks of the data, and train Faster R-CNN."""

    image_size: Count = 1024
    """Side of the square, in pixels, that images are fitted into."""

    window: CountOrNone = 16
    """Side of the windows, in patches, in which most blocks attend; none: all blocks attend to the
    whole image, and prefix tokens stay."""

    global_blocks: Annotated[int, checks.AT_LEAST_0] = 4
    """Blocks that attend to the whole image in spite of windows, evenly spaced, the last one among
    them."""

    relative_positions: bool = True
    """Let blocks learn relative positions; needs windows."""

    pyramid: Literal["fpn", "simple"] = "fpn"
    """fpn: four evenly spaced blocks and a feature pyramid network (Li et al. 2021).
    simple: from the last block (ViTDet)."""

    norm: Literal["batch", "layer"] = "batch"
    """Norm in the pyramid and the heads. batch norm covers all processes on GPUs, and needs large
    batches."""

    channels: Count = 256
    """Width of the pyramid's maps and of the heads' convolutions."""

    hidden: Count = 1024
    """Width of the box head's linear layer."""

    proposals: Annotated[int, checks.AT_LEAST_2] = 2000
    """Maximum number of boxes that the region proposal network passes on per training image; half
    of them per test image."""

    samples: Count = 512
    """Boxes of these, per image, from which the heads learn in a step."""

    epochs: Count = 100
    """Passes over the training images."""

    batch_size: Count = 64
    """Images per optimiser step, over all processes."""

    lr: Annotated[float, checks.POSITIVE] = 8e-5
    """Peak learning rate, of the last layers if layer_decay is below 1."""

    layer_decay: Annotated[float, checks.SHARE] = 1.0
    """Learning rate of a block relative to that of the block above it."""

    schedule: Literal["cosine", "steps"] = "cosine"
    """How the learning rate falls: half a cosine to 0, or to a tenth at each of `drops`."""

    drops: Annotated[tuple[float, ...], checks.BETWEEN_0_AND_1] = (0.89, 0.96)
    """steps: shares of the run after which the learning rate falls to a tenth."""

    warmup_epochs: float = 0.25
    """Epochs in which the learning rate rises from 0."""

    warmup_steps: Annotated[int | None, checks.AT_LEAST_0] = None
    """Steps in which it rises, instead of warmup_epochs."""

    weight_decay: Annotated[float, checks.NOT_NEGATIVE] = 0.1
    """AdamW's weight decay, on everything except biases, norms, tokens and positions."""

    scale_jitter: checks.Factors = (0.1, 2.0)
    """Smallest and largest size of a training image, where 1 fits into the square (large-scale
    jitter; a random part of a larger one is used)."""

    eval_every: Count = 5
    """Epochs between two evaluations on the validation images (and one at the end)."""

    score: Annotated[float, checks.BELOW_1] = 0.5
    """predict: smallest score of a detection that is kept, from 0 to 1."""

    draw: bool = True
    """predict: also draw each image with its detections."""

    def check(self) -> None:
        """Check what depends on several options, such as what --predict takes."""
        require_warmup(self.warmup_epochs, self.epochs)
        require(
            self.window is not None or not self.relative_positions,
            "relative positions need windows: add --no-relative-positions, or set --window",
        )
        require(
            self.predict is None or not self.data,
            f"--predict takes a detector's run folder and no DATA: leave out {self.data}",
        )
