"""Scores of an encoder, its baselines, and whether it beats them beyond the sampling error."""

from __future__ import annotations

from math import isfinite, sqrt
from typing import Any, Literal, NamedTuple

from mvmae.inspect.report.gather import Result, RunFacts
from mvmae.inspect.report.wording import short
from mvmae.storage.metric_specs import metric

UNTRAINED, PIXELS = "the same, untrained", "raw pixels"  # rows of knn, probe and labels
HEADLINES = ("top1", "mask_ap", "box_ap", "miou")  # metrics that represent a result, best first
JUDGING = ("knn", "probe")  # commands that evaluate frozen features beside baselines
CLEAR = 2.0  # standard errors: a larger difference of accuracies counts as real


def headline_of(result: Result) -> tuple[str, float] | None:
    """Return the label and value of a result's main metric; None where it has none."""
    return next(
        (
            (metric(name).label, result.headline[name])
            for name in HEADLINES
            if name in result.headline
        ),
        None,
    )


def rows_of(result: Result) -> list[dict[str, Any]]:
    """Return the rows of a result that have a main metric."""
    rows = result.content.get("rows")
    if not isinstance(rows, list):
        return []
    return [row for row in rows if isinstance(row, dict) and _figure(row) is not None]


def _figure(row: dict[str, Any]) -> float | None:
    value = next((row[key] for key in HEADLINES if key in row), None)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and isfinite(value) else None


def baseline(result: Result, name: str) -> float | None:
    """Return the score of a baseline with the settings of the result's headline.

    The best of its tokens: the encoder's own is the one that training shaped, and none was shaped
    in an untrained one. A baseline without that setting has no figure.
    """
    own = result.content.get("headline")
    own = own if isinstance(own, dict) else {}
    found = []
    for row in rows_of(result):
        notes = row.get("notes") if isinstance(row.get("notes"), dict) else {}
        if row.get("name") == name and ("k" not in own or notes.get("k") == own["k"]):
            found.append(_figure(row) or 0.0)
    return max(found, default=None)


def label_points(result: Result) -> dict[str, dict[int, list[float]]]:
    """Return the accuracies of a result of `labels`, by encoder and number of labels."""
    found: dict[str, dict[int, list[float]]] = {}
    cells = result.content.get("cells")
    for cell in cells if isinstance(cells, list) else []:
        try:
            name, count, top1 = str(cell["name"]), int(cell["count"]), float(cell["top1"])
        except (KeyError, TypeError, ValueError):
            continue
        if count > 0 and isfinite(top1):
            found.setdefault(name, {}).setdefault(count, []).append(top1)
    return found


def encoder_name(result: Result, name: str) -> str:
    """Name a row: the encoder that was judged, a baseline, or another encoder's short name."""
    config = result.content.get("config")
    own = config.get("encoder") if isinstance(config, dict) else None
    if name == own:
        return "this encoder"
    if name == UNTRAINED:
        return "the same encoder, untrained"
    return name if name == PIXELS else short(name)


def main_data(facts: RunFacts) -> str | None:
    """Return the labelled images that the run was also trained on, else the first evaluated."""
    data = facts.config.get("data")
    names = [str(name) for name in data] if isinstance(data, list) else [str(data)]
    judged = [one for command in JUDGING for one in facts.results if _is_score(one, command)]
    own = [one for one in judged if one.data and any(_within(name, one.data) for name in names)]
    return next((one.data for one in own or judged), None)


def _is_score(result: Result, command: str) -> bool:
    return result.command == command and "top1" in result.headline


def _within(name: str, folder: str) -> bool:
    return name == folder or name.startswith(f"{folder.rstrip('/')}/")


def main_knn(facts: RunFacts) -> Result | None:
    """Return the kNN result on the images that the run was trained on, else the first."""
    found = [one for one in facts.results if _is_score(one, "knn")]
    data = main_data(facts)
    return next((one for one in found if one.data == data), next(iter(found), None))


class Judgement(NamedTuple):
    """An accuracy beside that of the better baseline."""

    result: Result
    own: float
    rival: str
    """UNTRAINED or PIXELS."""

    other: float

    @property
    def gain(self) -> float:
        """Points above the baseline."""
        return self.own - self.other

    @property
    def is_clear(self) -> bool:
        """Whether the gain exceeds the sampling error of the test images."""
        images = num_test(self.result)
        error = 0.0 if images is None else error_of((self.own, images), (self.other, images))
        return self.gain > CLEAR * error


def judgements(facts: RunFacts) -> list[Judgement]:
    """Compare the run with its baselines, for each command that measured them."""
    data = main_data(facts)
    found = []
    for command in JUDGING:
        for result in facts.results:
            rivals = {name: baseline(result, name) for name in (PIXELS, UNTRAINED)}
            known = {name: value for name, value in rivals.items() if value is not None}
            if _is_score(result, command) and result.data == data and known:
                rival = max(known, key=lambda name: known[name])
                found.append(Judgement(result, result.headline["top1"], rival, known[rival]))
    return found


def use(found: list[Judgement]) -> Literal["clear", "chance", "none", "unknown"]:
    """Say whether an encoder beats raw pixels and the untrained encoder in any evaluation."""
    if not found:
        return "unknown"
    if any(one.is_clear for one in found):
        return "clear"
    return "chance" if any(one.gain > 0 for one in found) else "none"


def num_test(result: Result) -> int | None:
    """Return the number of test images of a result, where it says."""
    data = result.content.get("data")
    images = data.get("num_test") if isinstance(data, dict) else None
    is_count = isinstance(images, int) and not isinstance(images, bool) and images > 0
    return images if is_count else None


def standard_error(first: Result, second: Result) -> float | None:
    """Return the standard error of a difference of two accuracies, in points.

    The test images are the same, so the true error is smaller: the
    comparison is conservative.
    """
    images = num_test(first), num_test(second)
    if images[0] is None or images[1] is None:
        return None
    if "top1" not in first.headline or "top1" not in second.headline:
        return None
    return error_of((first.headline["top1"], images[0]), (second.headline["top1"], images[1]))


def error_of(*accuracies: tuple[float, int]) -> float:
    """Return the standard error of a difference of accuracies in percent of so many images."""
    return sqrt(sum(max(0.0, value * (100 - value)) / images for value, images in accuracies))
