"""Train UperNet on an encoder as BEiT does, check a frozen encoder, or apply a finished run.

Read `run`, then `dense/train.py`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.mask_check import CheckedMasks
from mvmae.data.annotations.masks import fingerprint
from mvmae.dense.segment import frozen, predict, report, test_run
from mvmae.dense.segment.crops import (
    CropBatch,
    crop_batches,
    resize_to_crop,
)
from mvmae.dense.segment.data import open_segmentation
from mvmae.dense.segment.evaluate import Evaluation, Predictor, evaluate
from mvmae.dense.segment.model import Segmenter, pixel_loss
from mvmae.dense.segment.report import SegmentJob
from mvmae.dense.train import (
    Job,
    Task,
    Trained,
    build_trained,
    load_initial_encoder,
    optimise,
    train,
)
from mvmae.method.views import normalized
from mvmae.training import precision
from mvmae.training.plan import Plan, steps_per_epoch, warmup_poly

DEFAULT_OUT = Path("runs/segment")


def run(config: SegmentConfig) -> int:
    """Train a segmenter, evaluate a frozen encoder, or test or apply a finished run.

    Returns:
        0 when done; 130 or 143 when stopped by SIGINT or SIGTERM, with the state saved.

    Raises:
        UserError: The encoder, the data, the folder or the settings cannot work.
    """
    if config.predict is not None:
        predict.run(config)
    elif config.protocol == "test":
        test_run.run(config)
    elif config.protocol != "upernet":
        frozen.run(config)
    else:
        return train(replace(config, out=config.out or DEFAULT_OUT), open_task)
    return 0


def open_task(config: SegmentConfig, device: torch.device) -> Task:
    """Open encoder and data, and build the segmenter.

    Raises:
        UserError: Something cannot be opened, or there are too few images for a batch.
    """
    job, checked = open_job(config, device)
    opened = job.opened
    patch_size, preprocessing, data = opened.encoder.patch_size, opened.preprocessing, job.data
    trained = build_trained(build_model(job), job)

    def evaluate_model(is_last: bool) -> Evaluation:
        multi_scale = config.multi_scale and is_last
        predictor = Predictor(trained.model, patch_size, preprocessing, config, device, multi_scale)
        return evaluate(predictor, data.test, len(data.classes))

    return Task(
        command="segment",
        job=job,
        trained=trained,
        losses=("loss", "main", "auxiliary") if config.auxiliary_weight else ("loss", "main"),
        learning_rate=partial(
            warmup_poly,
            peak=config.lr,
            warmup_steps=config.warmup_iterations,
            total_steps=job.plan.total,
            power=config.power,
        ),
        batches=partial(crop_batches, data.train, config, preprocessing),
        training_step=training_step,
        evaluate=evaluate_model,
        draw=lambda evaluation, title: report.draw_evaluation(evaluation, data, title),
        picture="segmentations",
        save_model=lambda: predict.save_segmenter(job, trained.model),
        report_start=partial(report.report_start, job, checked, trained.model),
        report_result=partial(report.report_result, job),
    )


def open_job(config: SegmentConfig, device: torch.device) -> tuple[SegmentJob, CheckedMasks]:
    """Open the encoder, check every image with its mask, and count the steps.

    Raises:
        UserError: Something cannot be opened, or there are too few images for a batch.
    """
    opened = resize_to_crop(config, load_initial_encoder(config))
    data, checked = open_segmentation(config, opened.encoder.in_channels)
    plan = Plan(
        per_epoch=steps_per_epoch(len(data.train), config.batch_size, config.accumulate),
        total=config.iterations,
        batch_size=config.batch_size,
        fingerprint=fingerprint(data),
        eval_every=config.eval_every,
    )
    return Job(config, opened, data, plan, device), checked


def build_model(job: SegmentJob) -> nn.Module:
    """Build the segmenter around the encoder."""
    config = job.config
    return Segmenter(
        job.opened.encoder,
        len(job.data.classes),
        channels=config.channels,
        auxiliary_channels=config.auxiliary_channels if config.auxiliary_weight else None,
        dropout=config.dropout,
        drop_path=config.drop_path,
        recompute=config.recompute,
        generator=Generator().manual_seed(config.seed),
    )


def training_step(
    wrapped: nn.Module, trained: Trained, batch: CropBatch, job: SegmentJob, step: int
) -> Float[Tensor, " losses"]:
    """Update the weights once; returns the loss, then the losses of both heads."""
    config, (mean, std, _), device = job.config, job.opened.preprocessing, job.device
    images = normalized(batch.images, mean, std, device)
    classes = batch.classes.to(device, non_blocking=True).long()

    def losses(part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, classes = part
        with precision.autocast(device, config.precision):
            scores = wrapped(images)
        terms = [pixel_loss(scores.main, classes)]
        loss = terms[0]
        if scores.auxiliary is not None:
            terms.append(pixel_loss(scores.auxiliary, classes))
            loss = loss + config.auxiliary_weight * terms[1]
        return loss, torch.stack([loss, *terms])

    count = config.accumulate
    parts = zip(images.tensor_split(count), classes.tensor_split(count), strict=True)
    return optimise(trained, job, step, [(len(part[0]), part) for part in parts], losses)
