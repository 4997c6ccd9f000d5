"""The plain way, put together from packages: what `bench` compares with.

A step: transformers' ViTMAE, one forward pass a view, SimCLR's loss as it is usually written, and
`torch.optim.AdamW` as it comes. The input: MAE's transform, which opens and decodes a file for
every view. Nothing here is slowed down on purpose: what a package does by default is kept.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from mvmae.config import ModelConfig, PretrainConfig
from mvmae.config.pretraining import DECODER_HEAD_WIDTH
from mvmae.engine import precision
from mvmae.errors import UserError

Attention = Literal["sdpa", "eager"]
KNOWN_TRANSFORMERS = "5.23.0"
NEEDS_TRANSFORMERS = "`bench step` needs transformers: pip install 'mvmae[bench]'"


class PlainBatch(NamedTuple):
    """What the plain step trains on; each is first the first views, then the second."""

    images: tuple[Tensor, Tensor]
    """Normalised floats, B x C x H x W, as torchvision's transforms leave them."""

    noise: tuple[Tensor, Tensor]
    """What ranks the patches for masking, B x N."""


class PlainStep:
    """A training step of two views, one after the other.

    Args:
        config: Sizes, loss weights, temperature and optimiser settings.
        device: Where to compute.
        attention: transformers' attention: `sdpa` is its default, `eager` its plain one.

    Raises:
        UserError: transformers is not installed.
    """

    def __init__(self, config: PretrainConfig, device: torch.device, attention: Attention) -> None:
        self.config, self.device = config, device
        self.model = vit_mae(config.model, attention).to(device).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
        )
        self._latent = torch.empty(0)
        self.model.vit.register_forward_hook(self._keep_latent)

    def _keep_latent(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """The encoder's tokens, which the pre-training output leaves out."""
        self._latent = output.last_hidden_state

    def load(self, state: dict[str, Tensor]) -> None:
        """Take the weights of our model's state dict.

        Raises:
            UserError: This version of transformers names them in a way that is not known here.
        """
        renamed = with_plain_names(state)
        if renamed.keys() != self.model.state_dict().keys():
            raise UserError(
                f"transformers {version('transformers')} names ViTMAE's weights in another way "
                f"than {KNOWN_TRANSFORMERS}: pip install transformers=={KNOWN_TRANSFORMERS}"
            )
        self.model.load_state_dict(renamed)

    def __call__(self, batch: PlainBatch) -> Tensor:
        """One update; returns the loss, a scalar."""
        reconstructions, embeddings = [], []
        for images, noise in zip(batch.images, batch.noise, strict=True):
            images = images.to(self.device, non_blocking=True)
            noise = noise.to(self.device, non_blocking=True)
            with precision.autocast(self.device, self.config.precision):
                reconstructions.append(self.model(images, noise=noise).loss)
            embeddings.append(self._latent[:, 1:].mean(dim=1).float())
        objective = self.config.objective
        contrast = plain_nt_xent(embeddings[0], embeddings[1], objective.temperature)
        reconstruction = (reconstructions[0] + reconstructions[1]) / 2
        loss = (
            objective.reconstruction_weight * reconstruction
            + objective.contrastive_weight * contrast
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def vit_mae(config: ModelConfig, attention: Attention) -> Any:
    """A ViTMAE of transformers, of the same sizes, mask ratio and target.

    Raises:
        UserError: transformers is not installed.
    """
    try:
        from transformers import ViTMAEConfig, ViTMAEForPreTraining
    except ImportError as error:
        raise UserError(NEEDS_TRANSFORMERS) from error
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


def plain_nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss as it is usually written: one matrix of all similarities.

    Args:
        z1: Embeddings of the first views, B x D.
        z2: Embeddings of the second views, B x D.
        temperature: Divides the similarities.
    """
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    similarity = (z @ z.T) / temperature
    similarity.fill_diagonal_(float("-inf"))
    rows = torch.arange(len(z), device=z.device)
    return F.cross_entropy(similarity, rows.roll(len(z1)))


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
    """Our state dict under transformers' names, query, key and value apart."""
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
    return renamed


def mae_transform(
    size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> transforms.Compose:
    """MAE's training transform (main_pretrain.py): Pillow's pictures, one view a call."""
    bicubic = InterpolationMode.BICUBIC
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.2, 1.0), interpolation=bicubic),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


def load_pil(file: Path) -> Image.Image:
    """An image file as torchvision's ImageFolder opens it."""
    with file.open("rb") as stream:
        return Image.open(stream).convert("RGB")
