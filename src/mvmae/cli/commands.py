"""The table of commands. Classes and functions are named and loaded for the chosen command only."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple


class Command(NamedTuple):
    """A subcommand of `mvmae`."""

    summary: str
    config_name: str
    """Dotted name of the class with its options."""

    run_name: str
    """Dotted name of the function that takes the options; it returns an exit status or None."""

    is_shared: bool = False
    """Whether `torchrun` may start it: its processes share the work, or `run` says why not."""

    @property
    def config(self) -> type[Any]:
        """The class with the options."""
        return _load(self.config_name)

    @property
    def run(self) -> Callable[[Any], int | None]:
        """The function that does the work."""
        return _load(self.run_name)


def _load(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


COMMANDS = {
    "pretrain": Command(
        "Pre-train an encoder from unlabelled images.",
        "mvmae.config.pretrain.PretrainConfig",
        "mvmae.method.pretrain.run",
        is_shared=True,
    ),
    "knn": Command(
        "Judge an encoder by nearest neighbours on labelled images.",
        "mvmae.config.evaluation.KnnConfig",
        "mvmae.evaluation.knn.run",
        is_shared=True,
    ),
    "probe": Command(
        "Judge an encoder by a linear classifier on its features.",
        "mvmae.config.evaluation.ProbeConfig",
        "mvmae.evaluation.probe.run",
        is_shared=True,
    ),
    "finetune": Command(
        "Train an encoder and a classifier end to end on labelled images.",
        "mvmae.config.finetune.FinetuneConfig",
        "mvmae.evaluation.finetune.run.run",
        is_shared=True,
    ),
    "segment": Command(
        "Train an encoder and UperNet to classify each pixel; or evaluate a frozen encoder.",
        "mvmae.config.segment.SegmentConfig",
        "mvmae.dense.segment.run.run",
        is_shared=True,
    ),
    "detect": Command(
        "Train an encoder and Mask R-CNN to detect objects; or predict with a finished run.",
        "mvmae.config.detect.DetectConfig",
        "mvmae.dense.detect.run.run",
        is_shared=True,
    ),
    "labels": Command(
        "Draw how accuracy grows with the number of labels, beside an untrained encoder.",
        "mvmae.config.evaluation.LabelsConfig",
        "mvmae.evaluation.labels.run",
        is_shared=True,
    ),
    "ablate": Command(
        "Train and judge the rows of a table over several seeds: what is each part worth?",
        "mvmae.config.ablate.AblateConfig",
        "mvmae.ablate.run.run",
        is_shared=True,
    ),
    "embed": Command(
        "Write embeddings of images to files; find similar images.",
        "mvmae.config.embed.EmbedConfig",
        "mvmae.embed.run.run",
        is_shared=True,
    ),
    "reconstruct": Command(
        "Draw what the decoder predicts for masked images.",
        "mvmae.config.figures.ReconstructConfig",
        "mvmae.inspect.reconstruct.run",
    ),
    "attention": Command(
        "Draw where an encoder attends, beside other encoders.",
        "mvmae.config.figures.AttentionConfig",
        "mvmae.inspect.attention.run",
    ),
    "features": Command(
        "Draw an encoder's features: patches in colour, a map, outliers, duplicates.",
        "mvmae.config.figures.FeaturesConfig",
        "mvmae.inspect.features.run.run",
        is_shared=True,
    ),
    "curves": Command(
        "Draw the curves of runs: losses, scores.",
        "mvmae.config.figures.CurvesConfig",
        "mvmae.inspect.curves.run",
    ),
    "report": Command(
        "Write a page about a run, or about several side by side.",
        "mvmae.config.figures.ReportConfig",
        "mvmae.inspect.report.run.run",
    ),
    "explore": Command(
        "Explore an encoder in the browser, on a page that this machine serves.",
        "mvmae.config.figures.ExploreConfig",
        "mvmae.inspect.explore.run.run",
    ),
    "data check": Command(
        "Check images: unreadable, duplicate, leaked, odd ones.",
        "mvmae.config.datatools.DataCheckConfig",
        "mvmae.datatools.check.run.run",
    ),
    "data pack": Command(
        "Write images into tar files (shards), for disks slow at small files.",
        "mvmae.config.datatools.DataPackConfig",
        "mvmae.datatools.pack.run.run",
        is_shared=True,
    ),
    "data stats": Command(
        "Measure pixels: mean, deviation, range, bits in use.",
        "mvmae.config.datatools.DataStatsConfig",
        "mvmae.datatools.stats.run",
    ),
    "data show": Command(
        "Draw what the network will see: images, views, masks.",
        "mvmae.config.datatools.DataShowConfig",
        "mvmae.datatools.show.run",
    ),
    "show": Command(
        "Describe an encoder.", "mvmae.config.export.ShowConfig", "mvmae.inspect.show.run"
    ),
    "export": Command(
        "Write an encoder for timm, transformers, ONNX or torch.export.",
        "mvmae.config.export.ExportConfig",
        "mvmae.export.run.run",
    ),
}
GROUPS = {"data": "Commands for images, without an encoder."}  # first words of two-word commands
