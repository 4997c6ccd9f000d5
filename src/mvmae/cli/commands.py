"""The commands of the command line: a line for each, and what it is told. No torch."""

from __future__ import annotations

from typing import NamedTuple

from mvmae.config.ablate import AblateConfig
from mvmae.config.curves import CurvesConfig
from mvmae.config.datatools import DataCheckConfig
from mvmae.config.detect import DetectConfig
from mvmae.config.embed import EmbedConfig
from mvmae.config.evaluation import BenchConfig, KnnConfig, LabelsConfig, ProbeConfig
from mvmae.config.explore import ExploreConfig
from mvmae.config.export import ExportConfig, ShowConfig
from mvmae.config.features import FeaturesConfig
from mvmae.config.figures import AttentionConfig, ReconstructConfig
from mvmae.config.finetune import FinetuneConfig
from mvmae.config.imaging import DataShowConfig, DataStatsConfig
from mvmae.config.pack import DataPackConfig
from mvmae.config.pretrain import PretrainConfig
from mvmae.config.report import ReportConfig
from mvmae.config.segment import SegmentConfig


class Command(NamedTuple):
    """A subcommand: what it is for, what it is told, and the module whose `run` does it."""

    summary: str
    config: type
    module: str
    shares: bool = False
    """Whether `torchrun` may start it: its processes share the work, or it says itself why not."""


COMMANDS = {
    "pretrain": Command(
        "Pre-train an encoder from unlabelled images.",
        PretrainConfig,
        "mvmae.method.pretrain",
        shares=True,
    ),
    "knn": Command(
        "Judge an encoder by nearest neighbours on labelled images.",
        KnnConfig,
        "mvmae.evaluation.knn",
        shares=True,
    ),
    "probe": Command(
        "Judge an encoder by a linear classifier on its features.",
        ProbeConfig,
        "mvmae.evaluation.probe",
        shares=True,
    ),
    "finetune": Command(
        "Train an encoder and a classifier end to end on labelled images.",
        FinetuneConfig,
        "mvmae.evaluation.finetune.run",
        shares=True,
    ),
    "segment": Command(
        "Train an encoder and UperNet to name each pixel; or check an encoder frozen.",
        SegmentConfig,
        "mvmae.dense.segment.run",
        shares=True,
    ),
    "detect": Command(
        "Train an encoder and Mask R-CNN to find things; or find them with a finished run.",
        DetectConfig,
        "mvmae.dense.detect.run",
        shares=True,
    ),
    "labels": Command(
        "Draw how accuracy grows with the labels, beside an untrained encoder.",
        LabelsConfig,
        "mvmae.evaluation.labels",
        shares=True,
    ),
    "ablate": Command(
        "Train and judge the rows of a table over several seeds: what is each part worth?",
        AblateConfig,
        "mvmae.ablate.run",
        shares=True,
    ),
    "embed": Command(
        "Write embeddings of images to files; find images that look alike.",
        EmbedConfig,
        "mvmae.embed.run",
        shares=True,
    ),
    "reconstruct": Command(
        "Draw what the decoder makes of masked images.",
        ReconstructConfig,
        "mvmae.inspect.reconstruct",
    ),
    "attention": Command(
        "Draw where an encoder looks, beside other encoders.",
        AttentionConfig,
        "mvmae.inspect.attention",
    ),
    "features": Command(
        "Draw what an encoder sees: patches in colour, a map, outliers, duplicates.",
        FeaturesConfig,
        "mvmae.inspect.features.run",
        shares=True,
    ),
    "curves": Command("Draw how runs went: losses, scores.", CurvesConfig, "mvmae.inspect.curves"),
    "report": Command(
        "Write a page about a run, or about several side by side.",
        ReportConfig,
        "mvmae.inspect.report.run",
    ),
    "explore": Command(
        "Explore an encoder in the browser, on a page of this machine.",
        ExploreConfig,
        "mvmae.inspect.explore.run",
    ),
    "data check": Command(
        "Look through images: unreadable, duplicate, leaked, odd ones.",
        DataCheckConfig,
        "mvmae.datatools.check.run",
    ),
    "data pack": Command(
        "Write images into tar files (shards), for disks slow at small files.",
        DataPackConfig,
        "mvmae.datatools.pack.run",
        shares=True,
    ),
    "data stats": Command(
        "Measure pixels: mean, deviation, range, bits in use.",
        DataStatsConfig,
        "mvmae.datatools.stats",
    ),
    "data show": Command(
        "Draw what the network will see: images, views, masks.",
        DataShowConfig,
        "mvmae.datatools.show",
    ),
    "show": Command("Say what an encoder is.", ShowConfig, "mvmae.inspect.show"),
    "export": Command(
        "Write an encoder for timm, transformers, ONNX or torch.export.",
        ExportConfig,
        "mvmae.export.run",
    ),
    "bench": Command(
        "Time a training step or the input against other packages' ways, or how cost grows.",
        BenchConfig,
        "benchmarks.run",
    ),
}
GROUPS = {"data": "What can be done with images, without an encoder."}  # commands of two words
