"""Train Mask R-CNN on an encoder, or apply a finished run. Read `run`, then `dense/train.py`."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mvmae import terminal
from mvmae.config.detect import DetectConfig
from mvmae.dense import train
from mvmae.dense.backbone import SCALES
from mvmae.dense.batches import TrainingBatch
from mvmae.dense.detect import predict, report
from mvmae.dense.detect.data import DetectJob, jitter_batches, open_detection
from mvmae.dense.detect.evaluate import evaluate
from mvmae.dense.detect.model import build_detector, detector_shape
from mvmae.errors import UserError
from mvmae.method.views import normalize
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
    task = train.Task(
        command="detect",
        picture="detections",
        open_job=open_job,
        learning_rate=learning_rate,
        batches=jitter_batches,
        training_step=training_step,
        evaluate=evaluate,
        draw=report.draw_evaluation,
        save_model=predict.save_detector,
        report=report.report,
        hint="Detect objects in other images",
    )
    return train.train(config, task)


def open_job(config: DetectConfig, device: torch.device) -> DetectJob:
    """Open the encoder, check the images and every annotation, and build the detector.

    Raises:
        UserError: Something cannot be opened, or there are too few images for a batch.
    """
    # The maps of all levels must have whole sides; the pooled one's stride is four patches.
    opened = train.fit_encoder(
        train.load_initial_encoder(config), "image_size", config.image_size, 4
    )
    depth = opened.encoder.size.depth
    if config.pyramid == "fpn" and depth < len(SCALES):
        raise UserError(
            f"ENCODER has {depth} blocks, and the FPN needs {len(SCALES)}: set --pyramid simple"
        )
    data = open_detection(config, opened.encoder.in_channels)
    warning = report.small_box_warning(data.train, config.image_size, opened.encoder.patch_size)
    if warning and distributed.is_main():
        terminal.warn(warning)
    epoch = steps_per_epoch(len(data.train), config.batch_size, config.accumulate)
    plan = Plan(
        per_epoch=epoch,
        total=config.epochs * epoch,
        batch_size=config.batch_size,
        fingerprint=f"{data.train.fingerprint()}-{data.test.fingerprint()}",
        eval_every=config.eval_every * epoch,
    )
    detector = build_detector(
        opened.encoder,
        detector_shape(config, len(data.train.classes), with_masks=data.train.with_masks),
        seed=config.seed,
        drop_path=config.drop_path,
        recompute=config.recompute,
    )
    introduction = report.introduce(config, data, plan, detector)
    model, optimizer = train.prepare_model(detector, config, device)
    return train.Job(config, opened, data, plan, device, model, optimizer, introduction)


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


def training_step(
    wrapped: nn.Module, batch: TrainingBatch, job: DetectJob, step: int
) -> dict[str, Float[Tensor, ""]]:
    """Update the weights once; returns the sum of the losses, then each (all of weight 1)."""
    config, (mean, std, _), device = job.config, job.opened.preprocessing, job.device
    # One at a time and as a list: images differ in size, and the model pads them.
    images = [normalize(image[None], mean, std, device)[0] for image in batch.images]
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
    terms = train.update_weights(job, step, [(len(part), part) for part in parts], losses)
    return {"loss": torch.stack(list(terms.values())).sum()} | terms
