"""Train UperNet on an encoder as BEiT does, check a frozen encoder, or apply a finished run.

Read `run`, then `dense/train.py`.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.masks import fingerprint
from mvmae.dense import train
from mvmae.dense.batches import TrainingBatch
from mvmae.dense.saved_model import Predictor
from mvmae.dense.segment import finished, frozen
from mvmae.dense.segment.data import SegmentJob, crop_batches, open_segmentation
from mvmae.dense.segment.evaluate import Evaluation, draw, evaluate, report
from mvmae.dense.segment.model import Segmenter, pixel_loss
from mvmae.method.views import normalize
from mvmae.training import precision
from mvmae.training.plan import Plan, steps_per_epoch, warmup_poly


def run(config: SegmentConfig) -> int:
    """Train a segmenter, evaluate a frozen encoder, or test or apply a finished run.

    Returns:
        0 when done; 130 or 143 when stopped by SIGINT or SIGTERM, with the state saved.

    Raises:
        UserError: The encoder, the data, the folder or the settings cannot work.
    """
    if config.predict is not None:
        finished.predict(config)
    elif config.protocol == "test":
        finished.test(config)
    elif config.protocol != "upernet":
        frozen.run(config)
    else:
        task = train.Task(
            command="segment",
            picture="segmentations",
            open_job=open_job,
            learning_rate=learning_rate,
            batches=crop_batches,
            training_step=training_step,
            evaluate=evaluate_model,
            draw=lambda job, evaluation, title: draw(evaluation, job.data, title),
            save_model=finished.save_segmenter,
            report=report,
            hint="Segment other images",
        )
        return train.train(config, task)
    return 0


def open_job(config: SegmentConfig, device: torch.device) -> SegmentJob:
    """Open the encoder, check every image with its mask, and build the segmenter.

    Raises:
        UserError: Something cannot be opened, or there are too few images for a batch.
    """
    opened = train.fit_encoder(train.load_initial_encoder(config), "crop", config.crop, 1)
    data, description = open_segmentation(config, opened.encoder.in_channels)
    plan = Plan(
        per_epoch=steps_per_epoch(len(data.train), config.batch_size, config.accumulate),
        total=config.iterations,
        batch_size=config.batch_size,
        fingerprint=fingerprint(data),
        eval_every=config.eval_every,
    )
    segmenter = Segmenter(
        opened.encoder,
        len(data.classes),
        channels=config.channels,
        auxiliary_channels=config.auxiliary_channels if config.auxiliary_weight else None,
        dropout=config.dropout,
        drop_path=config.drop_path,
        recompute=config.recompute,
        generator=Generator().manual_seed(config.seed),
    )
    millions = sum(parameter.numel() for parameter in segmenter.parameters()) / 1e6
    introduction = (
        f"{description}\n"
        f"{config.encoder} with UperNet of {config.channels} channels, {millions:.1f} M "
        f"parameters, crops of {config.crop} pixels\n"
        f"{config.iterations} steps of {config.batch_size} crops, "
        f"{config.iterations / plan.per_epoch:.0f} epochs"
    )
    model, optimizer = train.prepare_model(segmenter, config, device)
    return train.Job(config, opened, data, plan, device, model, optimizer, introduction)


def learning_rate(job: SegmentJob, step: int) -> float:
    """Learning rate of the heads in a step."""
    return warmup_poly(
        step,
        peak=job.config.lr,
        warmup_steps=job.config.warmup_iterations,
        total_steps=job.plan.total,
        power=job.config.power,
    )


def evaluate_model(job: SegmentJob, is_last: bool) -> Evaluation:
    """Evaluate the model as it is now; several scales, which take long, only at the end."""
    config = replace(job.config, multi_scale=job.config.multi_scale and is_last)
    predictor = Predictor(job.model, job.opened, config, job.device)
    return evaluate(predictor, job.data.test, len(job.data.classes))


def training_step(
    wrapped: nn.Module, batch: TrainingBatch, job: SegmentJob, step: int
) -> dict[str, Float[Tensor, ""]]:
    """Update the weights once; returns the loss, then the losses of both heads."""
    config, (mean, std, _), device = job.config, job.opened.preprocessing, job.device
    images = normalize(batch.images, mean, std, device)
    classes = batch.targets.to(device, non_blocking=True).long()

    def losses(part: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images, classes = part
        with precision.autocast(device, config.precision):
            scores = wrapped(images)
        main = pixel_loss(scores.main, classes)
        if scores.auxiliary is None:
            return main, {"loss": main, "main": main}
        auxiliary = pixel_loss(scores.auxiliary, classes)
        loss = main + config.auxiliary_weight * auxiliary
        return loss, {"loss": loss, "main": main, "auxiliary": auxiliary}

    count = config.accumulate
    parts = zip(images.tensor_split(count), classes.tensor_split(count), strict=True)
    return train.update_weights(job, step, [(len(part[0]), part) for part in parts], losses)
