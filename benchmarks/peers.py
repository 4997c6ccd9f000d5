"""The packages that `benchmarks step` compares with."""

from __future__ import annotations

from importlib.metadata import version

import torch

from benchmarks import peer_lightly, peer_timm, peer_transformers
from benchmarks.config import BenchConfig
from benchmarks.plain import Peer, PlainStep
from mvmae.config.pretrain import PretrainConfig

PEERS: dict[str, Peer] = {
    peer.PEER.package: peer.PEER for peer in (peer_transformers, peer_lightly, peer_timm)
}


def peer_steps(
    config: BenchConfig, training: PretrainConfig, device: torch.device
) -> tuple[dict[str, PlainStep], dict[str, str]]:
    """Return the steps of the installed peers, and why the others are left out.

    Raises:
        UserError: A version of a package names its weights in an unknown way.
    """
    steps, left_out = {}, {}
    for name in config.peers:
        try:
            steps[name] = PlainStep(training, device, PEERS[name], config.attention)
        except ImportError as error:
            left_out[name] = str(error)
    return steps, left_out


def about(name: str) -> str:
    """Return a peer's version and how it works."""
    return f"{name} {version(name)}: {PEERS[name].way}"
