"""The verdict of a run in sentences, with its key figures and what it rests on."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Literal

import numpy as np

from mvmae.inspect.report.gather import JUDGED, STALE, Result, RunFacts
from mvmae.inspect.report.html import Tile, Verdict
from mvmae.inspect.report.scores import (
    JUDGING,
    PIXELS,
    UNTRAINED,
    Judgement,
    baseline,
    headline_of,
    judgements,
    main_data,
    main_knn,
    num_test,
    use,
)
from mvmae.inspect.report.wording import PERCENT, count, percent, share, short
from mvmae.method import health
from mvmae.storage import metrics_file
from mvmae.storage.metric_specs import metric
from mvmae.terminal import duration

COMMANDS = {
    "pretrain": "Pre-training",
    "finetune": "Fine-tuning",
    "detect": "Detection",
    "segment": "Segmentation",
    JUDGED: "An encoder from elsewhere",
}


def verdict(facts: RunFacts) -> Verdict:
    """Judge a run."""
    status, word = status_of(facts)
    reasons = list(_judgements(facts))
    if not diverged(facts):
        sentence = facts.health.get("sentence")
        has_sentence = isinstance(sentence, str) and bool(sentence)
        measured = [f"Measured at the end: {sentence}."] if has_sentence else []
        reasons = [*_health(facts), *reasons, *_cut(facts), *measured]
    return Verdict(status, word, _summary(facts), tiles(facts), reasons)


def status_of(facts: RunFacts) -> tuple[Literal["good", "weak", "bad", "none"], str]:
    """Return how a run is, and a heading that says so."""
    if diverged(facts):
        return "bad", "Diverged"
    if not facts.finished:
        is_on = facts.age is not None and facts.age < STALE
        return "weak", "Still running" if is_on else "Not finished"
    if facts.command != "pretrain":
        return "none", {JUDGED: "Judged, not trained here"}.get(
            facts.command, f"{COMMANDS[facts.command]} is done"
        )
    match facts.health.get("status"), use(judgements(facts)):
        case "good", "none":
            return "weak", "Trained well, but not useful here yet"
        case "good", "chance":
            return "weak", "Trained well, with no clear gain here yet"
        case "good", _ if cut_at(facts) is not None:
            return "weak", "Part of its metrics is missing"
        case "good", _:
            return "good", "Pre-training worked"
        case "weak", "clear":
            return "good", "Useful here already"
        case "weak", _:
            return "weak", "Pre-training is weak"
        case "collapsed", _:
            return "bad", "Pre-training collapsed"
        case _:
            return "none", "Pre-training is done"


def diverged(facts: RunFacts) -> str:
    """Say how the loss stopped being finite; empty where it did not."""
    sentence = facts.health.get("sentence")
    if facts.health.get("status") == "diverged" and isinstance(sentence, str) and sentence:
        return f"{sentence[:1].upper()}{sentence[1:]}."
    step = lost_from(facts)
    if step is None:
        return ""
    return (
        f"From step {count(step)} on the loss is not finite, and nothing trained since then "
        "is usable. Start a new run with a lower --base-lr, or with --clip-grad 1."
    )


def lost_from(facts: RunFacts) -> float | None:
    """Return the step from which a loss is not finite until the end; None where all end finite."""
    found = metrics_file.columns(facts.records)
    first = []
    for name, column in found.items():
        if metric(name).better == "lower" and not isfinite(column.y[-1]):
            known = np.flatnonzero(np.isfinite(column.y))
            first.append(float(column.x[known[-1] + 1 if len(known) else 0]))
    return min(first, default=None)


def cut_at(facts: RunFacts) -> float | None:
    """Return the last step in metrics.jsonl if the run went on after it, else None."""
    planned = planned_steps(facts)
    if not facts.finished or not facts.records or planned is None:
        return None
    step = float(facts.records[-1]["step"])
    return step if step < planned else None


def _cut(facts: RunFacts) -> Iterator[str]:
    step, planned = cut_at(facts), planned_steps(facts)
    if step is not None and planned is not None:
        yield (
            f"Its {metrics_file.FILE} ends at step {count(step)} of {count(planned)}: "
            "the curves end there, and the figures are those of health.json."
        )


def _summary(facts: RunFacts) -> str:
    """Sum up a run in one or two sentences."""
    if sentence := diverged(facts):
        return sentence
    if not facts.finished:
        return _progress(facts)
    if facts.command != "pretrain":
        found = [one for one in facts.results if one.command == facts.command]
        return _figure_in_words(found[0]) if found else "The results are below."
    match facts.health.get("status"):
        case "good":
            judged = judgements(facts)
            useless = use(judged) in ("none", "chance")
            return _useless_in_words(judged) if useless else _good_in_words(facts)
        case "weak" if use(judgements(facts)) == "clear":
            return (
                f"On {short(main_data(facts) or '')} it beats the untrained encoder and raw "
                "pixels. Its losses suggest that it could learn more: longer training may help."
            )
        case "weak":
            return "The encoder has learnt little yet. Longer training, or more images, may help."
        case "collapsed":
            return (
                "All images look the same to the encoder, so its embeddings are useless. A lower "
                "learning rate (--base-lr) or a larger batch may help."
            )
        case _:
            return "The run is finished, but its folder has no verdict in health.json."


def _good_in_words(facts: RunFacts) -> str:
    values = numbers_of(facts)
    filled = _filled_with(facts)
    if filled and health.reconstruction_share(values) < 1:
        rebuilds = f"rebuilds what is hidden better than {filled} would"
    else:
        rebuilds = f"does not rebuild what is hidden better than {filled} yet" if filled else ""
    if "contrastive" not in values:
        return f"The encoder {rebuilds}." if rebuilds else "Its losses are as they should be."
    return f"The encoder tells images apart{', and ' if rebuilds else ''}{rebuilds}."


def _filled_with(facts: RunFacts) -> str:
    """Name what the reconstruction is compared with; empty where there is nothing."""
    model = facts.config.get("model")
    channels = model.get("in_channels") if isinstance(model, dict) else None
    channels = channels if isinstance(channels, int) else 3
    words = health.reconstruction_baseline(numbers_of(facts), channels)
    return words.replace("each", "each patch", 1)


def _useless_in_words(judged: list[Judgement]) -> str:
    """Say that the encoder does not beat its baselines by more than the sampling error."""
    shown = [
        f"{PROTOCOLS[one.result.command]} {percent(one.own)}, "
        f"{RIVALS[one.rival]} {percent(one.other)}"
        for one in judged
    ]
    data, images = short(judged[0].result.data), num_test(judged[0].result)
    if use(judged) == "none":
        rivals = " or ".join(dict.fromkeys(RIVALS[one.rival] for one in judged))
        outcome = f"it does no better than {rivals}"
    else:
        number = count(images or 0)
        outcome = f"it is ahead by no more than the sampling error of {number} test images"
    return (
        f"Its losses fell as they should, but on {data} {outcome} ({'; '.join(shown)}). Longer "
        "training, more images, or crops that keep more of them (--views.crop-scale) may help."
    )


PROTOCOLS = {"knn": "kNN", "probe": "linear probe"}
RIVALS = {UNTRAINED: "the untrained encoder", PIXELS: "raw pixels"}


def _figure_in_words(result: Result) -> str:
    figure = headline_of(result)
    if figure is None:
        return "The results are below."
    name = f"{figure[0][:1].upper()}{figure[0][1:]}"
    return f"{name} of {percent(figure[1])} on the test images of {short(result.data)}."


def _progress(facts: RunFacts) -> str:
    """Say how far an unfinished run is."""
    if not facts.records:
        return "The run has not written any metrics yet."
    step, planned = facts.records[-1]["step"], planned_steps(facts)
    of = f" of {count(planned)} ({share(step / planned)})" if planned else ""
    last = f"The last line of its metrics is {duration(facts.age or 0)} old."
    return f"{count(step)}{of} steps are done. {last} This page shows the run as it was then."


def planned_steps(facts: RunFacts) -> int | None:
    """Return the steps of the whole run; None where its files do not say."""
    images, trained = facts.environment.get("num_images"), facts.pretraining
    if trained is None or not isinstance(images, int):
        return None
    return images // trained.batch_size * trained.epochs or None


def _health(facts: RunFacts) -> Iterator[str]:
    """Describe the last metrics of a pre-training run, each with what it is compared with."""
    if facts.command != "pretrain":
        return
    values = numbers_of(facts)
    if "contrastive_top1" in values:
        level = known_level(facts, "contrastive_top1")
        chance = f" (chance: {level:.2g}{PERCENT})" if level is not None else ""
        yield (
            "Shown a crop of an image with most of it hidden, the encoder finds another crop of "
            "the same image among all of a batch in "
            f"{values['contrastive_top1']:.0f}{PERCENT} of cases{chance}."
        )
    if filled := _filled_with(facts):
        part = health.reconstruction_share(values)
        worse = ": no better than that yet" if part >= 1 else ""
        yield (
            f"Hidden parts of an image are rebuilt with {share(part)} of the error of "
            f"{filled}{worse}."
        )


def numbers_of(facts: RunFacts) -> dict[str, float]:
    """Return the last metrics of a run.

    health.json is written at the end of a run, so that its figures take precedence in a finished
    one, whose metrics.jsonl may have been cut short.
    """
    known = {
        name: float(value)
        for name, value in facts.health.items()
        if isinstance(value, int | float) and isfinite(value)
    }
    last = {k: float(v) for k, v in metrics_file.last(facts.records).items()}
    return last | known if facts.finished else known | last


def known_level(facts: RunFacts, name: str) -> float | None:
    """Return the last finite value of a metric's level, for example chance."""
    column = metrics_file.level(metrics_file.columns(facts.records), name)
    finite = [] if column is None else [y for y in column.y.tolist() if isfinite(y)]
    return finite[-1] if finite else None


MAX_RESULTS = 4  # described in the verdict; the others are only in the tables


def _judgements(facts: RunFacts) -> Iterator[str]:
    """Describe results in words, beside the baselines that any encoder must beat."""
    kinds = (*JUDGING, "labels") if facts.command in ("pretrain", JUDGED) else (facts.command,)
    chosen = [one for kind in kinds for one in facts.results if one.command == kind]
    data = main_data(facts)
    chosen.sort(key=lambda one: one.data != data)
    for result in chosen[:MAX_RESULTS]:
        sentence = result.content.get("verdict")
        if result.command == "labels" and isinstance(sentence, str):
            yield f"On {short(result.data)}, {sentence}{'' if sentence.endswith('.') else '.'}"
        elif result.command in JUDGING and "top1" in result.headline:
            yield _score_in_words(result)
        elif result is not chosen[0] and headline_of(result):
            yield _figure_in_words(result)


READ = {
    "knn": "With nearest neighbours alone",
    "probe": "With a linear classifier on its frozen features",
}


def _score_in_words(result: Result) -> str:
    own = result.headline["top1"]
    sentence = (
        f"{READ[result.command]}, {percent(own)} of the test images of "
        f"{short(result.data)} are classified correctly"
    )
    before, pixels = (baseline(result, name) for name in (UNTRAINED, PIXELS))
    if before is not None:
        sentence += f"; before training it was {percent(before)}"
    if pixels is not None:
        sentence += f"{',' if before is not None else ';'} with raw pixels {percent(pixels)}"
    if pixels is not None and pixels >= own:
        better = "do better" if pixels > own else "do as well"
        sentence += f". Raw pixels {better}: the encoder does not suit these images yet"
    elif before is not None and before >= own:
        sentence += ". Training did not help on these images"
    return f"{sentence}."


def tiles(facts: RunFacts) -> list[Tile]:
    """Return the key figures."""
    return [*_score_tile(facts), *_effort_tiles(facts)]


def _score_tile(facts: RunFacts) -> Iterator[Tile]:
    last = metrics_file.last(facts.records)
    if result := main_knn(facts):
        known = {"untrained": baseline(result, UNTRAINED), "raw pixels": baseline(result, PIXELS)}
        baselines = ", ".join(f"{name} {percent(v)}" for name, v in known.items() if v is not None)
        note = f"{baselines}; on {short(result.data)}" if baselines else f"on {short(result.data)}"
        yield Tile(percent(result.headline["top1"]), "kNN top-1", note)
    elif "knn_top1" in last:
        data = short(str(facts.config.get("eval_data") or "the labelled images"))
        yield Tile(percent(last["knn_top1"]), "kNN top-1", f"while training, on {data}")
    for result in facts.results:
        if result.command == facts.command and (figure := headline_of(result)):
            yield Tile(percent(figure[1]), figure[0], f"on {short(result.data)}")


def _effort_tiles(facts: RunFacts) -> Iterator[Tile]:
    images = facts.environment.get("num_images")
    if isinstance(images, int):
        yield Tile(count(images), "training images")
    if not facts.records:
        return
    last, planned, cut = metrics_file.last(facts.records), planned_steps(facts), cut_at(facts)
    batch = facts.config.get("batch_size")
    notes = [f"of {count(planned)}"] if planned and cut is None else []
    notes += [f"{batch} images each"] if isinstance(batch, int) else []
    yield Tile(count(last["step"] if cut is None else planned or 0), "steps", ", ".join(notes))
    if "seconds" in last:
        device = str(facts.environment.get("device") or "")
        notes = [f"on {device}"] if device else []
        notes += [f"for the first {count(cut)} steps"] if cut is not None else []
        yield Tile(duration(last["seconds"]), "training time", ", ".join(notes))
