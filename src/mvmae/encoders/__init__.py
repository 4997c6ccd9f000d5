"""Load encoders from many sources, adapt them to the images, and compute features.

The names below load on first use (PEP 562), so that a command imports only the modules it needs.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # names of `_MODULES`, for type checkers and editors
    from mvmae.encoders.encoder_json import ENCODER_FILE as ENCODER_FILE
    from mvmae.encoders.encoder_json import OpenedEncoder as OpenedEncoder
    from mvmae.encoders.encoder_json import Preprocessing as Preprocessing
    from mvmae.encoders.encoder_json import attach_preprocessing as attach_preprocessing
    from mvmae.encoders.encoder_json import encoder_metadata as encoder_metadata
    from mvmae.encoders.encoder_json import save_encoder as save_encoder
    from mvmae.encoders.encoder_json import weights_digest as weights_digest
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

_MODULES = ("encoder_json", "resize", "open", "features")  # the last two load the most


def __getattr__(name: str) -> Any:
    for module in () if name.startswith("_") else _MODULES:
        found = vars(importlib.import_module(f"{__name__}.{module}"))
        if name in found:
            return found[name]
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
