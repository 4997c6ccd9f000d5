"""Training runs of `detect` and `segment`. Start reading at `train`.

The two commands share plan, optimiser and loop. They differ in data, model, losses and metrics,
which a `Task` provides.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from mvmae import encoders, terminal
from mvmae.config.detect import DetectConfig
from mvmae.config.segment import SegmentConfig
from mvmae.data.augment import seeded
from mvmae.encoders import OpenedEncoder
from mvmae.encoders.encoder_json import encoder_from_metadata
from mvmae.errors import UserError, pluralize
from mvmae.storage import atomic, metrics_file, results, run_folder
from mvmae.training import distributed
from mvmae.training.loop import Loop
from mvmae.training.optim import adamw, set_lr
from mvmae.training.plan import Plan
from mvmae.training.run_checkpoints import RunCheckpoints
from mvmae.training.run_start import begin_run, open_run

MAX_ROWS = 30  # classes in a printed table
NUM_PICTURES = 4  # images drawn with their predictions

C = TypeVar("C", bound=DetectConfig | SegmentConfig)
D = TypeVar("D")  # images with annotations
P = TypeVar("P")  # part of a batch
Item = TypeVar("Item")


@dataclass(frozen=True)
class Job(Generic[C, D]):
    """Everything that a run needs; only the weights and the optimiser's state change."""

    config: C
    opened: OpenedEncoder
    """Initial encoder."""

    data: D
    plan: Plan
    device: torch.device
    model: nn.Module
    optimizer: torch.optim.Optimizer
    introduction: str
    """Text about data, model and length of the run, printed at the start."""


@dataclass
class Counters:
    """State of a run apart from weights and steps; saved in checkpoints."""

    judged_step: int = -1
    """Step of the last evaluation."""


class Task(NamedTuple):
    """Functions and names in which the runs of `detect` and `segment` differ.

    A batch has `images`, `skipped` and `is_whole`; an evaluation has `figures()` and `skipped`.
    """

    command: str
    picture: str
    """File name, without suffix, of the picture of predictions."""

    open_job: Callable[[Any, torch.device], Job]
    learning_rate: Callable[[Job, int], float]
    """Learning rate of the last layers in a step; earlier layers have smaller ones."""

    batches: Callable[..., Iterable[Any]]
    """Returns the batches of some steps. Arguments: training images, config, preprocessing, steps;
    by keyword rank, world_size and cuda."""

    training_step: Callable[[nn.Module, Any, Job, int], dict[str, Tensor]]
    """Update the weights once; return the losses to log, the sum first."""

    evaluate: Callable[[Job, bool], Any]
    """Evaluate the model; every process calls it. Arguments: the job, and whether it is the last
    evaluation. Processes other than the main one may return None."""

    draw: Callable[[Job, Any, str], bytes]
    """Draw predictions of an evaluation, with a title; return PNG bytes."""

    save_model: Callable[[Job, Path], None]
    report: Callable[[Job, Any, Loop], dict[str, Any]]
    """Print an evaluation and write its files; return the content of the result."""

    hint: str
    """What a user can do with the run next; printed before the command that does it."""


def train(config: C, task: Task) -> int:
    """Train into the run folder `config.out`, by default runs/COMMAND.

    Returns:
        0 when done; 130 or 143 when stopped by SIGINT or SIGTERM, with the state saved.

    Raises:
        UserError: The encoder, the data, the folder or the settings cannot work, or a loss is not
            finite.
    """
    folder = config.out or Path("runs") / task.command
    config = replace(config, out=folder)
    with open_run(config) as device:
        job = task.open_job(config, device)
        plan, model, optimizer = job.plan, job.model, job.optimizer
        facts = {"data_fingerprint": plan.fingerprint, "num_images": len(job.data.train)}
        begin_run(config, device, **facts, encoder=encoders.encoder_metadata(job.opened))
        model.train()
        wrapped = distributed.wrap(model, device)

        def batches(steps: range) -> Iterable[Any]:
            return task.batches(
                *(job.data.train, config, job.opened.preprocessing, steps),
                rank=distributed.rank(),
                world_size=distributed.world_size(),
                cuda=device.type == "cuda",
            )

        counters = Counters()
        with Loop(
            config,
            plan,
            {"model": model, "optimizer": optimizer},
            batches,
            device,
            checkpoints=RunCheckpoints(folder / "checkpoints", config, plan.fingerprint),
            folder=folder,
            title=task.command,
            resume=config.resume,
            advice=(
                "look at ENCODER, whose weights may be damaged",
                "begin a new run with a lower --lr, or with --clip-grad 1",
            ),
            counters=counters,
        ) as loop:
            resumed = f", from step {loop.step}" if loop.step else ""
            loop.log.say(f"{job.introduction}{resumed} -> {folder}")
            if counters.judged_step < loop.step and is_interim_evaluation(loop):
                evaluate(loop, task, job, counters)  # the run was stopped before it finished
            for batch in loop:
                lr = task.learning_rate(job, loop.step)
                set_lr(optimizer, lr)
                if loop.record(task.training_step(wrapped, batch, job, loop.step)):
                    loop.write({"lr": lr} | loop.interval_means() | loop.interval_speed())
                if is_interim_evaluation(loop):
                    loop.save()  # if the evaluation fails, the steps before it are not lost
                    evaluate(loop, task, job, counters)
            if loop.signal:
                return loop.status

            loop.save()
            # Before the evaluation: if that fails, for example because images vanished, the trained
            # model is not lost.
            if distributed.is_main():
                task.save_model(job, folder)
            evaluation = evaluate(loop, task, job, counters)
            loop.save()  # again, as `counters` now has the step of this evaluation
            if distributed.is_main():
                report_result(loop, task, job, evaluation)
        distributed.barrier()
    return 0


def is_interim_evaluation(loop: Loop) -> bool:
    """Whether to evaluate now; the evaluation after the last step is separate."""
    return 0 < loop.step < loop.plan.total and loop.plan.is_evaluation(loop.step)


def evaluate(loop: Loop, task: Task, job: Job, counters: Counters) -> Any:
    """Evaluate the model and write the metrics; every process takes part.

    Raises:
        UserError: A loss is not finite, or most images cannot be read.
    """
    loop.require_finite()
    # Each process has its own running statistics of batch norm, but all must evaluate the same
    # model.
    distributed.share_buffers(job.model)
    evaluation = task.evaluate(job, loop.step == loop.plan.total)
    job.model.train()
    # A finished run that is resumed evaluates again, but has the metrics already.
    if evaluation is not None and counters.judged_step < loop.step:
        figures = evaluation.figures()
        if not has_metric(loop.folder, loop.step, next(iter(figures))):
            loop.write(figures)
            draw = partial(task.draw, job, evaluation, f"step {loop.step}")
            loop.log.picture(task.picture, draw, loop.step)
    counters.judged_step = loop.step
    distributed.barrier()
    return evaluation


def has_metric(folder: Path, step: int, name: str) -> bool:
    """Whether metrics.jsonl already has a metric of a step.

    It may, if a run was killed between writing the metric and saving the next checkpoint.
    """
    records = metrics_file.read(folder)
    return any(record["step"] == step and name in record for record in records[-2:])


def report_result(loop: Loop, task: Task, job: Job, evaluation: Any) -> None:
    """Write result, picture and skipped images of a finished run, and print their paths."""
    config, folder, log = job.config, loop.folder, loop.log
    run_folder.append_skipped(folder, evaluation.skipped)
    content = task.report(job, evaluation, loop)
    data = content["data"]["name"]
    world_size, seconds = distributed.world_size(), log.seconds()
    file = results.write(
        *(folder, task.command, config),
        content | {"world_size": world_size, "seconds": round(seconds, 1)},
        device=job.device,
        world_size=world_size,
        name=f"{task.command}-{results.slug(data)}",
    )
    png = task.draw(job, evaluation, f"{config.encoder} on {data}")
    picture = write_picture(folder, task.picture, png)
    if loop.unreadable or evaluation.skipped:
        log.say(f"images that could not be read: {folder / 'skipped.csv'}")
    log.say(f"{loop.step} steps in {terminal.clock(seconds)}. Written: {file} and {picture}")
    log.say(f"{task.hint}: mvmae {task.command} {folder} --predict IMAGES --out FOLDER")


def write_picture(folder: Path, name: str, png: bytes) -> Path:
    """Write figures/NAME.png of a run folder."""
    file = folder / "figures" / f"{name}.png"
    run_folder.make(file.parent)
    atomic.write_bytes(file, png)
    return file


def build_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Build a table for the terminal: names in the first column, numbers in the others."""
    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def class_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Build a table of classes that shows the first `MAX_ROWS`."""
    table = build_table(("class", *columns), rows[:MAX_ROWS])
    if len(rows) > MAX_ROWS:
        table.add_row(f"and {len(rows) - MAX_ROWS} rarer classes")
    return table


def percent(value: float | None) -> str:
    """Format a percentage; "-" if it is None or NaN, because there is nothing to measure."""
    return "-" if value is None or isnan(value) else f"{value:.1f}"


def evenly_spaced(items: Sequence[Item]) -> list[Item]:
    """Return at most `NUM_PICTURES` items to draw: the middle ones of equal parts of the list."""
    count = min(NUM_PICTURES, len(items))
    return [items[(2 * at + 1) * len(items) // (2 * count)] for at in range(count)]


def update_weights(
    job: Job,
    step: int,
    parts: Sequence[tuple[int, P]],
    losses: Callable[[P], tuple[Float[Tensor, ""], Mapping[str, Float[Tensor, ""]]]],
) -> dict[str, Float[Tensor, ""]]:
    """Update the weights once, with the gradient accumulated over the parts of a batch.

    Everything random is a function of (seed, step, rank).

    Args:
        job: The run.
        step: Number of the step, from 0.
        parts: Number of images and data of each part.
        losses: Returns the loss of a part, and the values to log by name.

    Returns:
        Means of the values, weighted by the number of images.
    """
    config = job.config
    rng = np.random.default_rng((config.seed, step, distributed.rank()))
    count = sum(size for size, _ in parts)
    job.optimizer.zero_grad(set_to_none=True)
    means: dict[str, Tensor] = {}
    # Dropout, and torchvision where it samples anchors and boxes, read torch's global generator.
    with seeded(int(rng.integers(2**63)), job.device):
        for size, part in parts:
            loss, values = losses(part)
            share = size / count
            (share * loss).backward()
            for name, value in values.items():
                means[name] = means.get(name, 0.0) + share * value.detach()
    if config.clip_grad is not None:
        nn.utils.clip_grad_norm_(job.model.parameters(), config.clip_grad)
    job.optimizer.step()
    return means


def prepare_model(
    model: nn.Module, config: DetectConfig | SegmentConfig, device: torch.device
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Move a model to the device; return it with AdamW, whose rates decay layer by layer."""
    model = model.to(device)
    if device.type == "cuda" and distributed.world_size() > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # torch has none for CPUs
    optimizer = adamw(
        model,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
    )
    return model, optimizer


def load_initial_encoder(config: DetectConfig | SegmentConfig) -> OpenedEncoder:
    """Open the encoder that a run starts from; for a resumed run, build only its architecture.

    The weights of a resumed run are in its checkpoint, so ENCODER may have been removed or
    replaced. Architecture and preprocessing are in environment.json.

    Raises:
        UserError: The encoder does not exist, or was not trained on 8-bit grey or colour images.
    """
    if config.resume and config.out is not None:
        file = config.out / run_folder.ENVIRONMENT
        metadata = atomic.read_object(file).get("encoder")
        if isinstance(metadata, dict):
            return encoder_from_metadata(metadata, source=str(file))
    return require_8_bit(encoders.open_encoder(config.encoder), config.encoder)


def fit_encoder(opened: OpenedEncoder, option: str, side: int, patches: int) -> OpenedEncoder:
    """Resize an encoder's positions to images of another size.

    Args:
        opened: The encoder.
        option: Name of the option that gives the side.
        side: Side of the images in pixels.
        patches: The side must be a multiple of this number of patches.

    Raises:
        UserError: The side is not such a multiple, or is less than two patches.
    """
    patch_size, multiple = opened.encoder.patch_size, patches * opened.encoder.patch_size
    if side % multiple or side < 2 * patch_size:
        nearest = max(2 * patch_size, round(side / multiple) * multiple, multiple)
        raise UserError(
            f"{option} {side} is not a multiple of {multiple}, as patches of {patch_size} pixels "
            f"need, or is less than two of them: set --{option.replace('_', '-')} {nearest}"
        )
    return opened._replace(encoder=encoders.resize_encoder(opened.encoder, side))


def require_8_bit(opened: OpenedEncoder, name: str) -> OpenedEncoder:
    """Return the encoder if it was trained on 8-bit grey or colour images.

    The readers of annotated images take only 8 bits: in deeper images, colour jitter, padding and
    pictures would need to know which value is white.

    Raises:
        UserError: The encoder was trained on other pixels.
    """
    channels, depth = opened.encoder.in_channels, opened.depth
    if depth == "8" and channels in (1, 3):
        return opened
    kind = {"8": "8-bit", "16": "16-bit", "float": "floating-point"}[depth]
    raise UserError(
        f"{name} was trained on {kind} images of {pluralize(channels, 'channel')}. Boxes and masks "
        "need an encoder of 8-bit grey or colour images: choose another ENCODER"
    )
