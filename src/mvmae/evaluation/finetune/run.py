"""Run `mvmae finetune`: train an encoder and a classifier end to end, as MAE. Read `run`."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mvmae import encoders
from mvmae.config.finetune import FinetuneConfig
from mvmae.data.augment import mix_images, random_erasing, seeded
from mvmae.data.labelled_batches import BatchOptions, LabelledBatch, labelled_batches
from mvmae.data.reading.loader import whole_batches
from mvmae.data.sources.base import fingerprint
from mvmae.data.sources.labelled import Labelled, open_labelled
from mvmae.errors import UserError
from mvmae.evaluation.finetune import report
from mvmae.evaluation.finetune.classifier import Classifier
from mvmae.evaluation.finetune.report import Counters, Evaluation, Job
from mvmae.method.views import normalize
from mvmae.training import distributed, precision
from mvmae.training.loop import Loop
from mvmae.training.optim import adamw, set_lr
from mvmae.training.plan import Plan, steps_per_epoch, warmup_cosine
from mvmae.training.run_checkpoints import RunCheckpoints
from mvmae.training.run_start import begin_run, open_run

MAX_EVALUATION_BATCH = 256
DIVERGENCE_ADVICE = (
    "look at ENCODER, whose weights may be damaged",
    "begin a new run with a lower --base-lr, or with --clip-grad 1",
)


class Trained(NamedTuple):
    """The model, its optimiser, and the average of its weights if the config asks for one."""

    model: Classifier
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None

    @property
    def parts(self) -> dict[str, Any]:
        """Objects whose state a checkpoint holds."""
        return {name: part for name, part in self._asdict().items() if part is not None}

    @property
    def final(self) -> Classifier:
        """The model that is evaluated and kept."""
        return self.average.module if self.average else self.model  # type: ignore[return-value]


def run(config: FinetuneConfig) -> int:
    """Fine-tune as `config` says, into the run folder `config.out`.

    Returns:
        0 when done; 130 or 143 when stopped by SIGINT or SIGTERM, with the state saved.

    Raises:
        UserError: The encoder, the data, the folder or the settings are invalid, or the loss
            diverged.
    """
    with open_run(config) as device:
        job = open_job(config, device)
        plan, trained = job.plan, build_trained(job)
        num_images = len(job.data.train)
        begin_run(config, device, data_fingerprint=plan.fingerprint, num_images=num_images)
        wrapped = distributed.wrap(trained.model, device)
        counters = Counters()
        with Loop(
            config,
            plan,
            trained.parts,
            lambda steps: read_batches(job, steps),
            device,
            checkpoints=RunCheckpoints(config.out / "checkpoints", config, plan.fingerprint),
            folder=config.out,
            title="finetune",
            resume=config.resume,
            advice=DIVERGENCE_ADVICE,
            counters=counters,
        ) as loop:
            report.introduce(loop, job, trained.model)
            for batch in loop:
                lr = learning_rate(loop.step, plan, config)
                set_lr(trained.optimizer, lr)
                loss = training_step(wrapped, trained, batch, job, loop.step)
                if loop.record({"loss": loss}):
                    loop.write({"lr": lr} | loop.interval_means() | loop.interval_speed())
                if plan.is_evaluation(loop.step) and loop.step < plan.total:
                    evaluate(loop, job, trained, counters)
            if loop.signal:
                return loop.status
            evaluation = evaluate(loop, job, trained, counters)
            loop.save()
            if evaluation is not None:
                report.save_final(job, trained.final)
                report.conclude(loop, job, evaluation, counters)
        distributed.barrier()
    return 0


def open_job(config: FinetuneConfig, device: torch.device) -> Job:
    """Open the encoder and the images, and count the steps.

    Raises:
        UserError: Something cannot be opened, or there are fewer images than a batch needs.
    """
    opened = encoders.open_encoder(config.encoder, config.image_size, config.in_channels)
    channels, depth = opened.encoder.in_channels, opened.depth
    if config.rand_augment > 0 and (depth != "8" or channels not in (1, 3)):
        raise UserError(
            "RandAugment needs 8-bit images, gray or colour, but these have "
            f"{'float values' if depth == 'float' else depth + ' bits'} and {channels} channels: "
            "set --rand-augment 0"
        )
    data = open_labelled(config.data, channels, depth)
    return Job(config, opened, data, make_plan(config, data), device)


def make_plan(config: FinetuneConfig, data: Labelled) -> Plan:
    """Count the steps.

    Raises:
        UserError: There are fewer images than a batch needs, or the batch cannot be divided.
    """
    per_epoch = steps_per_epoch(len(data.train), config.batch_size, config.accumulate)
    return Plan(
        per_epoch=per_epoch,
        total=per_epoch * config.epochs,
        batch_size=config.batch_size,
        fingerprint=f"{fingerprint(data.train)}-{fingerprint(data.test)}",
        eval_every=config.eval_every * per_epoch,
    )


def build_trained(job: Job) -> Trained:
    """Build the encoder with a fresh head, its optimiser and its average."""
    config = job.config
    model = Classifier(
        job.opened.encoder,
        len(job.data.train.classes),
        drop_path=config.drop_path,
        generator=Generator().manual_seed(config.seed),
    ).to(job.device)
    optimizer = adamw(
        model,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
    )
    if config.ema is None:
        return Trained(model, optimizer, None)
    update = get_ema_multi_avg_fn(config.ema)
    return Trained(model, optimizer, AveragedModel(model, multi_avg_fn=update))


def read_batches(job: Job, steps: range) -> Iterator[LabelledBatch]:
    """Read this process's share of the training batches."""
    config = job.config
    options = BatchOptions(
        seed=config.seed,
        batch_size=config.batch_size,
        size=job.opened.encoder.image_size,
        crop_scale=config.crop_scale,
        interpolation=job.opened.preprocessing.interpolation,
        augment=config.rand_augment,
        flip=config.flip != "none",
        upside_down=config.flip == "both",
    )
    loader = labelled_batches(
        job.data.train,
        options,
        steps,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        workers=config.workers,
        cuda=job.device.type == "cuda",
    )
    return iter(loader)


def learning_rate(step: int, plan: Plan, config: FinetuneConfig) -> float:
    """Learning rate of the head in a step; layers below have shares of it."""
    return warmup_cosine(
        step,
        peak=config.lr,
        warmup_steps=round(config.warmup_epochs * plan.per_epoch),
        total_steps=plan.total,
        final=config.min_lr,
    )


def training_step(
    wrapped: nn.Module,
    trained: Trained,
    batch: LabelledBatch,
    job: Job,
    step: int,
) -> Float[Tensor, ""]:
    """Update the weights once and return the loss.

    All randomness is a function of (seed, step, rank), so that a resumed run repeats it.
    """
    config, (mean, std, _), device = job.config, job.opened.preprocessing, job.device
    rng = np.random.default_rng((config.seed, step, distributed.rank()))
    images = normalize(batch.images, mean, std, device)
    labels = batch.labels.to(device, non_blocking=True)
    num_classes = trained.model.head.out_features
    trained.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=device)
    with seeded(int(rng.integers(2**63)), device):
        images = random_erasing(images, config.erasing, rng)
        images, targets = mix_images(
            images, labels, num_classes, mixup=config.mixup, cutmix=config.cutmix
        )
        parts = config.accumulate
        for part, target in zip(
            images.tensor_split(parts), targets.tensor_split(parts), strict=True
        ):
            with precision.autocast(device, config.precision):
                scores = wrapped(part)
            # The loss is fp32 whatever the precision of the network.
            loss = F.cross_entropy(scores.float(), target, label_smoothing=config.label_smoothing)
            loss = loss * (len(part) / len(images))
            loss.backward()
            total += loss.detach()
    if config.clip_grad is not None:
        nn.utils.clip_grad_norm_(trained.model.parameters(), config.clip_grad)
    trained.optimizer.step()
    if trained.average:
        trained.average.update_parameters(trained.model)
    return total


def evaluate(loop: Loop, job: Job, trained: Trained, counters: Counters) -> Evaluation | None:
    """Score the test images, write the figures, and keep the weights if they are the best so far.

    The main process does this while the others wait; they get None.

    Raises:
        UserError: An earlier loss is not finite, or most test images cannot be read.
    """
    loop.require_finite()
    evaluation = None
    if distributed.is_main():
        evaluation = score_test_images(trained.final, job)
        figures = evaluation.figures()
        # A finished run that is resumed evaluates again, but has written these figures already.
        if counters.evaluated_step < loop.step:
            loop.write(figures)
        counters.evaluated_step = loop.step
        if figures["top1"] > counters.best_top1:
            counters.best_top1, counters.best_top5 = figures["top1"], figures["top5"]
            counters.best_epoch = float(job.plan.position(loop.step)["epoch"])
            report.save_classifier(job, "best", trained.final)
    distributed.barrier()
    return evaluation


def score_test_images(model: Classifier, job: Job) -> Evaluation:
    """Score the centres of the test images, as large as --test-share says.

    Raises:
        UserError: More than half of them cannot be read.
    """
    config, test, (mean, std, interpolation) = job.config, job.data.test, job.opened.preprocessing
    was_training = model.training
    model.eval()
    scores, indices, skipped = [], [], []
    for batch in whole_batches(
        test,
        model.encoder.image_size,
        interpolation=interpolation,
        batch_size=min(config.batch_size, MAX_EVALUATION_BATCH),
        workers=config.workers,
        cuda=job.device.type == "cuda",
        share=config.test_share,
    ):
        skipped += batch.skipped
        if not len(batch.images):
            continue
        images = normalize(batch.images, mean, std, job.device)
        with torch.inference_mode(), precision.autocast(job.device, config.precision):
            scores.append(model(images).float().cpu())
        indices.append(batch.indices)
    model.train(was_training)
    encoders.require_readable(test, skipped)
    read = torch.cat(indices)
    labels = torch.tensor([test.label(index) for index in read.tolist()])
    return Evaluation(torch.cat(scores), read, labels, skipped)
