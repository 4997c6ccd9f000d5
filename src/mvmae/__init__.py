"""Multi-view masked autoencoders: from a folder of unlabelled images to a Vision Transformer.

The public names load on first use, so that `import mvmae` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mvmae.version import __version__

if TYPE_CHECKING:
    from mvmae.encoders import load_autoencoder, load_encoder
    from mvmae.method.model import MaskedAutoencoder
    from mvmae.method.pretrain import run as pretrain

__all__ = ["MaskedAutoencoder", "__version__", "load_autoencoder", "load_encoder", "pretrain"]

_HOME = {
    "MaskedAutoencoder": ("mvmae.method.model", "MaskedAutoencoder"),
    "load_autoencoder": ("mvmae.encoders", "load_autoencoder"),
    "load_encoder": ("mvmae.encoders", "load_encoder"),
    "pretrain": ("mvmae.method.pretrain", "run"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mvmae' has no attribute '{name}'")
    module, attribute = _HOME[name]
    return getattr(importlib.import_module(module), attribute)
