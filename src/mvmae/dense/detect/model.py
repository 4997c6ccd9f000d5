"""Mask R-CNN and Faster R-CNN from torchvision's parts, on a Vision Transformer.

The network may compute in bf16, but boxes, scores and losses are fp32: bf16 has eight significant
bits, too few for a position in an image of 1024 pixels.
Shapes: B images, C channels, D width, h x w positions of a map, A anchors.
"""

from collections import OrderedDict
from collections.abc import Sequence
from math import log2
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper

from mvmae.config.detect import DetectConfig
from mvmae.dense.backbone import SCALES, Backbone, ChannelNorm, MultiScale, Norm, rescaling_layers
from mvmae.encoders.open import finetuning_copy
from mvmae.method.vit import Encoder

ANCHOR_SIDE = 8  # anchor side over its level's stride: 32 to 512 pixels for patches of 16
ANCHOR_RATIOS = (0.5, 1.0, 2.0)
NUM_LEVELS = len(SCALES) + 1  # of a pyramid, with the pooled one
CONVOLUTIONS = 4  # in the box head and in the mask head
MIN_SCORE = 0.05  # detections below it are not evaluated
MAX_DETECTIONS = 100  # per image, as many as COCO's metrics consider
NORMS: dict[str, Norm] = {"batch": nn.BatchNorm2d, "layer": ChannelNorm}


class DetectorShape(NamedTuple):
    """Architecture of a detector apart from its encoder; saved in model.json."""

    num_classes: int
    """Classes, not counting the background."""

    side: int
    """Side of the square that images are fitted into, in pixels."""

    with_masks: bool = True
    """True: Mask R-CNN; False: Faster R-CNN."""

    window: int | None = 16
    """Side of the attention windows, in patches; None: every block attends to the whole image."""

    global_blocks: int = 4
    """Evenly spaced blocks that attend to the whole image in spite of windows."""

    relative_positions: bool = True
    """Whether blocks learn relative positions; needs windows."""

    pyramid: Literal["fpn", "simple"] = "fpn"
    """`FpnPyramid` or `SimplePyramid`."""

    norm: Literal["batch", "layer"] = "batch"
    """Norm in the feature pyramid network and the heads."""

    channels: int = 256
    """Width of the pyramid's maps and of the heads' convolutions."""

    hidden: int = 1024
    """Width of the box head's linear layer."""

    proposals: int = 2000
    """Maximum number of proposals for each training image; half as many for a test image."""

    samples: int = 512
    """Proposals per image from which the heads learn in a step."""


def detector_shape(config: DetectConfig, num_classes: int, *, with_masks: bool) -> DetectorShape:
    """Return the architecture that the options describe, for data with these classes."""
    same = {name: getattr(config, name) for name in DetectorShape._fields if hasattr(config, name)}
    return DetectorShape(num_classes, config.image_size, with_masks, **same)


def spread_blocks(count: int, depth: int) -> tuple[int, ...]:
    """Divide `depth` blocks into `count` equal parts, and return the last block of each.

    Blocks are numbered from 0: four of 12 are 2, 5, 8 and 11.
    """
    count = min(count, depth)
    return tuple((part + 1) * depth // count - 1 for part in range(count))


class FpnPyramid(nn.Module):
    """Four maps through `MultiScale` and a feature pyramid network (Li et al. 2021)."""

    def __init__(self, width: int, out_channels: int = 256, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.scales = MultiScale(width, norm)
        self.fpn = FeaturePyramidNetwork(
            [width] * len(SCALES), out_channels, LastLevelMaxPool(), norm_layer=norm
        )

    def forward(self, maps: Sequence[Float[Tensor, "B D h w"]]) -> OrderedDict[str, Tensor]:
        """Return five maps: "0" to "3", from fine to coarse, and "pool"."""
        return self.fpn(OrderedDict((str(i), x) for i, x in enumerate(self.scales(maps))))


class SimplePyramid(nn.Module):
    """Four rescaled copies of the last map alone (ViTDet).

    Each is followed by a 1x1 and a 3x3 convolution with layer norms over the channels.
    """

    def __init__(self, width: int, out_channels: int = 256) -> None:
        super().__init__()
        widths = {4.0: width // 4, 2.0: width // 2, 1.0: width, 0.5: width}
        self.levels = nn.ModuleList(
            nn.Sequential(
                *rescaling_layers(width, scale, ChannelNorm, shrink=2),
                nn.Conv2d(widths[scale], out_channels, 1, bias=False),
                ChannelNorm(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                ChannelNorm(out_channels),
            )
            for scale in SCALES
        )
        self.pool = LastLevelMaxPool()

    def forward(self, maps: Sequence[Float[Tensor, "B D h w"]]) -> OrderedDict[str, Tensor]:
        """Return five maps as `FpnPyramid` does; only the last of `maps` is read."""
        levels = [level(maps[-1]) for level in self.levels]
        levels, names = self.pool(levels, levels, list("0123"))
        return OrderedDict(zip(names, levels, strict=True))


class Anchors(AnchorGenerator):
    """Anchors with sides of `ANCHOR_SIDE` strides at each position of each level.

    The strides are given because torchvision would compute them from the sizes of the maps and
    round them down: patches of 14 pixels would get 3 instead of 3.5.
    """

    def __init__(self, strides: Sequence[float]) -> None:
        sizes = tuple((ANCHOR_SIDE * stride,) for stride in strides)
        super().__init__(sizes, (ANCHOR_RATIOS,) * len(sizes))
        self.strides = list(strides)

    def forward(
        self, image_list: ImageList, feature_maps: list[Float[Tensor, "B _ _ _"]]
    ) -> list[Float[Tensor, "A 4"]]:
        """Return the same anchors for every image, finest level first."""
        first = feature_maps[0]
        self.set_cell_anchors(first.dtype, first.device)
        grids = [list(x.shape[-2:]) for x in feature_maps]
        strides = [[torch.tensor(stride, device=first.device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors(grids, strides))
        return [anchors] * len(image_list.image_sizes)


def roi_align(side: int, strides: Sequence[float]) -> MultiScaleRoIAlign:
    """Build a layer that pools regions to `side` x `side` from the level that suits their size.

    The level is chosen by FPN's rule. The scales are set here because torchvision would infer them
    from the first batch, and takes the largest image in it for the size of the maps.
    """
    levels = strides[: len(SCALES)]
    pool = MultiScaleRoIAlign([str(i) for i in range(len(levels))], side, sampling_ratio=2)
    finest = round(log2(levels[0]))
    pool.scales = [1 / stride for stride in levels]
    pool.map_levels = LevelMapper(finest, finest + len(levels) - 1)
    return pool


def to_fp32(_module: nn.Module, _inputs: object, output: Any) -> Any:
    """Convert the output of a layer, tensors or nested lists of them, to fp32; a forward hook."""
    if isinstance(output, Tensor):
        return output.float()
    return [to_fp32(_module, _inputs, part) for part in output]


class PadToSquare(nn.Module):
    """Replacement for torchvision's transform: images are already prepared and only padded.

    Normalised pixels average 0, so the padding on the right and at the bottom is 0. Results are not
    changed: boxes are in pixels of the prepared image, masks are 28 x 28 within their boxes.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(
        self, images: Sequence[Float[Tensor, "C _ _"]], targets: list[dict[str, Tensor]] | None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        """Return the images as one square batch, with their sizes before the padding."""
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        padded = [
            F.pad(image, (0, self.side - width, 0, self.side - height))
            for image, (height, width) in zip(images, sizes, strict=True)
        ]
        return ImageList(torch.stack(padded), sizes), targets

    def postprocess(
        self, result: list[dict[str, Tensor]], _shapes: object, _sizes: object
    ) -> list[dict[str, Tensor]]:
        """Return the results unchanged."""
        return result


class PyramidBackbone(nn.Module):
    """Encoder with a pyramid, in the form that torchvision's detectors expect of a backbone."""

    def __init__(self, body: Backbone, pyramid: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.body, self.pyramid, self.out_channels = body, pyramid, out_channels

    def forward(self, images: Float[Tensor, "B C H W"]) -> OrderedDict[str, Tensor]:
        """Return maps by name, finest first; in fp32, which anchors and regions then inherit."""
        maps = self.pyramid(self.body(images))
        return OrderedDict((name, x.float()) for name, x in maps.items())


def build_backbone(
    encoder: Encoder,
    shape: DetectorShape,
    *,
    drop_path: float,
    recompute: bool,
) -> PyramidBackbone:
    """Build a new pyramid on a copy of the encoder; see `build_detector` for the arguments."""
    depth, width, channels = encoder.size.depth, encoder.embed_dim, shape.channels
    is_fpn = shape.pyramid == "fpn"
    body = finetuning_copy(encoder)
    backbone = Backbone(
        body,
        out_blocks=spread_blocks(len(SCALES), depth) if is_fpn else (depth - 1,),
        window=shape.window,
        global_blocks=spread_blocks(shape.global_blocks, depth),
        relative_positions=shape.relative_positions,
        drop_path=drop_path,
        recompute=recompute,
    )
    if not backbone.keeps_prefix:
        # Windows drop the prefix tokens, and DistributedDataParallel rejects unused parameters.
        for name, parameter in body.named_parameters():
            if name in ("cls_token", "reg_token"):
                parameter.requires_grad_(False)
    pyramid = (
        FpnPyramid(width, channels, NORMS[shape.norm]) if is_fpn else SimplePyramid(width, channels)
    )
    return PyramidBackbone(backbone, pyramid, channels)


def build_detector(
    encoder: Encoder,
    shape: DetectorShape,
    *,
    seed: int = 0,
    drop_path: float = 0.0,
    recompute: bool = False,
) -> FasterRCNN:
    """Build a detector on a copy of an encoder; its `backbone.body` is the encoder.

    It is called with prepared, normalised images and, in training, targets (`boxes`, `labels` and,
    with masks, `masks`). In training it returns the losses by name; otherwise, for each image,
    `boxes`, `labels`, `scores` and, with masks, `masks`.

    Args:
        encoder: Encoder whose weights are copied; the FPN requires at least four blocks.
        shape: Architecture.
        seed: Seed of the new weights.
        drop_path: Probability of skipping a branch of the last block; it rises linearly from 0.
        recompute: Whether to recompute the blocks' activations in the backward pass.
    """
    with torch.random.fork_rng(devices=[]):
        # Not `torch.manual_seed`, which would also reset the generators of GPUs.
        torch.default_generator.manual_seed(seed)
        backbone = build_backbone(encoder, shape, drop_path=drop_path, recompute=recompute)
        model = _build_rcnn(backbone, shape, encoder.patch_size)
    model.transform = PadToSquare(shape.side)
    heads: Any = model.roi_heads
    # Mixed precision ends here: boxes, scores and losses are computed from these outputs.
    layers: list[Any] = [model.rpn.head, heads.box_predictor, heads.mask_predictor]
    for layer in layers:
        if layer is not None:
            layer.register_forward_hook(to_fp32)
    return model


def _build_rcnn(backbone: PyramidBackbone, shape: DetectorShape, patch_size: int) -> FasterRCNN:
    channels, num_scores, norm = shape.channels, shape.num_classes + 1, NORMS[shape.norm]
    # In pixels; the finest of the `SCALES` is 4.
    strides = [patch_size * 2.0**level / 4 for level in range(NUM_LEVELS)]
    # Sizes and numbers without a name are those of torchvision's v2 models: two convolutions in the
    # RPN, regions of 7 and 14, half as many proposals in tests as in training.
    options = {
        "rpn_anchor_generator": Anchors(strides),
        "rpn_head": RPNHead(channels, len(ANCHOR_RATIOS), conv_depth=2),
        "rpn_pre_nms_top_n_train": shape.proposals,
        "rpn_post_nms_top_n_train": shape.proposals,
        "rpn_pre_nms_top_n_test": shape.proposals // 2,
        "rpn_post_nms_top_n_test": shape.proposals // 2,
        "box_roi_pool": roi_align(7, strides),
        "box_head": FastRCNNConvFCHead(
            (channels, 7, 7), [channels] * CONVOLUTIONS, [shape.hidden], norm_layer=norm
        ),
        "box_predictor": FastRCNNPredictor(shape.hidden, num_scores),
        "box_score_thresh": MIN_SCORE,
        "box_detections_per_img": MAX_DETECTIONS,
        "box_batch_size_per_image": shape.samples,
    }
    if not shape.with_masks:
        return FasterRCNN(backbone, **options)
    return MaskRCNN(
        backbone,
        mask_roi_pool=roi_align(14, strides),
        mask_head=MaskRCNNHeads(channels, [channels] * CONVOLUTIONS, 1, norm_layer=norm),
        mask_predictor=MaskRCNNPredictor(channels, channels, num_scores),
        **options,
    )
