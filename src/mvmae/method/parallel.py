"""One model on several processes: whole on each of them, or shared out."""

from __future__ import annotations

import torch
from torch import nn

from mvmae.config.pretrain import PretrainConfig
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.vit import Encoder
from mvmae.training import distributed, precision, sharding


def parallel(model: MaskedAutoencoder, config: PretrainConfig, device: torch.device) -> nn.Module:
    """The model as it is trained, compiled where the config says so.

    Make the optimiser afterwards: a model that is shared out has other parameters. Its blocks are
    compiled one by one, since gathering their weights between them cannot be.

    Raises:
        UserError: See `precision.compiled`.
    """
    if config.sharding == "full" and distributed.world_size() > 1:
        blocks = [*model.encoder.blocks, *model.decoder_blocks]
        for block in blocks:
            precision.compiled(block, config.compile, device)
        sharding.shard(model, blocks, device, config.reduce_dtype)
        return model
    is_static = config.micro_batch_size is None and not precision.compiles(config.compile, device)
    wrapped = distributed.wrap(
        model, device, static_graph=is_static, reduce_dtype=config.reduce_dtype
    )
    return precision.compiled(wrapped, config.compile, device)


def whole_encoder(model: MaskedAutoencoder, device: torch.device) -> Encoder:
    """The encoder with all its weights on the main process, for which all gather them."""
    encoder = model.encoder
    state = encoder.state_dict()
    if not sharding.is_shared_out(state):
        return encoder
    whole = sharding.whole(state)
    gathered = encoder.rebuilt().to(device)
    if whole:
        gathered.load_state_dict(whole)
    return gathered
