"""Segmentation: an encoder and UperNet trained end to end, as BEiT does. Read `train`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mvmae import encoders
from mvmae.config.segment import SegmentConfig
from mvmae.data.augment import seeded
from mvmae.dense.saved_model import has_metric, load_initial_encoder
from mvmae.dense.segment import frozen, predict, product, report, test_run
from mvmae.dense.segment.crops import CropBatch, crop_batches
from mvmae.dense.segment.evaluate import Evaluation, evaluate
from mvmae.dense.segment.model import pixel_loss
from mvmae.dense.segment.opening import open_segmented
from mvmae.dense.segment.state import (
    REMEDY,
    Job,
    SegmentState,
    Trained,
    for_crops,
    plan_of,
    resume,
    run_folder,
    save,
    trained_of,
)
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

OUT = Path("runs/segment")
TERMS = ("loss", "main", "auxiliary")  # of a row of losses


def run(config: SegmentConfig) -> int:
    """Train a segmenter, or judge a frozen encoder, or use a finished run, as `config` says.

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
        return train(replace(config, out=config.out or OUT))
    return 0


def train(config: SegmentConfig) -> int:
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
            state = SegmentState()
            facts = {"data_fingerprint": job.plan.fingerprint, "num_images": len(job.data.train)}
            encoder = encoders.encoder_metadata(job.opened)
            loop.begin_folder(config, device, **facts, encoder=encoder)
        wrapped = distributed.wrap(trained.model, device)
        total = job.plan.total
        batches = crop_batches(
            job.data.train,
            job.training(),
            range(state.step, total),
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            workers=config.workers,
            cuda=device.type == "cuda",
        )

        quiet = not distributed.is_main()
        log = Log(out, start=state.step, total=total, also=config.log, quiet=quiet, title="segment")
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
                    log.write(job.plan.place(state.step, config.batch_size) | record | speed)
                if job.is_evaluation(state.step):
                    # What fails in a judgement must not cost the steps before it.
                    save(state, job, trained)
                    judge(log, job, trained, state)
                if stopped := loop.stop_signal(interrupt, state, config, device):
                    save(state, job, trained)
                    log.say(loop.farewell("segment", stopped, out, state.step))
                    return exit_status(stopped)
                if state.step < total and loop.is_due(state, config, device):
                    save(state, job, trained)

            save(state, job, trained)
            if distributed.is_main():
                product.save(job, trained.model)
            judgement = judge(log, job, trained, state)
            save(state, job, trained)
            if distributed.is_main():
                report.report_result(log, job, judgement, state)
        distributed.barrier()
    return 0


def job_of(config: SegmentConfig, device: torch.device) -> Job:
    """Open the encoder and the images, look at every mask, and count the steps.

    Raises:
        UserError: Something cannot be opened, or the images do not make a batch.
    """
    opened = for_crops(config, load_initial_encoder(config))
    data, checked = open_segmented(config, opened.encoder.in_channels)
    return Job(config, opened, data, checked, plan_of(config, data), device)


def training_step(
    wrapped: nn.Module, trained: Trained, batch: CropBatch, job: Job, step: int
) -> Float[Tensor, " terms"]:
    """One update, and its losses; what is random in it is a function of (seed, step, rank)."""
    config, (mean, std, _), device = job.config, job.opened.preprocessing, job.device
    rng = np.random.default_rng((config.seed, step, distributed.rank()))
    images = normalized(batch.images, mean, std, device)
    classes = batch.classes.to(device, non_blocking=True).long()
    trained.model.train()
    trained.optimizer.zero_grad(set_to_none=True)
    whole = torch.zeros(3 if config.auxiliary_weight else 2, device=device)
    with seeded(int(rng.integers(2**63)), device):
        parts = config.accumulate
        for some, wanted in zip(
            images.tensor_split(parts), classes.tensor_split(parts), strict=True
        ):
            with precision.autocast(device, config.precision):
                scores = wrapped(some)
            losses = [pixel_loss(scores.main, wanted)]
            loss = losses[0]
            if scores.auxiliary is not None:
                losses.append(pixel_loss(scores.auxiliary, wanted))
                loss = loss + config.auxiliary_weight * losses[1]
            share = len(some) / len(images)
            (share * loss).backward()
            whole += share * torch.stack([loss, *losses]).detach()
    if config.clip_grad is not None:
        nn.utils.clip_grad_norm_(trained.model.parameters(), config.clip_grad)
    trained.optimizer.step()
    return whole


def mean_losses(state: SegmentState, job: Job) -> dict[str, float]:
    """Of the steps since the last line of metrics, over all processes.

    Raises:
        UserError: One is not finite.
    """
    loop.refuse_infinite(state, run_folder(job.config), REMEDY)
    means = torch.stack(state.pending).double().mean(dim=0)
    state.pending = []
    return dict(zip(TERMS, distributed.mean_over_processes(means).tolist(), strict=False))


def judge(log: Log, job: Job, trained: Trained, state: SegmentState) -> Evaluation:
    """Look at the test images, and write the figures down; all processes take part.

    Raises:
        UserError: A loss before it is not finite, or most test images cannot be read.
    """
    config, is_last = job.config, state.step == job.plan.total
    loop.refuse_infinite(state, run_folder(config), REMEDY)
    judgement = evaluate(
        job.examiner(trained.model, multi_scale=config.multi_scale and is_last),
        job.data.test,
        len(job.data.classes),
        workers=config.workers,
    )
    is_new = state.judged_step < state.step  # not so for a run that had ended and is resumed
    if is_new and not has_metric(run_folder(config), state.step, "miou"):
        log.write(job.plan.place(state.step, config.batch_size) | judgement.figures())
        if log.shows_pictures and judgement.shown:
            png = report.draw_evaluation(judgement, job.data, f"step {state.step}")
            log.picture("segmentations", png, state.step)
    state.judged_step = state.step
    return judgement
