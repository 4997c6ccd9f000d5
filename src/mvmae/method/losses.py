"""The paper's two losses (section 3.2) and that of segmentation, as functions of tensors.

Shapes: B images, N patches, P numbers in a patch, D embedding width, G rows over all processes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def normalize_patches(patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B N P"]:
    """Give each patch mean 0 and variance 1.

    As MAE's released weights were trained (`norm_pix_loss` in facebookresearch/mae): unbiased
    variance, 1e-6 beneath the root. The paper's equation 3 writes the pixels themselves.
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def reconstruction_loss(
    prediction: Float[Tensor, "B N P"],
    target: Float[Tensor, "B N P"],
    mask: Float[Tensor, "B N"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error over patches (equation 3).

    The equation as printed sums over pixels, which would make lambda's range of 0.1 to 2
    invisible beside it; as in MAE this is the mean over pixels, then over patches.

    Args:
        prediction: Decoder output.
        target: Patches of the image that the view was masked from.
        mask: 1 where a patch was hidden from the encoder. With a mask only hidden patches
            count, as in MAE; without one every patch does, as equation 3 reads.
    """
    error_BN = (prediction - target).square().mean(dim=-1)
    if mask is None:
        return error_BN.mean()
    return (error_BN * mask).sum() / mask.sum()


def nt_xent(
    z1: Float[Tensor, "B D"],
    z2: Float[Tensor, "B D"],
    *,
    temperature: float = 0.07,
    gathered: tuple[Float[Tensor, "G D"], Float[Tensor, "G D"]] | None = None,
    offset: int = 0,
    groups: Int[Tensor, " G"] | None = None,
) -> Float[Tensor, ""]:
    """Normalised temperature-scaled cross entropy between two views (equations 4 to 6).

    Row i of `z1` and row i of `z2` are two views of one image; each is told from the 2(G-1) views
    of other images. Equation 4 as printed leaves the exponential out of the denominator; this
    follows SimCLR (Chen et al. 2020), which it cites.

    Args:
        z1: Embeddings of the first views; any length, they are normalised here.
        z2: Embeddings of the second views.
        temperature: Divides the cosine similarities.
        gathered: Both views' embeddings of every process, this one's included. Default: only
            this process's.
        offset: Row of `gathered` where this process's embeddings begin.
        groups: A number for each row of all processes: images with the same one, such as those of
            one patient, are taken out of each other's denominator (they are no negatives, and no
            positives either). Equation 6's sum then runs over other groups' images alone. Default:
            each image is a group of its own.
    """
    all1, all2 = gathered if gathered is not None else (z1, z2)
    z1, z2, all1, all2 = (F.normalize(z, dim=-1) for z in (z1, z2, all1, all2))
    positive = torch.arange(len(z1), device=z1.device) + offset
    itself = F.one_hot(positive, len(all1)).bool()  # an embedding is not its own negative
    alike = itself if groups is None else groups[positive, None] == groups

    def loss_of(query: Tensor, same_view: Tensor, other_view: Tensor) -> Tensor:
        same = (query @ same_view.T).masked_fill(alike, float("-inf"))
        other = query @ other_view.T
        if groups is not None:
            other = other.masked_fill(alike & ~itself, float("-inf"))
        logits = torch.cat([other, same], dim=1) / temperature
        return F.cross_entropy(logits, positive)

    return (loss_of(z1, all1, all2) + loss_of(z2, all2, all1)) / 2


def pixel_loss(
    scores: Float[Tensor, "B K h w"], classes: Int[Tensor, "B H W"]
) -> Float[Tensor, ""]:
    """Cross-entropy of scores brought to the masks' size, in fp32; classes below 0 do not count.

    The sum is divided by all pixels, those included that do not count: so do BEiT and
    mmsegmentation, and a crop that is half padding weighs half.
    """
    size = list(classes.shape[1:])
    whole = F.interpolate(scores.float(), size=size, mode="bilinear", align_corners=False)
    total = F.cross_entropy(whole, classes, ignore_index=-1, reduction="sum")
    return total / classes.numel()
