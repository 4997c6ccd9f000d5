"""Save trained detectors, and apply them: `mvmae detect RUN --predict IMAGES --out FOLDER`."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import nn
from torchvision.models.detection import FasterRCNN

from mvmae import encoders
from mvmae.config.detect import DetectConfig
from mvmae.data.reading.loader import Skipped
from mvmae.data.sources.base import Source
from mvmae.dense import predictions, saved_model
from mvmae.dense.detect.evaluate import Detector, detect_objects
from mvmae.dense.detect.model import DetectorShape, build_detector
from mvmae.dense.detect.report import DetectJob, to_things
from mvmae.encoders import OpenedEncoder, Preprocessing
from mvmae.figures.detection import drawn
from mvmae.storage import atomic
from mvmae.storage import run_folder as runs
from mvmae.terminal import Bar
from mvmae.training import precision

PREDICTIONS = "predictions.json"
OWNED = {PREDICTIONS: "", "pictures": ".png", "skipped.csv": ""}
MAX_CLASSES = 8  # printed


class SavedDetector(NamedTuple):
    """Trained detector with the facts needed to apply it."""

    model: FasterRCNN
    shape: DetectorShape
    preprocessing: Preprocessing
    in_channels: int
    classes: list[str]
    category_ids: list[int]
    """Id of each class in the annotations of the training images."""


class Predictions(NamedTuple):
    """Objects detected in all images of a source."""

    rows: list[dict[str, Any]]
    """In COCO's result format, with file_name and category."""

    skipped: list[Skipped]
    best_score: float


def save_detector(job: DetectJob, shape: DetectorShape, model: nn.Module) -> None:
    """Write model.safetensors and model.json into the run folder."""
    facts = {
        "encoder": encoders.encoder_metadata(job.opened),
        "detector": shape._asdict(),
        "classes": job.data.train.classes,
        "category_ids": job.data.train.ids,
    }
    saved_model.save_model(job.folder, "detect", facts, model)


def open_detector(source: str) -> SavedDetector:
    """Open a finished run folder of `mvmae detect`, or its model.safetensors.

    Raises:
        UserError: There is no trained detector, or its files are damaged.
    """
    return saved_model.open_model(source, "detect", "detector", _build)


def _build(facts: Mapping[str, Any], opened: OpenedEncoder) -> SavedDetector:
    shape = DetectorShape(**facts["detector"])
    classes, ids = [str(name) for name in facts["classes"]], [int(n) for n in facts["category_ids"]]
    if not len(classes) == len(ids) == shape.num_classes:
        raise ValueError(f"{len(classes)} classes, {len(ids)} ids, {shape.num_classes} scores")
    model = build_detector(opened.encoder, shape)
    channels = opened.encoder.in_channels
    return SavedDetector(model, shape, opened.preprocessing, channels, classes, ids)


def run(config: DetectConfig) -> None:
    """Detect objects in each image of a folder or a list, or in one image.

    Raises:
        UserError: The run or the images cannot be opened, or the output folder holds something.
    """
    images = config.predict
    assert images is not None
    predictions.require_single_process("--predict")
    began = time.perf_counter()
    device = precision.choose_device(config.device)
    run_folder = Path(config.encoder)
    run_folder = run_folder if run_folder.is_dir() else run_folder.parent
    out = config.out or run_folder / "predictions"
    predictions.require_replaceable(out, OWNED, PREDICTIONS, overwrite=config.overwrite)
    saved = open_detector(config.encoder)
    config = saved_model.apply_fixed_settings(config, "detect", {"image_size": saved.shape.side})
    source = predictions.open_images(images, saved.in_channels)
    predictions.refuse_own_images(out, source)
    detector = Detector(saved.model.to(device), saved.preprocessing, config, device)
    with predictions.write_aside(out, OWNED) as folder:
        found = predict_all(folder, detector, saved, source)
        predictions.keep_skipped(folder, source, found.skipped)
        lines = ",\n".join(json.dumps(row) for row in found.rows)
        atomic.write_text(folder / PREDICTIONS, f"[\n{lines}\n]\n")
    pictures = f" and {out / 'pictures'}" if config.draw else ""
    predictions.report_predictions(
        "detect",
        out,
        began=began,
        num_images=len(source),
        num_skipped=len(found.skipped),
        findings=f"detected with score {config.score:g} or more: {describe(found, config)}",
        written=f"{out / PREDICTIONS}{pictures}",
        facts={"file": str(out / PREDICTIONS), "things": len(found.rows)},
    )


def predict_all(
    folder: Path, detector: Detector, saved: SavedDetector, source: Source
) -> Predictions:
    """Detect objects in all images and draw them into pictures."""
    rows: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    best_score = 0.0
    config, names = detector.config, predictions.prediction_names(source)
    with Bar(len(source)) as bar:
        bar.name("detecting")
        for found in detect_objects(detector, source, range(len(source)), skipped, bar.advance):
            best_score = max(best_score, *found.scores, 0.0)
            kept = found.above(config.score)
            file = source.path(found.index)
            coco_rows = kept.as_coco(found.index + 1, saved.category_ids)
            for row, label in zip(coco_rows, kept.labels, strict=True):
                rows.append({"file_name": file, "category": saved.classes[label - 1]} | row)
            if config.draw:
                pixels = source.read(found.index).permute(1, 2, 0).numpy()
                image = Image.fromarray(drawn(pixels, to_things(kept), saved.classes))
                picture = folder / "pictures" / f"{names[found.index]}.png"
                runs.make(picture.parent)
                atomic.write_whole(picture, lambda stream, image=image: image.save(stream, "png"))
    return Predictions(rows, skipped, best_score)


def describe(found: Predictions, config: DetectConfig) -> str:
    """Describe how many objects of each class were detected."""
    classes = Counter(row["category"] for row in found.rows).most_common(MAX_CLASSES)
    if classes:
        return ", ".join(f"{count} {name}" for name, count in classes)
    best = found.best_score
    if best:
        return f"nothing; the best score is {best:.2f}, so --score {best / 2:.1g} would show more"
    return "nothing"
