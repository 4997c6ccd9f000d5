"""Run the linear probe of MAE and of the paper (section 4.1.3): crops, batch norm, LARS.

Shapes: B images of this process, G images of a step over all processes, D width, Q test images,
K classes.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor, nn

from mvmae import encoders
from mvmae.config.evaluation import ProbeConfig
from mvmae.config.options import RunOutput
from mvmae.data.labelled_batches import BatchOptions, LabelledBatch, labelled_batches
from mvmae.data.reading.loader import Skipped, whole_batches
from mvmae.data.sources.base import Subset
from mvmae.errors import UserError
from mvmae.evaluation import shared
from mvmae.evaluation.shared import Headline, Setting
from mvmae.method.views import normalize
from mvmae.storage import run_folder
from mvmae.storage.results import slug
from mvmae.training import distributed, precision, process_store
from mvmae.training.lars import Lars
from mvmae.training.loop import Loop
from mvmae.training.optim import set_lr
from mvmae.training.plan import Plan, warmup_cosine
from mvmae.training.run_checkpoints import RunCheckpoints
from mvmae.training.run_start import claim_shared_folder

TEST_SHARE = 224 / 256  # of a test image's sides: MAE resizes to 256 and crops the central 224
MIN_GROWTH, GOOD_GROWTH = 5.0, 20.0  # of `weight_growth`; ImageNet's 100 epochs have 250
# Options that do not change the heads, so that a command with others resumes the same state.
MAY_DIFFER = {"out", "device", "workers", "save_every_minutes", "baselines", "pool", "batch_size"}
LOWER_RATE = "try a lower --base-lr"


def run(config: ProbeConfig) -> int:
    """Train a linear layer on each token of the frozen encoder, and evaluate both.

    The same command resumes an interrupted one at the exact step. Several processes share the
    images of each step; each then has the tokens of all and takes the same step.

    Returns:
        0; 130 or 143 when stopped by SIGINT or SIGTERM, with the state saved.

    Raises:
        UserError: The encoder or the images cannot be read, or the loss diverged.
    """
    # Processes exchange tokens and scores on the CPU.
    with distributed.process_group(torch.device("cpu")):
        setting = shared.open_setting(config)
        with claim_shared_folder(setting.home / "cache"):
            return train(config, setting)


def train(config: ProbeConfig, setting: Setting) -> int:
    """Train the heads from their last checkpoint, and evaluate them.

    Returns:
        An exit status.

    Raises:
        UserError: The images cannot be read, or the loss diverged.
    """
    plan, device = make_plan(config, setting), setting.device
    setting.opened.encoder.to(device).eval()
    heads = build_heads(setting, config.seed).to(device)
    optimizer = Lars(heads.parameters(), lr=0.0)
    folder = state_folder(config, setting)
    run_folder.make(folder)
    checkpoints = RunCheckpoints(folder)  # only this command's: the name depends on all settings
    with Loop(
        RunOutput(save_every_minutes=config.save_every_minutes),
        plan,
        {"heads": heads, "optimizer": optimizer},
        lambda steps: read_batches(config, setting, steps, plan.batch_size),
        torch.device("cpu"),  # processes exchange there; see `run`
        checkpoints=checkpoints,
        folder=folder,
        title="probe",
        resume=checkpoints.newest.exists(),
        advice=(LOWER_RATE, LOWER_RATE),
        resume_hint="run the same command again",
        agree_every=1,  # a step reads thousands of images
    ) as loop:
        introduce(loop, config, setting)
        for batch in loop:
            set_lr(optimizer, learning_rate(loop.step, plan, config))
            tokens = pool_frozen(batch.images, config, setting)
            tokens, labels = gather_step(tokens, batch, plan.batch_size)
            tokens = {token: rows.to(device) for token, rows in tokens.items()}
            loss = update(heads, optimizer, tokens, labels.to(device)).cpu()
            if loop.record({"loss": loss}):
                loop.write(loop.interval_means() | {"loss": loss.item()} | loop.interval_speed())
        if loop.signal:
            return loop.status
        loop.save()
        evaluate(loop, config, setting, heads)
    return 0


def make_plan(config: ProbeConfig, setting: Setting) -> Plan:
    """Count the steps; fewer training images than `step_size` are all in one step.

    Raises:
        UserError: A step has too few images for batch norm, or for the processes.
    """
    num_images, processes = len(setting.data.train), distributed.world_size()
    step_size = min(config.step_size, num_images)
    if step_size < 2:
        raise UserError(
            "batch norm needs at least 2 images: give more training images, and a --step-size of "
            "at least 2"
        )
    if step_size < processes:
        raise UserError(
            f"{step_size} images in a step cannot be shared by {processes} processes: start "
            f"{step_size} or fewer"
        )
    per_epoch = num_images // step_size
    total = per_epoch * config.epochs
    return Plan(per_epoch, total, step_size, setting.stamps["train"], eval_every=total)


def peak_rate(config: ProbeConfig, plan: Plan) -> float:
    """Largest learning rate, by MAE's rule: `base_lr` times the batch size over 256."""
    return config.base_lr * plan.batch_size / 256


def learning_rate(step: int, plan: Plan, config: ProbeConfig) -> float:
    """Learning rate of a step: linear warm-up, then half a cosine to 0."""
    warmup_steps = round(config.warmup_epochs * plan.per_epoch)
    peak = peak_rate(config, plan)
    return warmup_cosine(step, peak=peak, warmup_steps=warmup_steps, total_steps=plan.total)


def introduce(loop: Loop, config: ProbeConfig, setting: Setting) -> None:
    """Print the schedule, and warn if it is too short for LARS."""
    plan, peak = loop.plan, peak_rate(config, loop.plan)
    loop.log.say(
        f"{len(setting.data.train)} images, {config.epochs} epochs of {plan.per_epoch} steps of "
        f"{plan.batch_size}, learning rate {peak:g}"
        + (f", from step {loop.step}" if loop.step else "")
    )
    if (growth := weight_growth(plan.total, peak)) < MIN_GROWTH:
        loop.log.say(
            f"{plan.total} steps at this rate hardly change LARS's weights: use --base-lr "
            f"{config.base_lr * GOOD_GROWTH / growth:.2g}, or --protocol cached, which needs no "
            "rate"
        )


def weight_growth(steps: int, peak: float) -> float:
    """How far LARS can grow its weights in a run, in e-foldings of their norm.

    A step changes a weight by lr * trust coefficient (0.001) of its norm. Momentum 0.9 makes that
    ten times as much, and the cosine schedule halves it. Smaller batches do not help: they take
    more steps at a proportionally lower rate.
    """
    return steps * peak * 0.001 * 10 / 2


def read_batches(
    config: ProbeConfig, setting: Setting, steps: range, step_size: int
) -> Iterator[LabelledBatch]:
    """Read this process's share of the training batches: random crops and flips."""
    size, preprocessing = setting.opened.encoder.image_size, setting.opened.preprocessing
    loader = labelled_batches(
        setting.data.train,
        BatchOptions(config.seed, step_size, size, config.crop_scale, preprocessing.interpolation),
        steps,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        workers=config.workers,
        cuda=setting.device.type == "cuda",
    )
    return iter(loader)


def gather_step(
    tokens: dict[str, Float[Tensor, "B D"]], batch: LabelledBatch, step_size: int
) -> tuple[dict[str, Float[Tensor, "G D"]], Int[Tensor, " G"]]:
    """Gather a step's tokens and labels from all processes, in the order of a single process.

    No gradient needs to flow back, as the encoder is frozen, and batch norm sees the whole step.
    """
    processes = distributed.world_size()
    if processes == 1:
        return tokens, batch.labels
    sizes = [len(process_store.partition(step_size, rank, processes)) for rank in range(processes)]
    gathered = {
        token: distributed.gather_unequal_rows(rows.cpu(), sizes) for token, rows in tokens.items()
    }
    return gathered, distributed.gather_unequal_rows(batch.labels, sizes)


def build_heads(setting: Setting, seed: int) -> nn.ModuleDict:
    """Build a head for each token: batch norm without weights, and a linear layer.

    The linear layer's weights have a standard deviation of 0.01, as in MAE.
    """
    width, classes = setting.opened.encoder.embed_dim, len(setting.data.train.classes)
    generator = Generator().manual_seed(seed)
    heads = nn.ModuleDict()
    for token in ("mean", "cls") if setting.opened.encoder.variant.cls_token else ("mean",):
        linear = nn.Linear(width, classes)
        nn.init.normal_(linear.weight, std=0.01, generator=generator)
        nn.init.zeros_(linear.bias)
        heads[token] = nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=1e-6), linear)
    return heads


@torch.inference_mode()
def pool_frozen(
    images: UInt8[Tensor, "B C H W"], config: ProbeConfig, setting: Setting
) -> dict[str, Float[Tensor, "B D"]]:
    """Compute the frozen encoder's pooled tokens, `config.batch_size` images at a time.

    Returns:
        Vectors by token: "mean", and "cls" if the encoder has a class token.
    """
    encoder, (mean, std, _) = setting.opened.encoder, setting.opened.preprocessing
    parts: dict[str, list[Tensor]] = {"mean": [], "cls": []}
    for chunk in images.split(config.batch_size):
        pixels = normalize(chunk, mean, std, setting.device)
        with precision.autocast(setting.device, config.precision):
            tokens = encoder(pixels)
        parts["mean"].append(encoder.pool(tokens, "mean").float())
        if encoder.variant.cls_token:
            parts["cls"].append(encoder.pool(tokens, "cls").float())
    return {token: torch.cat(chunks) for token, chunks in parts.items() if chunks}


def update(
    heads: nn.ModuleDict,
    optimizer: Lars,
    tokens: dict[str, Float[Tensor, "G D"]],
    labels: Int[Tensor, " G"],
) -> Float[Tensor, ""]:
    """Update every head once. They share no weights, so the sum of losses trains each alone.

    Returns:
        The mean of the heads' losses.
    """
    heads.train()
    # Tokens were made in inference mode; autograd needs a copy.
    losses = [F.cross_entropy(head(tokens[token].clone()), labels) for token, head in heads.items()]
    optimizer.zero_grad(set_to_none=True)
    torch.stack(losses).sum().backward()
    optimizer.step()
    return torch.stack(losses).mean().detach()


def state_folder(config: ProbeConfig, setting: Setting) -> Path:
    """Return the folder of the training state, which differs for each combination of settings.

    Its removal is scheduled for when the result is written.
    """
    fields = {name: getattr(config, name) for name in config.__dataclass_fields__}
    facts = (
        encoders.weights_digest(setting.opened.encoder),
        setting.opened.preprocessing,
        setting.stamps["train"],
        sorted((name, value) for name, value in fields.items() if name not in MAY_DIFFER),
    )
    folder = setting.home / "cache" / f"probe-{shared.cache_key(facts)}"
    setting.caches.append(folder)
    return folder


def evaluate(loop: Loop, config: ProbeConfig, setting: Setting, heads: nn.ModuleDict) -> None:
    """Score the test images; on the main process, write the result with the curve of the loss."""
    scores, labels, skipped = score_test_images(config, setting, heads.eval())
    if not distributed.is_main():
        return
    rows = [
        shared.score_row(config.encoder, token, values, labels) for token, values in scores.items()
    ]
    row = next(row for row in rows if row.token == setting.pool)
    predictions = scores[setting.pool].argmax(dim=1)
    unreadable = read_skipped(loop.folder / "skipped.csv")
    num_train = len(setting.data.train) - len(unreadable)
    headline = Headline(row, predictions, labels, num_train, [*unreadable, *skipped])
    records = map(json.loads, loop.log.file.read_text(encoding="utf-8").splitlines())
    shared.report(
        config,
        setting,
        rows,
        headline,
        command="probe",
        title=f"linear probe on {config.data} (MAE's protocol, {config.epochs} epochs)",
        name=f"probe-mae-{slug(config.data)}",
        more={"loss": [{"step": one["step"], "loss": one["loss"]} for one in records]},
    )


def read_skipped(file: Path) -> list[Skipped]:
    """Read the training images that the loop could not read, sorted by path."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        _, *rows = csv.reader(stream)
    return [Skipped(*row) for row in sorted(rows)]


@torch.inference_mode()
def score_test_images(
    config: ProbeConfig, setting: Setting, heads: nn.ModuleDict
) -> tuple[dict[str, Float[Tensor, "Q K"]], Int[Tensor, " Q"], list[Skipped]]:
    """Compute each head's logits for the centre crops of the test images.

    Each process takes its share. The main process gathers them; the others return empty results.

    Returns:
        Logits by token, labels and unreadable images.

    Raises:
        UserError: More than half of the images cannot be read, or another process failed.
    """
    test, size = setting.data.test, config.batch_size
    batches = -(-len(test) // size)
    own = process_store.partition(batches, distributed.rank(), distributed.world_size())
    source = Subset(test, range(own.start * size, min(own.stop * size, len(test))))
    scores: dict[str, list[Tensor]] = {token: [] for token in heads}
    labels, skipped = [], []
    for batch in whole_batches(
        source,
        setting.opened.encoder.image_size,
        interpolation=setting.opened.preprocessing.interpolation,
        batch_size=size,
        workers=config.workers,
        cuda=setting.device.type == "cuda",
        share=TEST_SHARE,
    ):
        skipped += batch.skipped
        labels += [source.label(index) for index in batch.indices.tolist()]
        if len(batch.images):
            tokens = pool_frozen(batch.images, config, setting)
            for token, head in heads.items():
                scores[token].append(head(tokens[token]).float().cpu())
        process_store.current().check()  # stop if another process failed
    scores = {token: distributed.gather_objects(parts) for token, parts in scores.items()}
    labels, skipped = distributed.gather_objects(labels), distributed.gather_objects(skipped)
    if distributed.is_main():
        encoders.require_readable(test, skipped)
    none = torch.empty(0, len(test.classes))  # `torch.cat` refuses an empty list
    joined = {token: torch.cat([none, *parts]) for token, parts in scores.items()}
    return joined, torch.tensor(labels, dtype=torch.int64), skipped
