"""Where an encoder's tokens attend: weights of each block, attention rollout, patch similarity.

Shapes: B images, C channels, N tokens (prefix tokens, then patches), D width.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mvmae.method.vit import Block, Encoder


def attention_weights(
    encoder: Encoder, images: Float[Tensor, "B C H W"], blocks: Sequence[int] | None = None
) -> list[Float[Tensor, "B heads N N"]]:
    """Attention weights after the softmax, block by block.

    A weight is how much the token of its row takes of the token of its column.
    They are computed again from each block's queries and keys, since fused kernels do not return
    them. A block's weights are N x N numbers per head and image: name `blocks` if N is large.

    Args:
        encoder: In eval mode.
        images: Normalised with the encoder's mean and deviation.
        blocks: Blocks to keep, in this order; negative ones count from the last. Default: all.

    Raises:
        IndexError: There is no such block.
    """
    depth = len(encoder.blocks)
    kept = [range(depth)[block] for block in (range(depth) if blocks is None else blocks)]
    # zip asks the range first, so blocks after the last one that is kept are not computed.
    inputs = zip(range(max(kept, default=-1) + 1), _block_inputs(encoder, images), strict=False)
    weights = {at: _weights(block, x) for at, (block, x) in inputs if at in kept}
    return [weights[number] for number in kept]


def attention_rollout(
    encoder: Encoder, images: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B rows columns"]:
    """Attention rollout: the share of each patch in the class token after all blocks.

    Abnar and Zuidema 2020 (Quantifying Attention Flow in Transformers), section 3: in each block
    A = (mean over heads + I) with rows that sum to 1, and the product A_L ... A_1 is the share of
    each input token in each output token. The class token's row is returned or, without a class
    token, the mean over the patches' rows. Columns of prefix tokens are dropped, and each map is
    scaled to sum to 1.

    Only one row of the product is needed, but it would have to be multiplied from the last block
    backwards, which is computed last. So the whole product is kept: one N x N matrix per image.
    """
    product = images  # replaced by the first block
    for number, (block, x) in enumerate(_block_inputs(encoder, images)):
        mean = _weights(block, x).mean(dim=1)
        # The identity stands for the residual connection.
        mixed = mean + torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
        mixed /= mixed.sum(dim=-1, keepdim=True)
        product = mixed @ product if number else mixed
    heat = _to_patches(encoder, product)
    total = heat.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)
    return (heat / total).unflatten(-1, encoder.grid)


def class_attention(
    encoder: Encoder, images: Float[Tensor, "B C H W"], block: int = -1
) -> Float[Tensor, "B heads rows columns"]:
    """Attention of a block's class token to each patch, head by head.

    Without a class token: the mean attention of the patches. A head's map sums to less than 1 if
    prefix tokens receive a share.

    Raises:
        IndexError: There is no such block.
    """
    (weights,) = attention_weights(encoder, images, [block])
    return _to_patches(encoder, weights).unflatten(-1, encoder.grid)


def patch_similarity(tokens: Float[Tensor, "B N D"], index: int) -> Float[Tensor, "B N"]:
    """Cosine similarity of one patch's token to those of all patches of its image, itself included.

    Args:
        tokens: Patch tokens, without prefix tokens.
        index: The patch's index, row by row.
    """
    return F.cosine_similarity(tokens[:, index : index + 1], tokens, dim=-1)


def _block_inputs(encoder: Encoder, images: Tensor) -> Iterator[tuple[Block, Tensor]]:
    """Yield each block with its input; the last block's output is never computed."""
    x, before = encoder._embed(encoder.patches(images), None), None
    for block in encoder.blocks:
        x = x if before is None else before(x)
        yield cast("Block", block), x
        before = block


def _weights(block: Block, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B heads N N"]:
    """Compute the weights with which `scaled_dot_product_attention` mixes the values."""
    B, N, D = x.shape
    heads = block.attn.num_heads
    qkv = block.attn.qkv(block.norm1(x)).reshape(B, N, 3, heads, D // heads)
    q, k, _ = qkv.permute(2, 0, 3, 1, 4)
    return torch.softmax(q * (D // heads) ** -0.5 @ k.transpose(-2, -1), dim=-1)


def _to_patches(encoder: Encoder, weights: Float[Tensor, "*B N N"]) -> Float[Tensor, "*B patches"]:
    """Select the class token's row, or the mean over patches' rows; drop prefix columns."""
    first = encoder.num_prefix
    to_patches = weights[..., first:]
    if encoder.variant.cls_token:
        return to_patches[..., 0, :]
    return to_patches[..., first:, :].mean(dim=-2)
