"""Fine-tuning: MAE's recipe, an encoder and a classifier trained end to end. Read `run`."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from mvmae import encoders
from mvmae.config.finetune import FinetuneConfig
from mvmae.data.augment import mix_images, random_erasing, seeded
from mvmae.data.labelled_batches import LabelledBatch, labelled_batches
from mvmae.data.reading.loader import whole_batches
from mvmae.data.sources.labelled import open_labelled
from mvmae.errors import UserError
from mvmae.evaluation.finetune import report
from mvmae.evaluation.finetune.classifier import Classifier
from mvmae.evaluation.finetune.report import Judgement
from mvmae.evaluation.finetune.state import (
    REMEDY,
    FinetuneState,
    Job,
    Trained,
    plan_of,
    resume,
    save,
    trained_of,
)
from mvmae.method.views import normalized
from mvmae.storage import run_folder
from mvmae.storage.lock import claimed
from mvmae.training import distributed, precision
from mvmae.training.clock import Clock
from mvmae.training.interrupt import Interrupt, exit_status
from mvmae.training.log import Log, require_log
from mvmae.training.optim import set_lr
from mvmae.training.supervised import (
    begin_folder,
    farewell,
    is_due,
    refuse_infinite,
    refuse_to_replace,
    stop_signal,
)

MOST_AT_ONCE = 256  # test images


def run(config: FinetuneConfig) -> int:
    """Fine-tune as `config` says, into the run folder `config.out`.

    Returns:
        0 when done; 130 or 143 when stopped by SIGINT or SIGTERM, with the state saved.

    Raises:
        UserError: The encoder, the data, the folder or the settings cannot work, or the loss
            stopped being finite.
    """
    device = precision.choose_device(config.device)
    held = claimed(config.out, resume=config.resume, overwrite=config.overwrite)
    with distributed.process_group(device), held:
        refuse_to_replace(config, config.out)
        require_log(config.log)
        job = job_of(config, device)
        trained = trained_of(classifier_of(job), config)
        if config.resume:
            state = resume(config, trained, job.plan.fingerprint)
        else:
            state = FinetuneState()
            begin_folder(
                config,
                device,
                data_fingerprint=job.plan.fingerprint,
                num_images=len(job.data.train),
            )
        wrapped = distributed.wrap(trained.model, device)
        total = job.plan.total
        batches = labelled_batches(
            job.data.train,
            seed=config.seed,
            steps=range(state.step, total),
            batch_size=config.batch_size,
            size=job.opened.encoder.image_size,
            crop_scale=config.crop_scale,
            interpolation=job.opened.preprocessing.interpolation,
            augment=config.rand_augment,
            flip=config.flip != "none",
            upside_down=config.flip == "both",
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            workers=config.workers,
            cuda=device.type == "cuda",
        )

        quiet = not distributed.is_main()
        log = Log(
            config.out,
            start=state.step,
            total=total,
            also=config.log,
            quiet=quiet,
            title="finetune",
        )
        with log, Interrupt() as interrupt:
            report.introduce(log, job, trained, state)
            clock = Clock()
            for batch in clock.timed(batches):
                try:
                    state.note_reading(len(batch.labels), batch.skipped, is_whole=batch.is_whole)
                except UserError:
                    if state.is_worth_saving():
                        save(state, config, trained, job.plan.fingerprint)
                    run_folder.append_skipped(config.out, state.skipped)
                    raise
                lr = job.plan.lr(state.step, config)
                set_lr(trained.optimizer, lr)
                state.pending.append(training_step(wrapped, trained, batch, job, state.step))
                state.step += 1
                log.advance(state.step)

                if state.step % config.log_every == 0 or state.step == total:
                    record = {"lr": lr, "loss": mean_loss(state, config)}
                    speed = clock.lap(config.batch_size)
                    log.write(job.plan.place(state.step, config) | record | speed)
                if job.plan.is_evaluation(state.step, config):
                    judge(log, job, trained, state)
                if stopped := stop_signal(interrupt, state, config, device):
                    save(state, config, trained, job.plan.fingerprint)
                    log.say(farewell("finetune", stopped, config.out, state.step))
                    return exit_status(stopped)
                if state.step < total and is_due(state, config, device):
                    save(state, config, trained, job.plan.fingerprint)

            judgement = judge(log, job, trained, state)
            save(state, config, trained, job.plan.fingerprint)
            if judgement is not None:
                report.keep(job, trained.product)
                report.conclude(log, job, judgement, state)
        distributed.barrier()
    return 0


def job_of(config: FinetuneConfig, device: torch.device) -> Job:
    """Open the encoder and the images, and count the steps.

    Raises:
        UserError: Something cannot be opened, or the images do not make a batch.
    """
    opened = encoders.open_encoder(config.encoder, config.image_size, config.in_channels)
    channels, depth = opened.encoder.in_channels, opened.depth
    if config.rand_augment > 0 and (depth != "8" or channels not in (1, 3)):
        raise UserError(
            "RandAugment is made for gray and colour of 8 bit, and these images are "
            f"{'float' if depth == 'float' else depth + ' bit'} of {channels} channels: set "
            "--rand-augment 0"
        )
    data = open_labelled(config.data, channels, depth)
    return Job(config, opened, data, plan_of(config, data), device)


def classifier_of(job: Job) -> Classifier:
    """The encoder with a fresh head, on the device."""
    return Classifier(
        job.opened.encoder,
        len(job.data.train.classes),
        drop_path=job.config.drop_path,
        generator=Generator().manual_seed(job.config.seed),
    ).to(job.device)


def training_step(
    wrapped: nn.Module, trained: Trained, batch: LabelledBatch, job: Job, step: int
) -> Float[Tensor, ""]:
    """One update, and its loss; what is random in it is a function of (seed, step, rank)."""
    config, (mean, std, _), device = job.config, job.opened.preprocessing, job.device
    rng = np.random.default_rng((config.seed, step, distributed.rank()))
    images = normalized(batch.images, mean, std, device)
    labels = batch.labels.to(device, non_blocking=True)
    num_classes = trained.model.head.out_features
    trained.optimizer.zero_grad(set_to_none=True)
    whole = torch.zeros((), device=device)
    with seeded(int(rng.integers(2**63)), device):
        images = random_erasing(images, config.erasing, rng)
        images, shares = mix_images(
            images, labels, num_classes, mixup=config.mixup, cutmix=config.cutmix
        )
        parts = config.accumulate
        for some, wanted in zip(
            images.tensor_split(parts), shares.tensor_split(parts), strict=True
        ):
            with precision.autocast(device, config.precision):
                scores = wrapped(some)
            loss = loss_of(scores, wanted, config.label_smoothing) * (len(some) / len(images))
            loss.backward()
            whole += loss.detach()
    if config.clip_grad is not None:
        nn.utils.clip_grad_norm_(trained.model.parameters(), config.clip_grad)
    trained.optimizer.step()
    if trained.average:
        trained.average.update_parameters(trained.model)
    return whole


def loss_of(
    scores: Float[Tensor, "B K"], shares: Float[Tensor, "B K"], smoothing: float
) -> Float[Tensor, ""]:
    """Cross-entropy with classes' shares, of which `smoothing` is spread evenly, in fp32."""
    return F.cross_entropy(scores.float(), shares, label_smoothing=smoothing)


def mean_loss(state: FinetuneState, config: FinetuneConfig) -> float:
    """Of the steps since the last line of metrics, over all processes.

    Raises:
        UserError: One is not finite.
    """
    refuse_infinite(state, config.out, REMEDY)
    mean = torch.stack(state.pending).double().mean()
    state.pending = []
    return distributed.mean_over_processes(mean).item()


def judge(log: Log, job: Job, trained: Trained, state: FinetuneState) -> Judgement | None:
    """Look at the test images, write the figures down, and keep the weights if they are the best.

    The main process does it; the others wait, and get none.

    Raises:
        UserError: A loss before it is not finite, or most test images cannot be read.
    """
    refuse_infinite(state, job.config.out, REMEDY)
    judgement = None
    if distributed.is_main():
        judgement = judgement_of(trained.product, job)
        place = job.plan.place(state.step, job.config)
        figures = judgement.figures()
        if state.judged_step < state.step:  # not so for a run that had ended and is resumed
            log.write(place | figures)
        state.judged_step = state.step
        if figures["top1"] > state.best_top1:
            state.best_top1, state.best_top5 = figures["top1"], figures["top5"]
            state.best_epoch = float(place["epoch"])
            report.save_classifier(job, "best", trained.product)
    distributed.barrier()
    return judgement


def judgement_of(model: Classifier, job: Job) -> Judgement:
    """Scores of the test images, whole but for their edges.

    Raises:
        UserError: More than half of them cannot be read.
    """
    config, test, (mean, std, interpolation) = job.config, job.data.test, job.opened.preprocessing
    was_training = model.training
    model.eval()
    scores, places, skipped = [], [], []
    for batch in whole_batches(
        test,
        model.encoder.image_size,
        interpolation=interpolation,
        batch_size=min(config.batch_size, MOST_AT_ONCE),
        workers=config.workers,
        cuda=job.device.type == "cuda",
        share=config.test_share,
    ):
        skipped += batch.skipped
        if not len(batch.images):
            continue
        images = normalized(batch.images, mean, std, job.device)
        with torch.inference_mode(), precision.autocast(job.device, config.precision):
            scores.append(model(images).float().cpu())
        places.append(batch.indices)
    model.train(was_training)
    encoders.require_readable(test, skipped)
    indices = torch.cat(places)
    labels = torch.tensor([test.label(index) for index in indices.tolist()])
    return Judgement(torch.cat(scores), indices, labels, skipped)
