"""Encoders from anywhere, fitted to the images at hand, and what they make of images."""

from mvmae.encoders.features import (
    Features,
    Reading,
    encoded,
    features,
    raw_pixels,
    read_together,
    reading,
    reading_pixels,
    refuse_unreadable,
)
from mvmae.encoders.fitting import resized
from mvmae.encoders.opening import (
    OpenedAutoencoder,
    load_autoencoder,
    load_encoder,
    open_autoencoder,
    open_encoder,
    random_encoder,
    untrained,
)
from mvmae.encoders.product import (
    PRODUCT,
    OpenedEncoder,
    Preprocessing,
    digest,
    facts_of,
    opened_from_config,
    save_encoder,
)

__all__ = [
    "PRODUCT",
    "Features",
    "OpenedAutoencoder",
    "OpenedEncoder",
    "Preprocessing",
    "Reading",
    "digest",
    "encoded",
    "facts_of",
    "features",
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
