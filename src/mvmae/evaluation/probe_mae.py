"""The linear probe of MAE and of the paper (section 4.1.3): crops, batch norm, LARS, 100 epochs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor, nn

from mvmae import encoders
from mvmae.config.evaluation import ProbeConfig
from mvmae.data.labelled_batches import LabelledBatch, labelled_batches
from mvmae.data.reading.loader import Skipped, whole_batches
from mvmae.data.sources.base import Subset
from mvmae.errors import UserError
from mvmae.evaluation import shared
from mvmae.evaluation.shared import Headline, Setting
from mvmae.method.views import normalized
from mvmae.storage import lock, run_folder
from mvmae.storage.results import slug
from mvmae.training import checkpoint, distributed, precision, process_store
from mvmae.training.interrupt import Interrupt, exit_status
from mvmae.training.lars import Lars
from mvmae.training.log import Log
from mvmae.training.optim import set_lr
from mvmae.training.schedule import warmup_cosine

EVAL_SHARE = 224 / 256  # of the image's sides that is judged: MAE resizes to 256 and cuts out 224
LOG_EVERY = 10  # steps between two lines of metrics
LITTLE, ENOUGH = 5.0, 20.0  # of `growth`; ImageNet's 100 epochs have 250
MAY_DIFFER = {"out", "device", "workers", "save_every_minutes", "baselines", "pool", "batch_size"}


def run(config: ProbeConfig) -> int:
    """Train a linear layer on each token of the frozen encoder, and judge both.

    Interrupted, the same command goes on at the exact step. Several processes share the images of
    each step and encode theirs; then each has the tokens of all, and takes the same step.

    Returns:
        0; 130 or 143 when stopped by SIGINT or SIGTERM, with the state saved.

    Raises:
        UserError: The encoder or the images cannot be read, or the loss stopped being finite.
    """
    with distributed.process_group(torch.device("cpu")):  # tokens and scores are exchanged there
        setting = shared.open_setting(config)
        heads = heads_of(setting, config.seed).to(setting.device)
        folder = folder_of(config, setting)
        with lock.shared(setting.home / "cache"):
            return train(config, setting, heads, folder)


def train(config: ProbeConfig, setting: Setting, heads: nn.ModuleDict, folder: Path) -> int:
    """Train the heads from where they were left, and judge them.

    Returns:
        An exit status.

    Raises:
        UserError: The images cannot be read, or the loss stopped being finite.
    """
    device, source = setting.device, setting.data.train
    step_size = min(config.step_size, len(source))
    if step_size < 2:
        raise UserError("batch norm needs at least 2 training images, and a --step-size of 2")
    if step_size < distributed.world_size():
        raise UserError(
            f"{step_size} images in a step cannot be shared by {distributed.world_size()} "
            f"processes: start {step_size} or fewer"
        )
    per_epoch = len(source) // step_size
    total = per_epoch * config.epochs
    peak = config.base_lr * step_size / 256

    encoder = setting.opened.encoder.to(device).eval()
    optimizer = Lars(heads.parameters(), lr=0.0)
    step, skipped = taken_up(folder, heads, optimizer)
    rank, world_size = distributed.rank(), distributed.world_size()
    sizes = [
        len(process_store.partition(step_size, each, world_size)) for each in range(world_size)
    ]
    batches = labelled_batches(
        source,
        seed=config.seed,
        steps=range(step, total),
        batch_size=step_size,
        size=encoder.image_size,
        crop_scale=config.crop_scale,
        interpolation=setting.opened.preprocessing.interpolation,
        augment=0.0,
        rank=rank,
        world_size=world_size,
        workers=config.workers,
        cuda=device.type == "cuda",
    )

    run_folder.make(folder)
    quiet = not distributed.is_main()
    log = Log(folder, start=step, total=total, also=(), quiet=quiet, title="probe")
    with log, Interrupt() as interrupt:
        log.say(
            f"{len(source)} images, {config.epochs} epochs of {per_epoch} steps of {step_size}, "
            f"learning rate {peak:g}" + (f", from step {step}" if step else "")
        )
        if (growth := growth_of(total, peak)) < LITTLE:
            log.say(
                f"{total} steps at this rate hardly move LARS's weights: --base-lr "
                f"{config.base_lr * ENOUGH / growth:.2g} would; --protocol cached needs no rate"
            )
        saved_at = time.monotonic()
        for batch in batches:
            if not batch.is_whole:
                path, reason = batch.skipped[-1]
                raise UserError(f"images of {config.data} cannot be read: {path} ({reason})")
            skipped |= dict(batch.skipped)
            warmup = round(config.warmup_epochs * per_epoch)
            set_lr(
                optimizer, warmup_cosine(step, peak=peak, warmup_steps=warmup, total_steps=total)
            )
            tokens, labels = of_all(frozen_tokens(batch.images, config, setting), batch, sizes)
            loss = update(heads, optimizer, on_device(tokens, device), labels.to(device))
            step += 1
            log.advance(step)
            if step % LOG_EVERY == 0 or step == total:
                log.write({"step": step, "loss": finite(loss.item(), step)})
            late = time.monotonic() - saved_at >= 60 * config.save_every_minutes
            signal, late = agreed(interrupt.signal, late=late)
            if signal or late or step == total:
                skipped = dict(distributed.gather_objects(list(skipped.items())))
                if distributed.is_main():
                    keep(folder, heads, optimizer, step, skipped)
                saved_at = time.monotonic()
            if signal:
                log.say(f"stopped after step {step}, saved. Go on with the same command")
                return exit_status(signal)

    judge(config, setting, heads, log, skipped)
    return 0


def of_all(
    tokens: dict[str, Float[Tensor, "B D"]], batch: LabelledBatch, sizes: Sequence[int]
) -> tuple[dict[str, Float[Tensor, "G D"]], Int[Tensor, " G"]]:
    """The tokens and labels of a step's images of all processes, in the order of one process.

    The encoder is frozen, so nothing need flow back, and batch norm sees the whole step.
    """
    if len(sizes) == 1:
        return tokens, batch.labels
    gathered = {
        token: distributed.gather_unequal_rows(rows.cpu(), sizes) for token, rows in tokens.items()
    }
    return gathered, distributed.gather_unequal_rows(batch.labels, sizes)


def on_device(
    tokens: dict[str, Float[Tensor, "B D"]], device: torch.device
) -> dict[str, Float[Tensor, "B D"]]:
    """The tokens, where the heads are."""
    return {token: rows.to(device) for token, rows in tokens.items()}


def agreed(signal: int, *, late: bool) -> tuple[int, bool]:
    """What any process found, so that all stop, and save, at the same step."""
    signal, is_late = distributed.largest_of([signal, int(late)], torch.device("cpu"))
    return signal, bool(is_late)


def growth_of(steps: int, peak: float) -> float:
    """How far LARS can take its weights in a run, in e-foldings of their norm.

    A step changes a weight by lr * trust of its norm, ten times that with a momentum of 0.9, and
    the cosine halves it. A smaller batch makes more steps of a smaller rate: it changes nothing.
    """
    return steps * peak * 0.001 * 10 / 2


def heads_of(setting: Setting, seed: int) -> nn.ModuleDict:
    """For each token a batch norm without weights and a linear layer, of deviation 0.01 (MAE)."""
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
def frozen_tokens(
    images: UInt8[Tensor, "B C H W"], config: ProbeConfig, setting: Setting
) -> dict[str, Float[Tensor, "B D"]]:
    """The encoder's pooled tokens, `batch_size` images at a time."""
    encoder, (mean, std, _) = setting.opened.encoder, setting.opened.preprocessing
    parts: dict[str, list[Tensor]] = {"mean": [], "cls": []}
    for chunk in images.split(config.batch_size):
        pixels = normalized(chunk, mean, std, setting.device)
        with precision.autocast(setting.device, config.precision):
            tokens = encoder(pixels)
        parts["mean"].append(encoder.pool(tokens, "mean").float())
        if encoder.variant.cls_token:
            parts["cls"].append(encoder.pool(tokens, "cls").float())
    return {token: torch.cat(chunks) for token, chunks in parts.items() if chunks}


def update(
    heads: nn.ModuleDict,
    optimizer: Lars,
    tokens: dict[str, Float[Tensor, "B D"]],
    labels: Int[Tensor, " B"],
) -> Float[Tensor, ""]:
    """One step of every head; they share nothing, so the sum of their losses trains each alone.

    Returns:
        The mean of the heads' losses.
    """
    heads.train()
    losses = [F.cross_entropy(head(tokens[token].clone()), labels) for token, head in heads.items()]
    optimizer.zero_grad(set_to_none=True)
    torch.stack(losses).sum().backward()
    optimizer.step()
    return torch.stack(losses).mean().detach()


def finite(loss: float, step: int) -> float:
    """The loss, if it is a number.

    Raises:
        UserError: It is none.
    """
    if loss != loss or abs(loss) == float("inf"):
        raise UserError(f"the loss is not finite at step {step}: try a lower --base-lr")
    return loss


def folder_of(config: ProbeConfig, setting: Setting) -> Path:
    """Where the state is kept until the result is written: a place for these settings alone."""
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


def keep(
    folder: Path, heads: nn.Module, optimizer: Lars, step: int, skipped: dict[str, str]
) -> None:
    """Save the state, whole or not at all."""
    state = {"heads": heads.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    checkpoint.save(folder, state | {"skipped": skipped})


def taken_up(folder: Path, heads: nn.Module, optimizer: Lars) -> tuple[int, dict[str, str]]:
    """Take up what was kept: the step to go on from, and images that could not be read."""
    if not (folder / "last.pt").exists():
        return 0, {}
    state, _ = checkpoint.newest(folder)
    heads.load_state_dict(state["heads"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["skipped"]


def judge(
    config: ProbeConfig, setting: Setting, heads: nn.ModuleDict, log: Log, unread: dict[str, str]
) -> None:
    """Score the test images, and write the result with the course of the loss."""
    found = test_scores(config, setting, heads.eval())
    if not distributed.is_main():
        return
    scores, labels, skipped = found
    rows = [
        shared.score_row(config.encoder, token, values, labels) for token, values in scores.items()
    ]
    row = next(row for row in rows if row.token == setting.pool)
    predictions = scores[setting.pool].argmax(dim=1)
    num_train = len(setting.data.train) - len(unread)
    skipped = [*(Skipped(*one) for one in sorted(unread.items())), *skipped]
    headline = Headline(row, predictions, labels, num_train, skipped)
    curve = [json.loads(line) for line in log.file.read_text(encoding="utf-8").splitlines()]
    shared.report(
        config,
        setting,
        rows,
        headline,
        command="probe",
        title=f"linear probe on {config.data} (MAE's protocol, {config.epochs} epochs)",
        name=f"probe-mae-{slug(config.data)}",
        more={"loss": curve},
    )


@torch.inference_mode()
def test_scores(
    config: ProbeConfig, setting: Setting, heads: nn.ModuleDict
) -> tuple[dict[str, Float[Tensor, "Q K"]], Int[Tensor, " Q"], list[Skipped]]:
    """Each head's logits for the test images' centres; each process takes its share of them.

    They are whole in the main process only.
    """
    whole, size = setting.data.test, config.batch_size
    batches = -(-len(whole) // size)
    own = process_store.partition(batches, distributed.rank(), distributed.world_size())
    source = Subset(whole, range(own.start * size, min(own.stop * size, len(whole))))
    scores: dict[str, list[Tensor]] = {token: [] for token in heads}
    labels, skipped = [], []
    for batch in whole_batches(
        source,
        setting.opened.encoder.image_size,
        interpolation=setting.opened.preprocessing.interpolation,
        batch_size=size,
        workers=config.workers,
        cuda=setting.device.type == "cuda",
        share=EVAL_SHARE,
    ):
        skipped += batch.skipped
        labels += [source.label(index) for index in batch.indices.tolist()]
        if len(batch.images):
            tokens = frozen_tokens(batch.images, config, setting)
            for token, head in heads.items():
                scores[token].append(head(tokens[token]).float().cpu())
        process_store.current().check()
    scores = {token: distributed.gather_objects(parts) for token, parts in scores.items()}
    labels, skipped = distributed.gather_objects(labels), distributed.gather_objects(skipped)
    if distributed.is_main():
        encoders.require_readable(whole, skipped)
    none = torch.empty(0, len(whole.classes))
    joined = {token: torch.cat([none, *parts]) for token, parts in scores.items()}
    return joined, torch.tensor(labels, dtype=torch.int64), skipped
