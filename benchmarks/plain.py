"""The plain way, made of other packages, that the benchmarks compare with.

A step: a masked autoencoder of a package, SimCLR's loss as it is usually written, and
`torch.optim.AdamW` with its defaults. The input: MAE's transform, which opens and decodes a file
for every view. Nothing here is slowed down on purpose: the packages' defaults are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from mvmae.config.model import ModelConfig
from mvmae.config.pretrain import PretrainConfig
from mvmae.errors import UserError
from mvmae.training import precision

Attention = Literal["sdpa", "eager"]


class PlainBatch(NamedTuple):
    """A batch of the plain step; each pair holds the first views, then the second."""

    images: tuple[Tensor, Tensor]
    """Normalised floats, B x C x H x W, as torchvision's transforms leave them."""

    noise: tuple[Tensor, Tensor]
    """Noise that ranks the patches for masking, B x N."""


class Peer(NamedTuple):
    """A masked autoencoder made of a package's modules."""

    package: str
    known: str
    """Version of the package that this was written for."""

    way: str
    """How it works, for the user."""

    build: Callable[[ModelConfig, Attention], nn.Module]
    """Makes the model, which turns images and noise into tokens, the class token first, and the
    reconstruction loss. Raises ImportError where the package is missing or has other parts."""

    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    """Our state dict under the model's names."""

    at_once: bool = False
    """Whether both views pass the model as one batch."""


class PlainStep:
    """A training step of two views with a peer's model.

    Args:
        config: Sizes, loss weights, temperature and optimiser settings.
        device: Where to compute.
        peer: The package's model.
        attention: `sdpa` is every package's default, `eager` the plain products.

    Raises:
        ImportError: The peer's package is missing.
    """

    def __init__(
        self, config: PretrainConfig, device: torch.device, peer: Peer, attention: Attention
    ) -> None:
        self.config, self.device, self.peer = config, device, peer
        self.model = peer.build(config.model, attention).to(device).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
        )

    def load(self, state: dict[str, Tensor]) -> None:
        """Take the weights of our model's state dict.

        Raises:
            UserError: This version of the package names them in an unknown way.
        """
        renamed = self.peer.rename(state)
        if renamed.keys() != self.model.state_dict().keys():
            package, known = self.peer.package, self.peer.known
            raise UserError(
                f"this version of {package} names the weights in another way than {known}: "
                f"pip install {package}=={known}, or leave it out of --peers"
            )
        self.model.load_state_dict(renamed)

    def __call__(self, batch: PlainBatch) -> Tensor:
        """Take one step and return the loss, a scalar."""
        reconstructions, embeddings = [], []
        for images, noise in self._passes(batch):
            images = images.to(self.device, non_blocking=True)
            noise = noise.to(self.device, non_blocking=True)
            with precision.autocast(self.device, self.config.precision):
                tokens, reconstruction = self.model(images, noise)
            reconstructions.append(reconstruction)
            embeddings.append(tokens[:, 1:].mean(dim=1).float())
        objective = self.config.objective
        z1, z2 = torch.cat(embeddings).chunk(2)
        contrast = plain_nt_xent(z1, z2, objective.temperature)
        reconstruction = torch.stack(reconstructions).mean()
        loss = (
            objective.reconstruction_weight * reconstruction
            + objective.contrastive_weight * contrast
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _passes(self, batch: PlainBatch) -> list[tuple[Tensor, Tensor]]:
        """Return the batches that pass the model one after the other."""
        if self.peer.at_once:
            return [(torch.cat(batch.images), torch.cat(batch.noise))]
        return list(zip(batch.images, batch.noise, strict=True))


def plain_nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Return SimCLR's loss as it is usually written, with one matrix of all similarities.

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


def mae_transform(
    size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> transforms.Compose:
    """Return MAE's training transform (main_pretrain.py): a Pillow picture to one view."""
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
    """Open an image file as torchvision's ImageFolder does."""
    with file.open("rb") as stream:
        return Image.open(stream).convert("RGB")
