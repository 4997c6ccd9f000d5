"""Gather the results of a table's cells: scores over seeds and paired differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mvmae.ablate import cells
from mvmae.ablate.plan import SEEDLESS, Plan, flatten
from mvmae.config.files import to_plain
from mvmae.errors import UserError
from mvmae.metrics.accuracy import Difference, Spread, paired_difference, spread_over_seeds
from mvmae.storage import atomic, metrics_file


class Score(NamedTuple):
    """A row's figure by one command."""

    per_seed: dict[int, float]
    spread: Spread | None
    """Over the finished seeds."""

    difference: Difference | None
    """To the baseline, over the seeds that both have."""

    def __str__(self) -> str:
        if self.spread is None:
            return ""
        sd = f" ±{self.spread.sd:.1f}" if self.spread.sd is not None else ""
        return f"{self.spread.mean:.1f}{sd}"

    @property
    def difference_text(self) -> str:
        """The difference and its standard error, as shown in tables."""
        if self.difference is None:
            return ""
        error = f" ±{self.difference.error:.1f}" if self.difference.error is not None else ""
        return f"{self.difference.mean:+.1f}{error}"


class Line(NamedTuple):
    """A row of the table, over seeds."""

    key: str
    name: str
    paper: float | None
    views: int | None
    """Number seen in training; None before training, and for controls."""

    steps: int | None
    settings: dict[str, Any]
    """Fields that differ from the baseline."""

    seconds: dict[int, float]
    """Wall time of training, by seed."""

    scores: dict[str, Score]
    """By command."""

    @property
    def num_seeds(self) -> int:
        """Number of finished seeds."""
        return max((len(score.per_seed) for score in self.scores.values()), default=0)


class Results(NamedTuple):
    """Everything that is finished."""

    lines: list[Line]
    baseline: Line
    missing: list[str]
    """Folder names of find_unfinished cells."""

    data: dict[str, Any]
    """The labelled images as a result file describes them; empty if nothing is evaluated."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is finished."""
        return not any(line.num_seeds for line in self.lines)


def gather(plan: Plan, images: str | None = None) -> Results:
    """Read the results of all cells.

    Args:
        plan: The table.
        images: Fingerprint of the labelled images. None: any, but the same for all cells.

    Raises:
        UserError: Cells were evaluated on different images.
    """
    missing: list[str] = []
    facts: dict[str, dict[str, Any]] = {}
    scores: dict[str, SeedScores] = {}
    num_images: dict[str, int] = {}
    seconds: dict[str, dict[int, float]] = {}
    for cell in [*plan.training_cells(), *plan.controls()]:
        own = scores.setdefault(cell.key, {})
        is_trained = cells.training_progress(cell) == "trained"
        for config in cells.evaluation_configs(cell, plan.config):
            result = cells.find_result(cell, config, images) if is_trained else None
            if result is not None:
                command = cells.command_name(config)
                own.setdefault(command, {})[cell.seed] = result["headline"]["top1"]
                facts[result["data"]["fingerprint"]] = result["data"]
            elif cell.folder.name not in missing:
                missing.append(cell.folder.name)
        if count := atomic.read_object(cell.folder / "environment.json").get("num_images"):
            num_images[cell.key] = count
        # The last line holds the time of the whole run, also of one that was resumed.
        records = metrics_file.read(cell.folder) if cell.config and is_trained else []
        if records and (time := records[-1].get("seconds")) is not None:
            seconds.setdefault(cell.key, {})[cell.seed] = time
    if len(facts) > 1:
        raise UserError(
            f"the runs in {plan.config.folder} were evaluated on different images: run the same "
            "command without --only-table, which repeats evaluations on other images"
        )
    lines = _lines(plan, scores, num_images, seconds)
    baseline = next(line for line in lines if line.key == plan.baseline)
    return Results(lines, baseline, missing, next(iter(facts.values()), {}))


def _lines(
    plan: Plan,
    scores: Mapping[str, SeedScores],
    num_images: Mapping[str, int],
    seconds: Mapping[str, dict[int, float]],
) -> list[Line]:
    base, lines = flatten(to_plain(plan.baseline_config)), []
    for arm, config in plan.rows:
        per_epoch = num_images[arm.key] // config.batch_size if arm.key in num_images else None
        steps = per_epoch * config.epochs if per_epoch else None
        views = steps * config.batch_size * config.views.num_views if steps else None
        own = flatten(to_plain(config))
        settings = {name: value for name, value in own.items() if value != base[name]}
        times, compared = seconds.get(arm.key, {}), _compare(plan, scores, arm.key)
        lines.append(Line(arm.key, arm.name, arm.paper, views, steps, settings, times, compared))
    for key, name in {cell.key: cell.name for cell in plan.controls()}.items():
        lines.append(Line(key, name, None, None, None, {}, {}, _compare(plan, scores, key)))
    return lines


def _compare(plan: Plan, scores: Mapping[str, SeedScores], key: str) -> dict[str, Score]:
    """Compute means over seeds and differences to the baseline."""
    compared = {}
    for command in commands(plan):
        own, other = scores[key].get(command, {}), scores[plan.baseline].get(command, {})
        spread = spread_over_seeds(np.array(list(own.values()), dtype=float)) if own else None
        paired = own
        if key in SEEDLESS and own:  # pixels are the same for all seeds
            paired = dict.fromkeys(other, next(iter(own.values())))
        both = [seed for seed in other if seed in paired]
        difference = None
        if both and key != plan.baseline:
            ours, theirs = (
                np.array([values[seed] for seed in both], dtype=float) for values in (paired, other)
            )
            difference = paired_difference(ours, theirs)
        compared[command] = Score(own, spread, difference)
    return compared


def baseline_name(plan: Plan) -> str:
    """Name of the baseline in a sentence."""
    name = next(row.arm.name for row in plan.rows if row.arm.key == plan.baseline)
    return f"{plan.ablation.axis} {name}".strip()


SeedScores = dict[str, dict[int, float]]


def commands(plan: Plan) -> list[str]:
    """The commands that evaluate the cells."""
    return ["knn"] if plan.config.probe == "none" else ["knn", "probe"]
