"""The multi-view masked autoencoder (section 3 of the paper).

Shapes: B views, C channels, N patches, K visible patches, M predicted patches, P numbers in a
patch, D width of the encoder, d of the decoder, E of the embedding.
"""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from mvmae.config.model import DECODER_HEAD_WIDTH, ModelConfig
from mvmae.config.pretrain import PretrainConfig
from mvmae.method.patches import Masking, masking_from_noise, take_rows
from mvmae.method.vit import (
    Block,
    Encoder,
    initialize,
    pool_tokens,
    positions_with_cls,
    run_blocks,
)

HEAD_WIDTH = 128  # outputs of the projection head, as in SimCLR
Rebuild = Literal["masked", "all", "none"]  # the patches to predict


class View(NamedTuple):
    """Output of the model for masked views."""

    embedding: Float[Tensor, "B E"]
    """Input of the contrastive loss: the latent, after the projection head if there is one."""

    prediction: Float[Tensor, "B M P"] | None = None
    """Predictions of the hidden patches in the order of their noise, or of all patches in image
    order; None where nothing is reconstructed."""

    target: Float[Tensor, "B M P"] | None = None
    """The same patches of the input."""


class MaskedAutoencoder(nn.Module):
    """Encoder of the visible patches and shallow decoder of all patches.

    All views of an image are rows of one batch, so that one pass encodes them. The state dict has
    MAE's keys: those of the encoder have no prefix.

    Args:
        config: Sizes, mask ratio, latent and head.
        generator: Draws the initial weights. Default: seeded with 0.
        recompute: Whether the backward pass recomputes the activations of blocks, to save memory.
    """

    decoder_pos_embed: Tensor

    def __init__(
        self,
        config: ModelConfig,
        generator: Generator | None = None,
        *,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.recompute = config, recompute
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
        self.projection_head: nn.Module = nn.Identity()  # equations 2 and 4 compare the latent
        if config.head != "none":  # SimCLR's MLP, without batch norm
            self.projection_head = nn.Sequential(
                nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, HEAD_WIDTH)
            )
        initialize(self, generator or Generator().manual_seed(0))
        self.register_state_dict_post_hook(_drop_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        noise: Float[Tensor, "B N"],
        *,
        rebuild: Rebuild = "masked",
    ) -> View:
        """Mask, encode and reconstruct views (equations 1 and 2).

        Args:
            images: Normalised pixels.
            noise: Ranks the patches; those with the largest values are hidden.
            rebuild: "masked" predicts the hidden patches; with `decoded_share` below 1 only those
                with the least noise. "all" predicts every patch, "none" nothing.

        Raises:
            ValueError: The images have a different size or number of channels.
        """
        masking = masking_from_noise(noise, self.config.num_visible)
        patches = self.encoder.patches(images)  # B x N x P
        tokens = self.encoder.encode(patches, masking.ids_keep, recompute=self.recompute)
        embedding = self.projection_head(pool_tokens(tokens, self.config.latent))
        if rebuild == "none":
            return View(embedding)
        if rebuild == "all":
            return View(embedding, self.decode(tokens, masking), patches)
        # Noise is random, so the hidden patches with the least noise are a random subset. Leaving
        # out the other mask tokens costs no information: they carry only their position.
        decoded = masking._replace(ids_hidden=masking.ids_hidden[:, : self.config.num_decoded])
        hidden = self._run_decoder(tokens, decoded)[:, tokens.shape[1] :]
        return View(embedding, self._predict(hidden), take_rows(patches, decoded.ids_hidden))

    def decode(
        self, tokens: Float[Tensor, "B tokens D"], masking: Masking
    ) -> Float[Tensor, "B N P"]:
        """Predict every patch, in image order, from the class token and the visible patches."""
        patches = self._predict(self._run_decoder(tokens, masking)[:, 1:])
        return take_rows(patches, masking.ids_restore)

    def _run_decoder(
        self, tokens: Float[Tensor, "B tokens D"], masking: Masking
    ) -> Float[Tensor, "B all d"]:
        """Decode the class token, then visible and hidden patches, both in order of their noise.

        Attention ignores the order of tokens, so they are not sorted back: only the position says
        where a patch belongs.
        """
        positions = self.decoder_pos_embed[0, 1:]  # N x d
        x = self.decoder_embed(tokens)  # B x (1 + K) x d; the class token has position 0
        visible = x[:, 1:] + positions[masking.ids_keep]
        hidden = self.mask_token + positions[masking.ids_hidden]  # B x M x d
        x = torch.cat([x[:, :1].to(visible.dtype), visible, hidden], dim=1)
        return run_blocks(self.decoder_blocks, x, recompute=self.recompute)

    def _predict(self, x: Float[Tensor, "B M d"]) -> Float[Tensor, "B M P"]:
        return self.decoder_pred(self.decoder_norm(x))

    def freeze_decoder(self) -> None:
        """Freeze the weights that only the reconstruction uses: DDP would wait for gradients."""
        for name, parameter in self.named_parameters():
            if name.startswith(("decoder", "mask_")):
                parameter.requires_grad_(False)


def build_model(config: PretrainConfig, generator: Generator) -> MaskedAutoencoder:
    """Build the model that a config describes; without a reconstruction its decoder is frozen."""
    model = MaskedAutoencoder(config.model, generator, recompute=config.recompute)
    if config.objective.rebuild == "none":
        model.freeze_decoder()
    return model


def _drop_prefix(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Write the encoder's keys as MAE does, without a prefix."""
    for key in [key for key in state if key.startswith(f"{prefix}encoder.")]:
        state[prefix + key.removeprefix(f"{prefix}encoder.")] = state.pop(key)


def _add_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Undo `_drop_prefix` before a state dict is loaded."""
    ours = module.encoder.state_dict()  # type: ignore[union-attr]
    for key in ours:
        if prefix + key in state:
            state[f"{prefix}encoder.{key}"] = state.pop(prefix + key)
