"""Pre-training: two masked views, one encoder, two losses. Read `run` from top to bottom."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Int
from torch import Generator, Tensor, nn

from mvmae import encoders
from mvmae.config.files import to_json
from mvmae.config.pretrain import PretrainConfig
from mvmae.data.reading.loader import Batch, view_batches
from mvmae.data.sources.base import Source, plain_channels
from mvmae.data.sources.groups import group_numbers, groups_in_words
from mvmae.data.sources.labelled import Labelled, open_labelled
from mvmae.data.sources.open import open_source
from mvmae.errors import UserError
from mvmae.method import messages
from mvmae.method.gradient_cache import backward, split_batch
from mvmae.method.inputs import model_inputs
from mvmae.method.losses import embedding_terms, equation_7, patch_terms
from mvmae.method.model import MaskedAutoencoder, View
from mvmae.method.parallel import parallel, whole_encoder
from mvmae.method.preflight.auto_batch_size import fitted
from mvmae.method.preflight.dry_run import rehearse
from mvmae.method.preflight.resolve_config import settle
from mvmae.method.vit import Encoder
from mvmae.metrics.knn import knn_predictions, top1_accuracy
from mvmae.storage import atomic, run_folder
from mvmae.storage.lock import claimed
from mvmae.training import distributed, precision
from mvmae.training.clock import Clock
from mvmae.training.interrupt import Interrupt, exit_status
from mvmae.training.log import Log
from mvmae.training.log import require as require_log
from mvmae.training.optim import adamw, set_lr
from mvmae.training.plan import Plan, plan_of
from mvmae.training.state import State, is_due, resume, save


def run(config: PretrainConfig) -> int:
    """Pre-train as `config` says, into the run folder `config.out`.

    Returns:
        0 when done; 130 or 143 when stopped by SIGINT or SIGTERM, with the state saved.

    Raises:
        UserError: The data, the folder or the settings cannot work, or the loss stopped being
            finite.
    """
    device = precision.choose_device(config.device)
    held = claimed(config.out, resume=config.resume, overwrite=config.overwrite)
    with distributed.process_group(device), nullcontext() if config.dry_run else held:
        require_log(config.log)
        source = open_source(config.data, plain_channels(config.model.in_channels))
        config, source, remarks = settle(config, source)
        groups = groups_of(config, source)
        judge = open_judge(config, source)
        config, found = fitted(config, len(source), device, training_step)
        plan = plan_of(config, source)
        if config.dry_run:
            return rehearse(config, source, plan.per_epoch, device, training_step, found)

        generator = Generator().manual_seed(config.seed)
        model = MaskedAutoencoder(config.model, generator, recompute=config.recompute).to(device)
        if config.objective.reconstruction_weight == 0:
            for parameter in model.decoder_parameters():
                parameter.requires_grad_(False)
        wrapped = parallel(model, config, device)
        optimizer = adamw(model, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
        if config.resume:
            state = resume(config, model, optimizer, plan.fingerprint)
        else:
            state = State()
            begin_folder(config, plan, device, len(source))
        batches = view_batches(
            source,
            config,
            range(state.step, plan.total),
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            cuda=device.type == "cuda",
            groups=groups,
        )

        quiet = not distributed.is_main()
        log = Log(config.out, start=state.step, total=plan.total, also=config.log, quiet=quiet)
        with log, messages.divergence_kept(config), Interrupt() as interrupt:
            messages.introduce(log, config, source, model, state)
            for remark in (
                *remarks,
                *found,
                *([groups_in_words(groups)] if groups is not None else []),
            ):
                log.say(remark)
            clock = Clock()
            for batch in clock.timed(batches):
                try:
                    state.note_reading(batch.noise.shape[1], batch.skipped, is_whole=batch.is_whole)
                except UserError:
                    if state.is_worth_saving():
                        save(state, config, model, optimizer, plan.fingerprint)
                    run_folder.append_skipped(config.out, state.skipped)
                    raise
                lr = plan.lr(state.step, config)
                set_lr(optimizer, lr)
                view, losses = training_step(wrapped, optimizer, batch, config, device)
                state.step += 1
                state.pending.append(torch.stack(list(losses.values())).detach())
                log.advance(state.step)

                if state.step % config.log_every == 0 or state.step == plan.total:
                    record = messages.interval_record(config, state, view, losses, batch.groups)
                    speed = clock.lap(config.batch_size)
                    log.write(plan.place(state.step, config) | {"lr": lr} | record | speed)
                    messages.warn_of_collapse(log, state, record, plan.warmup(config))
                if judge and plan.is_evaluation(state.step, config):
                    top1 = evaluate(whole_encoder(model, device), judge, config, device)
                    state.last_record |= {"knn_top1": top1}
                    log.write(plan.place(state.step, config) | {"knn_top1": top1})
                if stopped := stop_signal(interrupt, config, state, device):
                    save(state, config, model, optimizer, plan.fingerprint)
                    log.say(messages.farewell(stopped, config, state))
                    return exit_status(stopped)
                kept = plan.kept_as(state.step, config)
                if state.step < plan.total and (kept or is_due(state, config, device)):
                    background = config.save_in_background
                    save(
                        *(state, config, model, optimizer, plan.fingerprint),
                        keep_as=kept,
                        in_background=background,
                    )

            kept = plan.kept_as(plan.total, config)
            save(state, config, model, optimizer, plan.fingerprint, keep_as=kept)
            encoder = whole_encoder(model, device)
            if distributed.is_main():
                encoders.save_encoder(config.out, encoders.attach_preprocessing(encoder, config))
                messages.conclude(log, config, state)
        distributed.barrier()
    return 0


def groups_of(config: PretrainConfig, source: Source) -> Int[np.ndarray, " images"] | None:
    """The group of each image, if there are any.

    Raises:
        UserError: There is one alone, and so nothing to contrast.
    """
    groups = group_numbers(source, config.group_regex)
    if groups is not None and config.objective.contrastive_weight > 0 and len(set(groups)) == 1:
        raise UserError(
            f"all {len(groups)} images are of one group, and images of a group are not contrasted: "
            "give finer groups, or none, or --objective.contrastive-weight 0"
        )
    return groups


def open_judge(config: PretrainConfig, source: Source) -> Labelled | None:
    """The labelled images for kNN while training.

    Raises:
        UserError: They cannot be read, or their test images are also trained on.
    """
    if config.eval_data is None:
        return None
    judge = open_labelled(config.eval_data, config.model.in_channels, config.views.pixel_depth)
    seen = {source.path(index) for index in range(len(source))}
    both = sum(judge.test.path(index) in seen for index in range(len(judge.test)))
    if both:
        raise UserError(
            f"{both} of the {len(judge.test)} test images of --eval-data {config.eval_data} are "
            "also trained on: take them out of DATA"
        )
    return judge


def begin_folder(config: PretrainConfig, plan: Plan, device: torch.device, num_images: int) -> None:
    """Make the run folder, with what repeats the run; the other processes wait for it."""
    if distributed.is_main():
        run_folder.make(config.out)
        if config.overwrite:
            run_folder.clear(config.out)
        facts = run_folder.environment(device, distributed.world_size())
        facts |= {"data_fingerprint": plan.fingerprint, "num_images": num_images}
        atomic.write_json(config.out / "environment.json", facts)
        kept = replace(config, resume=False, overwrite=False)
        atomic.write_text(config.out / run_folder.CONFIG, to_json(kept))
    distributed.barrier()


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
        refuse_equal_masks(batch.noise)
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


def refuse_equal_masks(noise: Tensor) -> None:
    """Raise ValueError where two views are one input, from which the contrast learns nothing."""
    if any(torch.equal(one, other) for one, other in combinations(noise, 2)):
        raise ValueError("two views of one crop have the same mask: draw noise for each view")


def evaluate(
    encoder: Encoder, judge: Labelled, config: PretrainConfig, device: torch.device
) -> float:
    """KNN top-1 on the labelled images in percent, computed by the main process.

    The others wait, and return 0.
    """
    accuracy = 0.0
    if distributed.is_main():
        preprocessing = encoders.attach_preprocessing(encoder, config).preprocessing
        train, test = (
            encoders.compute_features(
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
        accuracy = round(top1_accuracy(predicted, test.labels), 4)
    distributed.barrier()
    return accuracy


def stop_signal(
    interrupt: Interrupt, config: PretrainConfig, state: State, device: torch.device
) -> int:
    """The signal to stop for, if any process got one; several ask each other only now and then."""
    if distributed.world_size() > 1 and state.step % config.log_every:
        return 0
    return distributed.largest(interrupt.signal, device)
