"""Pre-training: two masked views, one encoder, two losses. Read `run` from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Int
from torch import Generator, Tensor, nn

from mvmae.config.checks import AUTO
from mvmae.config.pretrain import PretrainConfig
from mvmae.data.reading.loader import view_batches
from mvmae.data.reading.samples import Batch
from mvmae.data.sources.base import Source, fingerprint, plain_channels
from mvmae.data.sources.groups import describe_groups, group_numbers
from mvmae.data.sources.open import open_source
from mvmae.encoders.encoder_json import attach_preprocessing, save_encoder
from mvmae.errors import UserError
from mvmae.method import messages
from mvmae.method.gradient_cache import backward, split_batch
from mvmae.method.inputs import model_inputs
from mvmae.method.losses import embedding_terms, equation_7, patch_terms
from mvmae.method.model import MaskedAutoencoder, View
from mvmae.method.parallel import gather_encoder, parallelize
from mvmae.method.preflight.resolve_config import resolve_config
from mvmae.method.vit import Encoder
from mvmae.training import distributed, precision
from mvmae.training.log import require_log
from mvmae.training.loop import Loop
from mvmae.training.optim import adamw, set_lr
from mvmae.training.plan import Plan, steps_per_epoch
from mvmae.training.run_checkpoints import RunCheckpoints
from mvmae.training.run_start import begin_run, claim_run
from mvmae.training.schedule import warmup_cosine

DIVERGENCE_ADVICE = (
    "look at --views.mean, --views.std and --objective.temperature",
    "begin a new run with a lower --base-lr, or with --clip-grad 1",
)


@dataclass
class Counters:
    """What the checkpoint keeps besides weights and steps."""

    last_record: dict[str, float] = field(default_factory=dict)
    """The newest losses, health and kNN accuracy."""

    warned: bool = False
    """Whether a collapse was reported."""


def run(config: PretrainConfig) -> int:
    """Pre-train as `config` says, into the run folder `config.out`.

    Returns:
        0 when done; 130 or 143 when stopped by SIGINT or SIGTERM, with the state saved.

    Raises:
        UserError: The data, the folder or the settings cannot work, or the loss diverged.
    """
    device = precision.choose_device(config.device)
    claim = claim_run(config.out, resume=config.resume, overwrite=config.overwrite)
    with distributed.process_group(device), nullcontext() if config.dry_run else claim:
        require_log(config.log)
        source = open_source(config.data, plain_channels(config.model.in_channels))
        config, source, notes = resolve_config(config, source)
        groups = read_groups(config, source)
        if groups is not None:
            notes.append(describe_groups(groups))
        knn_top1 = open_knn(config, source, device)
        config = settle_batch_size(config, len(source), device, notes)
        plan = make_plan(config, source)
        if config.dry_run:
            from mvmae.method.preflight.dry_run import dry_run

            return dry_run(config, source, plan.per_epoch, device, training_step, notes)

        generator = Generator().manual_seed(config.seed)
        model = MaskedAutoencoder(config.model, generator, recompute=config.recompute).to(device)
        if config.objective.rebuild == "none":
            model.freeze_decoder()
        wrapped = parallelize(model, config, device)
        optimizer = adamw(model, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
        if not config.resume:
            facts = {"data_fingerprint": plan.fingerprint, "num_images": len(source)}
            begin_run(config, device, **facts)
        counters = Counters()
        loop = Loop(
            config,
            plan,
            {"model": model, "optimizer": optimizer},
            partial(read_batches, source, config, device, groups),
            device,
            checkpoints=RunCheckpoints(config, plan.fingerprint),
            folder=config.out,
            title="pretrain",
            resume=config.resume,
            advice=DIVERGENCE_ADVICE,
            counters=counters,
        )
        with messages.divergence_recorded(config.out), loop:
            messages.introduce(loop, config, model, len(source), notes)
            for batch in loop:
                lr = learning_rate(loop.step, plan, config)
                set_lr(optimizer, lr)
                view, losses = training_step(wrapped, optimizer, batch, config, device)
                if loop.record(losses):
                    means = loop.interval_means()
                    health = messages.embedding_health(view, config, batch.groups)
                    counters.last_record = means | health
                    loop.write({"lr": lr} | counters.last_record | loop.interval_speed())
                    messages.warn_of_collapse(loop, counters, warmup_steps(plan, config))
                if knn_top1 and plan.is_evaluation(loop.step):
                    top1 = knn_top1(gather_encoder(model, device))
                    counters.last_record |= {"knn_top1": top1}
                    loop.write({"knn_top1": top1})
            if loop.signal:
                return loop.status

            loop.save(keep_as=plan.kept_as(plan.total))
            encoder = gather_encoder(model, device)
            if distributed.is_main():
                save_encoder(config.out, attach_preprocessing(encoder, config))
                messages.conclude(loop, config, counters)
        distributed.barrier()
    return 0


def open_knn(
    config: PretrainConfig, source: Source, device: torch.device
) -> Callable[[Encoder], float] | None:
    """Open --eval-data; return what scores an encoder on it, or None where there is none."""
    if config.eval_data is None:
        return None
    from mvmae.method import knn_while_training

    return knn_while_training.open_knn(config, source, device)


def settle_batch_size(
    config: PretrainConfig, num_images: int, device: torch.device, notes: list[str]
) -> PretrainConfig:
    """Find the batch sizes that are "auto" and note them; return the config with numbers."""
    if AUTO not in (config.batch_size, config.micro_batch_size):
        return config
    from mvmae.method.preflight.auto_batch_size import find_batch_size

    config, note = find_batch_size(config, num_images, device, training_step)
    notes.append(note)
    return config


def read_batches(
    source: Source,
    config: PretrainConfig,
    device: torch.device,
    groups: Int[np.ndarray, " images"] | None,
    steps: range,
) -> Iterable[Batch]:
    """Read this process's share of the batches of some steps."""
    return view_batches(
        source,
        config,
        steps,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        cuda=device.type == "cuda",
        groups=groups,
    )


def make_plan(config: PretrainConfig, source: Source) -> Plan:
    """Count the steps.

    Raises:
        UserError: There are fewer images than a batch needs, or the batch cannot be divided.
    """
    if len(source) == 1:
        raise UserError(
            "there is 1 image, too few to learn from: give more (an array of many images is named "
            "itself, folder/stack.npy)"
        )
    per_epoch = steps_per_epoch(len(source), config.batch_size)
    return Plan(
        per_epoch=per_epoch,
        total=per_epoch * config.epochs,
        batch_size=config.batch_size,
        fingerprint=fingerprint(source),
        eval_every=config.eval_every * per_epoch,
        keep_every=config.keep_every and config.keep_every * per_epoch,
    )


def warmup_steps(plan: Plan, config: PretrainConfig) -> int:
    """Steps in which the learning rate rises."""
    return round(config.warmup_epochs * plan.per_epoch)


def learning_rate(step: int, plan: Plan, config: PretrainConfig) -> float:
    """Learning rate of a step."""
    warmup = warmup_steps(plan, config)
    return warmup_cosine(step, peak=config.lr, warmup_steps=warmup, total_steps=plan.total)


def read_groups(config: PretrainConfig, source: Source) -> Int[np.ndarray, " images"] | None:
    """Number the group of each image; None where the images have no groups.

    Raises:
        UserError: All images are in one group, so that there is nothing to contrast.
    """
    groups = group_numbers(source, config.group_regex)
    if groups is not None and config.objective.contrastive_weight > 0 and len(set(groups)) == 1:
        raise UserError(
            f"all {len(groups)} images are of one group, and images of a group are not contrasted: "
            "give finer groups, or none, or --objective.contrastive-weight 0"
        )
    return groups


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: PretrainConfig,
    device: torch.device,
) -> tuple[View, dict[str, Tensor]]:
    """Update the weights once: all views in one pass, the losses, the gradient, the optimiser.

    Returns:
        The model's output, and the loss and its terms, detached, by name.

    Raises:
        ValueError: Two views of one crop have the same mask.
    """
    if config.views.targets == "one" and config.views.num_views > 1:
        require_distinct_masks(batch.noise)
    optimizer.zero_grad(set_to_none=True)
    if len(parts := split_batch(batch, config)) > 1:
        view, terms = backward(model, batch, parts, config, device)
    else:
        images, noise = model_inputs(batch, config, device)
        with precision.autocast(device, config.precision):
            view = model(images, noise, rebuild=config.objective.rebuild)
        terms = patch_terms(view, config.objective, config.model.in_channels)
        terms |= embedding_terms(
            view.embedding.float(), config.objective, config.views.num_views, batch.groups
        )
        equation_7(terms).backward()
    if config.clip_grad is not None:
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
    optimizer.step()
    losses = {"loss": equation_7(terms)} | {name: term.value for name, term in terms.items()}
    return view, {name: loss.detach() for name, loss in losses.items()}


def require_distinct_masks(noise: Tensor) -> None:
    """Raise ValueError where two views are one input, from which the contrast learns nothing."""
    if any(torch.equal(one, other) for one, other in combinations(noise, 2)):
        raise ValueError("two views of one crop have the same mask: draw noise for each view")
