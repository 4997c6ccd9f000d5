"""The verbs of the command line: a line for each, and what it is told. No torch."""

from __future__ import annotations

from typing import NamedTuple

from mvmae.config import (
    AblateConfig,
    AttentionConfig,
    BenchConfig,
    CurvesConfig,
    DataCheckConfig,
    DataPackConfig,
    DataShowConfig,
    DataStatsConfig,
    DetectConfig,
    EmbedConfig,
    ExploreConfig,
    ExportConfig,
    FeaturesConfig,
    FinetuneConfig,
    KnnConfig,
    LabelsConfig,
    PretrainConfig,
    ProbeConfig,
    ReconstructConfig,
    ReportConfig,
    SegmentConfig,
    ShowConfig,
)


class Verb(NamedTuple):
    """A subcommand: what it is for, what it is told, and the module whose `run` does it."""

    summary: str
    config: type
    module: str
    shares: bool = False
    """Whether `torchrun` may start it: its processes share the work, or it says itself why not."""


VERBS = {
    "pretrain": Verb(
        "Pre-train an encoder from unlabelled images.",
        PretrainConfig,
        "mvmae.tasks.pretrain",
        shares=True,
    ),
    "knn": Verb(
        "Judge an encoder by nearest neighbours on labelled images.",
        KnnConfig,
        "mvmae.tasks.knn",
        shares=True,
    ),
    "probe": Verb(
        "Judge an encoder by a linear classifier on its features.",
        ProbeConfig,
        "mvmae.tasks.probe",
        shares=True,
    ),
    "finetune": Verb(
        "Train an encoder and a classifier end to end on labelled images.",
        FinetuneConfig,
        "mvmae.tasks.finetune",
        shares=True,
    ),
    "segment": Verb(
        "Train an encoder and UperNet to name each pixel; or check an encoder frozen.",
        SegmentConfig,
        "mvmae.tasks.segment",
        shares=True,
    ),
    "detect": Verb(
        "Train an encoder and Mask R-CNN to find things; or find them with a finished run.",
        DetectConfig,
        "mvmae.tasks.detect",
        shares=True,
    ),
    "labels": Verb(
        "Draw how accuracy grows with the labels, beside an untrained encoder.",
        LabelsConfig,
        "mvmae.tasks.labels",
        shares=True,
    ),
    "ablate": Verb(
        "Train and judge the rows of a table over several seeds: what is each part worth?",
        AblateConfig,
        "mvmae.tasks.ablate",
        shares=True,
    ),
    "embed": Verb(
        "Write embeddings of images to files; find images that look alike.",
        EmbedConfig,
        "mvmae.tasks.embed",
        shares=True,
    ),
    "reconstruct": Verb(
        "Draw what the decoder makes of masked images.",
        ReconstructConfig,
        "mvmae.tasks.reconstruct",
    ),
    "attention": Verb(
        "Draw where an encoder looks, beside other encoders.",
        AttentionConfig,
        "mvmae.tasks.attention",
    ),
    "features": Verb(
        "Draw what an encoder sees: patches in colour, a map, outliers, duplicates.",
        FeaturesConfig,
        "mvmae.tasks.features",
        shares=True,
    ),
    "curves": Verb("Draw how runs went: losses, scores.", CurvesConfig, "mvmae.tasks.curves"),
    "report": Verb(
        "Write a page about a run, or about several side by side.",
        ReportConfig,
        "mvmae.tasks.report",
    ),
    "explore": Verb(
        "Explore an encoder in the browser, on a page of this machine.",
        ExploreConfig,
        "mvmae.tasks.explore",
    ),
    "data check": Verb(
        "Look through images: unreadable, duplicate, leaked, odd ones.",
        DataCheckConfig,
        "mvmae.tasks.data_check",
    ),
    "data pack": Verb(
        "Write images into tar files (shards), for disks slow at small files.",
        DataPackConfig,
        "mvmae.tasks.data_pack",
        shares=True,
    ),
    "data stats": Verb(
        "Measure pixels: mean, deviation, range, bits in use.",
        DataStatsConfig,
        "mvmae.tasks.data_stats",
    ),
    "data show": Verb(
        "Draw what the network will see: images, views, masks.",
        DataShowConfig,
        "mvmae.tasks.data_show",
    ),
    "show": Verb("Say what an encoder is.", ShowConfig, "mvmae.tasks.show"),
    "export": Verb(
        "Write an encoder for timm, transformers, ONNX or torch.export.",
        ExportConfig,
        "mvmae.tasks.export",
    ),
    "bench": Verb(
        "Time a training step or the input against other packages' ways, or how cost grows.",
        BenchConfig,
        "mvmae.tasks.bench",
    ),
}
GROUPS = {"data": "What can be done with images, without an encoder."}  # verbs of two words
