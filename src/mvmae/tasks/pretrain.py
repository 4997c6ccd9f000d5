"""Pre-training: two masked views, one encoder, two losses. Read `run` from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from mvmae import config as configs
from mvmae import encoders
from mvmae.config import ObjectiveConfig, PretrainConfig
from mvmae.data.loader import Batch, view_batches
from mvmae.data.sources.opening import Labelled, fingerprint, open_labelled, open_source
from mvmae.data.sources.source import Source
from mvmae.data.views import normalized
from mvmae.engine import checkpoint, distributed, precision, runs
from mvmae.engine.interrupt import Interrupt, exit_status
from mvmae.engine.log import Log
from mvmae.engine.optim import adamw, set_lr
from mvmae.engine.schedule import warmup_cosine
from mvmae.errors import UserError
from mvmae.metrics import health
from mvmae.metrics.knn import knn_predictions, top1
from mvmae.models.mae import MaskedAutoencoder, View
from mvmae.objectives import normalize_patches, nt_xent, reconstruction_loss

MAY_DIFFER = {"out", "device", "workers", "save_every_minutes", "log", "resume", "overwrite"}
ENOUGH_TRIED = 100  # images after which the share of unreadable ones is believed


def run(config: PretrainConfig) -> int:
    """Pre-train as `config` says, into the run folder `config.out`.

    Returns:
        0 when done; 130 or 143 when stopped by SIGINT or SIGTERM, with the state saved.

    Raises:
        UserError: The data, the folder or the settings cannot work, or the loss stopped being
            finite.
    """
    device = precision.choose_device(config.device)
    with distributed.process_group(device), Interrupt() as interrupt:
        runs.claim(config.out, resume=config.resume, overwrite=config.overwrite)
        source = open_source(config.data, config.model.in_channels)
        plan = plan_of(config, source)
        judge = open_judge(config, source)

        model = MaskedAutoencoder(config.model, Generator().manual_seed(config.seed)).to(device)
        if config.objective.reconstruction_weight == 0:
            for parameter in model.decoder_parameters():
                parameter.requires_grad_(False)
        optimizer = adamw(
            model, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
        )
        state = resume(config, plan, model, optimizer) if config.resume else State()
        if not config.resume and distributed.is_main():
            begin_folder(config, plan, device, len(source))
        distributed.barrier()
        wrapped = distributed.wrap(model, device)

        quiet = not distributed.is_main()
        log = Log(config.out, start=state.step, total=plan.total, also=config.log, quiet=quiet)
        batches = view_batches(
            source,
            config,
            range(state.step, plan.total),
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            cuda=device.type == "cuda",
        )
        with log:
            introduce(log, config, plan, source, model, state)
            clock = Clock()
            for batch in timed(batches, clock):
                state.note_reading(batch)
                set_lr(optimizer, plan.lr(state.step, config))
                view, losses = training_step(wrapped, optimizer, batch, config, device)
                state.step += 1
                state.pending.append(torch.stack(list(losses.values())).detach())
                log.advance(state.step)

                if state.step % config.log_every == 0 or state.step == plan.total:
                    record = interval_record(config, plan, state, view, list(losses), clock)
                    log.write(record | {"seconds": round(log.seconds(), 3)})
                    warn_of_collapse(log, state, record, plan)
                if judge and plan.is_evaluation(state.step, config):
                    log.write(evaluate(model.encoder, judge, config, plan, state, device))
                if stopped := stop_signal(interrupt, config, state, device):
                    save(config, plan, state, model, optimizer)
                    log.say(farewell(stopped, config, state))
                    return exit_status(stopped)
                if save_is_due(config, plan, state, device):
                    save(config, plan, state, model, optimizer)

            save(config, plan, state, model, optimizer)
            if distributed.is_main():
                encoders.save_encoder(config.out, model.encoder, config)
                conclude(log, config, plan, state)
        distributed.barrier()
    return 0


# --------------------------------------------------------------------------- before the first step


class Plan(NamedTuple):
    """How long the run is, and on what."""

    per_epoch: int
    total: int
    fingerprint: str

    def lr(self, step: int, config: PretrainConfig) -> float:
        """Learning rate of a step."""
        warmup = round(config.warmup_epochs * self.per_epoch)
        return warmup_cosine(step, peak=config.lr, warmup_steps=warmup, total_steps=self.total)

    def epoch(self, step: int) -> float:
        """Epochs done after so many steps."""
        return round(step / self.per_epoch, 4)

    def is_evaluation(self, step: int, config: PretrainConfig) -> bool:
        """Whether the encoder is judged after this step."""
        return step == self.total or step % (config.eval_every * self.per_epoch) == 0


def plan_of(config: PretrainConfig, source: Source) -> Plan:
    """Count the steps.

    Raises:
        UserError: There are fewer images than a batch needs, or the batch cannot be shared out.
    """
    processes = distributed.world_size()
    if config.batch_size % processes:
        raise UserError(
            f"batch_size {config.batch_size} cannot be shared by {processes} processes: "
            f"{config.batch_size // processes * processes or processes} can"
        )
    per_epoch = len(source) // config.batch_size
    if per_epoch == 0:
        raise UserError(
            f"{len(source)} images are fewer than a batch of {config.batch_size}: "
            f"set --batch-size {len(source)} or less, or give more images"
        )
    return Plan(per_epoch, per_epoch * config.epochs, fingerprint(source))


def open_judge(config: PretrainConfig, source: Source) -> Labelled | None:
    """The labelled images for kNN while training."""
    if config.eval_data is None:
        return None
    judge = open_labelled(config.eval_data, config.model.in_channels)
    seen = {source.path(index) for index in range(len(source))}
    both = sum(judge.test.path(index) in seen for index in range(len(judge.test)))
    if both:
        raise UserError(
            f"{both} of the {len(judge.test)} test images of --eval-data {config.eval_data} are "
            "also trained on: take them out of DATA"
        )
    return judge


def begin_folder(
    config: PretrainConfig, plan: Plan, device: torch.device, num_images: int
) -> None:
    """Make the run folder, with what repeats the run."""
    config.out.mkdir(parents=True, exist_ok=True)
    if config.overwrite:
        runs.clear(config.out)
    facts = runs.environment(
        device,
        distributed.world_size(),
        data_fingerprint=plan.fingerprint,
        num_images=num_images,
    )
    runs.write_json(config.out / "environment.json", facts)
    kept = replace(config, resume=False, overwrite=False)
    checkpoint.write_text(config.out / runs.CONFIG, configs.to_json(kept))


class State:
    """What a step changes besides the weights."""

    def __init__(self) -> None:
        self.step = 0
        self.drawn = self.unreadable = 0
        self.pending: list[Tensor] = []  # losses since the last line of metrics
        self.skipped: list[tuple[str, str]] = []  # not yet in skipped.csv
        self.saved_at = time.monotonic()
        self.saved_step = 0
        self.last_record: dict[str, float] = {}
        self.warned = False

    def note_reading(self, batch: Batch) -> None:
        """Count unreadable images.

        Raises:
            UserError: More than half of them are.
        """
        self.skipped += batch.skipped
        self.unreadable += len(batch.skipped)
        self.drawn += batch.noise.shape[1] + len(batch.skipped)
        too_many = self.drawn >= ENOUGH_TRIED and self.unreadable > self.drawn / 2
        if too_many or not batch.is_whole:
            example = batch.skipped[-1]
            raise UserError(
                f"{self.unreadable} of the first {self.drawn} images cannot be read, "
                f"{example.path} for one ({example.reason}): is this the right DATA?"
            )


def resume(
    config: PretrainConfig, plan: Plan, model: MaskedAutoencoder, optimizer: torch.optim.Optimizer
) -> State:
    """Take up the run in the folder where it was saved.

    Raises:
        UserError: The checkpoint is damaged, or of another model, config or data.
    """
    file = config.out / "checkpoints" / "last.pt"
    saved = checkpoint.load(file)
    before = configs.from_json(saved["config"], PretrainConfig, source=str(file))
    changed = differences(before, config)
    if changed:
        raise UserError(
            f"{config.out} was run with {changed}: resume with the same settings "
            f"(mvmae pretrain --resume --out {config.out}), or begin a new run"
        )
    if saved["fingerprint"] != plan.fingerprint:
        raise UserError(
            f"the images in {' '.join(config.data)} are not those that {config.out} began with: "
            "put them back, or begin a new run"
        )
    checkpoint.load_weights(model, saved["model"], source=str(file))
    optimizer.load_state_dict(saved["optimizer"])
    state = State()
    state.step = state.saved_step = saved["step"]
    state.drawn, state.unreadable = saved["drawn"], saved["unreadable"]
    state.pending = [row.to(next(model.parameters()).device) for row in saved["pending"]]
    state.last_record, state.warned = saved["last_record"], saved["warned"]
    return state


def differences(before: Any, now: Any, prefix: str = "") -> str:
    """Fields that changed, and what they were."""
    words = []
    for field in fields(before):
        old, new = getattr(before, field.name), getattr(now, field.name)
        if old == new or (not prefix and field.name in MAY_DIFFER):
            continue
        name = prefix + field.name
        is_group = hasattr(old, "__dataclass_fields__")
        words.append(differences(old, new, f"{name}.") if is_group else f"{name} {old}, not {new}")
    return "; ".join(words)


def introduce(
    log: Log,
    config: PretrainConfig,
    plan: Plan,
    source: Source,
    model: MaskedAutoencoder,
    state: State,
) -> None:
    """Say what is about to happen."""
    shown = sum(p.numel() for p in model.encoder.parameters()) / 1e6
    height, width = config.model.height_width
    log.say(
        f"{len(source)} images, {config.model.encoder}/{config.model.patch_size} of {shown:.1f} M "
        f"parameters at {height} x {width}, {config.model.num_visible} of "
        f"{config.model.num_patches} patches visible"
    )
    resumed = f", from step {state.step}" if state.step else ""
    log.say(
        f"{config.epochs} epochs of {plan.per_epoch} steps of {config.batch_size} images{resumed} "
        f"-> {config.out}"
    )


# ------------------------------------------------------------------------------------------ a step


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: PretrainConfig,
    device: torch.device,
) -> tuple[View, dict[str, Tensor]]:
    """One update: both views in one pass, the losses, the gradient, the optimiser."""
    if config.views.targets == "one" and config.views.num_views == 2:
        refuse_equal_masks(batch.noise)
    mean, std = config.pixel_statistics
    images = normalized(batch.views.flatten(0, 1), mean, std, device)
    noise = batch.noise.flatten(0, 1).to(device, non_blocking=True)
    decode = config.objective.reconstruction_weight > 0
    with precision.autocast(device, config.precision):
        view = model(images, noise, decode=decode)
    losses = losses_of(view, config.objective)
    optimizer.zero_grad(set_to_none=True)
    losses["loss"].backward()
    if config.clip_grad is not None:
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
    optimizer.step()
    return view, losses


def refuse_equal_masks(noise: Tensor) -> None:
    """Two equal masks of one crop are one input twice, and the contrast learns nothing of it."""
    if torch.equal(noise[0], noise[1]):
        raise ValueError("both views of one crop have the same mask: draw noise for each view")


def losses_of(view: View, objective: ObjectiveConfig) -> dict[str, Tensor]:
    """Equation 7 and its two terms, in fp32; a term of weight 0 is left out.

    The rows of `view` are the first views of all images, then the second views.
    """
    losses: dict[str, Tensor] = {}
    total = torch.zeros((), device=view.mask.device)
    if objective.reconstruction_weight > 0:
        assert view.prediction is not None
        target = normalize_patches(view.target) if objective.normalize_targets else view.target
        mask = view.mask if objective.reconstruct == "masked" else None
        losses["reconstruction"] = reconstruction_loss(view.prediction.float(), target, mask)
        total = total + objective.reconstruction_weight * losses["reconstruction"]
    if objective.contrastive_weight > 0:
        z1, z2 = view.embedding.float().chunk(2)
        losses["contrastive"] = nt_xent(
            z1,
            z2,
            temperature=objective.temperature,
            gathered=(distributed.gather_rows(z1), distributed.gather_rows(z2)),
            offset=distributed.rank() * len(z1),
        )
        total = total + objective.contrastive_weight * losses["contrastive"]
    return {"loss": total} | losses


# ----------------------------------------------------------------------- what is said of the steps


class Clock:
    """Where the time goes between two lines of metrics."""

    def __init__(self) -> None:
        self.began, self.waited, self.steps = time.perf_counter(), 0.0, 0

    def lap(self, batch_size: int) -> dict[str, float]:
        """Images a second, and the share of time that the step waited for data; starts anew."""
        passed = max(time.perf_counter() - self.began, 1e-9)
        speed = {
            "images_per_second": round(self.steps * batch_size / passed, 2),
            "data_wait": round(self.waited / passed, 4),
        }
        self.__init__()
        return speed


def timed(batches: Any, clock: Clock) -> Any:
    """The batches, with the waiting for each noted."""
    iterator = iter(batches)
    while True:
        began = time.perf_counter()
        batch = next(iterator, None)
        if batch is None:
            return
        clock.waited += time.perf_counter() - began
        clock.steps += 1
        yield batch


def interval_record(
    config: PretrainConfig, plan: Plan, state: State, view: View, names: Sequence[str], clock: Clock
) -> dict[str, Any]:
    """A line of metrics: means since the last line, and health of the last step.

    Raises:
        UserError: A loss is not finite.
    """
    values = torch.stack(state.pending)
    require_finite(values, config, state)
    means = distributed.mean_over_processes(values.double().mean(dim=0))
    state.pending = []
    state.last_record = {
        **dict(zip(names, means.tolist(), strict=True)),
        **health_of(view, config),
    }
    return {
        "step": state.step,
        "epoch": plan.epoch(state.step),
        "images": state.step * config.batch_size,
        "lr": plan.lr(state.step - 1, config),
        **state.last_record,
        **clock.lap(config.batch_size),
    }


@torch.no_grad()
def health_of(view: View, config: PretrainConfig) -> dict[str, float]:
    """What `health.verdict` reads, over all processes."""
    numbers = {}
    if config.objective.reconstruction_weight > 0:
        normalize = config.objective.normalize_targets
        target = normalize_patches(view.target) if normalize else view.target
        blur = distributed.mean_over_processes(health.mean_error(target, view.mask))
        numbers["mean_error"] = blur.item()
    if config.objective.contrastive_weight > 0:
        z1, z2 = (distributed.gather_rows(z) for z in view.embedding.float().chunk(2))
        numbers["chance"] = health.chance_level(len(z1))
        numbers |= health.contrast_health(z1, z2)
    return numbers


def require_finite(values: Tensor, config: PretrainConfig, state: State) -> None:
    """Stop at the first loss that is no number."""
    bad = (~values.isfinite()).any(dim=1).nonzero()
    if not len(bad):
        return
    step = state.step - len(values) + int(bad[0]) + 1
    kept = (
        f"{config.out}/checkpoints/last.pt holds step {state.saved_step}, from before it"
        if state.saved_step
        else "no checkpoint had been saved yet"
    )
    raise UserError(
        f"the loss is not finite at step {step}: lower --base-lr, or set --clip-grad 1; {kept}"
    )


def warn_of_collapse(log: Log, state: State, record: Mapping[str, float], plan: Plan) -> None:
    """Say at once that all images are embedded alike; at the very start they are."""
    if not state.warned and state.step * 10 >= plan.total and health.is_collapsed(record):
        state.warned = True
        log.say(
            f"warning: collapse at step {state.step}: all images get the same embedding "
            f"(effective rank {record['effective_rank']:.1f}); a lower --base-lr or a larger "
            "--batch-size may help"
        )


def evaluate(
    encoder: encoders.Encoder,
    judge: Labelled,
    config: PretrainConfig,
    plan: Plan,
    state: State,
    device: torch.device,
) -> dict[str, Any]:
    """kNN on the labelled images, as a line of metrics; the other processes wait."""
    record: dict[str, Any] = {"step": state.step, "epoch": plan.epoch(state.step)}
    if distributed.is_main():
        preprocessing = encoders.Preprocessing(
            *config.pixel_statistics, config.views.interpolation
        )
        train, test = (
            encoders.features(
                encoder,
                part,
                preprocessing,
                device=device,
                precision_name=config.precision,
                batch_size=config.batch_size,
                workers=config.workers,
            )
            for part in (judge.train, judge.test)
        )
        token = config.model.latent
        predicted = knn_predictions(getattr(train, token), train.labels, getattr(test, token))
        record["knn_top1"] = round(top1(predicted, test.labels), 4)
        state.last_record["knn_top1"] = record["knn_top1"]
    distributed.barrier()
    return record


# -------------------------------------------------------------------------------- saving and ending


def stop_signal(
    interrupt: Interrupt, config: PretrainConfig, state: State, device: torch.device
) -> int:
    """The signal to stop for, if any process got one; several ask each other only now and then."""
    if distributed.world_size() > 1 and state.step % config.log_every:
        return 0
    return distributed.largest(interrupt.signal, device)


def save_is_due(
    config: PretrainConfig, plan: Plan, state: State, device: torch.device
) -> bool:
    """Whether it is time for a checkpoint; all processes agree."""
    if state.step == plan.total or state.step % config.log_every:
        return False
    is_due = time.monotonic() - state.saved_at >= 60 * config.save_every_minutes
    return bool(distributed.largest(int(is_due), device))


def save(
    config: PretrainConfig,
    plan: Plan,
    state: State,
    model: MaskedAutoencoder,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write a checkpoint from which the run goes on as if it had never stopped."""
    if state.pending:
        require_finite(torch.stack(state.pending), config, state)
    rows = distributed.gather_objects(state.skipped)
    state.skipped = []
    if distributed.is_main():
        runs.append_skipped(config.out, rows)
        checkpoint.save(
            config.out / "checkpoints",
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "config": configs.to_json(replace(config, resume=False, overwrite=False)),
                "fingerprint": plan.fingerprint,
                "step": state.step,
                "pending": state.pending,
                "drawn": state.drawn,
                "unreadable": state.unreadable,
                "last_record": state.last_record,
                "warned": state.warned,
            },
        )
    state.saved_at, state.saved_step = time.monotonic(), state.step
    distributed.barrier()


def farewell(signal: int, config: PretrainConfig, state: State) -> str:
    """What to say when stopped."""
    name = {2: "SIGINT", 15: "SIGTERM"}.get(signal, f"signal {signal}")
    return (
        f"stopped by {name} after step {state.step}, saved. Go on with: "
        f"mvmae pretrain --resume --out {config.out}"
    )


def conclude(log: Log, config: PretrainConfig, plan: Plan, state: State) -> None:
    """The verdict, and what to do next."""
    record = state.last_record
    verdict = health.verdict(record, config.model.size.width)
    runs.write_json(
        config.out / "health.json",
        {"status": verdict.status, "sentence": verdict.sentence, **record},
    )
    log.say(f"health: {verdict.status}. {verdict.sentence}.")
    if state.unreadable:
        log.say(f"images that could not be read: {config.out / 'skipped.csv'}")
    if "knn_top1" in record:
        log.say(f"kNN top-1 on {config.eval_data}: {record['knn_top1']:.1f} %")
    minutes, seconds = divmod(round(log.seconds()), 60)
    log.say(
        f"{plan.total} steps in {minutes}:{seconds:02}. The encoder: "
        f"{config.out / encoders.PRODUCT}. Judge it: mvmae knn {config.out} LABELLED_IMAGES"
    )
