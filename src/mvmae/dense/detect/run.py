"""Train Mask R-CNN on an encoder, or apply a finished run. Read `run`, then `dense/train.py`."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mvmae import encoders, terminal
from mvmae.config.detect import DetectConfig
from mvmae.dense.backbone import SCALES
from mvmae.dense.batches import TrainingBatch
from mvmae.dense.detect import predict, report
from mvmae.dense.detect.data import jitter_batches, open_detection
from mvmae.dense.detect.evaluate import Evaluation, evaluate
from mvmae.dense.detect.model import build_detector, detector_shape
from mvmae.dense.detect.report import DetectJob
from mvmae.dense.saved_model import Predictor
from mvmae.dense.train import Job, Task, load_initial_encoder, optimise, prepare_model, train
from mvmae.encoders import OpenedEncoder
from mvmae.errors import UserError
from mvmae.method.views import normalized
from mvmae.training import distributed, precision
from mvmae.training.plan import Plan, steps_per_epoch, warmup_cosine, warmup_drops


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
    task = Task(
        command="detect",
        picture="detections",
        open_job=open_job,
        learning_rate=learning_rate,
        batches=jitter_batches,
        training_step=training_step,
        evaluate=evaluate_model,
        draw=report.draw_evaluation,
        save_model=predict.save_detector,
        report=report.report,
        hint="Detect objects in other images",
    )
    return train(config, task)


def open_job(config: DetectConfig, device: torch.device) -> DetectJob:
    """Open the encoder, check the images and every annotation, and build the detector.

    Raises:
        UserError: Something cannot be opened, or there are too few images for a batch.
    """
    opened = load_initial_encoder(config)
    require_whole_maps(config, opened)
    opened = opened._replace(encoder=encoders.resize_encoder(opened.encoder, config.image_size))
    data = open_detection(config, opened.encoder.in_channels)
    train, test = data
    warning = report.small_box_warning(train, config.image_size, opened.encoder.patch_size)
    if warning and distributed.is_main():
        terminal.warn(warning)
    epoch = steps_per_epoch(len(train), config.batch_size, config.accumulate)
    plan = Plan(
        per_epoch=epoch,
        total=config.epochs * epoch,
        batch_size=config.batch_size,
        fingerprint=f"{train.fingerprint()}-{test.fingerprint()}",
        eval_every=config.eval_every * epoch,
    )
    detector = build_detector(
        opened.encoder,
        detector_shape(config, len(train.classes), with_masks=train.with_masks),
        seed=config.seed,
        drop_path=config.drop_path,
        recompute=config.recompute,
    )
    introduction = report.introduce(config, data, plan, detector)
    model, optimizer = prepare_model(detector, config, device)
    return Job(config, opened, data, plan, device, model, optimizer, introduction)


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


def learning_rate(job: DetectJob, step: int) -> float:
    """Learning rate of the last layers in a step."""
    config, plan = job.config, job.plan
    warmup = config.warmup_steps
    if warmup is None:
        warmup = round(config.warmup_epochs * plan.per_epoch)
    times = {"peak": config.lr, "warmup_steps": warmup, "total_steps": plan.total}
    if config.schedule == "cosine":
        return warmup_cosine(step, **times)
    return warmup_drops(step, drops=config.drops, **times)


def evaluate_model(job: DetectJob, _is_last: bool) -> Evaluation | None:
    """Evaluate the model as it is now."""
    predictor = Predictor(job.model, job.opened, job.config, job.device)
    return evaluate(predictor, job.data.test)


def training_step(
    wrapped: nn.Module, batch: TrainingBatch, job: DetectJob, step: int
) -> dict[str, Float[Tensor, ""]]:
    """Update the weights once; returns the sum of the losses, then each (all of weight 1)."""
    config, (mean, std, _), device = job.config, job.opened.preprocessing, job.device
    images = [normalized(image[None], mean, std, device)[0] for image in batch.images]
    targets = [
        {
            name: value.to(device, non_blocking=True)
            for name, value in target._asdict().items()
            if value is not None  # no masks
        }
        for target in batch.targets
    ]

    def losses(part: np.ndarray) -> tuple[Tensor, dict[str, Tensor]]:
        with precision.autocast(device, config.precision):
            by_name = wrapped([images[at] for at in part], [targets[at] for at in part])
        terms = {name: value.float() for name, value in by_name.items()}
        return torch.stack(list(terms.values())).sum(), terms

    parts = np.array_split(np.arange(len(images)), config.accumulate)
    terms = optimise(job, step, [(len(part), part) for part in parts], losses)
    return {"loss": torch.stack(list(terms.values())).sum()} | terms
