"""A peer of `benchmarks step`: transformers' ViTMAE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.plain import Attention, Peer
from mvmae.config.model import DECODER_HEAD_WIDTH, ModelConfig


class TransformersAutoencoder(nn.Module):
    """ViTMAE that also returns the encoder's tokens, which its output leaves out."""

    def __init__(self, config: ModelConfig, attention: Attention) -> None:
        super().__init__()
        self.mae = vit_mae(config, attention)
        self._tokens = torch.empty(0)
        self.mae.vit.register_forward_hook(self._keep_tokens)

    def _keep_tokens(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._tokens = output.last_hidden_state

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens of the class and the visible patches, and the reconstruction loss."""
        loss = self.mae(images, noise=noise).loss
        return self._tokens, loss


def vit_mae(config: ModelConfig, attention: Attention) -> Any:
    """Make transformers' ViTMAE with the same sizes, mask ratio and target.

    Raises:
        ImportError: transformers is missing.
    """
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    size = config.size
    sizes = ViTMAEConfig(
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.num_heads,
        intermediate_size=4 * size.width,
        layer_norm_eps=1e-6,
        image_size=config.height_width[0],
        patch_size=config.patch_size,
        num_channels=config.in_channels,
        decoder_hidden_size=config.decoder_dim,
        decoder_num_hidden_layers=config.decoder_depth,
        decoder_num_attention_heads=config.decoder_dim // DECODER_HEAD_WIDTH,
        decoder_intermediate_size=4 * config.decoder_dim,
        # It rounds down: half a patch more leaves exactly as many visible as ours.
        mask_ratio=1 - (config.num_visible + 0.5) / config.num_patches,
        norm_pix_loss=True,
    )
    sizes._attn_implementation = attention
    return ViTMAEForPreTraining(sizes)


BLOCK_NAMES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
OUTER_NAMES = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.decoder_pos_embed",
    "decoder_embed": "decoder.decoder_embed",
    "decoder_norm": "decoder.decoder_norm",
    "decoder_pred": "decoder.decoder_pred",
}


def with_plain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename our state dict for transformers, with query, key and value separated."""
    renamed = {}
    for key, value in state.items():
        stem, _, kind = key.rpartition(".")
        stem, kind = (stem, f".{kind}") if kind in ("weight", "bias") else (key, "")
        if stem in OUTER_NAMES:
            renamed[OUTER_NAMES[stem] + kind] = value
            continue
        stack, number, part = stem.split(".", 2)
        layer = f"{'vit.layers' if stack == 'blocks' else 'decoder.decoder_layers'}.{number}"
        if part == "attn.qkv":
            for name, third in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{layer}.attention.{name}_proj{kind}"] = third
        else:
            renamed[f"{layer}.{BLOCK_NAMES[part]}{kind}"] = value
    return {f"mae.{name}": value for name, value in renamed.items()}


PEER = Peer(
    package="transformers",
    known="5.23.0",
    way="ViTMAE, one pass a view",
    build=TransformersAutoencoder,
    rename=with_plain_names,
)
