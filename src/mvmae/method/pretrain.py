"""Pre-training: two masked views of each image, one encoder, two losses.

Read `run` from top to bottom, then `training_step`, then `losses.py`, `model.py` and `vit.py`.
"""

from collections.abc import Iterable
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Int
from torch import Generator, Tensor, nn

from mvmae.config.checks import AUTO
from mvmae.config.pretrain import PretrainConfig
from mvmae.data.reading.loader import Batch, view_batches
from mvmae.data.sources.base import Source, fingerprint, plain_channels
from mvmae.data.sources.groups import describe_groups, group_numbers
from mvmae.data.sources.open import open_source
from mvmae.encoders.encoder_json import attach_preprocessing, save_encoder
from mvmae.errors import UserError
from mvmae.method import messages
from mvmae.method.gradient_cache import backward, split_batch
from mvmae.method.inputs import model_inputs
from mvmae.method.losses import embedding_terms, equation_7, patch_terms
from mvmae.method.model import View, build_model
from mvmae.method.parallel import gather_encoder, parallelize
from mvmae.method.preflight.resolve_config import resolve_config
from mvmae.training import distributed, precision
from mvmae.training.loop import Loop
from mvmae.training.optim import adamw, set_lr
from mvmae.training.plan import Plan, steps_per_epoch, warmup_cosine
from mvmae.training.run_checkpoints import RunCheckpoints
from mvmae.training.run_start import begin_run, open_run

DIVERGENCE_ADVICE = (
    "look at --views.mean, --views.std and --objective.temperature",
    "begin a new run with a lower --base-lr, or with --clip-grad 1",
)


def run(config: PretrainConfig) -> int:
    """Pre-train as `config` says, into the run folder `config.out`.

    Returns:
        0 when done; 130 or 143 when stopped by SIGINT or SIGTERM, with the state saved.

    Raises:
        UserError: The data, the folder or the settings cannot work, or the loss diverged.
    """
    with open_run(config) as device:
        source = open_source(config.data, plain_channels(config.model.in_channels))
        # Infer settings that the config leaves open from the images and the machine. The notes,
        # printed later, say what was inferred.
        config, source, notes = resolve_config(config, source)
        groups = read_groups(config, source)
        if groups is not None:
            notes.append(describe_groups(groups))
        knn_top1 = None
        if config.eval_data is not None:
            from mvmae.method.knn_while_training import open_knn

            knn_top1 = open_knn(config, source, device)
        if AUTO in (config.batch_size, config.micro_batch_size):
            from mvmae.method.preflight.auto_batch_size import find_batch_size

            config, note = find_batch_size(config, len(source), device, training_step)
            notes.append(note)
        plan = make_plan(config, source)
        if config.dry_run:
            from mvmae.method.preflight.dry_run import dry_run

            return dry_run(config, source, plan.per_epoch, device, training_step, notes)

        model = build_model(config, Generator().manual_seed(config.seed)).to(device)
        wrapped = parallelize(model, config, device)
        optimizer = adamw(model, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
        begin_run(config, device, data_fingerprint=plan.fingerprint, num_images=len(source))
        counters = messages.Counters()
        # Order, crops, flips and masks are functions of the seed, the epoch and the image, so that
        # a resumed run reads the batches that an uninterrupted one would have read.
        loop = Loop(
            config,
            plan,
            {"model": model, "optimizer": optimizer},
            lambda steps: read_batches(source, config, steps, groups, device),
            device,
            checkpoints=RunCheckpoints(config.out / "checkpoints", config, plan.fingerprint),
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
                    means = loop.interval_means()  # before all else: raises if a loss is not finite
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

            loop.save(keep_as=plan.name_to_keep(plan.total))
            encoder = gather_encoder(model, device)
            if distributed.is_main():
                save_encoder(config.out, attach_preprocessing(encoder, config))
                messages.conclude(loop, config, counters)
        distributed.barrier()
    return 0


def read_batches(
    source: Source,
    config: PretrainConfig,
    steps: range,
    groups: Int[np.ndarray, " images"] | None,
    device: torch.device,
) -> Iterable[Batch]:
    """Read this process's share of the batches of some steps."""
    rank, processes = distributed.rank(), distributed.world_size()
    cuda = device.type == "cuda"
    return view_batches(
        source, config, steps, rank=rank, world_size=processes, cuda=cuda, groups=groups
    )


def make_plan(config: PretrainConfig, source: Source) -> Plan:
    """Count the steps of an epoch and of the run, and set when to evaluate and keep checkpoints.

    Raises:
        UserError: There are fewer images than a batch needs, or the processes cannot share it.
    """
    if len(source) == 1:
        raise UserError(
            "there is only 1 image, and training needs more. If it is an array of many images, "
            "name the file instead of its folder: folder/stack.npy"
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
    """Number of steps in which the learning rate rises."""
    return round(config.warmup_epochs * plan.per_epoch)


def learning_rate(step: int, plan: Plan, config: PretrainConfig) -> float:
    """Learning rate of a step: linear warm-up, then half a cosine down to 0, as in MAE."""
    warmup = warmup_steps(plan, config)
    return warmup_cosine(step, peak=config.lr, warmup_steps=warmup, total_steps=plan.total)


def read_groups(config: PretrainConfig, source: Source) -> Int[np.ndarray, " images"] | None:
    """Return the group number of each image; None if the images have no groups.

    Raises:
        UserError: All images are in one group, so that there is nothing to contrast.
    """
    groups = group_numbers(source, config.group_regex)
    if groups is not None and config.objective.contrastive_weight > 0 and len(set(groups)) == 1:
        raise UserError(
            f"all {len(groups)} images are in one group, and images of the same group are not "
            "contrasted: give finer groups, or none, or --objective.contrastive-weight 0"
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
    # Views of one crop differ only by their masks. With equal masks they would be the same input,
    # and the contrast would learn nothing.
    if config.views.targets == "one" and any(
        torch.equal(first, second) for first, second in combinations(batch.noise, 2)
    ):
        raise ValueError("two views of one crop have the same mask: draw noise for each view")
    optimizer.zero_grad(set_to_none=True)
    if len(parts := split_batch(batch, config)) > 1:
        view, terms = backward(model, batch, parts, config, device)
    else:
        images, noise = model_inputs(batch, config, device)  # R x C x H x W, R x N; R = V * B
        with precision.autocast(device, config.precision):
            view = model(images, noise, rebuild=config.objective.rebuild)
        terms = patch_terms(view, config.objective, config.model.in_channels)
        # Cosines need more than bf16's 8 bits: its largest number below 1 is 1 - 1/256.
        terms |= embedding_terms(
            view.embedding.float(), config.objective, config.views.num_views, batch.groups
        )
        equation_7(terms).backward()
    if config.clip_grad is not None:
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
    optimizer.step()
    losses = {"loss": equation_7(terms)} | {name: term.value for name, term in terms.items()}
    # Detached and still on the device: reading a number would wait for the GPU in every step.
    return view, {name: loss.detach() for name, loss in losses.items()}
