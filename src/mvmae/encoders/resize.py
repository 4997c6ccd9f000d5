"""Adapt an encoder's weights to another image size or number of channels."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mvmae.encoders.encoder_json import OpenedEncoder, Preprocessing
from mvmae.errors import UserError
from mvmae.method.vit import Encoder


def height_width(image_size: int | tuple[int, int], patch: int) -> tuple[int, int]:
    """Return an image size as height and width in pixels.

    Raises:
        UserError: A side is not a multiple of the patch size.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(size) < patch or size[0] % patch or size[1] % patch:
        raise UserError(
            f"image size {size[0]} x {size[1]} is not a multiple of the patch size {patch}: "
            f"{max(1, size[0] // patch) * patch} x {max(1, size[1] // patch) * patch} is"
        )
    return size


def resize_encoder(encoder: Encoder, image_size: int | tuple[int, int] | None) -> Encoder:
    """Return an encoder with the same weights for images of another size.

    Args:
        encoder: Returned unchanged if it already has the size.
        image_size: In pixels. None keeps the encoder's own.

    Raises:
        UserError: A side is not a multiple of the patch size.
    """
    if image_size is None:
        return encoder
    size = height_width(image_size, encoder.patch_size)
    if size == encoder.image_size:
        return encoder
    other = encoder.new_like(image_size=size)
    positions = resample_positions(
        encoder.pos_embed, encoder.grid, other.grid, has_cls=encoder.variant.cls_token
    )
    other.load_state_dict(encoder.state_dict() | {"pos_embed": positions})
    return other


def resample_positions(
    positions: Float[Tensor, "1 N D"],
    grid: tuple[int, int],
    other: tuple[int, int],
    *,
    has_cls: bool = True,
) -> Float[Tensor, "1 M D"]:
    """Resample position embeddings to another grid of patches: bicubic, as in MAE and timm."""
    cls, patches = positions[:, : int(has_cls)], positions[:, int(has_cls) :]
    image = patches.detach().transpose(1, 2).unflatten(2, grid)
    image = nn.functional.interpolate(
        image, size=other, mode="bicubic", antialias=False, align_corners=False
    )
    return torch.cat([cls, image.flatten(2).transpose(1, 2)], dim=1)


def adapt_channels(opened: OpenedEncoder, in_channels: int | None) -> OpenedEncoder:
    """Return an encoder with the same weights for another number of channels.

    Follows timm's `adapt_input_conv`. For one channel the weights of all channels are summed, so
    that a gray image gives the features of its colour copy. For more channels they are repeated in
    turn and scaled to keep their sum. Every channel gets the average mean and deviation.
    """
    encoder = opened.encoder
    if in_channels is None or in_channels == encoder.in_channels:
        return opened
    other = encoder.new_like(in_channels=in_channels)
    weight = adapt_patch_weight(encoder.patch_embed.proj.weight, in_channels)
    other.load_state_dict(encoder.state_dict() | {"patch_embed.proj.weight": weight})
    mean, std, interpolation = opened.preprocessing
    averages = (sum(mean) / len(mean),) * in_channels, (sum(std) / len(std),) * in_channels
    return opened._replace(encoder=other, preprocessing=Preprocessing(*averages, interpolation))


def adapt_patch_weight(weight: Float[Tensor, "D C p p"], channels: int) -> Float[Tensor, "D E p p"]:
    """Convert the weight of a patch embedding to another number of channels."""
    count = weight.shape[1]
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    # Scaled by the ratio, so that the sum over channels, and with it the features' size, stays.
    in_turn = torch.arange(channels) % count
    return weight[:, in_turn] * (count / channels)
