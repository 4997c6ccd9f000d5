"""JPEG files that the training process decodes, on its device (`--decode gpu`).

The processes that read draw what the views show, and send ordinary files as they are; of all
others they send views. On CUDA torchvision decodes by nvJPEG.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from mvmae.config.pretrain import PretrainConfig
from mvmae.data.reading import samples
from mvmae.data.reading.jpeg_header import END
from mvmae.data.reading.reduced_jpeg import plain_header, require_simplejpeg
from mvmae.data.reading.samples import Batch, File, Sample, ViewsDataset
from mvmae.errors import UserError
from mvmae.method.views import random_crops

AT_ONCE = 2**26  # pixels decoded together, 200 MB of colour
SHRINKING = 32  # the most that a crop is shrunk by: torch's kernel on CUDA ends at 46
LEFT_RIGHT, UP_DOWN = 4, 5  # columns of `crops`, behind top, left, height and width


def require_decoder(config: PretrainConfig, device: torch.device) -> None:
    """Check that what `config.decode` names is there.

    Raises:
        UserError: It is not.
    """
    if config.decode == "fast":
        require_simplejpeg()
    if config.decode == "gpu" and not (device.type == "cuda" and decodes(device)):
        raise UserError(
            "--decode gpu needs a CUDA device, and a torchvision that decodes on it: "
            "choose --decode fast or exact"
        )


def decodes(device: torch.device) -> bool:
    """Whether torchvision decodes JPEG files on a device; a build without nvJPEG does not."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    data = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
    return decoded_images([data], 3, device) != [None]


class EncodedBatch(NamedTuple):
    """A batch, some of whose images are files."""

    done: Batch
    """Views of those that are none; noise, and all else, of all."""

    is_file: UInt8[Tensor, " B"]
    """1 where an image is a file."""

    data: UInt8[Tensor, " bytes"]
    """All F files, one behind the other; one tensor, for each needs a handle between processes."""

    lengths: Int[Tensor, " F"]
    """Of the files, in bytes."""

    sizes: Int[Tensor, "F 2"]
    """Height and width of their pictures."""

    crops: Int[Tensor, "F K 6"]
    """What their views show: top, left, height, width, whether mirrored left to right and top to
    bottom; once where all views show the same."""

    indices: Int[Tensor, "B 2"]
    """Epoch and index that were asked for."""

    skips: Int[Tensor, " B"]
    """Images that were passed over before each."""


def plain_file(data: bytes, config: PretrainConfig, rng: np.random.Generator) -> File | None:
    """A file that a GPU decodes as `decode` does, and what its views show.

    Args:
        data: The whole file.
        config: Of the run.
        rng: Drawn from as by `random_views`.

    Returns:
        None where the file is unusual, incomplete, stored on its side or of other channels, or
        would be shrunk too much: then nothing is drawn.
    """
    header = plain_header(data) if data.endswith(END) else None
    if header is None or header.orientation != 1 or not header.is_ycc:
        return None
    height, width = config.model.height_width
    largest = max(header.size[0] / height, header.size[1] / width)
    if header.channels != config.model.in_channels or largest > SHRINKING:
        return None
    return File(data, header.size, random_crops(*header.size, config.views, rng))


def collate(
    found: Sequence[Sample], groups: Int[np.ndarray, " images"] | None = None
) -> EncodedBatch:
    """A batch of samples, some of which are files; `groups` as for `samples.collate`."""
    files = [sample.views for sample in found if isinstance(sample.views, File)]
    crops = [[*box, -1 in flipped, -2 in flipped] for file in files for box, flipped in file.crops]
    data = bytearray().join(file.data for file in files)
    done = samples.collate(found, groups)
    return EncodedBatch(
        done._replace(is_whole=all(sample.views is not None for sample in found)),
        torch.tensor([isinstance(sample.views, File) for sample in found], dtype=torch.uint8),
        torch.frombuffer(data, dtype=torch.uint8) if files else torch.empty(0, dtype=torch.uint8),
        torch.tensor([len(file.data) for file in files], dtype=torch.int64),
        torch.tensor([file.size for file in files], dtype=torch.int64).view(-1, 2),
        torch.tensor(crops, dtype=torch.int64).view(
            len(files), len(crops) // max(1, len(files)), 6
        ),
        torch.tensor([sample.index for sample in found], dtype=torch.int64),
        torch.tensor([len(sample.skipped) for sample in found], dtype=torch.int64),
    )


def decoded(
    batches: Iterable[EncodedBatch],
    exact: ViewsDataset,
    device: torch.device,
    groups: Int[np.ndarray, " images"] | None = None,
) -> Iterator[Batch]:
    """Batches whose views are on the device.

    Args:
        batches: From `collate`.
        exact: Makes the views of images whose files the device refuses.
        device: Which decodes.
        groups: As for `collate`.
    """
    for batch in batches:
        yield on_device(batch, exact, device, groups) if batch.done.is_whole else batch.done


def on_device(
    batch: EncodedBatch,
    exact: ViewsDataset,
    device: torch.device,
    groups: Int[np.ndarray, " images"] | None = None,
) -> Batch:
    """See `decoded`; of a batch without gaps.

    On a GPU in a stream of its own, so that decoding need not wait for the step before.
    """
    if device.type == "cpu":
        return completed(batch, exact, device, groups)
    own, computing = _decoding(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(own):
        made = completed(batch, exact, device, groups)
    computing.wait_stream(own)
    made.views.record_stream(computing)  # or its memory could be given away before it is read
    return made


@cache
def _decoding(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def completed(
    batch: EncodedBatch,
    exact: ViewsDataset,
    device: torch.device,
    groups: Int[np.ndarray, " images"] | None = None,
) -> Batch:
    """A batch whose views are all on the device: of files, of others, of files that it refuses."""
    config, done = exact.config, batch.done
    count, channels = config.views.num_views, config.model.in_channels
    shape = count, len(batch.is_file), channels, *config.model.height_width
    views = torch.empty(shape, dtype=torch.uint8, device=device)
    rows, others = (mask.nonzero().flatten() for mask in (batch.is_file, 1 - batch.is_file))
    if len(others):
        views[:, others] = done.views.to(device, non_blocking=True)
    if len(rows) == 0:
        return done._replace(views=views)
    views[:, rows], refused = views_of_files(batch, config, device)
    for row in rows[refused].tolist():
        epoch, index = batch.indices[row].tolist()
        sample = exact[epoch, index]
        skipped = done.skipped + sample.skipped[int(batch.skips[row]) :]
        is_whole = done.is_whole and sample.views is not None
        done = done._replace(skipped=skipped, is_whole=is_whole)
        if isinstance(sample.views, Tensor):
            views[:, row] = sample.views.to(device)
        if done.groups is not None and groups is not None:
            done.groups[row] = int(groups[sample.place])
    return done._replace(views=views)


def views_of_files(
    batch: EncodedBatch, config: PretrainConfig, device: torch.device
) -> tuple[UInt8[Tensor, "K F C h w"], list[int]]:
    """The views of a batch's files, and which of these the device does not decode."""
    size, kind = config.model.height_width, config.views.interpolation
    num_files, num_crops, _ = batch.crops.shape
    shape = num_crops, num_files, config.model.in_channels, *size
    views = torch.zeros(shape, device=device)
    files, sizes, crops = batch.data.split(batch.lengths.tolist()), batch.sizes, batch.crops
    refused = []
    for part in parts_of(sizes.prod(1).tolist()):
        images = decoded_images(files[part], config.model.in_channels, device)
        for file, image in zip(range(num_files)[part], images, strict=True):
            if image is None or list(image.shape[1:]) != sizes[file].tolist():
                refused.append(file)
                continue
            for crop, (top, left, height, width, *_) in enumerate(crops[file].tolist()):
                box = image[None, :, top : top + height, left : left + width].float()
                views[crop, file] = F.interpolate(box, size, mode=kind, antialias=True)[0]
    pixels = views.round_().clamp_(0, 255).to(torch.uint8)
    for column, side in ((LEFT_RIGHT, -1), (UP_DOWN, -2)):
        mirrored = crops[:, :, column].T.bool().to(device)[..., None, None, None]
        pixels = torch.where(mirrored, pixels.flip(side), pixels)
    return pixels, refused


def parts_of(pixels: Sequence[int]) -> Iterator[slice]:
    """Pictures of so many pixels, a few at a time: so many that they fit into memory together."""
    begin, together = 0, 0
    for end, count in enumerate(pixels):
        if together + count > AT_ONCE and end > begin:
            yield slice(begin, end)
            begin, together = end, 0
        together += count
    if begin < len(pixels):
        yield slice(begin, len(pixels))


def decoded_images(
    files: Sequence[UInt8[Tensor, " _"]], channels: int, device: torch.device
) -> list[UInt8[Tensor, "C _ _"] | None]:
    """The pixels of JPEG files, on the device; none of one that it does not decode."""
    mode = ImageReadMode.RGB if channels == 3 else ImageReadMode.GRAY
    if device.type == "cuda":
        # torchvision decodes in a stream that does not wait for this one, into memory that work
        # queued here may still read.
        torch.cuda.current_stream(device).synchronize()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision 0.29 calls its decoders deprecated
            return [*decode_jpeg(list(files), mode, device)]
    except RuntimeError:  # of one or more; it does not say of which
        if len(files) == 1:
            return [None]
        return [decoded_images([file], channels, device)[0] for file in files]
