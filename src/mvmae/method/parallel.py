"""One model on several processes: replicated (DDP) or sharded (FSDP2)."""

import torch
from torch import nn

from mvmae.config.pretrain import PretrainConfig
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.vit import Encoder
from mvmae.training import distributed, precision


def parallelize(
    model: MaskedAutoencoder, config: PretrainConfig, device: torch.device
) -> nn.Module:
    """Wrap the model for training on all processes, compiled if the config says so.

    Make the optimiser afterwards: sharding replaces the parameters. The blocks of a sharded model
    are compiled one by one, since gathering their weights in between cannot be compiled.

    Raises:
        UserError: Compiling was requested and is not possible.
    """
    if config.sharding == "full" and distributed.world_size() > 1:
        from mvmae.training import sharding

        blocks = [*model.encoder.blocks, *model.decoder_blocks]
        for block in blocks:
            precision.compile_model(block, config.compile, device)
        sharding.shard(model, blocks, device, config.reduce_dtype)
        return model
    is_static = config.micro_batch_size is None and not precision.compiles(config.compile, device)
    wrapped = distributed.wrap(
        model, device, static_graph=is_static, reduce_dtype=config.reduce_dtype
    )
    return precision.compile_model(wrapped, config.compile, device)


def gather_encoder(model: MaskedAutoencoder, device: torch.device) -> Encoder:
    """Gather the whole encoder on the main process; all processes take part."""
    encoder = model.encoder
    state = encoder.state_dict()
    if not any(hasattr(tensor, "full_tensor") for tensor in state.values()):  # not sharded
        return encoder
    from mvmae.training import sharding

    whole = sharding.gather(state)
    gathered = encoder.new_like().to(device)
    if whole:
        gathered.load_state_dict(whole)
    return gathered
