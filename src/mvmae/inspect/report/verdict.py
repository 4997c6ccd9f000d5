"""The verdict of a run in sentences, with its key figures and what it rests on.

`method/health.py` judges the losses, and `scores.py` whether the encoder beats its baselines; the
sentences here only combine both.
"""

from collections.abc import Iterator
from math import isfinite
from typing import NamedTuple

import numpy as np

from mvmae.inspect.report import scores
from mvmae.inspect.report.gather import JUDGED, Result, RunFacts, numbers, part
from mvmae.inspect.report.html import PERCENT, Tile, Verdict, percent, share, short
from mvmae.inspect.report.scores import NAMES, PIXELS, UNTRAINED
from mvmae.method import health
from mvmae.storage import metrics_file
from mvmae.storage.metric_specs import find_metric
from mvmae.terminal import duration

STALE = 600.0  # seconds without a new line of metrics, after which a run counts as stopped
MAX_RESULTS = 4  # described in the verdict; the others are only in the tables
READ = {
    "knn": "With nearest neighbours alone",
    "probe": "With a linear classifier on its frozen features",
}
RIVALS = {UNTRAINED: "the untrained encoder", PIXELS: "raw pixels"}


class Outcome(NamedTuple):
    """How a run is, with a sentence or two."""

    state: str
    """A few words for a table."""

    status: str
    """good, weak, bad or none."""

    summary: str
    heading: str = ""
    """Where the state says too little on top of a page; default: the state."""


def verdict(facts: RunFacts) -> Verdict:
    """Judge a run."""
    found = outcome(facts)
    reasons = list(_results(facts))
    if found.state != "diverged":
        # What was measured before a divergence says nothing about the weights that it left.
        reasons = [*_describe_metrics(facts), *reasons, *_measured_at_the_end(facts)]
    tiles = [*_score_tiles(facts), *_effort_tiles(facts)]
    heading = capitalize(found.heading or found.state)
    return Verdict(found.status, heading, found.summary, tiles, reasons)


def capitalize(text: str) -> str:
    """Raise the first letter, and leave the others as they are."""
    return text[:1].upper() + text[1:]


def outcome(facts: RunFacts) -> Outcome:
    """Say how a run is: first whether it ended well, then what its losses and results show."""
    if how := divergence(facts):
        return Outcome("diverged", "bad", how)
    if not facts.finished:
        is_on = facts.age is not None and facts.age < STALE
        return Outcome("still running" if is_on else "not finished", "weak", _progress(facts))
    if facts.command != "pretrain":
        own = [one for one in facts.results if one.command == facts.command]
        summary = _figure_in_words(own[0]) if own else "The results are below."
        is_other = facts.command == JUDGED
        heading = "judged, not trained here" if is_other else f"{NAMES[facts.command]} is done"
        return Outcome("done", "none", summary, heading)
    match facts.health.get("status"), scores.use(scores.judgements(facts)):
        case "good", "none" | "chance" as gain:
            lack = "but not useful" if gain == "none" else "with no clear gain"
            return Outcome(f"trained well, {lack} here yet", "weak", _useless_in_words(facts))
        case "good", _ if cut_step(facts) is not None:
            return Outcome("part of its metrics is missing", "weak", _good_in_words(facts))
        case "good", _:
            return Outcome("good", "good", _good_in_words(facts), "Pre-training worked")
        case "weak", "clear":
            summary = (
                f"On {short(scores.main_data(facts) or '')} it beats the untrained encoder and raw "
                "pixels. Its losses suggest that it could learn more: longer training may help."
            )
            return Outcome("useful here already", "good", summary)
        case "weak", _:
            summary = (
                "The encoder has learnt little yet. Longer training, or more images, may help."
            )
            return Outcome("weak", "weak", summary, "Pre-training is weak")
        case "collapsed", _:
            summary = (
                "All images look the same to the encoder, so its embeddings are useless. A lower "
                "learning rate (--base-lr) or a larger batch may help."
            )
            return Outcome("collapsed", "bad", summary, "Pre-training collapsed")
        case _:
            summary = "The run is finished, but its folder has no verdict in health.json."
            return Outcome("done", "none", summary, "Pre-training is done")


def divergence(facts: RunFacts) -> str:
    """Say how the loss stopped being finite; empty where it did not."""
    if facts.health.get("status") == "diverged" and facts.health.get("sentence"):
        return f"{capitalize(str(facts.health['sentence']))}."
    lost = []  # steps from which a loss is not finite until the end
    for name, column in metrics_file.columns(facts.records).items():
        if find_metric(name).better == "lower" and not isfinite(column.y[-1]):
            known = np.flatnonzero(np.isfinite(column.y))
            lost.append(column.x[known[-1] + 1 if len(known) else 0])
    if not lost:
        return ""
    return (
        f"From step {min(lost):,.0f} on the loss is not finite, and nothing trained since then "
        "is usable. Start a new run with a lower --base-lr, or with --clip-grad 1."
    )


def planned_steps(facts: RunFacts) -> int | None:
    """Return the steps of the whole run; None where its files do not say."""
    images, trained = numbers(facts.environment).get("num_images"), facts.pretraining
    if trained is None or images is None:
        return None
    # A last batch that is not full is dropped, so fewer images than one batch make no step.
    return int(images) // trained.batch_size * trained.epochs or None


def cut_step(facts: RunFacts) -> float | None:
    """Return the last step in metrics.jsonl if the run continued after it, else None."""
    planned = planned_steps(facts)
    if not facts.finished or not facts.records or planned is None:
        return None
    step = float(facts.records[-1]["step"])
    return step if step < planned else None


def _progress(facts: RunFacts) -> str:
    """Say how far an unfinished run is."""
    if not facts.records:
        return "The run has not written any metrics yet."
    step, planned = facts.records[-1]["step"], planned_steps(facts)
    of = f" of {planned:,.0f} ({share(step / planned)})" if planned else ""
    last = f"The last line of its metrics is {duration(facts.age or 0)} old."
    return f"{step:,.0f}{of} steps are done. {last} This page shows the run as it was then."


def _good_in_words(facts: RunFacts) -> str:
    values = last_metrics(facts)
    claims = ["tells images apart"] if "contrastive" in values else []
    if filled := _trivial_answer(facts):
        is_better = health.reconstruction_share(values) < 1
        claim, end = ("rebuilds", "would") if is_better else ("does not rebuild", "yet")
        claims.append(f"{claim} hidden patches better than {filled} {end}")
    return f"The encoder {', and '.join(claims) or 'trained as it should'}."


def _trivial_answer(facts: RunFacts) -> str:
    """Name what the reconstruction is compared with; empty where there is nothing."""
    channels = numbers(part(facts.config, "model")).get("in_channels", 3)
    return health.reconstruction_baseline(last_metrics(facts), int(channels))


def _useless_in_words(facts: RunFacts) -> str:
    """Say that the encoder does not beat its baselines by more than the sampling error."""
    judged = scores.judgements(facts)
    shown = [
        f"{NAMES[one.result.command]} {percent(one.own)}, {RIVALS[one.rival]} {percent(one.other)}"
        for one in judged
    ]
    rivals = " or ".join(dict.fromkeys(RIVALS[one.rival] for one in judged))
    finding = f"it does no better than {rivals}"
    if scores.use(judged) == "chance":
        images = f"{scores.num_test(judged[0].result):,.0f}"
        finding = f"it is ahead by no more than the sampling error of {images} test images"
    return (
        f"Its losses fell as they should, but on {short(judged[0].result.data)} {finding} "
        f"({'; '.join(shown)}). Longer training, more images, or crops that keep more of them "
        "(--views.crop-scale) may help."
    )


def _figure_in_words(result: Result) -> str:
    figure = scores.main_figure(result.headline)
    if figure is None:
        return "The results are below."
    name = capitalize(find_metric(figure[0]).label)
    return f"{name} of {percent(figure[1])} on the test images of {short(result.data)}."


def _describe_metrics(facts: RunFacts) -> Iterator[str]:
    """Describe the last metrics of a pre-training run, each with what it is compared with."""
    values = last_metrics(facts) if facts.command == "pretrain" else {}
    if "contrastive_top1" in values:
        level = metrics_file.level(metrics_file.columns(facts.records), "contrastive_top1")
        known = level.y[np.isfinite(level.y)] if level else []
        chance = f" (chance: {known[-1]:.2g}{PERCENT})" if len(known) else ""
        yield (
            "Shown a crop of an image with most of it hidden, the encoder finds another crop of "
            "the same image among all of a batch in "
            f"{values['contrastive_top1']:.0f}{PERCENT} of cases{chance}."
        )
    if values and (filled := _trivial_answer(facts)):
        part_left = health.reconstruction_share(values)
        worse = ": no better than that yet" if part_left >= 1 else ""
        yield (
            f"Hidden patches of an image are rebuilt with {share(part_left)} of the error of "
            f"{filled}{worse}."
        )


def _measured_at_the_end(facts: RunFacts) -> Iterator[str]:
    step, planned = cut_step(facts), planned_steps(facts)
    if step is not None:
        yield (
            f"Its {metrics_file.FILE} ends at step {step:,.0f} of {planned or 0:,.0f}: "
            "the curves end there, and the figures are those of health.json."
        )
    if sentence := facts.health.get("sentence"):
        yield f"Measured at the end: {sentence}."


def last_metrics(facts: RunFacts) -> dict[str, float]:
    """Return the last metrics of a run.

    health.json is written at the end of a run, so that its figures take precedence in a finished
    one, whose metrics.jsonl may have been cut short.
    """
    known, last = numbers(facts.health), numbers(metrics_file.last(facts.records))
    return last | known if facts.finished else known | last


def _results(facts: RunFacts) -> Iterator[str]:
    """Describe results in words, beside the baselines that any encoder must beat."""
    kinds = (
        (*scores.JUDGING, "labels") if facts.command in ("pretrain", JUDGED) else (facts.command,)
    )
    chosen = [one for kind in kinds for one in facts.results if one.command == kind]
    data = scores.main_data(facts)
    chosen.sort(key=lambda one: one.data != data)
    for result in chosen[:MAX_RESULTS]:
        sentence = result.content.get("verdict")
        if result.command == "labels" and isinstance(sentence, str):
            yield f"On {short(result.data)}, {sentence.removesuffix('.')}."
        elif result.command in scores.JUDGING and "top1" in result.headline:
            yield _score_in_words(result)
        elif result is not chosen[0] and scores.main_figure(result.headline):
            yield _figure_in_words(result)


def _score_in_words(result: Result) -> str:
    own, known = result.headline["top1"], scores.baselines(result)
    before, pixels = known.get(UNTRAINED), known.get(PIXELS)
    sentence = (
        f"{READ[result.command]}, {percent(own)} of the test images of "
        f"{short(result.data)} are classified correctly"
    )
    beside = [f"before training it was {percent(before)}"] if before is not None else []
    beside += [f"with raw pixels {percent(pixels)}"] if pixels is not None else []
    sentence = "; ".join(filter(None, (sentence, ", ".join(beside))))
    if pixels is not None and pixels >= own:
        better = "do better" if pixels > own else "do as well"
        return f"{sentence}. Raw pixels {better}: the encoder does not suit these images yet."
    is_useless = before is not None and before >= own
    return f"{sentence}.{' Training did not help on these images.' if is_useless else ''}"


def _score_tiles(facts: RunFacts) -> Iterator[Tile]:
    last = metrics_file.last(facts.records)
    if result := next((one for one in scores.judged_results(facts) if one.command == "knn"), None):
        known = [
            f"{name.removeprefix('the same, ')} {percent(value)}"
            for name, value in scores.baselines(result).items()
        ]
        note = "; ".join(filter(None, (", ".join(known), f"on {short(result.data)}")))
        yield Tile(percent(result.headline["top1"]), "kNN top-1", note)
    elif "knn_top1" in last:
        data = short(str(facts.config.get("eval_data") or "the labelled images"))
        yield Tile(percent(last["knn_top1"]), "kNN top-1", f"while training, on {data}")
    for result in facts.results:
        if result.command == facts.command and (figure := scores.main_figure(result.headline)):
            yield Tile(percent(figure[1]), find_metric(figure[0]).label, f"on {short(result.data)}")


def _effort_tiles(facts: RunFacts) -> Iterator[Tile]:
    if images := numbers(facts.environment).get("num_images"):
        yield Tile(f"{images:,.0f}", "training images")
    if not facts.records:
        return
    last, planned, cut = metrics_file.last(facts.records), planned_steps(facts), cut_step(facts)
    batch = facts.config.get("batch_size")
    notes = [f"of {planned:,.0f}"] if planned and cut is None else []
    notes += [f"{batch} images each"] if isinstance(batch, int) else []
    steps = last["step"] if cut is None else planned or 0
    yield Tile(f"{steps:,.0f}", "steps", ", ".join(notes))
    if "seconds" in last:
        device = str(facts.environment.get("device") or "")
        notes = [f"on {device}"] if device else []
        notes += [f"for the first {cut:,.0f} steps"] if cut is not None else []
        yield Tile(duration(last["seconds"]), "training time", ", ".join(notes))
