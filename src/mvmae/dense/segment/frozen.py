"""Quick checks of a frozen encoder: a linear layer, or nearest neighbours, classify its patches.

Shapes: M stored patches, N patches of an image, D width, K classes, h x w patches.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int16
from torch import Generator, Tensor

from mvmae import encoders, terminal
from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.mask_values import IGNORED
from mvmae.data.annotations.masks import SegmentationData
from mvmae.data.reading.decode import Pixels
from mvmae.data.reading.loader import Skipped
from mvmae.dense.saved_model import Predictor, require_single_process
from mvmae.dense.segment.data import crop_batches, open_segmentation, read_images, resize_classes
from mvmae.dense.segment.evaluate import Evaluation, Size, evaluate, label_pixels, write_outputs
from mvmae.dense.segment.model import FrozenMap, LinearSegmenter, pixel_loss
from mvmae.dense.train import build_table, fit_encoder, percent, require_8_bit
from mvmae.errors import UserError
from mvmae.evaluation.result_text import short_name
from mvmae.method.views import normalize, resize
from mvmae.metrics.knn import knn_votes, nearest_neighbours
from mvmae.storage import results
from mvmae.training import precision
from mvmae.training.loop import is_mostly_unreadable, unreadable_error
from mvmae.training.optim import adamw, set_lr
from mvmae.training.plan import warmup_cosine

SEARCH_BATCH = 16  # images whose patches are searched for at once


def run(config: SegmentConfig) -> None:
    """Print and keep the mIoU of a frozen encoder, and of an untrained one.

    Raises:
        UserError: The encoder or the images with masks cannot be used.
    """
    require_single_process(f"--protocol {config.protocol}")
    began, device = time.perf_counter(), precision.choose_device(config.device)
    folder = results.home(config.encoder, config.out)
    opened = require_8_bit(encoders.open_encoder(config.encoder), config.encoder)
    opened = fit_encoder(opened, "crop", config.crop, 1)
    data, description = open_segmentation(config, opened.encoder.in_channels)
    console = terminal.console()
    console.print(description)

    candidates = [(config.encoder, opened)]
    if config.baselines:
        untrained = encoders.untrained_copy(opened.encoder, config.seed)
        candidates.append(("the same, untrained", opened._replace(encoder=untrained)))
    evaluate_frozen = evaluate_linear if config.protocol == "linear" else evaluate_knn
    evaluations, rows, cells = [], [], []
    for name, one in candidates:
        evaluations.append(evaluate_frozen(Predictor(one.encoder, one, config, device), data, name))
        figures = evaluations[-1].figures()
        rows.append({"name": name, **figures})
        cells.append((short_name(name), *map(percent, figures.values())))

    title = f"{config.protocol} segmentation on {data.name}, frozen encoder"
    console.print(f"\n{title}", style="bold")
    columns = ("encoder", "mIoU", "mean accuracy", "pixel accuracy")
    terminal.print_table(build_table(columns, cells))
    console.print(f"in %, over the pixels of all {len(data.test)} test images")
    facts = {"rows": rows, "seconds": round(time.perf_counter() - began, 1)}
    name, title = f"segment-{config.protocol}", f"{config.encoder}: {title}"
    write_outputs(folder, name, title, config, device, data, evaluations[0], **facts)


def evaluate_linear(predictor: Predictor, data: SegmentationData, name: str) -> Evaluation:
    """Train a linear layer on random crops, then evaluate by sliding windows as for UperNet.

    Raises:
        UserError: Most images cannot be read.
    """
    _, opened, config, device = predictor
    batch_size = min(config.batch_size, len(data.train))
    total = config.epochs * (len(data.train) // batch_size)
    generator = Generator().manual_seed(config.seed)
    model = LinearSegmenter(opened.encoder, len(data.classes), generator).to(device)
    optimizer = adamw(
        model, lr=config.linear_lr, betas=config.betas, weight_decay=config.weight_decay
    )
    batches = crop_batches(
        data.train,
        replace(config, batch_size=batch_size),
        opened.preprocessing,
        range(total),
        cuda=device.type == "cuda",
    )
    mean, std, _ = opened.preprocessing
    skipped, attempts = [], 0
    with terminal.Bar(total + len(data.test)) as bar:
        bar.name(short_name(name))
        for step, batch in enumerate(batches):
            skipped += batch.skipped
            attempts += len(batch.images) + len(batch.skipped)
            if not batch.is_whole or is_mostly_unreadable(len(skipped), attempts):
                raise unreadable_error(len(skipped), attempts, skipped[-1])
            lr = warmup_cosine(step, peak=config.linear_lr, warmup_steps=0, total_steps=total)
            set_lr(optimizer, lr)
            images = normalize(batch.images, mean, std, device)
            with precision.autocast(device, config.precision):
                scores = model(images).main
            loss = pixel_loss(scores, batch.targets.to(device).long())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            bar.advance(1)
        predictor = predictor._replace(model=model)
        evaluation = evaluate(predictor, data.test, len(data.classes), bar.advance)
    # A training image is skipped in every epoch, but counts once.
    distinct = [Skipped(*skip) for skip in dict(skipped).items()]
    return evaluation._replace(skipped=[*distinct, *evaluation.skipped])


class Bank(NamedTuple):
    """Patches of training images with their classes."""

    tokens: Float[Tensor, "M D"]
    classes: Int[Tensor, " M"]
    skipped: list[Skipped]


def evaluate_knn(predictor: Predictor, data: SegmentationData, name: str) -> Evaluation:
    """Classify each patch by its nearest training patches; nothing is trained.

    Raises:
        UserError: No training image, or fewer than half of the test images, can be read.
    """
    model = FrozenMap(predictor.opened.encoder).to(predictor.device).eval()
    config = replace(predictor.config, multi_scale=False)  # patches are those of one scale
    predictor, num_classes = predictor._replace(model=model, config=config), len(data.classes)
    with terminal.Bar(len(data.train) + len(data.test)) as bar:
        bar.name(short_name(name))
        bank = build_bank(predictor, data, bar)
        predict = partial(classify_patches, predictor, bank, num_classes)
        evaluation = evaluate(predictor, data.test, num_classes, bar.advance, predict, SEARCH_BATCH)
    return evaluation._replace(skipped=[*bank.skipped, *evaluation.skipped])


def build_bank(predictor: Predictor, data: SegmentationData, bar: terminal.Bar) -> Bank:
    """Collect tokens of training images, the same number of each, drawn by (seed, image).

    A patch has the class of most of its pixels that count; patches without any are left out.

    Raises:
        UserError: No training image can be read.
    """
    config, patch_size = predictor.config, predictor.opened.encoder.patch_size
    per_image = ceil(config.bank_size / len(data.train))
    tokens, classes, skipped = [], [], []
    for whole in read_images(predictor, data.train, range(len(data.train))):
        bar.advance(1)
        skipped += whole.skipped
        if whole.content is None:
            continue
        image, truth = whole.content
        features = patch_map(predictor, image)
        size = (features.shape[1] * patch_size, features.shape[2] * patch_size)
        labels = patch_classes(resize_classes(truth, size), patch_size, len(data.classes)).long()
        usable = (labels >= 0).nonzero()[:, 0]
        # Few patches of each image, so that memory does not grow with the number of images.
        rng = np.random.default_rng((config.seed, whole.index))
        chosen = usable[torch.from_numpy(rng.permutation(len(usable))[:per_image]).sort().values]
        tokens.append(features.flatten(1).T[chosen])
        classes.append(labels[chosen])
    if not tokens:
        raise UserError(f"no training image of {data.name} can be read: {skipped[0].reason}")
    sample = sample_patches(torch.cat(tokens), torch.cat(classes), config.bank_size, config.seed)
    return Bank(*sample, skipped)


def patch_classes(
    classes: Int16[Tensor, "H W"], patch_size: int, num_classes: int
) -> Int16[Tensor, " N"]:
    """Return each patch's most frequent class; `IGNORED` if none of its pixels counts."""
    rows, columns = classes.shape[0] // patch_size, classes.shape[1] // patch_size
    patches = classes.unflatten(0, (rows, patch_size)).unflatten(2, (columns, patch_size))
    patches = patches.transpose(1, 2).reshape(rows * columns, -1).long()
    # One bincount for all patches: each has its own range of num_classes + 1 numbers.
    numbers = torch.arange(rows * columns)[:, None] * (num_classes + 1) + patches - IGNORED
    counts = torch.bincount(numbers.flatten(), minlength=rows * columns * (num_classes + 1))
    counts = counts.view(-1, num_classes + 1)[:, 1:]
    return torch.where(counts.sum(dim=1) > 0, counts.argmax(dim=1), IGNORED).to(torch.int16)


def sample_patches(
    tokens: Float[Tensor, "N D"], classes: Int[Tensor, " N"], max_count: int, seed: int
) -> tuple[Float[Tensor, "M D"], Int[Tensor, " M"]]:
    """Sample at most `max_count` patches, evenly over the images, keeping their order."""
    indices = np.random.default_rng(seed).permutation(len(tokens))[:max_count]
    kept = torch.from_numpy(indices).sort().values
    return tokens[kept], classes[kept]


def patch_map(predictor: Predictor, image: Pixels) -> Float[Tensor, "D h w"]:
    """Return the patch tokens of a whole image, resized to the nearest multiple of the patch."""
    model, opened, config, device = predictor
    mean, std, interpolation = opened.preprocessing
    patch_size = opened.encoder.patch_size
    height, width = (max(1, round(side / patch_size)) * patch_size for side in image.shape[1:])
    image = resize(image, (height, width), interpolation)
    with torch.inference_mode(), precision.autocast(device, config.precision):
        return model(normalize(image[None], mean, std, device))[0].float().cpu()


def classify_patches(
    predictor: Predictor,
    bank: Bank,
    num_classes: int,
    images: list[Pixels],
    sizes: list[Size],
) -> Iterator[Int16[Tensor, "H W"]]:
    """Yield the classes of images at the given sizes, by the votes for each of their patches."""
    if not images:  # none of them could be read
        return
    config = predictor.config
    maps = [patch_map(predictor, image) for image in images]
    queries = torch.cat([features.flatten(1).T for features in maps])
    near = nearest_neighbours(bank.tokens, queries, config.k, device=predictor.device)
    votes = knn_votes(near, bank.classes, num_classes, k=config.k, temperature=config.temperature)
    shares = votes.clamp(min=0)  # a class without a neighbour has -inf
    shares = shares / shares.sum(dim=1, keepdim=True)
    counts = [features[0].numel() for features in maps]
    for features, own, size in zip(maps, shares.split(counts), sizes, strict=True):
        yield label_pixels(own.T.unflatten(1, features.shape[1:]), size)
