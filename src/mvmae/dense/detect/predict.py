"""Save trained detectors, and apply them: `mvmae detect RUN --predict IMAGES --out FOLDER`."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torchvision.models.detection import FasterRCNN

from mvmae import encoders
from mvmae.config.detect import DetectConfig
from mvmae.data.reading.loader import Skipped
from mvmae.dense import saved_model
from mvmae.dense.detect.data import DetectJob
from mvmae.dense.detect.evaluate import detect_objects
from mvmae.dense.detect.model import DetectorShape, build_detector, detector_shape
from mvmae.dense.saved_model import Prediction
from mvmae.encoders import OpenedEncoder
from mvmae.figures.detection import draw_objects
from mvmae.storage import atomic, run_folder
from mvmae.terminal import Bar

PREDICTIONS = "predictions.json"
OWNED = {PREDICTIONS: "", "pictures": ".png", "skipped.csv": ""}
MAX_CLASSES = 8  # printed


class SavedDetector(NamedTuple):
    """Trained detector with the facts needed to apply it."""

    model: FasterRCNN
    opened: OpenedEncoder
    classes: list[str]
    category_ids: list[int]
    """Id of each class in the annotations of the training images."""

    fixed_settings: dict[str, int]


def save_detector(job: DetectJob, folder: Path) -> None:
    """Write model.safetensors and model.json into the run folder."""
    train = job.data.train
    shape = detector_shape(job.config, len(train.classes), with_masks=train.with_masks)
    facts = {
        "encoder": encoders.encoder_metadata(job.opened),
        "detector": shape._asdict(),
        "classes": train.classes,
        "category_ids": train.ids,
    }
    saved_model.save_model(folder, "detect", facts, job.model)


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
    return SavedDetector(model, opened, classes, ids, {"image_size": shape.side})


def run(config: DetectConfig) -> None:
    """Detect objects in each image of a folder or a list, or in one image.

    Raises:
        UserError: The run or the images cannot be opened, or the output folder holds something.
    """
    run = Path(config.encoder)
    out = config.out or (run if run.is_dir() else run.parent) / "predictions"
    saved_model.predict("detect", config, out, OWNED, open_detector, predict_all)


def predict_all(task: Prediction) -> tuple[list[Skipped], str, str, dict[str, Any]]:
    """Detect objects in all images and draw them into pictures."""
    rows: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    best_score = 0.0
    saved, predictor, source, config = (
        task.saved,
        task.predictor,
        task.source,
        task.predictor.config,
    )
    names = saved_model.prediction_names(source)
    with Bar(len(source)) as bar:
        bar.name("detecting")
        for found in detect_objects(predictor, source, range(len(source)), skipped, bar.advance):
            best_score = max(best_score, *found.scores, 0.0)
            kept = found.above(config.score)
            file = source.path(found.index)
            coco_rows = kept.as_coco(found.index + 1, saved.category_ids)
            for row, label in zip(coco_rows, kept.labels, strict=True):
                rows.append({"file_name": file, "category": saved.classes[label - 1]} | row)
            if config.draw:
                pixels = source.read(found.index).permute(1, 2, 0).numpy()
                picture = task.folder / "pictures" / f"{names[found.index]}.png"
                run_folder.make(picture.parent)
                image = Image.fromarray(draw_objects(pixels, kept.as_things(), saved.classes))
                atomic.write_whole(picture, lambda stream, image=image: image.save(stream, "png"))
    lines = ",\n".join(json.dumps(row) for row in rows)  # a line each, for grep and diff
    atomic.write_text(task.folder / PREDICTIONS, f"[\n{lines}\n]\n")
    file, pictures = task.out / PREDICTIONS, f" and {task.out / 'pictures'}" if config.draw else ""
    return (
        skipped,
        f"detected with score {config.score:g} or more: {describe(rows, best_score)}",
        f"{file}{pictures}",
        {"file": str(file), "things": len(rows)},
    )


def describe(rows: list[dict[str, Any]], best_score: float) -> str:
    """Describe how many objects of each class were detected; else what would show some."""
    classes = Counter(row["category"] for row in rows).most_common(MAX_CLASSES)
    if classes or not best_score:
        return ", ".join(f"{count} {name}" for name, count in classes) or "nothing"
    return (
        f"nothing; the best score is {best_score:.2f}, so --score {best_score / 2:.1g} would show "
        "more"
    )
