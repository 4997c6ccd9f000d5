"""What the tokens of an encoder attend to: weights of each block, their product, one patch's kin.

Shapes: B images, C channels, N tokens (the prefix, then the patches), D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mvmae.method.vit import Attention, Block, Encoder


def attention_weights(
    encoder: Encoder, images: Float[Tensor, "B C H W"], blocks: Sequence[int] | None = None
) -> list[Float[Tensor, "B heads N N"]]:
    """How much each token (row) takes of each other (column), after the softmax, block by block.

    They are computed anew from each block's queries and keys, since no fused kernel gives them.
    A block's weights are N x N numbers a head and image: name `blocks` where N is large.

    Args:
        encoder: In evaluation mode.
        images: Normalised as it wants them.
        blocks: Which to keep, in this order; negative ones count from the last. Default: all.

    Raises:
        IndexError: There is no such block.
    """
    depth = len(encoder.blocks)
    kept = [range(depth)[block] for block in (range(depth) if blocks is None else blocks)]
    weights: dict[int, Tensor] = {}

    def keep(number: int, of_block: Callable[[], Tensor]) -> None:
        if number in kept:
            weights[number] = of_block()

    _walk(encoder, images, keep, last=max(kept, default=-1))
    return [weights[number] for number in kept]


def attention_rollout(
    encoder: Encoder, images: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B rows columns"]:
    """Where the information in the class token came from: attention rollout.

    Abnar and Zuidema 2020 (Quantifying Attention Flow in Transformers), section 3: in each block
    A = (mean over heads + I) with rows that sum to 1, and the product A_L ... A_1 is the share of
    each input token in each output token. Read in the class token's row, or, where there is no
    class token, in the mean over the patches' rows. What goes to the prefix tokens is left out, and
    each map sums to 1.

    Only the row that is read matters, but it is multiplied from the last block on, which comes
    last: so the whole product runs along, one N x N matrix an image.
    """
    products: list[Tensor] = []

    def multiply(number: int, of_block: Callable[[], Tensor]) -> None:
        del number
        mean = of_block().mean(dim=1)
        mixed = mean + torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
        mixed /= mixed.sum(dim=-1, keepdim=True)
        products[:] = [mixed @ products[0]] if products else [mixed]

    _walk(encoder, images, multiply, last=len(encoder.blocks) - 1)
    heat = _read(encoder, products[0])
    total = heat.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)
    return (heat / total).unflatten(-1, encoder.grid)


def class_attention(
    encoder: Encoder, images: Float[Tensor, "B C H W"], block: int = -1
) -> Float[Tensor, "B heads rows columns"]:
    """What the class token of a block takes of each patch, head by head.

    Where there is no class token: what the patches take on average. A head's map sums to less
    than 1 where prefix tokens take their share.

    Raises:
        IndexError: There is no such block.
    """
    (weights,) = attention_weights(encoder, images, [block])
    return _read(encoder, weights).unflatten(-1, encoder.grid)


def patch_similarity(tokens: Float[Tensor, "B N D"], index: int) -> Float[Tensor, "B N"]:
    """Cosine of one patch's token to those of all patches of its image, itself included.

    Args:
        tokens: Of patches alone.
        index: The patch's number in them, row by row.
    """
    return F.cosine_similarity(tokens[:, index : index + 1], tokens, dim=-1)


def _walk(
    encoder: Encoder,
    images: Tensor,
    visit: Callable[[int, Callable[[], Tensor]], None],
    *,
    last: int,
) -> None:
    """Pass images through the blocks up to `last`, each with a way to ask for its weights."""
    x = encoder._embed(encoder.patches(images), None)
    for number in range(last + 1):
        block = cast("Block", encoder.blocks[number])
        tokens = x
        visit(number, lambda block=block, tokens=tokens: _weights(block.attn, block.norm1(tokens)))
        if number < last:
            x = block(x)


def _weights(attention: Attention, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B heads N N"]:
    """As `scaled_dot_product_attention` mixes the values with."""
    B, N, D = x.shape
    heads = attention.num_heads
    qkv = attention.qkv(x).reshape(B, N, 3, heads, D // heads)
    q, k, _ = qkv.permute(2, 0, 3, 1, 4)
    return torch.softmax(q * (D // heads) ** -0.5 @ k.transpose(-2, -1), dim=-1)


def _read(encoder: Encoder, weights: Float[Tensor, "*B N N"]) -> Float[Tensor, "*B patches"]:
    """The class token's row, or the mean over the patches' rows, without the prefix's columns."""
    first = encoder.num_prefix
    to_patches = weights[..., first:]
    if encoder.variant.cls_token:
        return to_patches[..., 0, :]
    return to_patches[..., first:, :].mean(dim=-2)
