"""What a run is made of: frozen dataclasses, and no torch.

The command line, the recipes, `config.json` and the checkpoints all speak these classes. A value
that cannot work raises `UserError` here, before a model is built or a file is written. What
follows from a config is a property of it; nothing is ever written back.
"""

from mvmae.config.evaluation import (
    BenchConfig,
    EvaluateConfig,
    KnnConfig,
    ProbeConfig,
    ReconstructConfig,
)
from mvmae.config.files import from_json, to_json
from mvmae.config.pretraining import (
    ENCODERS,
    ModelConfig,
    ObjectiveConfig,
    Pool,
    PretrainConfig,
    Size,
    ViewsConfig,
    num_visible,
)

__all__ = [
    "ENCODERS",
    "BenchConfig",
    "EvaluateConfig",
    "KnnConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "Pool",
    "PretrainConfig",
    "ProbeConfig",
    "ReconstructConfig",
    "Size",
    "ViewsConfig",
    "from_json",
    "num_visible",
    "to_json",
]
