"""Encoders from anywhere, resized to the images at hand, and their features.

The public names load on first use: a command loads only the modules it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvmae.encoders.encoder_json import (
        ENCODER_FILE,
        OpenedEncoder,
        Preprocessing,
        attach_preprocessing,
        encoder_metadata,
        save_encoder,
        weights_digest,
    )
    from mvmae.encoders.features import (
        FeatureExtractor,
        Features,
        compute_features,
        encode_source,
        encoder_extractor,
        extract_distributed,
        pixel_extractor,
        pixel_features,
        require_readable,
    )
    from mvmae.encoders.open import (
        OpenedAutoencoder,
        load_autoencoder,
        load_encoder,
        open_autoencoder,
        open_encoder,
        random_encoder,
        untrained_copy,
    )
    from mvmae.encoders.resize import resize_encoder

__all__ = [
    "ENCODER_FILE",
    "FeatureExtractor",
    "Features",
    "OpenedAutoencoder",
    "OpenedEncoder",
    "Preprocessing",
    "attach_preprocessing",
    "compute_features",
    "encode_source",
    "encoder_extractor",
    "encoder_metadata",
    "extract_distributed",
    "load_autoencoder",
    "load_encoder",
    "open_autoencoder",
    "open_encoder",
    "pixel_extractor",
    "pixel_features",
    "random_encoder",
    "require_readable",
    "resize_encoder",
    "save_encoder",
    "untrained_copy",
    "weights_digest",
]

_HOMES = {
    "mvmae.encoders.encoder_json": (
        "ENCODER_FILE",
        "OpenedEncoder",
        "Preprocessing",
        "weights_digest",
        "encoder_metadata",
        "attach_preprocessing",
        "save_encoder",
    ),
    "mvmae.encoders.features": (
        "Features",
        "FeatureExtractor",
        "encode_source",
        "compute_features",
        "pixel_features",
        "extract_distributed",
        "encoder_extractor",
        "pixel_extractor",
        "require_readable",
    ),
    "mvmae.encoders.open": (
        "OpenedAutoencoder",
        "load_autoencoder",
        "load_encoder",
        "open_autoencoder",
        "open_encoder",
        "random_encoder",
        "untrained_copy",
    ),
    "mvmae.encoders.resize": ("resize_encoder"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'mvmae.encoders' has no attribute '{name}'")
