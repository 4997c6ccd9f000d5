"""A peer of `benchmarks step`: a masked autoencoder of lightly's modules, built on timm's."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peer_timm import timm_encoder, use_attention
from benchmarks.plain import Attention, Peer
from mvmae.config.model import DECODER_HEAD_WIDTH, ModelConfig


class LightlyAutoencoder(nn.Module):
    """lightly's masked encoder and decoder; embedding and head are linear layers outside of them.

    All patches are embedded and the visible ones kept; the head predicts the hidden patches.

    Raises:
        ImportError: lightly or timm is missing, or lightly is older than 1.6.
    """

    def __init__(self, config: ModelConfig, attention: Attention) -> None:
        super().__init__()
        from lightly.models import utils
        from lightly.models.modules.masked_vision_transformer_decoder_timm import (
            MaskedVisionTransformerDecoderTIMM,
        )
        from lightly.models.modules.masked_vision_transformer_timm import (
            MaskedVisionTransformerTIMM,
        )

        self.utils, self.config = utils, config
        dim = config.decoder_dim
        self.encoder = MaskedVisionTransformerTIMM(vit=timm_encoder(config))
        self.decoder_embed = nn.Linear(config.size.width, dim)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=config.num_patches,
            embed_dim=dim,
            depth=config.decoder_depth,
            num_heads=dim // DECODER_HEAD_WIDTH,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        self.decoder_pred = nn.Linear(dim, config.patch_size**2 * config.in_channels)
        use_attention(self, attention)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens of the class and the visible patches, and the reconstruction loss."""
        order = noise.argsort(dim=1) + 1
        visible, hidden = order.tensor_split([self.config.num_visible], dim=1)
        keep = torch.cat([torch.zeros_like(order[:, :1]), visible], dim=1)
        tokens = self.encoder.encode(images, idx_keep=keep)

        x = self.decoder_embed(tokens)
        size = (len(images), self.encoder.sequence_length)
        every = self.utils.repeat_token(self.decoder.mask_token, size).to(x.dtype)
        x = self.decoder(self.utils.set_at_index(every, keep, x))
        prediction = self.decoder_pred(self.utils.get_at_index(x, hidden))

        patches = self.utils.patchify(images, self.config.patch_size)
        target = self.utils.normalize_mean_var(self.utils.get_at_index(patches, hidden - 1))
        return tokens, F.mse_loss(prediction.float(), target)


def lightly_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename our state dict for lightly, whose encoder has a mask token that MAE does not use."""
    renamed = {"encoder.mask_token": torch.zeros_like(state["cls_token"])}
    inner = ("mask_token", "decoder_pos_embed", "decoder_blocks", "decoder_norm")
    for name, value in state.items():
        if name.startswith(inner):
            renamed[f"decoder.{name.removeprefix('decoder_')}"] = value
        elif name.startswith("decoder"):
            renamed[name] = value
        else:
            renamed[f"encoder.vit.{name}"] = value
    return renamed


PEER = Peer(
    package="lightly",
    known="1.6.0",
    way="its masked ViT and decoder, one pass a view",
    build=LightlyAutoencoder,
    rename=lightly_names,
)
