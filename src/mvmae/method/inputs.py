"""From a batch of the reader to what the model takes: on the device, augmented and normalised."""

from functools import cache

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mvmae.config.pretrain import PretrainConfig
from mvmae.data.reading.loader import Batch
from mvmae.method.augmentations import Augmentations, augment
from mvmae.method.views import normalize


def model_inputs(
    batch: Batch, config: PretrainConfig, device: torch.device, part: slice = slice(None)
) -> tuple[Float[Tensor, "R C H W"], Float[Tensor, "R N"]]:
    """Normalised views and their mask noise on the device, all first views first.

    Args:
        batch: Views of the images of this process.
        config: Of the run.
        device: Of this process.
        part: Images to take. Default: all.
    """
    mean, std = config.pixel_statistics
    images = move_rows(batch.views, part, device)
    if batch.augmentations is not None:
        moved = (move_rows(column, part, device) for column in batch.augmentations)
        images = augment(images, Augmentations(*moved), config.views, config.model.in_channels)
    return normalize(images, mean, std, device), move_rows(batch.noise, part, device)


def move_rows(
    rows: Shaped[Tensor, "V B ..."], part: slice, device: torch.device
) -> Shaped[Tensor, "R ..."]:
    """Rows of some images on the device, all first views first.

    On a GPU the copy runs in its own stream while the previous step is still being computed. Each
    view is copied separately: only a contiguous stretch of pinned memory copies asynchronously.
    """
    if device.type == "cpu" or rows.device.type == device.type:
        return rows[:, part].flatten(0, 1)
    copy_stream, compute_stream = _copy_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copy_stream):
        copied = torch.cat([view[part].to(device, non_blocking=True) for view in rows])
    compute_stream.wait_stream(copy_stream)
    copied.record_stream(compute_stream)  # or the allocator could reuse its memory too early
    return copied


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
