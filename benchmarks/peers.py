"""Whom `bench step` compares with."""

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
    """The steps of the peers that can be had, and why the others cannot.

    Raises:
        UserError: A package names its weights in a way that is not known here.
    """
    steps, left_out = {}, {}
    for name in config.peers:
        try:
            steps[name] = PlainStep(training, device, PEERS[name], config.attention)
        except ImportError as error:
            left_out[name] = str(error)
    return steps, left_out


def about(name: str) -> str:
    """A peer's version and what is particular about it."""
    return f"{name} {version(name)}: {PEERS[name].way}"
