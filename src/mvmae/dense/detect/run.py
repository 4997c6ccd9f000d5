"""Detection: an encoder and Mask R-CNN trained end to end on boxes and masks. Read `train`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mvmae import encoders
from mvmae.config.detect import DetectConfig
from mvmae.data.augment import seeded
from mvmae.dense.detect import predict, product, report
from mvmae.dense.detect.batches import DetectionBatch, Target, training_batches
from mvmae.dense.detect.evaluate import Detector, Evaluation, evaluate
from mvmae.dense.detect.opening import open_detection
from mvmae.dense.detect.state import (
    REMEDY,
    DetectState,
    Job,
    Trained,
    plan_of,
    resume,
    run_folder,
    save,
    trained_of,
)
from mvmae.dense.pyramid import SCALES
from mvmae.dense.saved_model import has_metric, load_initial_encoder
from mvmae.encoders import OpenedEncoder
from mvmae.errors import UserError
from mvmae.method.views import normalized
from mvmae.storage import run_folder as runs
from mvmae.storage.lock import claimed
from mvmae.training import distributed, loop, precision
from mvmae.training.clock import Clock
from mvmae.training.interrupt import Interrupt, exit_status
from mvmae.training.log import Log
from mvmae.training.log import require as require_log
from mvmae.training.optim import set_lr

OUT = Path("runs/detect")
COARSEST = 4  # strides of the encoder: sides of maps must be whole down to there


def run(config: DetectConfig) -> int:
    """Train a detector, or use a finished run, as `config` says.

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
    return train(replace(config, out=config.out or OUT))


def train(config: DetectConfig) -> int:
    """Train as `config` says, into the run folder `config.out`.

    Returns:
        As `run`.

    Raises:
        UserError: As `run`, or the loss stopped being finite.
    """
    out, device = run_folder(config), precision.choose_device(config.device)
    held = claimed(out, resume=config.resume, overwrite=config.overwrite)
    with distributed.process_group(device), held:
        loop.refuse_to_replace(config, out)
        require_log(config.log)
        job = job_of(config, device)
        trained = trained_of(job)
        if config.resume:
            state = resume(job, trained)
        else:
            state = DetectState()
            facts = {"data_fingerprint": job.plan.fingerprint, "num_images": len(job.data.train)}
            encoder = encoders.encoder_metadata(job.opened)
            loop.begin_folder(config, device, **facts, encoder=encoder)
        trained.model.train()
        wrapped = distributed.wrap(trained.model, device)
        total = job.plan.total
        batches = training_batches(
            job.data.train,
            job.jitter(),
            range(state.step, total),
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            workers=config.workers,
            cuda=device.type == "cuda",
        )

        quiet = not distributed.is_main()
        log = Log(out, start=state.step, total=total, also=config.log, quiet=quiet, title="detect")
        with log, Interrupt() as interrupt:
            report.report_start(log, job, trained, state)
            if config.resume and state.judged_step < state.step and job.is_evaluation(state.step):
                judge(log, job, trained, state)  # in which the run was killed, or failed
            clock = Clock()
            for batch in clock.timed(batches):
                try:
                    state.note_reading(len(batch.images), batch.skipped, is_whole=batch.is_whole)
                except UserError:
                    if state.is_worth_saving():
                        save(state, job, trained)
                    runs.append_skipped(out, state.skipped)
                    raise
                lr = job.lr(state.step)
                set_lr(trained.optimizer, lr)
                state.pending.append(training_step(wrapped, trained, batch, job, state.step))
                state.step += 1
                log.advance(state.step)

                if state.step % config.log_every == 0 or state.step == total:
                    record = {"lr": lr, **mean_losses(state, job)}
                    speed = clock.lap(config.batch_size)
                    log.write(job.plan.place(state.step, config) | record | speed)
                if job.is_evaluation(state.step):
                    # What fails in a judgement must not cost the steps before it.
                    save(state, job, trained)
                    judge(log, job, trained, state)
                if stopped := loop.stop_signal(interrupt, state, config, device):
                    save(state, job, trained)
                    log.say(loop.farewell("detect", stopped, out, state.step))
                    return exit_status(stopped)
                if state.step < total and loop.is_due(state, config, device):
                    save(state, job, trained)

            save(state, job, trained)
            if distributed.is_main():
                product.save(job, trained.model)
            judgement = judge(log, job, trained, state)
            save(state, job, trained)
            if judgement is not None:
                report.report_result(log, job, judgement, state)
        distributed.barrier()
    return 0


def job_of(config: DetectConfig, device: torch.device) -> Job:
    """Open the encoder and the images, look at every annotation, and count the steps.

    Raises:
        UserError: Something cannot be opened, or the images do not make a batch.
    """
    opened = load_initial_encoder(config)
    refuse_unfit(config, opened)
    opened = opened._replace(encoder=encoders.resize_encoder(opened.encoder, config.image_size))
    data = open_detection(config, opened.encoder.in_channels)
    return Job(config, opened, data, plan_of(config, data), device)


def refuse_unfit(config: DetectConfig, opened: OpenedEncoder) -> None:
    """The maps of all levels must have whole sides, and an FPN needs four blocks.

    Raises:
        UserError: They have not.
    """
    patch, depth = opened.encoder.patch_size, opened.encoder.size.depth
    coarsest = COARSEST * patch
    if config.image_size % coarsest:
        near = max(1, round(config.image_size / coarsest)) * coarsest
        raise UserError(
            f"image_size {config.image_size} is not a multiple of {coarsest}, four patches of "
            f"ENCODER: set --image-size {near}"
        )
    if config.pyramid == "fpn" and depth < len(SCALES):
        raise UserError(f"ENCODER has {depth} blocks, and the FPN wants 4: set --pyramid simple")


def training_step(
    wrapped: nn.Module, trained: Trained, batch: DetectionBatch, job: Job, step: int
) -> Float[Tensor, " terms"]:
    """One update, and its losses, the sum first; random in it: a function of (seed, step, rank)."""
    config, (mean, std, _), device = job.config, job.opened.preprocessing, job.device
    rng = np.random.default_rng((config.seed, step, distributed.rank()))
    images = [normalized(image[None], mean, std, device)[0] for image in batch.images]
    targets = [on_device(target, device) for target in batch.targets]
    trained.optimizer.zero_grad(set_to_none=True)
    whole = torch.zeros(len(job.terms), device=device)
    with seeded(int(rng.integers(2**63)), device):
        for part in np.array_split(np.arange(len(images)), config.accumulate):
            some = [images[at] for at in part]
            with precision.autocast(device, config.precision):
                losses = wrapped(some, [targets[at] for at in part])
            terms = torch.stack([losses[name].float() for name in job.terms])
            share = len(some) / len(images)
            (share * terms.sum()).backward()
            whole += share * terms.detach()
    if config.clip_grad is not None:
        nn.utils.clip_grad_norm_(trained.model.parameters(), config.clip_grad)
    trained.optimizer.step()
    return torch.cat([whole.sum()[None], whole])


def on_device(target: Target, device: torch.device) -> dict[str, Tensor]:
    """What torchvision's detectors call a target."""
    return {
        name: value.to(device, non_blocking=True)
        for name, value in target._asdict().items()
        if value is not None
    }


def mean_losses(state: DetectState, job: Job) -> dict[str, float]:
    """Of the steps since the last line of metrics, over all processes.

    Raises:
        UserError: One is not finite.
    """
    loop.refuse_infinite(state, run_folder(job.config), REMEDY)
    means = torch.stack(state.pending).double().mean(dim=0)
    state.pending = []
    names = ("loss", *job.terms)
    return dict(zip(names, distributed.mean_over_processes(means).tolist(), strict=True))


def judge(log: Log, job: Job, trained: Trained, state: DetectState) -> Evaluation | None:
    """Look at the test images and write the figures down; all look, the main process judges.

    Raises:
        UserError: A loss before it is not finite, or most test images cannot be read.
    """
    config = job.config
    loop.refuse_infinite(state, run_folder(config), REMEDY)
    distributed.share_buffers(trained.model)
    finder = Detector(
        trained.model,
        config.image_size,
        job.opened.preprocessing,
        job.device,
        config.precision,
        config.batch_size,
        config.workers,
    )
    judgement = evaluate(finder, job.data.test)
    is_new = state.judged_step < state.step  # not so for a run that had ended and is resumed
    if judgement and is_new and not has_metric(run_folder(config), state.step, "box_ap"):
        log.write(job.plan.place(state.step, config) | judgement.figures())
        if log.shows_pictures:
            title = f"step {state.step}"
            png = report.draw_evaluation(judgement.found, job.data.test, title=title)
            log.picture("detections", png, state.step)
    state.judged_step = state.step
    distributed.barrier()
    return judgement
