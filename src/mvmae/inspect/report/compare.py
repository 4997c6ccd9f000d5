"""Comparison of several runs: which is best, and what differs between them."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from mvmae.inspect.report import scores
from mvmae.inspect.report.gather import Result, RunFacts, numbers, part
from mvmae.inspect.report.html import Cell, Table, Tile, Verdict, figure_cell, percent, share, short
from mvmae.inspect.report.scores import NAMES, exceeds, main_score, standard_error
from mvmae.inspect.report.settings import flatten, value_in_words
from mvmae.inspect.report.verdict import last_metrics, outcome
from mvmae.method import health
from mvmae.storage import metrics_file
from mvmae.terminal import duration

ORDER = ("knn", "probe", "finetune", "detect", "segment")
MAX_SCORES = 4  # columns of scores
NOT_COMPARED = {"out", "resume", "overwrite"}
ENVIRONMENT = ("num_images", "data_fingerprint", "mvmae", "torch", "device", "world_size")
READING = (
    "Scores are the percentage of test images classified correctly, or average precision. The "
    "rebuilding error is the squared error on hidden patches as a share of the error of filling "
    "each with its average colour; lower is better, and it compares only runs that hide the same "
    "share of the same crops. Click a heading to sort by it."
)


class Score(NamedTuple):
    """A command and its images, for which several runs have a result."""

    command: str
    data: str

    @property
    def title(self) -> str:
        """Heading of its column."""
        return f"{NAMES[self.command]}, {short(self.data)}"


def _answers(facts: RunFacts) -> dict[Score, Result]:
    """Return a run's result for each score, the best where there are several."""
    found = [
        one for one in facts.results if one.command in ORDER and scores.main_figure(one.headline)
    ]
    return {Score(one.command, one.data): one for one in sorted(found, key=main_score)}


def common_scores(runs: Sequence[RunFacts]) -> list[Score]:
    """Return the scores to compare, those that most runs have first, kNN before others."""
    asked = Counter(score for facts in runs for score in _answers(facts))
    ranked = sorted(asked, key=lambda one: (-asked[one], ORDER.index(one.command), one.data))
    return ranked[:MAX_SCORES]


def ranking(runs: Sequence[RunFacts]) -> Table:
    """Return a table with one row for each run, best first by the first score."""
    asked = common_scores(runs)
    is_mixed = len({facts.command for facts in runs}) > 1
    has_masks = len({_hidden(facts) for facts in runs if _rebuilding(facts) is not None}) > 1
    headings = ["run", "state", *(score.title for score in asked)]
    headings += ["rebuilding error", "other crop found", "images seen", "time"]
    lines = []
    for facts in runs:
        hidden, last = _hidden(facts), metrics_file.last(facts.records)
        mask = f"{share(hidden)} hidden" if has_masks and hidden else ""
        line = [
            Cell(facts.name),
            Cell(outcome(facts).state, note=NAMES[facts.command] if is_mixed else ""),
            *(_score_cell(facts, score) for score in asked),
            figure_cell(_rebuilding(facts), note=mask),
            figure_cell(last_metrics(facts).get("contrastive_top1")),
            figure_cell(last.get("images"), "{:,.0f}".format),
            figure_cell(last.get("seconds"), duration),
        ]
        lines.append(line)
    filled = [at for at, _ in enumerate(headings) if any(line[at].text != "-" for line in lines)]
    rows = [[line[at] for at in filled] for line in lines]
    if asked:
        rows.sort(key=lambda row: -(row[2].value or -1.0))
        if sum(row[2].value is not None for row in rows) > 1:
            rows[0][0] = rows[0][0]._replace(strong=True)
    shown = [headings[at] for at in filled]
    return Table("The runs and their scores", shown, rows, sortable=True)


def _score_cell(facts: RunFacts, score: Score) -> Cell:
    result = _answers(facts).get(score)
    if result is None:
        return figure_cell(None)
    before = scores.baselines(result).get(scores.UNTRAINED)
    note = f"untrained {percent(before)}" if before is not None else ""
    return figure_cell(main_score(result), has_bar=True, note=note)


def _rebuilding(facts: RunFacts) -> float | None:
    """Return the error of the reconstruction as a percentage of the trivial answer's."""
    values = last_metrics(facts)
    has_one = health.reconstruction_baseline(values, channels=3)
    return 100 * health.reconstruction_share(values) if has_one else None


def _hidden(facts: RunFacts) -> float:
    """Return the share of patches that training hid."""
    return numbers(part(facts.config, "model")).get("mask_ratio", 0.0)


def winner(runs: Sequence[RunFacts]) -> Verdict:
    """Say which run is ahead, and whether by more than the sampling error."""
    asked = common_scores(runs)
    tiles = [_tile(runs, score) for score in asked]
    if not asked or len(ranked := _rank(runs, asked[0])) < 2:
        hint = (
            "No two of these runs were judged on the same images. Run mvmae knn RUN "
            "LABELLED_IMAGES for each of them to compare their scores."
        )
        return Verdict("none", f"{len(runs)} runs", hint, tiles, [])
    (leader, first), (other, second), *_ = ranked
    note = (
        f"On {short(asked[0].data)} ({NAMES[asked[0].command]}) {leader} reaches "
        f"{percent(main_score(first))}, {other} {percent(main_score(second))}"
    )
    gap, error = main_score(first) - main_score(second), standard_error(first, second)
    if error is not None and not exceeds(gap, error):
        sentence = f"{note}: within the sampling error at this size (±{error:.1f} points)."
        return Verdict("weak", "No clear winner", sentence, tiles, [])
    extra = f" (one standard error: {error:.1f})" if error is not None else ""
    sentence = f"{note}: {gap:.1f} points less{extra}."
    return Verdict("good", f"{leader} is ahead", sentence, tiles, [])


def _rank(runs: Sequence[RunFacts], score: Score) -> list[tuple[str, Result]]:
    """Return the names of the runs that have a score, and their results, best first."""
    found = [(facts.name, one) for facts in runs if (one := _answers(facts).get(score))]
    return sorted(found, key=lambda one: -main_score(one[1]))


def _tile(runs: Sequence[RunFacts], score: Score) -> Tile:
    """Return the highest score and its run, with the runs that are not clearly below it."""
    (name, best), *others = _rank(runs, score)
    near = [
        other
        for other, one in others
        if not exceeds(main_score(best) - main_score(one), standard_error(best, one))
    ]
    note = f"best: {name}" if others else f"of {name}; no other was judged on these"
    note = f"{name}, not clearly above {' and '.join(near)}" if near else note
    return Tile(percent(main_score(best)), score.title, note)


def differences(runs: Sequence[RunFacts]) -> Table | None:
    """Return a table of the settings that differ, a column for each run; None where none do."""
    settings = [
        {"command": facts.command}
        | {name: v for name, v in flatten(facts.config).items() if name not in NOT_COMPARED}
        | {name: facts.environment[name] for name in ENVIRONMENT if name in facts.environment}
        for facts in runs
    ]
    lines = []
    for name in dict.fromkeys(name for one in settings for name in one):
        # Only runs of commands that have this setting can differ in it.
        owners = {one["command"] for one in settings if name in one}
        values = [one.get(name) for one in settings if one["command"] in owners]
        if any(value != values[0] for value in values):
            cells = [Cell(value_in_words(name, one.get(name))) for one in settings]
            lines.append([Cell(name), *cells])
    headings = ["setting", *(facts.name for facts in runs)]
    return Table("The settings that differ", headings, lines) if lines else None
