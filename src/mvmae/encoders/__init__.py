"""Encoders from anywhere, resized to the images at hand, and their features.

The public names load on first use: a command loads only the modules it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvmae.encoders.encoder_json import (
        PRODUCT,
        OpenedEncoder,
        Preprocessing,
        digest,
        facts_of,
        opened_from_config,
        save_encoder,
    )
    from mvmae.encoders.features import (
        Features,
        Reading,
        compute_features,
        encoded,
        raw_pixels,
        read_together,
        reading,
        reading_pixels,
        refuse_unreadable,
    )
    from mvmae.encoders.open import (
        OpenedAutoencoder,
        load_autoencoder,
        load_encoder,
        open_autoencoder,
        open_encoder,
        random_encoder,
        untrained,
    )
    from mvmae.encoders.resize import resized

__all__ = [
    "PRODUCT",
    "Features",
    "OpenedAutoencoder",
    "OpenedEncoder",
    "Preprocessing",
    "Reading",
    "compute_features",
    "digest",
    "encoded",
    "facts_of",
    "load_autoencoder",
    "load_encoder",
    "open_autoencoder",
    "open_encoder",
    "opened_from_config",
    "random_encoder",
    "raw_pixels",
    "read_together",
    "reading",
    "reading_pixels",
    "refuse_unreadable",
    "resized",
    "save_encoder",
    "untrained",
]

_HOMES = {
    "mvmae.encoders.encoder_json": (
        "PRODUCT",
        "OpenedEncoder",
        "Preprocessing",
        "digest",
        "facts_of",
        "opened_from_config",
        "save_encoder",
    ),
    "mvmae.encoders.features": (
        "Features",
        "Reading",
        "encoded",
        "compute_features",
        "raw_pixels",
        "read_together",
        "reading",
        "reading_pixels",
        "refuse_unreadable",
    ),
    "mvmae.encoders.open": (
        "OpenedAutoencoder",
        "load_autoencoder",
        "load_encoder",
        "open_autoencoder",
        "open_encoder",
        "random_encoder",
        "untrained",
    ),
    "mvmae.encoders.resize": ("resized"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'mvmae.encoders' has no attribute '{name}'")
