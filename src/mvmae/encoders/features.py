"""Compute features of images, by an encoder or from raw pixels.

Features of many images are computed span by span. Each span's result can be kept in a file, so that
an interrupted command resumes and several processes share the work.

Shapes: M images, B images of a batch, D width.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mvmae.data.reading.loader import Skipped, whole_batches
from mvmae.data.sources.base import Source, Subset
from mvmae.encoders.encoder_json import Preprocessing
from mvmae.errors import UserError
from mvmae.method.views import normalize, to_floats
from mvmae.method.vit import Encoder
from mvmae.storage import atomic, run_folder
from mvmae.training import distributed, precision, process_store

MAX_IMAGES_PER_FILE = 8192  # so that an interruption loses little work
TARGET_FILES = 512  # fewer images than fill these share them evenly among processes
PIXEL_BATCH_SIZE = 256

Advance = Callable[[int], object]
"""Called with the number of images done since the last call, for a progress bar."""


def ignore(count: int) -> None:
    """Show no progress."""


class Features(NamedTuple):
    """Vectors of labelled images."""

    mean: Float[Tensor, "M D"]
    """Means of the patch tokens."""

    cls: Float[Tensor, "M D"] | None
    """Class tokens, if the encoder has one."""

    labels: Int[Tensor, " M"]
    skipped: list[Skipped]


class Tokens(NamedTuple):
    """An encoder's output for a batch of images."""

    tokens: Float[Tensor, "B tokens D"]
    """On the encoder's device; prefix tokens first."""

    indices: list[int]
    """Indices of the images in their source."""

    skipped: list[Skipped]


class Computing(TypedDict):
    """Where and how batches are encoded."""

    device: torch.device
    precision_name: str
    """As for `precision.autocast`."""

    batch_size: int
    workers: int | None
    """Processes that read images. None: chosen by the machine."""


def encode_source(
    encoder: Encoder, source: Source, preprocessing: Preprocessing, **how: Unpack[Computing]
) -> Iterator[Tokens]:
    """Encode every image of a source in order, whole and unmasked, one batch at a time."""
    # Restored afterwards: `pretrain` encodes between two training steps.
    was_training, device = encoder.training, how["device"]
    encoder.eval().to(device)
    try:
        for batch in whole_batches(
            source,
            encoder.image_size,
            interpolation=preprocessing.interpolation,
            batch_size=how["batch_size"],
            workers=how["workers"],
            cuda=device.type == "cuda",
        ):
            # A batch of unreadable images still has to be counted.
            if not len(batch.images):
                yield Tokens(torch.empty(0, 0, encoder.embed_dim), [], batch.skipped)
                continue
            images = normalize(batch.images, preprocessing.mean, preprocessing.std, device)
            with torch.inference_mode(), precision.autocast(device, how["precision_name"]):
                tokens = encoder(images)
            yield Tokens(tokens, batch.indices.tolist(), batch.skipped)
    finally:
        encoder.train(was_training)


class FeatureExtractor(NamedTuple):
    """A way to compute features of a source, one batch at a time."""

    batches: Callable[[Source], Iterator[Features]]
    """Compute features of any part of the source that starts at a batch boundary."""

    batch_size: int


def encoder_extractor(
    encoder: Encoder, preprocessing: Preprocessing, **how: Unpack[Computing]
) -> FeatureExtractor:
    """Extract pooled features with an encoder."""
    has_cls = encoder.variant.cls_token
    how["batch_size"] = min(how["batch_size"], MAX_IMAGES_PER_FILE)

    def batches(source: Source) -> Iterator[Features]:
        for batch in encode_source(encoder, source, preprocessing, **how):
            labels = torch.tensor([source.label(index) for index in batch.indices]).long()
            if not batch.indices:
                none = torch.empty(0, encoder.embed_dim)
                yield Features(none, none if has_cls else None, labels, batch.skipped)
                continue
            mean = encoder.pool(batch.tokens, "mean").float().cpu()
            cls = encoder.pool(batch.tokens, "cls").float().cpu() if has_cls else None
            yield Features(mean, cls, labels, batch.skipped)

    return FeatureExtractor(batches, how["batch_size"])


def pixel_extractor(*, side: int, workers: int | None) -> FeatureExtractor:
    """Use images shrunk to `side` pixels as vectors: a baseline that any encoder must beat."""
    batch_size = min(PIXEL_BATCH_SIZE, MAX_IMAGES_PER_FILE)

    def batches(source: Source) -> Iterator[Features]:
        for batch in whole_batches(
            source,
            (side, side),
            interpolation="bicubic",
            batch_size=batch_size,
            workers=workers,
            cuda=False,
        ):
            labels = torch.tensor([source.label(index) for index in batch.indices.tolist()]).long()
            yield Features(to_floats(batch.images).flatten(1), None, labels, batch.skipped)

    return FeatureExtractor(batches, batch_size)


def compute_features(
    encoder: Encoder,
    source: Source,
    preprocessing: Preprocessing,
    *,
    keep: Path | None = None,
    advance: Advance = ignore,
    **how: Unpack[Computing],
) -> Features:
    """Compute pooled features of every image of a source in this process alone.

    Args:
        encoder: The encoder, which is moved to the device.
        source: The images.
        preprocessing: The encoder's.
        keep: Folder for partial results of more than `MAX_IMAGES_PER_FILE` images: a later call
            resumes from them. Use a separate folder for each encoder and set of images.
        advance: Progress callback.
        how: Where and how batches are encoded.

    Raises:
        UserError: More than half of the images cannot be read.
    """
    keep = keep if len(source) > MAX_IMAGES_PER_FILE else None
    return extract_features(encoder_extractor(encoder, preprocessing, **how), source, keep, advance)


def extract_distributed(
    extractor: FeatureExtractor,
    source: Source,
    keep: Path,
    advance: Advance = ignore,
    *,
    is_resumable: bool = True,
) -> Features | None:
    """Compute features of every image; each process handles its share.

    Each process writes its results to files, which the main process joins. No process needs memory
    for the others' results, and the features equal those of a single process to the bit, because
    the batches are the same.

    Args:
        extractor: From `encoder_extractor` or `pixel_extractor`.
        source: The images, the same in all processes.
        keep: Folder for partial results, on a disk that all processes see. Use a separate folder
            for each extractor and set of images.
        advance: Progress callback, over all processes.
        is_resumable: Whether to leave the files for a later command. Those of pixels are large and
            quickly computed again.

    Returns:
        The features in the main process, None in the others.

    Raises:
        UserError: More than half of the images cannot be read, or another process failed.
    """
    if distributed.world_size() == 1:
        is_kept = is_resumable and len(source) > MAX_IMAGES_PER_FILE
        return extract_features(extractor, source, keep if is_kept else None, advance)
    # Contiguous shares: batches, and so the last bits of the features, are those of one process.
    spans = _spans(len(source), extractor.batch_size)
    own = process_store.partition(len(spans), distributed.rank(), distributed.world_size())
    missing = [spans[at] for at in own if not _is_complete(_file(keep, spans[at]))]
    shown = 0
    for span, part in zip(missing, _compute_spans(extractor, source, missing), strict=True):
        _write_part(_file(keep, span), part)
        # The other processes do not report theirs; they progress at about the same rate.
        about = min(len(source) - shown, len(span) * distributed.world_size())
        advance(about)
        shown += about
    process_store.current().finish_phase()
    if not distributed.is_main():
        return None
    for _ in process_store.current().wait_for_others():
        pass
    advance(len(source) - shown)
    features = extract_features(extractor, source, keep)
    if not is_resumable:
        shutil.rmtree(keep, ignore_errors=True)
    return features


def extract_features(
    extractor: FeatureExtractor, source: Source, keep: Path | None = None, advance: Advance = ignore
) -> Features:
    """Compute features of every image in this process, except those found in files of `keep`.

    Raises:
        UserError: More than half of the images cannot be read.
    """
    spans = _spans(len(source), extractor.batch_size)
    # By their headers: hundreds of files of 25 MB are read once, when they are joined.
    complete = {span for span in spans if keep and _is_complete(_file(keep, span))}
    missing = [span for span in spans if span not in complete]
    computed = _compute_spans(extractor, source, missing)
    joined = _Joined(len(source))
    for span in spans:
        part = _read_part(_file(keep, span)) if keep and span in complete else None
        if part is None:
            # Another command may have removed a file since it was found complete.
            part = next(_compute_spans(extractor, source, [span]) if span in complete else computed)
            if keep:
                _write_part(_file(keep, span), part)
        joined.add(part)
        advance(len(span))
    require_readable(source, joined.skipped)
    return joined.features()


def _spans(count: int, batch_size: int) -> list[range]:
    """Split image indices into one span per file: whole batches, for any number of processes.

    Few images get one file per batch, so that many processes have even shares.
    """
    max_batches = max(1, MAX_IMAGES_PER_FILE // batch_size)
    batches = min(max_batches, -(-count // (batch_size * TARGET_FILES)))
    # Whole batches, because the last bits of a vector depend on the others of its batch.
    size = max(1, batches) * batch_size
    return [range(begin, min(begin + size, count)) for begin in range(0, count, size)]


def _compute_spans(
    extractor: FeatureExtractor, source: Source, spans: Sequence[range]
) -> Iterator[Features]:
    """Compute the features of each span with a single pass of the loader.

    This works because spans start at batch boundaries, and only the source's last one may end
    within a batch.
    """
    if not spans:
        return
    # One pass for all: reading processes are started once, not for each span.
    batches = extractor.batches(Subset(source, list(chain.from_iterable(spans))))
    for span in spans:
        joined = _Joined(len(span))
        for _ in range(0, len(span), extractor.batch_size):
            joined.add(next(batches))
            process_store.current().check()  # stop if another process failed
        yield joined.features()


class _Joined:
    """Features that arrive in parts and are copied into their final place, to hold them only once.

    Args:
        count: Upper limit of the number of images.
    """

    def __init__(self, count: int) -> None:
        self.count, self.rows, self.skipped = count, 0, list[Skipped]()
        self.labels = torch.empty(count, dtype=torch.int64)
        self.mean: Tensor | None = None
        self.cls: Tensor | None = None

    def add(self, part: Features) -> None:
        """Append a part."""
        self.skipped += part.skipped
        if not len(part.labels) and self.mean is not None:
            return
        # A part without a readable image does not show the width: allocate again after it.
        if self.mean is None or self.mean.shape[1:] != part.mean.shape[1:]:
            self.mean = torch.empty(self.count, *part.mean.shape[1:])
            self.cls = None if part.cls is None else torch.empty(self.count, *part.cls.shape[1:])
        rows = slice(self.rows, self.rows + len(part.labels))
        self.rows = rows.stop
        self.mean[rows], self.labels[rows] = part.mean, part.labels
        if self.cls is not None and part.cls is not None:
            self.cls[rows] = part.cls

    def features(self) -> Features:
        """Return all parts added so far."""
        mean = torch.empty(0, 0) if self.mean is None else self.mean
        cls = None if self.cls is None else self.cls[: self.rows]
        return Features(mean[: self.rows], cls, self.labels[: self.rows], self.skipped)


def _file(keep: Path, span: range) -> Path:
    return keep / f"{span.start:09}-{span.stop:09}.safetensors"


def _write_part(file: Path, part: Features) -> None:
    run_folder.make(file.parent)
    tensors = {"mean": part.mean, "labels": part.labels}
    if part.cls is not None:
        tensors["cls"] = part.cls
    metadata = {"skipped": json.dumps(part.skipped)}
    atomic.write_bytes(file, safetensors.torch.save(tensors, metadata=metadata))


def _is_complete(file: Path) -> bool:
    """Whether `_write_part` finished a file, judged by its header alone."""
    try:
        with safetensors.safe_open(file, "pt") as opened:  # compares the file's size
            return {"mean", "labels"} <= set(opened.keys()) and "skipped" in opened.metadata()
    except (OSError, TypeError, safetensors.SafetensorError):
        return False


def _read_part(file: Path) -> Features | None:
    """Read a file of `_write_part`; None if it is missing or damaged."""
    try:
        with safetensors.safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            skipped = json.loads(opened.metadata()["skipped"])
        return Features(
            tensors["mean"], tensors.get("cls"), tensors["labels"], [Skipped(*s) for s in skipped]
        )
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
        return None


def require_readable(source: Source, skipped: list[Skipped]) -> None:
    """Stop if more than half of the images cannot be read.

    Raises:
        UserError: They cannot be read.
    """
    if len(skipped) > len(source) / 2:
        raise UserError(
            f"{len(skipped)} of the {len(source)} images of {source.name} cannot be read, for "
            f"example {skipped[0].path} ({skipped[0].reason})"
        )
