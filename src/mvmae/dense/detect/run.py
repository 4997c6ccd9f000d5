"""Train Mask R-CNN on an encoder, or apply a finished run. Read `run`, then `dense/train.py`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mvmae import encoders
from mvmae.config.detect import DetectConfig
from mvmae.dense.detect import predict, report
from mvmae.dense.detect.batches import DetectionBatch, Target, training_batches
from mvmae.dense.detect.data import DetectionData, open_detection
from mvmae.dense.detect.evaluate import Detector, evaluate
from mvmae.dense.detect.model import DetectorShape, build_detector
from mvmae.dense.detect.report import DetectJob
from mvmae.dense.pyramid import SCALES
from mvmae.dense.train import (
    Job,
    Task,
    Trained,
    build_trained,
    load_initial_encoder,
    optimise,
    train,
)
from mvmae.encoders import OpenedEncoder
from mvmae.errors import UserError
from mvmae.method.views import normalized
from mvmae.training import precision
from mvmae.training.plan import Plan, steps_per_epoch, warmup_cosine, warmup_drops

DEFAULT_OUT = Path("runs/detect")
LOSSES = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")


def run(config: DetectConfig) -> int:
    """Train a detector, or apply a finished run with `--predict`.

    Returns:
        0 when done; 130 or 143 when stopped by SIGINT or SIGTERM, with the state saved.

    Raises:
        UserError: The encoder, the data, the folder or the settings cannot work.
    """
    if config.predict is not None:
        predict.run(config)
        return 0
    if not config.data:
        raise UserError(
            "no DATA: name a folder in COCO's layout (annotations/instances_train.json beside "
            "images/train, and the same for val), or --predict IMAGES"
        )
    return train(replace(config, out=config.out or DEFAULT_OUT), open_task)


def open_task(config: DetectConfig, device: torch.device) -> Task:
    """Open encoder and data, and build the detector.

    Raises:
        UserError: Something cannot be opened, or there are too few images for a batch.
    """
    job = open_job(config, device)
    data, shape = job.data, detector_shape(job)
    trained, preprocessing = build_trained(build_model(job), job), job.opened.preprocessing
    detector = Detector(trained.model, preprocessing, config, device)
    return Task(
        command="detect",
        job=job,
        trained=trained,
        losses=("loss", *loss_names(data)),
        learning_rate=partial(learning_rate, config, job.plan),
        batches=partial(training_batches, data.train, config, preprocessing.interpolation),
        training_step=training_step,
        evaluate=lambda is_last: evaluate(detector, data.test),
        draw=lambda evaluation, title: report.draw_evaluation(evaluation, data.test, title=title),
        picture="detections",
        save_model=lambda: predict.save_detector(job, shape, trained.model),
        report_start=partial(report.report_start, job, trained.model),
        report_result=partial(report.report_result, job),
    )


def open_job(config: DetectConfig, device: torch.device) -> DetectJob:
    """Open the encoder, check the images and every annotation, and count the steps.

    Raises:
        UserError: Something cannot be opened, or there are too few images for a batch.
    """
    opened = load_initial_encoder(config)
    require_whole_maps(config, opened)
    opened = opened._replace(encoder=encoders.resize_encoder(opened.encoder, config.image_size))
    data = open_detection(config, opened.encoder.in_channels)
    epoch = steps_per_epoch(len(data.train), config.batch_size, config.accumulate)
    plan = Plan(
        per_epoch=epoch,
        total=config.epochs * epoch,
        batch_size=config.batch_size,
        fingerprint=data.fingerprint,
        eval_every=config.eval_every * epoch,
    )
    return Job(config, opened, data, plan, device)


def require_whole_maps(config: DetectConfig, opened: OpenedEncoder) -> None:
    """Require that the maps of all levels have whole sides, and four blocks for the FPN.

    Raises:
        UserError: The image size or the encoder's depth does not fit.
    """
    patch_size, depth = opened.encoder.patch_size, opened.encoder.size.depth
    coarsest = 4 * patch_size  # stride of the pooled level, in pixels
    if config.image_size % coarsest:
        nearest = max(1, round(config.image_size / coarsest)) * coarsest
        raise UserError(
            f"image_size {config.image_size} is not a multiple of {coarsest}, four patches of "
            f"ENCODER: set --image-size {nearest}"
        )
    if config.pyramid == "fpn" and depth < len(SCALES):
        raise UserError(
            f"ENCODER has {depth} blocks, and the FPN needs {len(SCALES)}: set --pyramid simple"
        )


def detector_shape(job: DetectJob) -> DetectorShape:
    """Return the architecture to build on the encoder."""
    config, data = job.config, job.data
    same = {name: getattr(config, name) for name in DetectorShape._fields if hasattr(config, name)}
    return DetectorShape(
        num_classes=len(data.train.classes),
        side=config.image_size,
        with_masks=data.with_masks,
        **same,
    )


def build_model(job: DetectJob) -> nn.Module:
    """Build the detector on a copy of the encoder."""
    config = job.config
    return build_detector(
        job.opened.encoder,
        detector_shape(job),
        seed=config.seed,
        drop_path=config.drop_path,
        recompute=config.recompute,
    )


def loss_names(data: DetectionData) -> tuple[str, ...]:
    """Names of the losses that torchvision returns."""
    return tuple(name for name in LOSSES if data.with_masks or name != "loss_mask")


def learning_rate(config: DetectConfig, plan: Plan, step: int) -> float:
    """Learning rate of the last layers in a step."""
    warmup = config.warmup_steps
    if warmup is None:
        warmup = round(config.warmup_epochs * plan.per_epoch)
    times = {"peak": config.lr, "warmup_steps": warmup, "total_steps": plan.total}
    if config.schedule == "cosine":
        return warmup_cosine(step, **times)
    return warmup_drops(step, drops=config.drops, **times)


def training_step(
    wrapped: nn.Module,
    trained: Trained,
    batch: DetectionBatch,
    job: DetectJob,
    step: int,
) -> Float[Tensor, " losses"]:
    """Update the weights once; returns the sum of the losses, then each (all of weight 1)."""
    config, (mean, std, _), device = job.config, job.opened.preprocessing, job.device
    images = [normalized(image[None], mean, std, device)[0] for image in batch.images]
    targets = [to_device(target, device) for target in batch.targets]
    names = loss_names(job.data)

    def losses(part: np.ndarray) -> tuple[Tensor, Tensor]:
        with precision.autocast(device, config.precision):
            by_name = wrapped([images[at] for at in part], [targets[at] for at in part])
        terms = torch.stack([by_name[name].float() for name in names])
        return terms.sum(), terms

    parts = np.array_split(np.arange(len(images)), config.accumulate)
    terms = optimise(trained, job, step, [(len(part), part) for part in parts], losses)
    return torch.cat([terms.sum()[None], terms])


def to_device(target: Target, device: torch.device) -> dict[str, Tensor]:
    """Convert ground truth to the dict that torchvision's detectors expect, on the device."""
    return {
        name: value.to(device, non_blocking=True)
        for name, value in target._asdict().items()
        if value is not None
    }
