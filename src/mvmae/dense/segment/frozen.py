"""Quick checks of a frozen encoder: a linear layer, or nearest neighbours, name its patches."""

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
from mvmae.data.annotations.masks import ImageMaskPairs, SegmentationData
from mvmae.data.reading.decode import Pixels
from mvmae.data.reading.loader import Skipped
from mvmae.dense.saved_model import require_8_bit
from mvmae.dense.segment import report
from mvmae.dense.segment.crops import WholeImage, crop_batches, patch_classes, whole_images
from mvmae.dense.segment.crops import resize_classes as resized
from mvmae.dense.segment.evaluate import Evaluation, evaluate, evenly_spaced, label_pixels
from mvmae.dense.segment.model import FrozenMap, LinearSegmenter, pixel_loss
from mvmae.dense.segment.opening import data_name, describe_data, describe_values, open_segmented
from mvmae.dense.segment.state import examiner_of, for_crops, training_of
from mvmae.encoders import OpenedEncoder
from mvmae.errors import UserError
from mvmae.evaluation.shared import short_name
from mvmae.figures.segmentation import Shown
from mvmae.method.views import normalized, resize
from mvmae.metrics.knn import knn_votes, nearest_neighbours
from mvmae.metrics.miou import pixel_confusion
from mvmae.storage import results
from mvmae.terminal import Bar
from mvmae.training import distributed, precision
from mvmae.training.optim import adamw, set_lr
from mvmae.training.schedule import warmup_cosine
from mvmae.training.state import State

IMAGES = 16  # whose patches are searched for together


class Setting(NamedTuple):
    """What is judged, on what."""

    config: SegmentConfig
    opened: OpenedEncoder
    data: SegmentationData
    device: torch.device


class Row(NamedTuple):
    """One line of a result: figures in percent."""

    name: str
    miou: float
    mean_accuracy: float
    pixel_accuracy: float


def run(config: SegmentConfig) -> None:
    """Print and keep the mIoU of a frozen encoder, and of one that was never trained.

    Raises:
        UserError: The encoder or the images with masks cannot be used.
    """
    if distributed.announced_world_size() > 1:
        raise UserError(f"--protocol {config.protocol} runs in one process: start without torchrun")
    began, device = time.perf_counter(), precision.choose_device(config.device)
    home = results.home(config.encoder, config.out)
    opened = require_8_bit(encoders.open_encoder(config.encoder), config.encoder)
    opened = for_crops(config, opened)
    data, checked = open_segmented(config, opened.encoder.in_channels)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(describe_data(data, checked))
    console.print(f"values in the masks: {describe_values(checked, data.classes)}")

    judge = evaluate_linear if config.protocol == "linear" else evaluate_knn
    candidates = [(config.encoder, opened)]
    if config.baselines:
        like = encoders.untrained_copy(opened.encoder, config.seed)
        candidates.append(("the same, untrained", opened._replace(encoder=like)))
    rows, judged = [], []
    for name, one in candidates:
        judged.append(judge(Setting(config, one, data, device), name))
        rows.append(Row(name, **judged[-1].figures()))

    what = f"segment-{config.protocol}"
    title = f"{config.protocol} segmentation on {data_name(config)}, the encoder frozen"
    console.print(f"\n{title}", style="bold")
    Console().print(rows_table(rows))
    console.print(f"in %, over the pixels of all {len(data.test)} test images")
    content = report.result_content(judged[0], data) | {
        "rows": [row._asdict() for row in rows],
        "seconds": round(time.perf_counter() - began, 1),
    }
    file = report.write_result(home, config, content, device, what=what)
    picture = report.write_picture(
        home, judged[0], data, title=f"{config.encoder}: {title}", name=what
    )
    console.print(f"written: {file} and {picture}")


def evaluate_linear(setting: Setting, name: str) -> Evaluation:
    """Train a linear layer on random crops, then test as UperNet is tested.

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
    batches = crop_batches(
        data.train,
        training_of(replace(config, batch_size=batch_size), opened),
        range(total),
        rank=0,
        world_size=1,
        workers=config.workers,
        cuda=device.type == "cuda",
    )
    (mean, std, _), state = opened.preprocessing, State()
    with Bar(total + len(data.test)) as bar:
        bar.name(short_name(name))
        for step, batch in enumerate(batches):
            state.note_reading(len(batch.images), batch.skipped, is_whole=batch.is_whole)
            rate = warmup_cosine(step, peak=config.linear_lr, warmup_steps=0, total_steps=total)
            set_lr(optimizer, rate)
            images = normalized(batch.images, mean, std, device)
            with precision.autocast(device, config.precision):
                scores = model(images).main
            loss = pixel_loss(scores, batch.classes.to(device).long())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            bar.advance(1)
        examiner = examiner_of(config, opened, model, device, multi_scale=config.multi_scale)
        judgement = evaluate(
            examiner, data.test, len(data.classes), workers=config.workers, advance=bar.advance
        )
    return judgement._replace(skipped=[*_skips(state), *judgement.skipped])


def _skips(state: State) -> list[Skipped]:
    return [Skipped(*skip) for skip in dict(state.skipped).items()]


class Bank(NamedTuple):
    """Patches of training images."""

    tokens: Float[Tensor, "M D"]
    classes: Int[Tensor, " M"]
    skipped: list[Skipped]


def evaluate_knn(setting: Setting, name: str) -> Evaluation:
    """Name each patch by the training patches that are most like it; no weight is trained."""
    _, opened, data, device = setting
    model = FrozenMap(opened.encoder).to(device).eval()
    count = len(data.classes)
    confusion = torch.zeros(count, count, dtype=torch.int64)
    drawn, shown = evenly_spaced(list(range(len(data.test)))), []
    with Bar(len(data.train) + len(data.test)) as bar:
        bar.name(short_name(name))
        bank = build_bank(setting, model, bar)
        skipped = list(bank.skipped)
        images = _whole(setting, data.test)
        while group := list(islice(images, IMAGES)):
            bar.advance(len(group))
            skipped += [skip for whole in group for skip in whole.skipped]
            read = [(w.index, w.image, w.classes) for w in group if w.image is not None]
            maps = [patch_map(setting, model, image) for _, image, _ in read]
            votes = vote(setting, bank, maps)
            for (index, image, truth), scores in zip(read, votes, strict=True):
                assert truth is not None
                classes = label_pixels(scores, (truth.shape[0], truth.shape[1]))
                confusion += pixel_confusion(classes, truth, count)
                if index in drawn:
                    shown.append(Shown(data.test.path(index), image, truth, classes))
    return Evaluation(confusion, skipped, shown)


def _whole(setting: Setting, pairs: ImageMaskPairs) -> Iterator[WholeImage]:
    config = setting.config
    return iter(
        whole_images(
            pairs,
            short_side=config.short_side,
            interpolation=setting.opened.preprocessing.interpolation,
            workers=config.workers,
            cuda=setting.device.type == "cuda",
        )
    )


def build_bank(setting: Setting, model: FrozenMap, bar: Bar) -> Bank:
    """Tokens of training images, as many of each, drawn by (seed, image).

    A patch has the class of most of its pixels that count; one without any is left out.

    Raises:
        UserError: There is none.
    """
    config, data = setting.config, setting.data
    most = ceil(config.bank_size / len(data.train))
    tokens, classes, skipped = [], [], []
    for whole in _whole(setting, data.train):
        bar.advance(1)
        skipped += whole.skipped
        if whole.image is None or whole.classes is None:
            continue
        found = patch_map(setting, model, whole.image)
        patch = setting.opened.encoder.patch_size
        size = (found.shape[1] * patch, found.shape[2] * patch)
        own = patch_classes(resized(whole.classes, size), patch, len(data.classes)).long()
        places = (own >= 0).nonzero()[:, 0]
        rng = np.random.default_rng((config.seed, whole.index))
        chosen = places[torch.from_numpy(rng.permutation(len(places))[:most]).sort().values]
        tokens.append(found.flatten(1).T[chosen])
        classes.append(own[chosen])
    if not tokens:
        raise UserError(f"no training image of {data.name} can be read: {skipped[0].reason}")
    return Bank(
        *sample_patches(torch.cat(tokens), torch.cat(classes), config.bank_size, config.seed),
        skipped,
    )


def sample_patches(
    tokens: Float[Tensor, "N D"], classes: Int[Tensor, " N"], most: int, seed: int
) -> tuple[Float[Tensor, "M D"], Int[Tensor, " M"]]:
    """At most so many of the patches, of all images alike, in their order."""
    if len(tokens) <= most:
        return tokens, classes
    places = np.random.default_rng(seed).permutation(len(tokens))[:most]
    kept = torch.from_numpy(places).sort().values
    return tokens[kept], classes[kept]


def patch_map(setting: Setting, model: FrozenMap, image: Pixels) -> Float[Tensor, "D h w"]:
    """Patch tokens of a whole image, resized to the nearest size that the patch divides."""
    mean, std, interpolation = setting.opened.preprocessing
    patch = setting.opened.encoder.patch_size
    size = [max(1, round(side / patch)) * patch for side in image.shape[1:]]
    image = resize(image, size, interpolation)
    with (
        torch.inference_mode(),
        precision.autocast(setting.device, setting.config.precision),
    ):
        return model(normalized(image[None], mean, std, setting.device))[0].float().cpu()


def vote(setting: Setting, bank: Bank, maps: list[Tensor]) -> Iterator[Float[Tensor, "K h w"]]:
    """Each class's share of the votes, for the patches of each map."""
    if not maps:
        return
    config = setting.config
    queries = torch.cat([one.flatten(1).T for one in maps])
    near = nearest_neighbours(bank.tokens, queries, config.k, device=setting.device)
    votes = knn_votes(
        near,
        bank.classes,
        len(setting.data.classes),
        k=config.k,
        temperature=config.temperature,
    )
    shares = votes.clamp(min=0)  # a class without a neighbour has -inf
    shares = shares / shares.sum(dim=1, keepdim=True)
    for one, part in zip(maps, shares.split([m[0].numel() for m in maps]), strict=True):
        yield part.T.unflatten(1, one.shape[1:])


def rows_table(rows: list[Row]) -> Table:
    """The rows for the terminal."""
    table = Table()
    table.add_column("encoder")
    for column in ("mIoU", "mean accuracy", "pixel accuracy"):
        table.add_column(column, justify="right")
    for row in rows:
        figures: list[Any] = [f"{value:.1f}" for value in row[1:]]
        table.add_row(escape(short_name(row.name)), *figures)
    return table
