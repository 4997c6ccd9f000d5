"""The multi-view masked autoencoder (section 3 of the paper).

Shapes: B views, C channels, N patches, K visible patches, P numbers in a patch, D width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from mvmae.config import ModelConfig
from mvmae.config.pretraining import DECODER_HEAD_WIDTH
from mvmae.models.patches import Masking, masking_from_noise, take_rows
from mvmae.models.vit import Block, Encoder, initialize, pooled, positions_with_cls

HEAD_WIDTH = 128  # of what the projection head gives, as in SimCLR


class View(NamedTuple):
    """What the model makes of masked views."""

    embedding: Float[Tensor, "B E"]
    """What is contrasted: the latent, behind the projection head where there is one."""

    prediction: Float[Tensor, "B N P"] | None
    """Every patch as the decoder sees it; none where it was not asked."""

    target: Float[Tensor, "B N P"]
    """Every patch as it is."""

    mask: Float[Tensor, "B N"]
    """1 where a patch was hidden from the encoder."""


class MaskedAutoencoder(nn.Module):
    """Encoder of the visible patches and shallow decoder of all.

    The two views of an image are rows of one batch, so that one pass encodes both. The state dict
    has MAE's keys: the encoder's stand in it without a prefix.

    Args:
        config: Sizes, mask ratio, latent and head.
        generator: Draws the initial weights. Default: seeded with 0.
    """

    decoder_pos_embed: Tensor

    def __init__(self, config: ModelConfig, generator: Generator | None = None) -> None:
        super().__init__()
        self.config = config
        width, dim = config.size.width, config.decoder_dim
        self.encoder = Encoder(
            config.size,
            image_size=config.height_width,
            patch_size=config.patch_size,
            in_channels=config.in_channels,
        )
        self.decoder_embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("decoder_pos_embed", positions_with_cls(dim, config.grid))
        self.decoder_blocks = nn.ModuleList(
            Block(dim, dim // DECODER_HEAD_WIDTH) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_pred = nn.Linear(dim, config.patch_size**2 * config.in_channels)
        self.projection_head = _projection_head(config)
        initialize(self, generator or Generator().manual_seed(0))
        self.register_state_dict_post_hook(_drop_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        noise: Float[Tensor, "B N"],
        *,
        decode: bool = True,
    ) -> View:
        """Mask, encode and rebuild views; the patches of largest noise are hidden."""
        masking = masking_from_noise(noise, self.config.num_visible)
        target = self.encoder.patches(images)
        tokens = self.encoder.encode(target, masking.ids_keep)
        embedding = self.projection_head(pooled(tokens, self.config.latent))
        prediction = self.decode(tokens, masking) if decode else None
        return View(embedding, prediction, target, masking.mask)

    def decode(
        self, tokens: Float[Tensor, "B tokens D"], masking: Masking
    ) -> Float[Tensor, "B N P"]:
        """Predict every patch from the class token and the visible patches."""
        x = self.decoder_embed(tokens)
        cls, visible = x[:, :1], x[:, 1:]
        num_hidden = masking.ids_restore.shape[1] - visible.shape[1]
        hidden = self.mask_token.to(x.dtype).expand(len(x), num_hidden, -1)
        patches = take_rows(torch.cat([visible, hidden], dim=1), masking.ids_restore)
        x = torch.cat([cls, patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def decoder_parameters(self) -> list[nn.Parameter]:
        """What only the reconstruction trains."""
        return [p for name, p in self.named_parameters() if name.startswith(("decoder", "mask_"))]


def _projection_head(config: ModelConfig) -> nn.Module:
    """Nothing, as in equations 2 and 4, or SimCLR's MLP without its batch norm."""
    if config.head == "none":
        return nn.Identity()
    width = config.size.width
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, HEAD_WIDTH))


def _drop_prefix(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Write the encoder's keys as MAE does, without a prefix of their own."""
    for key in [key for key in state if key.startswith(f"{prefix}encoder.")]:
        state[prefix + key.removeprefix(f"{prefix}encoder.")] = state.pop(key)


def _add_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Undo `_drop_prefix` on the way in."""
    ours = module.encoder.state_dict()  # type: ignore[union-attr]
    for key in ours:
        if prefix + key in state:
            state[f"{prefix}encoder.{key}"] = state.pop(prefix + key)
