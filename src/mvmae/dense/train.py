"""Training runs of `detect` and `segment`: one job, plan, optimiser and loop. Read `train`.

The two commands differ in data, model, losses and metrics. Those come in a `Task`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
from mvmae.storage import metrics_file
from mvmae.storage.atomic import read_object
from mvmae.training import distributed
from mvmae.training.log import Log
from mvmae.training.loop import Loop
from mvmae.training.optim import adamw, set_lr
from mvmae.training.plan import Plan
from mvmae.training.run_checkpoints import RunCheckpoints
from mvmae.training.run_start import begin_run, open_run

DIVERGENCE_ADVICE = (
    "look at ENCODER, whose weights may be damaged",
    "begin a new run with a lower --lr, or with --clip-grad 1",
)

C = TypeVar("C", bound=DetectConfig | SegmentConfig)
D = TypeVar("D")  # images with annotations
P = TypeVar("P")  # part of a batch


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


@dataclass
class Counters:
    """State of a run apart from weights and steps; saved in checkpoints."""

    judged_step: int = -1
    """Step of the last evaluation."""


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
    report_result: Callable[[Loop, Any], None]


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
    with open_run(config) as device:
        task = open_task(config, device)
        job, trained, plan = task.job, task.trained, task.job.plan
        facts = {"data_fingerprint": plan.fingerprint, "num_images": len(job.data.train)}
        begin_run(config, device, **facts, encoder=encoders.encoder_metadata(job.opened))
        trained.model.train()
        wrapped = distributed.wrap(trained.model, device)

        def batches(steps: range) -> Iterable[Any]:
            rank, processes = distributed.rank(), distributed.world_size()
            return task.batches(steps, rank=rank, world_size=processes, cuda=device.type == "cuda")

        counters = Counters()
        with Loop(
            config,
            plan,
            trained._asdict(),
            batches,
            device,
            checkpoints=RunCheckpoints(config.out / "checkpoints", config, plan.fingerprint),
            folder=config.out,
            title=task.command,
            resume=config.resume,
            advice=DIVERGENCE_ADVICE,
            counters=counters,
        ) as loop:
            task.report_start(loop.log, loop.step)
            if counters.judged_step < loop.step and is_interim_evaluation(loop):
                evaluate(loop, task, counters)  # the run was stopped during this evaluation
            for batch in loop:
                lr = task.learning_rate(loop.step)
                set_lr(trained.optimizer, lr)
                losses = task.training_step(wrapped, trained, batch, job, loop.step)
                if loop.record(dict(zip(task.losses, losses, strict=True))):
                    loop.write({"lr": lr} | loop.interval_means() | loop.interval_speed())
                if is_interim_evaluation(loop):
                    loop.save()  # a failing evaluation must not cost the steps before it
                    evaluate(loop, task, counters)
            if loop.signal:
                return loop.status

            loop.save()
            if distributed.is_main():
                task.save_model()
            evaluation = evaluate(loop, task, counters)
            loop.save()
            if distributed.is_main():
                task.report_result(loop, evaluation)
        distributed.barrier()
    return 0


def is_interim_evaluation(loop: Loop) -> bool:
    """Whether to evaluate now; the evaluation after the last step is separate."""
    return 0 < loop.step < loop.plan.total and loop.plan.is_evaluation(loop.step)


def evaluate(loop: Loop, task: Task, counters: Counters) -> Any:
    """Evaluate the model and write the metrics; every process takes part.

    Raises:
        UserError: A loss is not finite, or most images cannot be read.
    """
    model = task.trained.model
    loop.require_finite()
    distributed.share_buffers(model)
    evaluation = task.evaluate(loop.step == loop.plan.total)
    model.train()
    is_new = counters.judged_step < loop.step  # a finished run that is resumed evaluates again
    if evaluation is not None and is_new:
        figures = evaluation.figures()
        if not has_metric(loop.folder, loop.step, next(iter(figures))):
            loop.write(figures)
            title = f"step {loop.step}"
            loop.log.picture(task.picture, lambda: task.draw(evaluation, title), loop.step)
    counters.judged_step = loop.step
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
    optimizer = adamw(
        model,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
    )
    return Trained(model, optimizer)


def load_initial_encoder(config: DetectConfig | SegmentConfig) -> OpenedEncoder:
    """Open the encoder that a run starts from; for a resumed run, only its shape.

    The weights of a resumed run are in its checkpoint, so ENCODER may have been removed or
    replaced. Shape and preprocessing are in environment.json.

    Raises:
        UserError: There is no such encoder, or it was trained on other than 8-bit images.
    """
    if config.resume and config.out is not None:
        file = config.out / "environment.json"
        metadata = read_object(file).get("encoder")
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


def report_files(loop: Loop, skipped: Sequence[Any], files: Sequence[Path]) -> None:
    """Print the duration of a run, its main files, and whether images could not be read."""
    if loop.unreadable or skipped:
        loop.log.say(f"images that could not be read: {loop.folder / 'skipped.csv'}")
    minutes, seconds = divmod(round(loop.log.seconds()), 60)
    written = " and ".join(map(str, files))
    loop.log.say(f"{loop.step} steps in {minutes}:{seconds:02}. Written: {written}")
