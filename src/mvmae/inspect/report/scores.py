"""Scores of an encoder, its baselines, and whether it beats them beyond the sampling error."""

from math import hypot
from typing import Any, Literal, NamedTuple

from mvmae.inspect.report.gather import JUDGED, Result, RunFacts, numbers, part
from mvmae.inspect.report.html import short
from mvmae.metrics.accuracy import sampling_error

UNTRAINED, PIXELS = "the same, untrained", "raw pixels"  # rows of knn, probe and labels
HEADLINES = ("top1", "mask_ap", "box_ap", "miou")  # metrics that represent a result, best first
JUDGING = ("knn", "probe")  # commands that evaluate frozen features beside baselines
CLEAR = 2.0  # standard errors: a larger difference of accuracies counts as real
NAMES = {
    "pretrain": "pre-training",
    "knn": "kNN",
    "probe": "linear probe",
    "labels": "few labels",
    "finetune": "fine-tuning",
    "detect": "detection",
    "segment": "segmentation",
    JUDGED: "an encoder from elsewhere",
}


def main_figure(values: Any) -> tuple[str, float] | None:
    """Return the name and value of the main metric of a result or a row; None without one."""
    known = numbers(values)
    return next(((name, known[name]) for name in HEADLINES if name in known), None)


def main_score(result: Result) -> float:
    """Return the value of a result's main metric; 0 without one."""
    return (main_figure(result.headline) or ("", 0.0))[1]


def scored_rows(result: Result) -> list[dict[str, Any]]:
    """Return the rows of a result that have a main metric."""
    rows = result.content.get("rows")
    return [row for row in rows if main_figure(row)] if isinstance(rows, list) else []


def has_main_setting(result: Result, row: dict[str, Any]) -> bool:
    """Whether a row has the number of neighbours that the result's headline has."""
    own = part(result.content, "headline")
    return "k" not in own or part(row, "notes").get("k") == own["k"]


def baselines(result: Result) -> dict[str, float]:
    """Return the scores of the baselines by name, with the settings of the result's headline.

    The best of a baseline's tokens: the encoder's own is the one that training shaped, and none was
    shaped in an untrained one. A baseline without those settings has no score.
    """
    found: dict[str, float] = {}
    for row in scored_rows(result):
        name, figure = str(row.get("name")), main_figure(row)
        if figure and name in (PIXELS, UNTRAINED) and has_main_setting(result, row):
            found[name] = max(figure[1], found.get(name, 0.0))
    return found


def label_points(result: Result) -> dict[str, dict[int, list[float]]]:
    """Return the accuracies of a result of `labels`, by encoder and number of labels."""
    found: dict[str, dict[int, list[float]]] = {}
    cells = result.content.get("cells")
    for cell in cells if isinstance(cells, list) else []:
        known = numbers(cell)
        if known.get("count", 0) >= 1 and "top1" in known:
            points = found.setdefault(str(cell.get("name")), {})
            points.setdefault(int(known["count"]), []).append(known["top1"])
    return found


def encoder_name(result: Result, name: str) -> str:
    """Name a row: the encoder that was judged, a baseline, or another encoder's short name."""
    if name == part(result.content, "config").get("encoder"):
        return "this encoder"
    known = {UNTRAINED: "the same encoder, untrained", PIXELS: PIXELS}
    return known.get(name) or short(name)


def judged_results(facts: RunFacts) -> list[Result]:
    """Return the results of kNN and the linear probe, those on the main data first.

    The main data are labelled images that the run was also trained on, else the first judged.
    """
    data = facts.config.get("data")
    names = [str(name) for name in data] if isinstance(data, list) else [str(data)]
    found = [
        one
        for command in JUDGING
        for one in facts.results
        if one.command == command and "top1" in one.headline
    ]
    own = [
        one
        for one in found
        if one.data and any(f"{name}/".startswith(f"{one.data.rstrip('/')}/") for name in names)
    ]
    first = (own or found)[:1]
    return sorted(found, key=lambda one: one.data != first[0].data)


def main_data(facts: RunFacts) -> str | None:
    """Return the labelled images whose results come first; None without kNN or linear probe."""
    return next((one.data for one in judged_results(facts)), None)


class Judgement(NamedTuple):
    """An accuracy beside that of the better baseline."""

    result: Result
    own: float
    rival: str
    """UNTRAINED or PIXELS."""

    other: float
    is_clear: bool
    """Whether the gain exceeds the sampling error of the test images."""


def judgements(facts: RunFacts) -> list[Judgement]:
    """Compare the run with its baselines, for each command that measured them."""
    found = []
    for result in judged_results(facts):
        known = baselines(result)
        if result.data == main_data(facts) and known:
            rival = max(known, key=lambda name: known[name])
            own, other, images = result.headline["top1"], known[rival], num_test(result)
            is_clear = exceeds(own - other, difference_error((own, images), (other, images)))
            found.append(Judgement(result, own, rival, other, is_clear))
    return found


def use(found: list[Judgement]) -> Literal["clear", "chance", "none", "unknown"]:
    """Say whether an encoder beats raw pixels and the untrained encoder in any evaluation."""
    if not found:
        return "unknown"
    if any(one.is_clear for one in found):
        return "clear"
    return "chance" if any(one.own > one.other for one in found) else "none"


def num_test(result: Result) -> float:
    """Return the number of test images of a result; 0 where it does not say."""
    return numbers(result.content.get("data")).get("num_test", 0.0)


def standard_error(first: Result, second: Result) -> float | None:
    """Return the standard error of a difference of two accuracies, in points; None if unknown.

    The test images are the same, so the true error is smaller: the comparison is conservative.
    """
    # Average precision is not a share of images, and has no such error.
    if "top1" not in first.headline or "top1" not in second.headline:
        return None
    return difference_error(*((one.headline["top1"], num_test(one)) for one in (first, second)))


def difference_error(*accuracies: tuple[float, float]) -> float | None:
    """Return the standard error of the difference of accuracies, each with its number of images."""
    if any(images < 1 for _, images in accuracies):
        return None
    # The numbers come from files that anybody may have edited: 101 % would have no root.
    shares = [(min(max(value / 100, 0.0), 1.0), int(images)) for value, images in accuracies]
    return hypot(*(sampling_error(*one) for one in shares))


def exceeds(gap: float, error: float | None) -> bool:
    """Whether a gap is larger than the sampling error, where that is known."""
    return gap > 0 and (error is None or gap >= CLEAR * error)
