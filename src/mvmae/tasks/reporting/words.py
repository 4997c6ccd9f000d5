"""Numbers, paths and verdicts as a person would say them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from mvmae.engine import metrics_file
from mvmae.figures.report.blocks import Tile, Verdict
from mvmae.tasks.reporting.gather import JUDGED, STILL, Result, RunFacts

UNTRAINED, PIXELS = "the same, untrained", "raw pixels"  # rows of knn, probe and labels
FIGURES = {  # what counts of a result, best first, and how it is called
    "top1": "top-1",
    "mask_ap": "mask AP",
    "box_ap": "box AP",
    "miou": "mIoU",
}
VERBS = {
    "pretrain": "Pre-training",
    "finetune": "Fine-tuning",
    "detect": "Detection",
    "segment": "Segmentation",
    JUDGED: "An encoder from elsewhere",
}


def percent(value: int | float) -> str:
    """A percentage with one digit, as results print it."""
    return f"{value:.1f} %"


def share(value: int | float) -> str:
    """A share of 1 as a whole percentage."""
    return f"{100 * value:.0f} %"


def count(value: int | float) -> str:
    """A whole number with commas."""
    return f"{round(value):,}"


def duration(seconds: int | float) -> str:
    """A time in the two largest units that matter."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours / 24:.1f} days"


def without_home(text: str) -> str:
    """A text in which the reader's home folder is `~`: whose page it is, is nobody's business."""
    home = str(Path.home()).rstrip("/")
    if len(home) < 2:
        return text
    return re.sub(rf"(?<![\w./-]){re.escape(home)}(?=/|$|[\s'\",\]])", "~", text)


def short(path: str, parts: int = 1) -> str:
    """The end of a path; what is no path as it is."""
    pieces = [piece for piece in path.split("/") if piece]
    return "/".join(pieces[-parts:]) or path


def one_line(text: str) -> str:
    """Text with its line ends written out, so that a name stays one name."""
    return text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def headline_of(result: Result) -> tuple[str, float] | None:
    """The name and the value of the figure that counts; none where there is none."""
    return next(
        ((name, result.headline[key]) for key, name in FIGURES.items() if key in result.headline),
        None,
    )


def rows_of(result: Result) -> list[dict[str, Any]]:
    """The rows of a result that have a name and a figure."""
    rows = result.content.get("rows")
    if not isinstance(rows, list):
        return []
    return [row for row in rows if isinstance(row, dict) and _figure(row) is not None]


def _figure(row: dict[str, Any]) -> float | None:
    value = next((row[key] for key in FIGURES if key in row), None)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and isfinite(value) else None


def baseline(result: Result, name: str) -> float | None:
    """The figure of a baseline, of the token and the setting that the result's own figure has.

    Raw pixels have no tokens; a baseline without that setting has none.
    """
    own = result.content.get("headline")
    own = own if isinstance(own, dict) else {}
    for row in rows_of(result):
        notes = row.get("notes") if isinstance(row.get("notes"), dict) else {}
        if row.get("name") != name:
            continue
        if name != PIXELS and row.get("token") != own.get("token"):
            continue
        if "k" in own and notes.get("k") != own["k"]:
            continue
        return _figure(row)
    return None


def main_knn(facts: RunFacts) -> Result | None:
    """The kNN result on the images that the run was trained on, or else the first."""
    found = [one for one in facts.results if one.verb == "knn" and "top1" in one.headline]
    data = facts.config.get("data")
    names = [str(name) for name in data] if isinstance(data, list) else [str(data)]
    own = [one for one in found if one.data and any(name.startswith(one.data) for name in names)]
    return (own or found or [None])[0]


def verdict(facts: RunFacts) -> Verdict:
    """What a run came to."""
    status, word = _status(facts)
    reasons = [*_health(facts), *_judgements(facts)]
    said = facts.health.get("sentence")
    if isinstance(said, str) and said:
        reasons.append(f"Measured at the end: {said}.")
    return Verdict(status, word, _summary(facts), tiles(facts), reasons)


def _status(facts: RunFacts) -> tuple[str, str]:
    if not facts.finished:
        is_on = facts.age is not None and facts.age < STILL
        return "weak", "Still going on" if is_on else "Not finished"
    if facts.verb != "pretrain":
        return "none", {JUDGED: "Judged, not trained here"}.get(
            facts.verb, f"{VERBS[facts.verb]} is done"
        )
    match facts.health.get("status"):
        case "good":
            return "good", "Pre-training worked"
        case "weak":
            return "weak", "Pre-training is weak"
        case "collapsed":
            return "bad", "Pre-training collapsed"
        case _:
            return "none", "Pre-training is done"


def _summary(facts: RunFacts) -> str:
    """One sentence."""
    if not facts.finished:
        return _progress(facts)
    if facts.verb != "pretrain":
        found = [one for one in facts.results if one.verb == facts.verb]
        return _figure_in_words(found[0]) if found else "What it found stands under Results."
    values = numbers_of(facts)
    rebuilds = "reconstruction" in values
    match facts.health.get("status"):
        case "good" if "contrastive" in values and rebuilds:
            return "The encoder tells images apart, and rebuilds what is hidden from what it sees."
        case "good" if rebuilds:
            return (
                "The encoder rebuilds what is hidden from what it sees, better than a blur would."
            )
        case "good":
            return "The encoder tells images apart."
        case "weak":
            return "The encoder has learnt little yet. Longer training, or more images, may help."
        case "collapsed":
            return (
                "All images look the same to the encoder, so its vectors are of no use. A lower "
                "learning rate (--base-lr) or a larger batch may help."
            )
        case _:
            return "The run is over; its folder has no verdict of its health."


def _figure_in_words(result: Result) -> str:
    figure = headline_of(result)
    if figure is None:
        return "What it found stands under Results."
    name = f"{figure[0][:1].upper()}{figure[0][1:]}"
    return f"{name} of {percent(figure[1])} on the test images of {short(result.data)}."


def _progress(facts: RunFacts) -> str:
    """How far a run is that did not end."""
    if not facts.records:
        return "The run has not written any metrics yet."
    step, planned = facts.records[-1]["step"], planned_steps(facts)
    of = f" of {count(planned)} ({share(step / planned)})" if planned else ""
    last = f"The last line of its metrics is {duration(facts.age or 0)} old."
    return f"{count(step)}{of} steps are done. {last} This page shows the run as it was then."


def planned_steps(facts: RunFacts) -> int | None:
    """Steps of the whole run; none where its files do not say."""
    images, trained = facts.environment.get("num_images"), facts.pretraining
    if trained is None or not isinstance(images, int):
        return None
    return images // trained.batch_size * trained.epochs or None


def _health(facts: RunFacts) -> Iterator[str]:
    """The last line of metrics of a pre-training, each figure with what it is compared with."""
    if facts.verb != "pretrain":
        return
    values = numbers_of(facts)
    if "contrastive_top1" in values:
        level = known_level(facts, "contrastive_top1")
        chance = f" (guessing: {level:.1g} %)" if level is not None else ""
        yield (
            "Shown a crop of an image with most of it hidden, the encoder finds another crop of "
            f"the same image among all of a batch in {values['contrastive_top1']:.0f} % of cases"
            f"{chance}."
        )
    if "reconstruction" in values and values.get("mean_error", 0) > 0:
        part = values["reconstruction"] / values["mean_error"]
        worse = ", which is no better" if part >= 1 else ""
        yield (
            f"Hidden parts of an image are rebuilt with {share(part)} of the error of filling each "
            f"patch with its average colour{worse}."
        )


def numbers_of(facts: RunFacts) -> dict[str, float]:
    """The last figures of a run, those of health.json where its metrics are gone."""
    known = {
        name: float(value)
        for name, value in facts.health.items()
        if isinstance(value, int | float) and isfinite(value)
    }
    return known | {k: float(v) for k, v in metrics_file.last(facts.records).items()}


def known_level(facts: RunFacts, name: str) -> float | None:
    """What a model that knows nothing reaches at the end, as `metrics_file.level` has it."""
    column = metrics_file.level(metrics_file.columns(facts.records), name)
    finite = [] if column is None else [y for y in column.y.tolist() if isfinite(y)]
    return finite[-1] if finite else None


MOST_SAID = 4  # results in the verdict; the others stand in their tables


def _judgements(facts: RunFacts) -> Iterator[str]:
    """Results in words, with what any encoder must beat."""
    own = main_knn(facts)
    data = own.data if own else ""
    kinds = ("knn", "labels") if facts.verb in ("pretrain", JUDGED) else (facts.verb,)
    chosen = [one for kind in kinds for one in facts.results if one.verb == kind]
    chosen.sort(key=lambda one: one.data != data)
    for result in chosen[:MOST_SAID]:
        said = result.content.get("verdict")
        if result.verb == "labels" and isinstance(said, str):
            yield f"On {short(result.data)}, {said}"
        elif result.verb == "knn" and "top1" in result.headline:
            yield _knn_in_words(result)
        elif result is not chosen[0] and headline_of(result):
            yield _figure_in_words(result)


def _knn_in_words(result: Result) -> str:
    own = result.headline["top1"]
    said = (
        f"By its nearest neighbours alone, {percent(own)} of the test images of "
        f"{short(result.data)} are given the right class"
    )
    before, pixels = (baseline(result, name) for name in (UNTRAINED, PIXELS))
    if before is not None:
        said += f"; before training it was {percent(before)}"
    if pixels is not None:
        said += f", with raw pixels {percent(pixels)}"
    if pixels is not None and pixels >= own:
        said += ". Raw pixels do better: the encoder does not suit these images yet"
    elif before is not None and before >= own:
        said += ". Training did not help on these images"
    return f"{said}."


def tiles(facts: RunFacts) -> list[Tile]:
    """Key figures."""
    return [*_score_tile(facts), *_effort_tiles(facts)]


def _score_tile(facts: RunFacts) -> Iterator[Tile]:
    last = metrics_file.last(facts.records)
    if result := main_knn(facts):
        known = {"untrained": baseline(result, UNTRAINED), "raw pixels": baseline(result, PIXELS)}
        said = ", ".join(f"{name} {percent(v)}" for name, v in known.items() if v is not None)
        note = f"{said}; on {short(result.data)}" if said else f"on {short(result.data)}"
        yield Tile(percent(result.headline["top1"]), "kNN top-1", note)
    elif "knn_top1" in last:
        data = short(str(facts.config.get("eval_data") or "the labelled images"))
        yield Tile(percent(last["knn_top1"]), "kNN top-1", f"while training, on {data}")
    for result in facts.results:
        if result.verb == facts.verb and (figure := headline_of(result)):
            yield Tile(percent(figure[1]), figure[0], f"on {short(result.data)}")


def _effort_tiles(facts: RunFacts) -> Iterator[Tile]:
    images = facts.environment.get("num_images")
    if isinstance(images, int):
        yield Tile(count(images), "images trained on")
    if not facts.records:
        return
    last = metrics_file.last(facts.records)
    planned = planned_steps(facts)
    batch = facts.config.get("batch_size")
    notes = [f"of {count(planned)}"] if planned else []
    notes += [f"{batch} images each"] if isinstance(batch, int) else []
    yield Tile(count(last["step"]), "steps", ", ".join(notes))
    if "seconds" in last:
        device = str(facts.environment.get("device") or "")
        yield Tile(duration(last["seconds"]), "training time", f"on {device}" if device else "")
