"""A peer of `benchmarks step`: a masked autoencoder made of timm's blocks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.plain import Attention, Peer
from mvmae.config.model import DECODER_HEAD_WIDTH, ModelConfig


class TimmAutoencoder(nn.Module):
    """MAE as it is usually written around timm's blocks.

    All patches are embedded and the visible ones kept, the decoder's tokens are sorted back, every
    patch is predicted, and the error of the hidden ones counts.

    Raises:
        ImportError: timm is missing.
    """

    def __init__(self, config: ModelConfig, attention: Attention) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        self.config = config
        dim, heads = config.decoder_dim, config.decoder_dim // DECODER_HEAD_WIDTH
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.vit = timm_encoder(config)
        self.decoder_embed = nn.Linear(config.size.width, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder_pos_embed = nn.Parameter(
            torch.zeros(1, config.num_patches + 1, dim), requires_grad=False
        )
        self.decoder_blocks = nn.Sequential(
            *(
                Block(dim, heads, qkv_bias=True, norm_layer=norm)
                for _ in range(config.decoder_depth)
            )
        )
        self.decoder_norm = norm(dim)
        self.decoder_pred = nn.Linear(dim, config.patch_size**2 * config.in_channels)
        use_attention(self, attention)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens of the class and the visible patches, and the reconstruction loss."""
        shuffle = noise.argsort(dim=1)
        restore = shuffle.argsort(dim=1)
        x = self.vit.patch_embed(images) + self.vit.pos_embed[:, 1:]
        x = gather_rows(x, shuffle[:, : self.config.num_visible])
        first = (self.vit.cls_token + self.vit.pos_embed[:, :1]).expand(len(x), -1, -1)
        tokens = self.vit.norm(self.vit.blocks(torch.cat([first, x], dim=1)))

        x = self.decoder_embed(tokens)
        hidden = self.mask_token.expand(len(x), self.config.num_patches + 1 - x.shape[1], -1)
        patches = gather_rows(torch.cat([x[:, 1:], hidden.to(x.dtype)], dim=1), restore)
        x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos_embed
        prediction = self.decoder_pred(self.decoder_norm(self.decoder_blocks(x)))[:, 1:]

        error = (prediction.float() - self.target(images)).square().mean(dim=-1)
        mask = (restore >= self.config.num_visible).float()
        return tokens, (error * mask).sum() / mask.sum()

    def target(self, images: Tensor) -> Tensor:
        """Return every patch, normalised by its own mean and variance."""
        p, (rows, columns) = self.config.patch_size, self.config.grid
        grid = images.reshape(len(images), -1, rows, p, columns, p)
        patches = grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()


def timm_encoder(config: ModelConfig) -> Any:
    """Make timm's Vision Transformer at our size, with fixed positions.

    Raises:
        ImportError: timm is missing.
    """
    from timm.models.vision_transformer import VisionTransformer

    size = config.size
    vit: Any = VisionTransformer(
        img_size=config.height_width,
        patch_size=config.patch_size,
        in_chans=config.in_channels,
        num_classes=0,
        embed_dim=size.width,
        depth=size.depth,
        num_heads=size.num_heads,
    )
    vit.pos_embed.requires_grad_(False)
    return vit


def use_attention(model: nn.Module, attention: Attention) -> None:
    """Switch timm's blocks to torch's fused attention kernel (their default) or plain products."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = attention == "sdpa"  # type: ignore[assignment]


def gather_rows(x: Tensor, ids: Tensor) -> Tensor:
    """Return the rows of each image at its own indices, B x K x D."""
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[-1]))


def timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return our state dict with the encoder's names under `vit.`."""
    outer = ("decoder", "mask_token")
    return {
        name if name.startswith(outer) else f"vit.{name}": value for name, value in state.items()
    }


PEER = Peer(
    package="timm",
    known="1.0.31",
    way="its blocks, both views in one pass",
    build=TimmAutoencoder,
    rename=timm_names,
    at_once=True,
)
