"""Training runs of `detect` and `segment`: one job, plan, optimiser and loop. Read `train`.

The two commands differ in data, model, losses and metrics. Those come in a `Task`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mvmae import encoders
from mvmae.config.detect import DetectConfig
from mvmae.config.segment import SegmentConfig
from mvmae.data.augment import seeded
from mvmae.encoders import OpenedEncoder
from mvmae.encoders.encoder_json import encoder_from_metadata
from mvmae.errors import UserError
from mvmae.storage import metrics_file, run_folder
from mvmae.storage.lock import claimed
from mvmae.training import distributed, precision
from mvmae.training import supervised as loop
from mvmae.training.clock import Clock
from mvmae.training.interrupt import Interrupt, exit_status
from mvmae.training.log import Log
from mvmae.training.log import require as require_log
from mvmae.training.optim import layerwise_adamw, set_lr
from mvmae.training.state import State

COUNTERS = ("step", "pending", "drawn", "unreadable", "judged_step")  # saved in checkpoints as is
REMEDY = "begin a new run with a lower --lr, or with --clip-grad 1"

C = TypeVar("C", bound=DetectConfig | SegmentConfig)
D = TypeVar("D")  # images with annotations
P = TypeVar("P")  # part of a batch


class Plan(NamedTuple):
    """Length of a run, in steps, and the images it is for."""

    steps_per_epoch: int
    total: int
    eval_interval: int
    fingerprint: str
    """Identifies the images and their annotations."""

    def position(self, step: int, batch_size: int) -> dict[str, Any]:
        """Progress after `step` steps, in the units that people compare."""
        epoch = round(step / self.steps_per_epoch, 4)
        return {"step": step, "epoch": epoch, "images": step * batch_size}

    def is_evaluation(self, step: int) -> bool:
        """Whether to evaluate after this step; the evaluation after the last step is separate."""
        return step < self.total and step % self.eval_interval == 0


@dataclass(frozen=True)
class Job(Generic[C, D]):
    """What stays the same during a run."""

    config: C
    opened: OpenedEncoder
    """Initial encoder."""

    data: D
    plan: Plan
    device: torch.device

    @property
    def folder(self) -> Path:
        """Run folder."""
        assert self.config.out is not None  # training always has one
        return self.config.out


class Trained(NamedTuple):
    """What the optimiser changes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer


class TrainState(State):
    """What a step changes apart from the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.judged_step = -1  # step of the last evaluation


@dataclass(frozen=True)
class Task:
    """What `detect` and `segment` do differently in a run.

    A batch has `images`, `skipped` and `is_whole`; an evaluation has `figures()`.
    """

    command: str
    job: Job
    trained: Trained
    losses: tuple[str, ...]
    """Names of the values that `training_step` returns."""

    learning_rate: Callable[[int], float]
    """Peak learning rate over the layers, by step."""

    batches: Callable[..., Iterable[Any]]
    """Called with the steps, and with rank, world_size and cuda by name."""

    training_step: Callable[[nn.Module, Trained, Any, Job, int], Tensor]
    evaluate: Callable[[bool], Any]
    """Called by every process with whether it is the last evaluation; may return None on all but
    the main one."""

    draw: Callable[[Any, str], bytes]
    """PNG of some predictions, under a title."""

    picture: str
    """Name of that picture."""

    save_model: Callable[[], None]
    report_start: Callable[[Log, int], None]
    report_result: Callable[[Log, Any, State], None]


def train(config: C, open_task: Callable[[C, torch.device], Task]) -> int:
    """Train into the run folder `config.out`.

    Args:
        config: Options of the command.
        open_task: Opens encoder and data and builds the model.

    Returns:
        0 when done; 130 or 143 when stopped by SIGINT or SIGTERM, with the state saved.

    Raises:
        UserError: The encoder, the data, the folder or the settings cannot work, or a loss is not
            finite.
    """
    assert config.out is not None
    device = precision.choose_device(config.device)
    held = claimed(config.out, resume=config.resume, overwrite=config.overwrite)
    with distributed.process_group(device), held:
        loop.refuse_to_replace(config, config.out)
        require_log(config.log)
        task = open_task(config, device)
        job, trained, plan = task.job, task.trained, task.job.plan
        state = TrainState()
        if config.resume:
            loop.resume(state, config, plan.fingerprint, trained._asdict(), COUNTERS, device)
        else:
            loop.begin_folder(
                config,
                device,
                data_fingerprint=plan.fingerprint,
                num_images=len(job.data.train),
                encoder=encoders.encoder_metadata(job.opened),
            )
        trained.model.train()
        wrapped = distributed.wrap(trained.model, device)
        batches = task.batches(
            range(state.step, plan.total),
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            cuda=device.type == "cuda",
        )

        log = Log(
            config.out,
            start=state.step,
            total=plan.total,
            also=config.log,
            quiet=not distributed.is_main(),
            title=task.command,
        )
        with log, Interrupt() as interrupt:
            task.report_start(log, state.step)
            if config.resume and state.judged_step < state.step and plan.is_evaluation(state.step):
                evaluate(log, task, state)  # the run was stopped during this evaluation
            clock = Clock()
            for batch in clock.timed(batches):
                note_reading(batch, state, task)
                lr = task.learning_rate(state.step)
                set_lr(trained.optimizer, lr)
                losses = task.training_step(wrapped, trained, batch, job, state.step)
                state.pending.append(losses)
                state.step += 1
                log.advance(state.step)

                if state.step % config.log_every == 0 or state.step == plan.total:
                    record = {"lr": lr, **mean_losses(state, task)}
                    speed = clock.lap(config.batch_size)
                    log.write(plan.position(state.step, config.batch_size) | record | speed)
                if plan.is_evaluation(state.step):
                    save(state, task)  # a failing evaluation must not cost the steps before it
                    evaluate(log, task, state)
                if stopped := loop.stop_signal(interrupt, state, config, device):
                    save(state, task)
                    log.say(loop.farewell(task.command, stopped, config.out, state.step))
                    return exit_status(stopped)
                if state.step < plan.total and loop.is_due(state, config, device):
                    save(state, task)

            save(state, task)
            if distributed.is_main():
                task.save_model()
            evaluation = evaluate(log, task, state)
            save(state, task)
            if distributed.is_main() and evaluation is not None:
                task.report_result(log, evaluation, state)
        distributed.barrier()
    return 0


def note_reading(batch: Any, state: TrainState, task: Task) -> None:
    """Count the images that could not be read.

    Raises:
        UserError: Too many cannot be read; the state is saved before.
    """
    try:
        state.note_reading(len(batch.images), batch.skipped, is_whole=batch.is_whole)
    except UserError:
        if state.is_worth_saving():
            save(state, task)
        run_folder.append_skipped(task.job.folder, state.skipped)
        raise


def save(state: TrainState, task: Task) -> None:
    """Write a checkpoint.

    Raises:
        UserError: A loss is not finite; the previous checkpoint stays.
    """
    job = task.job
    parts = task.trained._asdict()
    loop.save(state, job.config, job.plan.fingerprint, parts, COUNTERS, REMEDY)


def mean_losses(state: TrainState, task: Task) -> dict[str, float]:
    """Average the losses since the last line of metrics, over steps and processes.

    Raises:
        UserError: A loss is not finite.
    """
    loop.refuse_infinite(state, task.job.folder, REMEDY)
    means = torch.stack(state.pending).double().mean(dim=0)
    state.pending = []
    return dict(zip(task.losses, distributed.mean_over_processes(means).tolist(), strict=True))


def evaluate(log: Log, task: Task, state: TrainState) -> Any:
    """Evaluate the model and write the metrics; every process takes part.

    Raises:
        UserError: A loss is not finite, or most images cannot be read.
    """
    job, model = task.job, task.trained.model
    loop.refuse_infinite(state, job.folder, REMEDY)
    distributed.share_buffers(model)
    evaluation = task.evaluate(state.step == job.plan.total)
    model.train()
    is_new = state.judged_step < state.step  # a finished run that is resumed evaluates again
    if evaluation is not None and is_new:
        figures = evaluation.figures()
        if not has_metric(job.folder, state.step, next(iter(figures))):
            position = job.plan.position(state.step, job.config.batch_size)
            log.write(position | figures)
            if log.shows_pictures:
                log.picture(task.picture, task.draw(evaluation, f"step {state.step}"), state.step)
    state.judged_step = state.step
    distributed.barrier()
    return evaluation


def has_metric(folder: Path, step: int, name: str) -> bool:
    """Whether metrics.jsonl has a metric of a step: a run may be killed right after writing it."""
    records = metrics_file.read(folder)
    return any(record["step"] == step and name in record for record in records[-2:])


def optimise(
    trained: Trained,
    job: Job,
    step: int,
    parts: Sequence[tuple[int, P]],
    losses: Callable[[P], tuple[Float[Tensor, ""], Float[Tensor, " losses"]]],
) -> Float[Tensor, " losses"]:
    """Update the weights once, with the gradient accumulated over the parts of a batch.

    Whatever is random is a function of (seed, step, rank).

    Args:
        trained: Model and optimiser.
        job: The run.
        step: Number of the step, from 0.
        parts: The parts, each with its number of images.
        losses: Returns the loss of a part and the row of values to log.

    Returns:
        Mean of the rows, weighted by the number of images.
    """
    config = job.config
    rng = np.random.default_rng((config.seed, step, distributed.rank()))
    count = sum(size for size, _ in parts)
    trained.optimizer.zero_grad(set_to_none=True)
    row_mean = torch.zeros((), device=job.device)
    with seeded(int(rng.integers(2**63)), job.device):
        for size, part in parts:
            loss, row = losses(part)
            share = size / count
            (share * loss).backward()
            row_mean = row_mean + share * row.detach()
    if config.clip_grad is not None:
        nn.utils.clip_grad_norm_(trained.model.parameters(), config.clip_grad)
    trained.optimizer.step()
    return row_mean


def build_trained(model: nn.Module, job: Job) -> Trained:
    """Move the model to the device, and build AdamW with layer-wise learning rate decay."""
    model = model.to(job.device)
    if job.device.type == "cuda" and distributed.world_size() > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # torch has none for CPUs
    config = job.config
    optimizer = layerwise_adamw(
        model,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
    )
    return Trained(model, optimizer)


def count_steps(config: DetectConfig | SegmentConfig, num_images: int) -> int:
    """Return the number of full batches in an epoch.

    Raises:
        UserError: There are fewer images than in a batch, or a batch cannot be split evenly across
            processes and parts.
    """
    loop.refuse_unequal_shares(config.batch_size, config.accumulate)
    if num_images < config.batch_size:
        raise UserError(
            f"{num_images} training images are fewer than a batch of {config.batch_size}: "
            f"set --batch-size {num_images} or less, or give more images"
        )
    return num_images // config.batch_size


def load_initial_encoder(config: DetectConfig | SegmentConfig) -> OpenedEncoder:
    """Open the encoder that a run starts from; for a resumed run, only its shape.

    The weights of a resumed run are in its checkpoint, so ENCODER may have been removed or
    replaced. Shape and preprocessing are in environment.json.

    Raises:
        UserError: There is no such encoder, or it was trained on other than 8-bit images.
    """
    if config.resume and config.out is not None:
        file, metadata = config.out / "environment.json", None
        with suppress(OSError, ValueError, AttributeError):
            metadata = json.loads(file.read_text(encoding="utf-8")).get("encoder")
        if isinstance(metadata, dict):
            return encoder_from_metadata(metadata, source=str(file))
    return require_8_bit(encoders.open_encoder(config.encoder), config.encoder)


def require_8_bit(opened: OpenedEncoder, name: str) -> OpenedEncoder:
    """Return the encoder if it was trained on 8-bit grey or colour images.

    The readers of annotated images are for 8 bits: colour jitter, padding and pictures would need
    to know which value is white in deeper images.

    Raises:
        UserError: The encoder was trained on other pixels.
    """
    channels, depth = opened.encoder.in_channels, opened.depth
    if depth == "8" and channels in (1, 3):
        return opened
    kind = {"8": "8-bit", "16": "16-bit", "float": "floating-point"}[depth]
    raise UserError(
        f"{name} was trained on {kind} images of {channels} channel{'s' * (channels > 1)}. Boxes "
        "and masks need an encoder of 8-bit grey or colour images: choose another ENCODER"
    )


def count_parameters(model: nn.Module) -> int:
    """Number of parameters of a model, trained or not."""
    return sum(parameter.numel() for parameter in model.parameters())


def report_files(
    job: Job, log: Log, state: State, skipped: Sequence[Any], files: Sequence[Path]
) -> None:
    """Print the duration of a run, its main files, and whether images could not be read."""
    if state.unreadable or skipped:
        log.say(f"images that could not be read: {job.folder / 'skipped.csv'}")
    minutes, seconds = divmod(round(log.seconds()), 60)
    written = " and ".join(map(str, files))
    log.say(f"{state.step} steps in {minutes}:{seconds:02}. Written: {written}")
