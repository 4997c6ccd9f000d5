"""Quick checks of a frozen encoder: a linear layer, or nearest neighbours, classify its patches.

Shapes: M stored patches, N patches of an image, D width, K classes, h x w patches.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Generator, Tensor

from mvmae import encoders
from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.mask_check import describe_values
from mvmae.data.annotations.masks import ImageMaskPairs, SegmentationData
from mvmae.data.reading.decode import Pixels
from mvmae.data.reading.loader import Skipped
from mvmae.dense import predictions
from mvmae.dense.segment import crops, report
from mvmae.dense.segment.data import data_name, describe_data, open_segmentation
from mvmae.dense.segment.evaluate import (
    Evaluation,
    Predictor,
    evaluate,
    evenly_spaced,
    label_pixels,
)
from mvmae.dense.segment.model import FrozenMap, LinearSegmenter, pixel_loss
from mvmae.dense.train import require_8_bit
from mvmae.encoders import OpenedEncoder
from mvmae.errors import UserError
from mvmae.evaluation.result_text import short_name
from mvmae.figures.segmentation import Shown
from mvmae.method.views import normalized, resize
from mvmae.metrics.knn import knn_votes, nearest_neighbours
from mvmae.metrics.miou import pixel_confusion
from mvmae.storage import results
from mvmae.terminal import Bar
from mvmae.training import precision
from mvmae.training.loop import is_mostly_unreadable, unreadable_error
from mvmae.training.optim import adamw, set_lr
from mvmae.training.plan import warmup_cosine

SEARCH_BATCH = 16  # images whose patches are searched for at once


class Setting(NamedTuple):
    """An encoder and the data to evaluate it on."""

    config: SegmentConfig
    opened: OpenedEncoder
    data: SegmentationData
    device: torch.device


def run(config: SegmentConfig) -> None:
    """Print and keep the mIoU of a frozen encoder, and of an untrained one.

    Raises:
        UserError: The encoder or the images with masks cannot be used.
    """
    predictions.require_single_process(f"--protocol {config.protocol}")
    began, device = time.perf_counter(), precision.choose_device(config.device)
    folder = results.home(config.encoder, config.out)
    opened = require_8_bit(encoders.open_encoder(config.encoder), config.encoder)
    opened = crops.resize_to_crop(config, opened)
    data, checked = open_segmentation(config, opened.encoder.in_channels)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(describe_data(data, checked))
    console.print(f"values in the masks: {describe_values(checked, data.classes)}")

    evaluate_frozen = evaluate_linear if config.protocol == "linear" else evaluate_knn
    candidates = [(config.encoder, opened)]
    if config.baselines:
        untrained = encoders.untrained_copy(opened.encoder, config.seed)
        candidates.append(("the same, untrained", opened._replace(encoder=untrained)))
    rows, evaluations = [], []
    for name, candidate in candidates:
        evaluations.append(evaluate_frozen(Setting(config, candidate, data, device), name))
        rows.append({"name": name, **evaluations[-1].figures()})

    what = f"segment-{config.protocol}"
    title = f"{config.protocol} segmentation on {data_name(config)}, frozen encoder"
    console.print(f"\n{title}", style="bold")
    Console().print(rows_table(rows))
    console.print(f"in %, over the pixels of all {len(data.test)} test images")
    content = report.result_content(evaluations[0], data) | {
        "rows": rows,
        "seconds": round(time.perf_counter() - began, 1),
    }
    file = report.write_result(folder, config, content, device, what=what)
    picture = report.write_picture(
        folder, evaluations[0], data, title=f"{config.encoder}: {title}", name=what
    )
    console.print(f"written: {file} and {picture}")


def evaluate_linear(setting: Setting, name: str) -> Evaluation:
    """Train a linear layer on random crops, then evaluate by sliding windows as for UperNet.

    Raises:
        UserError: Most images cannot be read.
    """
    config, opened, data, device = setting
    batch_size = min(config.batch_size, len(data.train))
    total = config.epochs * (len(data.train) // batch_size)
    generator = Generator().manual_seed(config.seed)
    model = LinearSegmenter(opened.encoder, len(data.classes), generator).to(device)
    optimizer = adamw(
        model, lr=config.linear_lr, betas=config.betas, weight_decay=config.weight_decay
    )
    batches = crops.crop_batches(
        data.train,
        replace(config, batch_size=batch_size),
        opened.preprocessing,
        range(total),
        rank=0,
        world_size=1,
        cuda=device.type == "cuda",
    )
    mean, std, _ = opened.preprocessing
    skipped, attempts = [], 0
    with Bar(total + len(data.test)) as bar:
        bar.name(short_name(name))
        for step, batch in enumerate(batches):
            skipped += batch.skipped
            attempts += len(batch.images) + len(batch.skipped)
            if not batch.is_whole or is_mostly_unreadable(len(skipped), attempts):
                raise unreadable_error(len(skipped), attempts, skipped[-1])
            lr = warmup_cosine(step, peak=config.linear_lr, warmup_steps=0, total_steps=total)
            set_lr(optimizer, lr)
            images = normalized(batch.images, mean, std, device)
            with precision.autocast(device, config.precision):
                scores = model(images).main
            loss = pixel_loss(scores, batch.classes.to(device).long())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            bar.advance(1)
        patch_size, preprocessing = opened.encoder.patch_size, opened.preprocessing
        predictor = Predictor(model, patch_size, preprocessing, config, device, config.multi_scale)
        evaluation = evaluate(predictor, data.test, len(data.classes), bar.advance)
    # A training image is skipped in every epoch, but counts once.
    distinct = [Skipped(*skip) for skip in dict(skipped).items()]
    return evaluation._replace(skipped=[*distinct, *evaluation.skipped])


class Bank(NamedTuple):
    """Patches of training images with their classes."""

    tokens: Float[Tensor, "M D"]
    classes: Int[Tensor, " M"]
    skipped: list[Skipped]


def evaluate_knn(setting: Setting, name: str) -> Evaluation:
    """Classify each patch by its nearest training patches; nothing is trained.

    Raises:
        UserError: No training image can be read.
    """
    _, opened, data, device = setting
    model = FrozenMap(opened.encoder).to(device).eval()
    num_classes = len(data.classes)
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    drawn, shown = evenly_spaced(range(len(data.test))), []
    with Bar(len(data.train) + len(data.test)) as bar:
        bar.name(short_name(name))
        bank = build_bank(setting, model, bar)
        skipped = list(bank.skipped)
        images = _whole_images(setting, data.test)
        while group := list(islice(images, SEARCH_BATCH)):
            bar.advance(len(group))
            skipped += [skip for whole in group for skip in whole.skipped]
            readable = [(w.index, w.image, w.classes) for w in group if w.image is not None]
            maps = [patch_map(setting, model, image) for _, image, _ in readable]
            votes = vote(setting, bank, maps)
            for (index, image, truth), scores in zip(readable, votes, strict=True):
                assert truth is not None
                classes = label_pixels(scores, (truth.shape[0], truth.shape[1]))
                confusion += pixel_confusion(classes, truth, num_classes)
                if index in drawn:
                    shown.append(Shown(data.test.path(index), image, truth, classes))
    return Evaluation(confusion, skipped, shown)


def _whole_images(setting: Setting, pairs: ImageMaskPairs) -> Iterator[crops.WholeImage]:
    mode, cuda = setting.opened.preprocessing.interpolation, setting.device.type == "cuda"
    return iter(crops.whole_images(pairs, range(len(pairs)), setting.config, mode, cuda=cuda))


def build_bank(setting: Setting, model: FrozenMap, bar: Bar) -> Bank:
    """Collect tokens of training images, the same number of each, drawn by (seed, image).

    A patch has the class of most of its pixels that count; patches without any are left out.

    Raises:
        UserError: No training image can be read.
    """
    config, data = setting.config, setting.data
    patch_size = setting.opened.encoder.patch_size
    per_image = ceil(config.bank_size / len(data.train))
    tokens, classes, skipped = [], [], []
    for whole in _whole_images(setting, data.train):
        bar.advance(1)
        skipped += whole.skipped
        if whole.image is None or whole.classes is None:
            continue
        features = patch_map(setting, model, whole.image)
        size = (features.shape[1] * patch_size, features.shape[2] * patch_size)
        resized = crops.resize_classes(whole.classes, size)
        of_patches = crops.patch_classes(resized, patch_size, len(data.classes)).long()
        usable = (of_patches >= 0).nonzero()[:, 0]
        rng = np.random.default_rng((config.seed, whole.index))
        chosen = usable[torch.from_numpy(rng.permutation(len(usable))[:per_image]).sort().values]
        tokens.append(features.flatten(1).T[chosen])
        classes.append(of_patches[chosen])
    if not tokens:
        raise UserError(f"no training image of {data.name} can be read: {skipped[0].reason}")
    sample = sample_patches(torch.cat(tokens), torch.cat(classes), config.bank_size, config.seed)
    return Bank(*sample, skipped)


def sample_patches(
    tokens: Float[Tensor, "N D"], classes: Int[Tensor, " N"], max_count: int, seed: int
) -> tuple[Float[Tensor, "M D"], Int[Tensor, " M"]]:
    """Sample at most `max_count` patches, evenly over the images, keeping their order."""
    if len(tokens) <= max_count:
        return tokens, classes
    indices = np.random.default_rng(seed).permutation(len(tokens))[:max_count]
    kept = torch.from_numpy(indices).sort().values
    return tokens[kept], classes[kept]


def patch_map(setting: Setting, model: FrozenMap, image: Pixels) -> Float[Tensor, "D h w"]:
    """Return the patch tokens of a whole image, resized to the nearest multiple of the patch."""
    mean, std, interpolation = setting.opened.preprocessing
    patch_size = setting.opened.encoder.patch_size
    height, width = (max(1, round(side / patch_size)) * patch_size for side in image.shape[1:])
    image = resize(image, (height, width), interpolation)
    with (
        torch.inference_mode(),
        precision.autocast(setting.device, setting.config.precision),
    ):
        return model(normalized(image[None], mean, std, setting.device))[0].float().cpu()


def vote(setting: Setting, bank: Bank, maps: list[Tensor]) -> Iterator[Float[Tensor, "K h w"]]:
    """Yield each class's share of the neighbours' votes for the patches of each map."""
    if not maps:
        return
    config = setting.config
    queries = torch.cat([features.flatten(1).T for features in maps])
    neighbours = nearest_neighbours(bank.tokens, queries, config.k, device=setting.device)
    votes = knn_votes(
        neighbours,
        bank.classes,
        len(setting.data.classes),
        k=config.k,
        temperature=config.temperature,
    )
    shares = votes.clamp(min=0)  # a class without a neighbour has -inf
    shares = shares / shares.sum(dim=1, keepdim=True)
    counts = [features[0].numel() for features in maps]
    for features, of_map in zip(maps, shares.split(counts), strict=True):
        yield of_map.T.unflatten(1, features.shape[1:])


def rows_table(rows: list[dict[str, Any]]) -> Table:
    """Return the rows as a table for the terminal."""
    table = Table()
    table.add_column("encoder")
    for column in ("mIoU", "mean accuracy", "pixel accuracy"):
        table.add_column(column, justify="right")
    for row in rows:
        name, *metrics = row.values()
        table.add_row(escape(short_name(name)), *(f"{value:.1f}" for value in metrics))
    return table
