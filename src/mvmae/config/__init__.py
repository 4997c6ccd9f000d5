"""What a run is made of: frozen dataclasses, and no torch.

The command line, the recipes, `config.json` and the checkpoints all speak these classes. A value
that cannot work raises `UserError` here, before a model is built or a file is written. What
follows from a config is a property of it; nothing is ever written back.
"""

from mvmae.config.ablating import AblateConfig
from mvmae.config.checking import DataCheckConfig
from mvmae.config.curves import CurvesConfig
from mvmae.config.detection import DetectConfig
from mvmae.config.drawing import AttentionConfig, ReconstructConfig
from mvmae.config.embedding import EmbedConfig
from mvmae.config.evaluation import (
    BenchConfig,
    EvaluateConfig,
    KnnConfig,
    LabelsConfig,
    ProbeConfig,
)
from mvmae.config.exploring import ExploreConfig
from mvmae.config.exporting import ExportConfig, ExportFormat, ShowConfig
from mvmae.config.features import FeaturesConfig
from mvmae.config.files import from_json, to_json
from mvmae.config.finetuning import FinetuneConfig
from mvmae.config.imaging import DataShowConfig, DataStatsConfig
from mvmae.config.model import ENCODERS, ModelConfig, Pool, Size, num_visible
from mvmae.config.packing import DataPackConfig
from mvmae.config.pretraining import ObjectiveConfig, PretrainConfig
from mvmae.config.reporting import ReportConfig
from mvmae.config.segmentation import SegmentConfig
from mvmae.config.viewing import Depth, ViewsConfig

__all__ = [
    "ENCODERS",
    "AblateConfig",
    "AttentionConfig",
    "BenchConfig",
    "CurvesConfig",
    "DataCheckConfig",
    "DataPackConfig",
    "DataShowConfig",
    "DataStatsConfig",
    "Depth",
    "DetectConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "ExploreConfig",
    "ExportConfig",
    "ExportFormat",
    "FeaturesConfig",
    "FinetuneConfig",
    "KnnConfig",
    "LabelsConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "Pool",
    "PretrainConfig",
    "ProbeConfig",
    "ReconstructConfig",
    "ReportConfig",
    "SegmentConfig",
    "ShowConfig",
    "Size",
    "ViewsConfig",
    "from_json",
    "num_visible",
    "to_json",
]
