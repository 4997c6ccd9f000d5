"""Load encoders from many sources, adapt them to the images, and compute features.

The names below load on first use (PEP 562), so that a command imports only the modules it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names as in `_MODULE_OF`, for type checkers and editors
    from mvmae.encoders.encoder_json import ENCODER_FILE as ENCODER_FILE
    from mvmae.encoders.encoder_json import OpenedEncoder as OpenedEncoder
    from mvmae.encoders.encoder_json import Preprocessing as Preprocessing
    from mvmae.encoders.encoder_json import attach_preprocessing as attach_preprocessing
    from mvmae.encoders.encoder_json import encoder_metadata as encoder_metadata
    from mvmae.encoders.encoder_json import save_encoder as save_encoder
    from mvmae.encoders.encoder_json import weights_digest as weights_digest
    from mvmae.encoders.features import FeatureExtractor as FeatureExtractor
    from mvmae.encoders.features import Features as Features
    from mvmae.encoders.features import compute_features as compute_features
    from mvmae.encoders.features import encode_source as encode_source
    from mvmae.encoders.features import encoder_extractor as encoder_extractor
    from mvmae.encoders.features import extract_distributed as extract_distributed
    from mvmae.encoders.features import extract_features as extract_features
    from mvmae.encoders.features import pixel_extractor as pixel_extractor
    from mvmae.encoders.features import require_readable as require_readable
    from mvmae.encoders.open import OpenedAutoencoder as OpenedAutoencoder
    from mvmae.encoders.open import load_autoencoder as load_autoencoder
    from mvmae.encoders.open import load_encoder as load_encoder
    from mvmae.encoders.open import open_autoencoder as open_autoencoder
    from mvmae.encoders.open import open_encoder as open_encoder
    from mvmae.encoders.open import random_encoder as random_encoder
    from mvmae.encoders.open import untrained_copy as untrained_copy
    from mvmae.encoders.resize import resize_encoder as resize_encoder

_NAMES = {
    "encoder_json": (
        *("ENCODER_FILE", "OpenedEncoder", "Preprocessing", "attach_preprocessing"),
        *("encoder_metadata", "save_encoder", "weights_digest"),
    ),
    "features": (
        *("FeatureExtractor", "Features", "compute_features", "encode_source"),
        *("encoder_extractor", "extract_distributed", "extract_features", "pixel_extractor"),
        "require_readable",
    ),
    "open": (
        *("OpenedAutoencoder", "load_autoencoder", "load_encoder", "open_autoencoder"),
        *("open_encoder", "random_encoder", "untrained_copy"),
    ),
    "resize": ("resize_encoder",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}
__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'mvmae.encoders' has no attribute '{name}'")
    return getattr(importlib.import_module(f"mvmae.encoders.{_MODULE_OF[name]}"), name)
