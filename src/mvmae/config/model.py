"""Options of the model: sizes, patches, mask and decoder."""

from dataclasses import dataclass
from math import floor
from typing import Annotated, Literal, NamedTuple

from mvmae.config import checks
from mvmae.config.checks import Count, require


class Size(NamedTuple):
    """Shape of a stack of Transformer blocks."""

    width: int
    depth: int
    num_heads: int


ENCODERS = {  # ViT's and MAE's sizes; pico and nano are ours, for two CPU cores
    "vit_pico": Size(64, 4, 2),
    "vit_nano": Size(128, 4, 4),
    "vit_tiny": Size(192, 12, 3),
    "vit_small": Size(384, 12, 6),
    "vit_base": Size(768, 12, 12),
    "vit_large": Size(1024, 24, 16),
    "vit_huge": Size(1280, 32, 16),
}
EncoderName = Literal[
    "vit_pico", "vit_nano", "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"
]
Pool = Literal["mean", "cls"]
MAX_CHANNELS = 64

DECODER_HEAD_WIDTH = 32  # MAE: 512 wide, 16 heads


def num_visible(num_patches: int, mask_ratio: float) -> int:
    """Count the patches that a mask leaves visible.

    MAE's `int(N * (1 - ratio))` loses a patch to floating point where the product is whole (25
    patches at 0.8 leave 4, not 5); the small addition fixes that and changes nothing else.
    """
    return floor(num_patches * (1 - mask_ratio) + 1e-6)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Options of encoder and decoder."""

    encoder: EncoderName = "vit_base"
    """Size of the ViT encoder."""

    image_size: int | tuple[int, int] = 224
    """Side of the input in pixels, or its height and width."""

    patch_size: Count = 16
    """Side of a square patch in pixels."""

    in_channels: Annotated[Count, checks.maximum(MAX_CHANNELS)] = 3
    """Channels of the images: 3 for colour, 1 for gray, up to 64 of TIFF and .npy files."""

    mask_ratio: Annotated[float, checks.BETWEEN_0_AND_1] = 0.8
    """Share of patches hidden from the encoder."""

    decoder_depth: Count = 4
    """Transformer blocks in the decoder."""

    decoder_dim: Count = 512
    """Width of the decoder, a multiple of 32."""

    decoded_share: Annotated[float, checks.SHARE] = 1.0
    """Share of the hidden patches that the decoder predicts in a step, chosen at random. Half saves
    18 % of the paper's arithmetic, 25 % with a decoder of 8 blocks; 1: the paper, and MAE."""

    latent: Pool = "mean"
    """Embedding that is contrasted: the mean of the visible patch tokens, or the class token."""

    head: Literal["none", "mlp"] = "none"
    """Layers between latent and contrast: none (the paper), or a 2-layer MLP."""

    def __post_init__(self) -> None:
        checks.require_rules(self)
        near = [
            max(self.patch_size, round(side / self.patch_size) * self.patch_size)
            for side in self.height_width
        ]
        size = "{}" if isinstance(self.image_size, int) else "{} x {}"
        require(
            self.height_width == tuple(near),
            f"image_size {size.format(*self.height_width)} is not a multiple of patch_size "
            f"{self.patch_size}: {size.format(*near)} would be",
        )
        require(
            self.decoder_dim % DECODER_HEAD_WIDTH == 0,
            f"decoder_dim {self.decoder_dim} is not a multiple of {DECODER_HEAD_WIDTH}, "
            "the width of a decoder head",
        )
        require(
            0 < self.num_visible < self.num_patches,
            f"mask_ratio {self.mask_ratio} leaves {self.num_visible} of {self.num_patches} patches "
            "visible: there must be a visible and a hidden one (a smaller patch_size helps)",
        )

    @property
    def size(self) -> Size:
        """Width, depth and heads of the encoder."""
        return ENCODERS[self.encoder]

    @property
    def height_width(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        side = self.image_size
        return (side, side) if isinstance(side, int) else side

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.height_width
        return height // self.patch_size, width // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches in one image."""
        return self.grid[0] * self.grid[1]

    @property
    def num_visible(self) -> int:
        """Patches that the encoder gets."""
        return num_visible(self.num_patches, self.mask_ratio)

    @property
    def num_decoded(self) -> int:
        """Hidden patches that the decoder predicts in a step."""
        return max(1, round((self.num_patches - self.num_visible) * self.decoded_share))
