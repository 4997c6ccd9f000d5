"""Vision Transformer that encodes any subset of an image's patches.

Parameter names are timm's and MAE's, so checkpoints of either load without renaming.
Shapes: B images, C channels, N tokens, K visible patches, D width, P numbers in a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from mvmae.config.model import Pool, Size
from mvmae.errors import UserError
from mvmae.method.patches import patchify, take_rows


class Variant(NamedTuple):
    """Architecture options in which other Vision Transformers differ from MAE's, the default."""

    mlp_ratio: float = 4.0
    """Width of the MLP's hidden layer divided by that of a token."""

    cls_token: bool = True
    """Whether the first token is a class token."""

    num_registers: int = 0
    """Number of further tokens without a position, after the class token (DINOv2's registers)."""

    layer_scale: bool = False
    """Whether a learnt factor scales each branch (CaiT, DeiT III, DINOv2)."""

    final_norm: bool = True
    """Whether tokens are normalised at the end; fine-tuned models pool first instead."""

    norm_eps: float = 1e-6
    """Added to the variance in layer norms; transformers' ViT uses 1e-12."""


PLAIN = Variant()


def attend(
    q: Float[Tensor, "B h N d"],
    k: Float[Tensor, "B h M d"],
    v: Float[Tensor, "B h M d"],
    mask: Float[Tensor, ...] | None = None,
) -> Float[Tensor, "B h N d"]:
    """Compute scaled dot-product attention with the faster kernel for this device and data type.

    For bf16 on a CPU that is plain matrix products: with this model's shapes, torch's fused kernel
    takes 1 to 28 times as long, forward and backward. In fp32 it is up to four times as fast.

    Args:
        q: Queries of h heads.
        k: Keys.
        v: Values.
        mask: Added to the logits; broadcasts to B h N M.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        logits = logits + mask
    return logits.softmax(dim=-1).to(v.dtype) @ v


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "B N D"], bias: Callable[[Tensor], Tensor] | None = None
    ) -> Float[Tensor, "B N D"]:
        """Mix tokens; `bias` maps the queries, B x heads x N x d, to a bias of the logits."""
        B, N, D = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each B x heads x N x (D / heads)
        mask = None if bias is None else bias(q)
        mixed = attend(q, k, v, mask)
        return self.proj(mixed.transpose(1, 2).reshape(B, N, D))


class Mlp(nn.Module):
    """Two linear layers with a GELU in between."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Transform each token."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learnt factor for each dimension of a token."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Scale each token."""
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm Transformer block.

    `drop_path` is the probability of skipping a branch for an image in training (stochastic depth,
    Huang et al. 2016). It is 0 in pre-training; fine-tuning sets it.
    """

    def __init__(self, dim: int, num_heads: int, variant: Variant = PLAIN) -> None:
        super().__init__()
        self.drop_path = 0.0
        self.norm1 = nn.LayerNorm(dim, eps=variant.norm_eps)
        self.attn = Attention(dim, num_heads)
        self.ls1 = LayerScale(dim) if variant.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=variant.norm_eps)
        self.mlp = Mlp(dim, round(dim * variant.mlp_ratio))
        self.ls2 = LayerScale(dim) if variant.layer_scale else nn.Identity()

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Apply attention, then the MLP, each as a residual branch."""
        x = x + self.drop_branch(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_branch(self.ls2(self.mlp(self.norm2(x))))

    def drop_branch(self, branch: Tensor) -> Tensor:
        """Zero the branch of randomly chosen images while training."""
        if self.drop_path == 0 or not self.training:
            return branch
        kept = branch.new_empty(len(branch), *[1] * (branch.ndim - 1))
        kept.bernoulli_(1 - self.drop_path)
        if self.drop_path < 1:
            kept.div_(1 - self.drop_path)  # keeps the mean
        return branch * kept


def run_blocks(
    blocks: Iterable[nn.Module], x: Float[Tensor, "B N D"], *, recompute: bool = False
) -> Float[Tensor, "B N D"]:
    """Pass tokens through blocks one after the other.

    Args:
        blocks: Blocks of equal width.
        x: The tokens.
        recompute: Whether to keep only the tokens between blocks for the backward pass, which
            then computes the rest again (Chen et al. 2016, arXiv 1604.06174).
    """
    for block in blocks:
        if recompute and torch.is_grad_enabled():
            x = checkpoint(block, x, use_reentrant=False)
        else:
            x = block(x)
    return x


class PatchEmbed(nn.Module):
    """Linear embedding of patches, whose weights have the name and shape of ViT's convolution.

    A strided convolution would have to embed the whole image. This matrix product embeds only the
    visible patches, a fifth of all.
    """

    def __init__(self, patch_size: int, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B N D"]:
        """Embed patches from `patchify`, in which channels run fastest."""
        weight_DP = self.proj.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(patches, weight_DP, self.proj.bias)


def sincos_positions(dim: int, grid: tuple[int, int]) -> Float[Tensor, "N D"]:
    """Fixed 2-D sine-cosine positions: half the width for the column, half for the row (MAE)."""
    quarter = dim // 4  # frequencies; each has a sine and a cosine for both axes
    frequency = 1 / 10_000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    row, column = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * frequency for axis in (column, row)]
    parts = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
    return torch.cat(parts, dim=1).float()


def positions_with_cls(dim: int, grid: tuple[int, int]) -> Float[Tensor, "1 N D"]:
    """Sine-cosine positions after a row of zeros for the class token."""
    return torch.cat([torch.zeros(1, dim), sincos_positions(dim, grid)])[None]


class Encoder(nn.Module):
    """Vision Transformer with fixed 2-D positions and, in most variants, a class token.

    Args:
        size: Width, depth and heads.
        image_size: Height and width of the images in pixels.
        patch_size: Side of a patch in pixels; divides both.
        in_channels: Channels of the images.
        variant: How the architecture differs from MAE's.
    """

    pos_embed: Tensor

    def __init__(
        self,
        size: Size,
        *,
        image_size: tuple[int, int],
        patch_size: int,
        in_channels: int = 3,
        variant: Variant = PLAIN,
    ) -> None:
        super().__init__()
        self.size, self.image_size, self.variant = size, image_size, variant
        self.patch_size, self.in_channels = patch_size, in_channels
        self.grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.patch_embed = PatchEmbed(patch_size, in_channels, size.width)
        if variant.cls_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, size.width))
        if variant.num_registers:
            self.reg_token = nn.Parameter(torch.zeros(1, variant.num_registers, size.width))
        positions = positions_with_cls(size.width, self.grid)
        self.register_buffer("pos_embed", positions if variant.cls_token else positions[:, 1:])
        self.blocks = nn.ModuleList(
            Block(size.width, size.num_heads, variant) for _ in range(size.depth)
        )
        self.norm: nn.Module = nn.Identity()
        if variant.final_norm:
            self.norm = nn.LayerNorm(size.width, eps=variant.norm_eps)

    def new_like(
        self, *, image_size: tuple[int, int] | None = None, in_channels: int | None = None
    ) -> Encoder:
        """Build an encoder of the same shape, or for other images, with torch's initial weights."""
        return Encoder(
            self.size,
            image_size=image_size or self.image_size,
            patch_size=self.patch_size,
            in_channels=in_channels or self.in_channels,
            variant=self.variant,
        )

    @property
    def embed_dim(self) -> int:
        """Width of a token."""
        return self.size.width

    @property
    def num_prefix(self) -> int:
        """Number of tokens before the patches: class token and registers."""
        return int(self.variant.cls_token) + self.variant.num_registers

    def forward(
        self, images: Float[Tensor, "B C H W"], ids_keep: Int[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "B tokens D"]:
        """Encode the patches at `ids_keep` (default: all); prefix tokens come first.

        Raises:
            ValueError: The images have a different size or number of channels.
        """
        return self.encode(self.patches(images), ids_keep)

    def patches(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N P"]:
        """Cut images into patches.

        Raises:
            ValueError: The images have a different size or number of channels.
        """
        if (shape := tuple(images.shape[1:])) != (self.in_channels, *self.image_size):
            raise ValueError(
                f"images are {shape}, this encoder takes {(self.in_channels, *self.image_size)}: "
                "resize them, or load the encoder with another image_size"
            )
        return patchify(images, self.patch_size)

    def encode(
        self,
        patches: Float[Tensor, "B N P"],
        ids_keep: Int[Tensor, "B K"] | None = None,
        *,
        recompute: bool = False,
    ) -> Float[Tensor, "B tokens D"]:
        """Encode patches as `patches` returns them.

        Args:
            patches: All patches of the images.
            ids_keep: Indices of the visible patches; the others are dropped before the embedding.
                Default: all are visible.
            recompute: As in `run_blocks`.
        """
        return self.norm(
            run_blocks(self.blocks, self._embed(patches, ids_keep), recompute=recompute)
        )

    def _embed(self, patches: Tensor, ids_keep: Tensor | None) -> Tensor:
        prefix = []
        positions = self.pos_embed
        if self.variant.cls_token:
            prefix.append(self.cls_token + positions[:, :1])
            positions = positions[:, 1:]
        if self.variant.num_registers:
            prefix.append(self.reg_token)
        if ids_keep is not None:
            patches = take_rows(patches, ids_keep)
            positions = positions[0][ids_keep]
        x = self.patch_embed(patches) + positions
        # Not len(x): torch.export would record it as a constant.
        first = [tokens.to(x.dtype).expand(x.shape[0], -1, -1) for tokens in prefix]
        return torch.cat([*first, x], dim=1)

    def embed(self, images: Float[Tensor, "B C H W"], pool: Pool = "mean") -> Float[Tensor, "B D"]:
        """Embed each image as the mean of its patch tokens, or its class token.

        Raises:
            UserError: There is no class token.
        """
        return self.pool(self(images), pool)

    def pool(self, tokens: Float[Tensor, "B tokens D"], pool: Pool) -> Float[Tensor, "B D"]:
        """Pool this encoder's tokens to one vector per image.

        Raises:
            UserError: There is no class token.
        """
        if pool == "cls" and not self.variant.cls_token:
            raise UserError("this encoder has no class token: pool the mean of the patch tokens")
        return pool_tokens(tokens, pool, self.num_prefix)

    def forward_intermediates(
        self, images: Float[Tensor, "B C H W"], indices: Sequence[int]
    ) -> list[Float[Tensor, "B D rows columns"]]:
        """Return maps of patch tokens after the blocks at `indices`, before the last norm.

        Raises:
            ValueError: The images have a different size or number of channels.
        """
        x = self._embed(self.patches(images), None)
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return [
            outputs[at][:, self.num_prefix :].transpose(1, 2).unflatten(2, self.grid).contiguous()
            for at in indices
        ]


def pool_tokens(
    tokens: Float[Tensor, "B N D"], pool: Pool, num_prefix: int = 1
) -> Float[Tensor, "B D"]:
    """Pool tokens: the class token, which is the first, or the mean of those after the prefix."""
    return tokens[:, 0] if pool == "cls" else tokens[:, num_prefix:].mean(dim=1)


def initialize(model: nn.Module, generator: Generator) -> None:
    """Set MAE's initial weights: Xavier-uniform matrices, zero biases, tokens with std 0.02.

    The patch embedding is initialised as a matrix with one column per number of a patch; Xavier's
    range would differ for a convolution.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.data.flatten(1), generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_token", "reg_token", "mask_token")):
            nn.init.normal_(parameter, std=0.02, generator=generator)
