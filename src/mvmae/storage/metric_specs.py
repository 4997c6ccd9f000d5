"""The table of metrics: their labels, formats and charts.

A metric that is missing here still appears in the log, the curves and the report, under its
own name. A row gives it a readable label, an explanation and its chance level.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

POSITION = ("step", "epoch", "images", "seconds")  # fields that say how far the run is


class Metric(NamedTuple):
    """One metric of metrics.jsonl or of a result."""

    name: str
    """Its field in the file."""

    label: str
    """Its name in a chart's legend and at the head of a table's column."""

    chart: str = ""
    """Title of its chart, which metrics can share. A metric without a chart is only drawn as the
    level of another."""

    better: Literal["higher", "lower", "neither"] = "neither"
    """Which values are better; "lower" for losses only."""

    unit: str = ""
    format: str = ".4g"
    """Format specification of its values."""

    short: str = ""
    """Its name in the log; empty: not logged there."""

    level: str | None = None
    """The metric to compare with: chance, or the trivial answer."""

    best: float | None = None
    """The best possible value, which its chart always includes."""

    figure: str = ""
    """Title of its chart in a figure for papers, if it differs; $...$ is a formula."""

    @property
    def caption(self) -> str:
        """How to read its chart; empty if nothing needs saying."""
        return CAPTIONS.get(self.chart, "")

    @property
    def figure_title(self) -> str:
        """Title of its chart in a figure for papers, with the unit."""
        title = self.figure or self.chart[:1].lower() + self.chart[1:]
        return f"{title}, {self.unit}" if self.unit else title


def _loss(
    name: str,
    label: str,
    chart: str,
    short: str = "",
    level: str | None = None,
    figure: str = "",
) -> Metric:
    return Metric(name, label, chart, "lower", "", ".3f", short, level, figure=figure)


def _score(
    name: str,
    label: str,
    chart: str = "",
    short: str = "",
    level: str | None = None,
) -> Metric:
    return Metric(name, label, chart, "higher", "%", ".1f", short, level)


REBUILDING, CONTRAST = "Rebuilding what is hidden", "Telling images apart"
SIMILARITY, ACCURACY = "Similarity of two crops", "Accuracy on test images"
AP_MASKS, AP_BOXES = "AP of masks", "AP of boxes"
PIXELS = "Accuracy of pixels"
_ROWS = (
    _loss("loss", "loss", "Loss", short="loss"),
    _loss("reconstruction", "error", REBUILDING, "L_r", "colour_error", "reconstruction, $L_r$"),
    Metric("colour_error", "each patch's average colour"),
    _loss("contrastive", "loss", CONTRAST, "L_c", "chance", "contrast, $L_c$"),
    Metric("chance", "chance"),
    Metric("positive_similarity", "same image", SIMILARITY, best=1.0),
    Metric("negative_similarity", "different images", SIMILARITY),
    _score("contrastive_top1", "found", "Finding the other crop", level="chance"),
    Metric("effective_rank", "dimensions", "Effective rank of the embeddings", "higher"),
    _score("knn_top1", "kNN top-1", "kNN top-1 while training", "kNN"),
    _score("top1", "top-1", ACCURACY, "top-1"),
    _score("top5", "top-5", ACCURACY),
    _score("best_top1", "best top-1"),
    _loss("test_loss", "test loss", "Loss on test images"),
    _score("box_ap", "box AP", AP_BOXES, "box AP"),
    _score("box_ap50", "box AP50", AP_BOXES),
    _score("mask_ap", "mask AP", AP_MASKS, "mask AP"),
    _score("mask_ap50", "mask AP50", AP_MASKS),
    _score("miou", "mIoU", "Mean IoU of the classes", "mIoU"),
    _score("mean_accuracy", "mean accuracy", PIXELS),
    _score("pixel_accuracy", "pixel accuracy", PIXELS),
    _loss("main", "loss", "Loss of UperNet's head"),
    _loss("auxiliary", "loss", "Loss of the auxiliary head"),
    _loss("loss_classifier", "loss", "Loss of the box head's classes"),
    _loss("loss_box_reg", "loss", "Loss of the box head's boxes"),
    _loss("loss_mask", "loss", "Loss of the mask head"),
    _loss("loss_objectness", "loss", "Loss of objectness"),
    _loss("loss_rpn_box_reg", "loss", "Loss of proposed boxes"),
    Metric("lr", "learning rate", "Learning rate", format=".1e", short="lr"),
    Metric("images_per_second", "images/s", "Images per second", "higher", "", ".0f", "images/s"),
    Metric("data_wait", "share", "Time spent waiting for data", format=".0%", short="data wait"),
)
METRICS = {row.name: row for row in _ROWS}
CAPTIONS = {
    "Loss": "Training loss, the weighted sum of all terms; lower is better.",
    REBUILDING: "Squared error on the hidden patches; lower is better. A line "
    "under the dashed height predicts more than each patch's average colour.",
    CONTRAST: "Contrastive loss between two crops of each image; lower is better. "
    "The dashed height is chance: a line that stays there has learnt nothing.",
    SIMILARITY: "Cosine similarity of two embeddings, from -1 to 1. Crops of the same image should "
    "come close to 1, crops of different images close to 0. If both are near 1, all images look "
    "the same to the encoder: a collapse.",
    "Finding the other crop": "How often, in percent, the other crop of an image is the nearest of "
    "all in the batch; higher is better.",
    "Effective rank of the embeddings": "The number of dimensions that the embeddings spread over. "
    "Near 1 is a collapse.",
    "kNN top-1 while training": "Share of labelled test images, in percent, whose nearest "
    "neighbours vote for the right class; higher is better.",
    ACCURACY: "Share of test images, in percent, whose class is the first guess (top-1) or among "
    "the first five (top-5); higher is better.",
    "Loss on test images": "Lower is better.",
    AP_MASKS: "COCO's average precision of masks on test images, in percent: the mean over "
    "overlaps (IoU) of 0.5 to 0.95, and at 0.5 (AP50). Higher is better.",
    AP_BOXES: "COCO's average precision of boxes on test images, in percent: the mean over "
    "overlaps (IoU) of 0.5 to 0.95, and at 0.5 (AP50). Higher is better.",
    "Mean IoU of the classes": "Intersection over union of prediction and truth on test images, "
    "averaged over the classes, in percent; higher is better.",
    "Learning rate": "How far each step moves the weights: it rises in the warm-up, then falls.",
    "Images per second": "A drop means that the machine was busy, or the disk slow.",
}


def find_metric(name: str) -> Metric:
    """Return the row of a metric; for an unknown one, a row with its name as label."""
    plain = name.replace("_", " ")
    return METRICS.get(name) or Metric(name, plain, chart=plain, short=plain)


def sort_metrics(names: Iterable[str]) -> list[Metric]:
    """Return the rows of some metrics in the order of the table, unknown ones last."""
    order = {name: place for place, name in enumerate(METRICS)}
    known = sorted(names, key=lambda name: order.get(name, len(order)))
    return [find_metric(name) for name in known if name not in POSITION]


def group_by_chart(names: Iterable[str]) -> list[list[Metric]]:
    """Group metrics by their chart, in the order of the table; drop those without a chart."""
    found: dict[str, list[Metric]] = {}
    for row in sort_metrics(names):
        if row.chart:
            found.setdefault(row.chart, []).append(row)
    return list(found.values())
