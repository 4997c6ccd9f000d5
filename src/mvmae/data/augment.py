"""Augmentation for supervised training: RandAugment, random erasing, MixUp and CutMix.

torchvision's transforms draw from torch's global generator, which `seeded` sets and restores.
Shapes: B images, C channels, K classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

MAX_MAGNITUDE = 10  # on timm's scale
BINS = 100  # steps between torchvision's weakest and strongest operation
DEVIATION = 5  # standard deviation of the magnitude in steps: timm's mstd0.5
OPERATIONS = 2  # per image, each applied with probability 0.5

ERASED_SHARE = (0.02, 1 / 3)  # of the image's area
ERASED_RATIO = (0.3, 1 / 0.3)  # height to width
ERASING_ATTEMPTS = 10


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's global generators in the block, and restore them afterwards.

    Args:
        seed: Below 2**63.
        device: Device whose generator is seeded too. Default: the CPU only.
    """
    is_cuda = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if is_cuda else []):
        # `torch.manual_seed` would also reseed every GPU, and those are not restored.
        torch.default_generator.manual_seed(seed)
        if is_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def rand_augment(
    image: UInt8[Tensor, "C h w"],
    magnitude: float,
    rng: np.random.Generator,
    fill: tuple[float, ...],
) -> UInt8[Tensor, "C h w"]:
    """RandAugment as in MAE's fine-tuning: timm's rand-m9-mstd0.5-inc1 for a magnitude of 9.

    timm's magnitude m is m tenths of each operation's strongest setting, plus noise, and each of
    two operations is applied with probability one half. torchvision always applies an operation and
    counts strength in steps, so its RandAugment is called for one operation at a time, with a
    hundred steps.

    Differences: torchvision has Identity and lacks timm's Invert and SolarizeAdd; its Posterize
    keeps 4 to 8 bits, timm's 0 to 4; it rotates and shears with bilinear interpolation, as it has
    no bicubic for tensors. Color does not change a gray image.

    Args:
        image: One image.
        magnitude: timm's m, from 0 to 10.
        rng: Draws the strength, whether each operation is applied, and torchvision's seed.
        fill: Colour from outside the image, a value in [0, 255] per channel.
    """
    for _ in range(OPERATIONS):
        steps = int(
            np.clip(np.rint(rng.normal(BINS / MAX_MAGNITUDE * magnitude, DEVIATION)), 0, BINS)
        )
        applied, seed = rng.random() < 0.5, int(rng.integers(2**63))
        if not applied:
            continue
        operation = v2.RandAugment(
            num_ops=1,
            magnitude=steps,
            num_magnitude_bins=BINS + 1,
            interpolation=InterpolationMode.BILINEAR,
            fill=list(fill),
        )
        with seeded(seed):
            image = operation(image)
    return image


def random_erasing(
    images: Float[Tensor, "B C H W"], probability: float, rng: np.random.Generator
) -> Float[Tensor, "B C H W"]:
    """Replace a random box of some images with noise (timm's mode "pixel").

    Args:
        images: Normalised images; the noise has mean 0 and deviation 1, from torch's generator.
        probability: Probability that a box of an image is erased.
        rng: Draws which images, and where.
    """
    if probability == 0:
        return images
    size = (images.shape[2], images.shape[3])
    chosen = rng.random(len(images)) < probability
    boxes = [_erased_box(rng, size) if chose else (0, 0, 0, 0) for chose in chosen]
    top, left, height, width = torch.tensor(boxes, device=images.device).view(-1, 4, 1).unbind(1)
    row, column = (torch.arange(side, device=images.device) for side in size)
    in_rows = (row >= top) & (row < top + height)
    in_columns = (column >= left) & (column < left + width)
    inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return torch.where(inside, torch.randn_like(images), images)


def _erased_box(rng: np.random.Generator, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, height and width of a box; all 0 if no drawn box fits."""
    height, width = size
    for _ in range(ERASING_ATTEMPTS):
        area = height * width * rng.uniform(*ERASED_SHARE)
        ratio = np.exp(rng.uniform(*np.log(ERASED_RATIO)))
        h, w = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if h < height and w < width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return 0, 0, 0, 0


def mix_images(
    images: Float[Tensor, "B C H W"],
    labels: Int[Tensor, " B"],
    num_classes: int,
    *,
    mixup: float,
    cutmix: float,
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"]]:
    """Apply MixUp or CutMix to a batch; return the images and the share of each class.

    If both are on, each has probability one half. Draws from torch's global generator.

    Args:
        images: Images of the batch.
        labels: Their labels.
        num_classes: Number of classes K.
        mixup: Alpha of MixUp's beta distribution; 0: no MixUp.
        cutmix: Alpha of CutMix's beta distribution; 0: no CutMix.
    """
    use_mixup = mixup > 0 and (cutmix == 0 or bool(torch.rand(()) < 0.5))
    if use_mixup:
        return v2.MixUp(alpha=mixup, num_classes=num_classes)(images, labels)
    if cutmix > 0:
        return v2.CutMix(alpha=cutmix, num_classes=num_classes)(images, labels)
    return images, F.one_hot(labels, num_classes).float()
