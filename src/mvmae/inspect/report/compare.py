"""Comparison of several runs: which is best, and what differs between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mvmae.inspect.report.gather import Result, RunFacts
from mvmae.inspect.report.html import Cell, Row, Table, Tile, Verdict
from mvmae.inspect.report.scores import CLEAR, UNTRAINED, baseline, headline_of, standard_error
from mvmae.inspect.report.settings import value_in_words
from mvmae.inspect.report.verdict import COMMANDS, numbers_of, status_of
from mvmae.inspect.report.wording import count, one_line, percent, share, short
from mvmae.method import health
from mvmae.storage import metrics_file
from mvmae.terminal import duration

COMMAND_NAMES = {
    "knn": "kNN",
    "probe": "linear probe",
    "finetune": "fine-tuning",
    "detect": "detection",
    "segment": "segmentation",
}
ORDER = ("knn", "probe", "finetune", "detect", "segment")
MAX_SCORES = 4  # columns of scores
NOT_COMPARED = {"out", "resume", "overwrite"}
OF_MACHINE = {  # of environment.json, and how it is called
    "num_images": "number of images",
    "data_fingerprint": "fingerprint of the images' paths",
    "mvmae": "mvmae",
    "torch": "torch",
    "device": "device",
    "world_size": "processes",
}


class Score(NamedTuple):
    """A command and its images, for which several runs have a result."""

    command: str
    data: str

    @property
    def title(self) -> str:
        """Heading of its column."""
        return f"{COMMAND_NAMES.get(self.command, self.command)}, {short(self.data)}"


def scores(runs: Sequence[RunFacts]) -> list[Score]:
    """Return the scores to compare, those that most runs have first, kNN before others."""
    asked: dict[Score, int] = {}
    for facts in runs:
        for score in {Score(one.command, one.data) for one in facts.results if _counts(one)}:
            asked[score] = asked.get(score, 0) + 1
    ranked = sorted(asked, key=lambda one: (-asked[one], ORDER.index(one.command), one.data))
    return ranked[:MAX_SCORES]


def _counts(result: Result) -> bool:
    return result.command in ORDER and headline_of(result) is not None


def answer(facts: RunFacts, score: Score) -> Result | None:
    """Return a run's result for a score, the best where there are several."""
    found = [
        one for one in facts.results if _counts(one) and (one.command, one.data) == tuple(score)
    ]
    return max(found, key=_value, default=None)


def _value(result: Result) -> float:
    figure = headline_of(result)
    return figure[1] if figure else 0.0


def ranking(runs: Sequence[RunFacts]) -> Table:
    """Return a table with one row for each run, best first by the first score."""
    asked = scores(runs)
    alike = len({facts.command for facts in runs}) == 1
    columns = [("rebuilding error", _rebuilding(runs)), ("other crop found", _found)]
    extra = [(name, of) for name, of in columns if any(of(facts) for facts in runs)]
    lines = [
        Row(
            [
                Cell(one_line(facts.name)),
                Cell(_state(facts), note="" if alike else COMMANDS[facts.command].lower()),
                *(_score_cell(facts, score) for score in asked),
                *(of(facts) or Cell("-") for _, of in extra),
                _last_cell(facts, "images", count),
                _last_cell(facts, "seconds", duration),
            ]
        )
        for facts in runs
    ]
    if asked:
        lines.sort(key=lambda line: -(line.cells[2].value or -1.0))
        if sum(line.cells[2].value is not None for line in lines) > 1:
            lines[0] = lines[0]._replace(strong=True)
    headings = ["run", "state", *(s.title for s in asked), *(n for n, _ in extra)]
    return Table(
        "The runs and their scores", [*headings, "images seen", "time"], lines, sortable=True
    )


READING = (
    "Scores are the percentage of test images classified correctly, or average precision. The "
    "rebuilding error is the squared error on hidden patches as a share of the error of filling "
    "each with its average colour; lower is better, and it compares only runs that hide the same "
    "share of the same crops. Click a heading to sort by it."
)


def _state(facts: RunFacts) -> str:
    """Describe how a run is in a few words."""
    status, word = status_of(facts)
    if status == "none":
        return "done"
    found = facts.health.get("status")
    is_all = (status, found) in (("good", "good"), ("weak", "weak"), ("bad", "collapsed"))
    return str(found) if is_all else word[:1].lower() + word[1:]


def _score_cell(facts: RunFacts, score: Score) -> Cell:
    result = answer(facts, score)
    if result is None:
        return Cell("-")
    before = baseline(result, UNTRAINED)
    value = _value(result)
    note = f"untrained {percent(before)}" if before is not None else ""
    return Cell(percent(value), value, min(100.0, max(0.0, value)), note)


def _rebuilding(runs: Sequence[RunFacts]) -> Callable[[RunFacts], Cell | None]:
    """Return the cell of the reconstruction error, which names the masking where runs differ."""
    masks = {
        _hidden(facts) for facts in runs if health.reconstruction_baseline(numbers_of(facts), 3)
    }

    def cell(facts: RunFacts) -> Cell | None:
        values = numbers_of(facts)
        if not health.reconstruction_baseline(values, 3):
            return None
        part = 100 * health.reconstruction_share(values)
        hidden = _hidden(facts)
        notes = [f"{share(hidden)} hidden"] if len(masks) > 1 and hidden is not None else []
        return Cell(percent(part), part, note=", ".join(notes))

    return cell


def _hidden(facts: RunFacts) -> float | None:
    """Return the share of patches that training hid."""
    model = facts.config.get("model")
    ratio = model.get("mask_ratio") if isinstance(model, dict) else None
    return float(ratio) if isinstance(ratio, int | float) else None


def _found(facts: RunFacts) -> Cell | None:
    value = numbers_of(facts).get("contrastive_top1")
    return None if value is None else Cell(percent(value), value)


def _last_cell(facts: RunFacts, name: str, write: Any) -> Cell:
    value = metrics_file.last(facts.records).get(name)
    return Cell("-") if value is None else Cell(write(value), value)


def winner(runs: Sequence[RunFacts]) -> Verdict:
    """Say which run is ahead, and whether by more than the sampling error."""
    shared = [
        score for score in scores(runs) if sum(answer(one, score) is not None for one in runs) > 1
    ]
    tiles = [
        Tile(percent(best), score.title, note)
        for score in scores(runs)
        for best, note in [_best(runs, score)]
    ]
    if not shared:
        hint = (
            "No two of these runs were judged on the same images. Run mvmae knn RUN "
            "LABELLED_IMAGES for each of them to compare their scores."
        )
        return Verdict("none", f"{len(runs)} runs", hint, tiles, [])
    judged = sorted(
        ((answer(facts, shared[0]), facts) for facts in runs),
        key=lambda one: -_value(one[0]) if one[0] else 1.0,
    )
    (first, leader), (second, next_one) = judged[0], judged[1]
    assert first is not None
    assert second is not None
    note = (
        f"On {short(shared[0].data)} ({COMMAND_NAMES.get(first.command, first.command)}) "
        f"{leader.name} "
        f"reaches {percent(_value(first))}, {next_one.name} {percent(_value(second))}"
    )
    gap = _value(first) - _value(second)
    error = standard_error(first, second)
    if error is not None and not _is_clear(first, second):
        sentence = f"{note}: within the sampling error at this size (±{error:.1f} points)."
        return Verdict("weak", "No clear winner", one_line(sentence), tiles, [])
    extra = f" (one standard error: {error:.1f})" if error is not None else ""
    sentence = f"{note}: {gap:.1f} points less{extra}."
    return Verdict("good", f"{one_line(leader.name)} is ahead", one_line(sentence), tiles, [])


def _best(runs: Sequence[RunFacts], score: Score) -> tuple[float, str]:
    """Return the highest score and its run, with the runs that are not clearly below it."""
    found = [(one_line(facts.name), one) for facts in runs if (one := answer(facts, score))]
    found.sort(key=lambda one: -_value(one[1]))
    (name, best), *others = found
    if not others:
        return _value(best), f"of {name}; no other was judged on these"
    near = [other for other, one in others if not _is_clear(best, one)]
    if near:
        return _value(best), f"{name}, not clearly above {' and '.join(near)}"
    return _value(best), f"best: {name}"


def _is_clear(first: Result, second: Result) -> bool:
    """Whether a score exceeds another by more than the sampling error, where that is known."""
    gap, error = _value(first) - _value(second), standard_error(first, second)
    return gap > 0 and (error is None or gap >= CLEAR * error)


def differences(runs: Sequence[RunFacts]) -> Table | None:
    """Return a table of the settings that differ, a column for each run; None where none do."""
    flat = [_flat(facts) for facts in runs]
    names = list(dict.fromkeys(name for one in flat for name in one))
    lines = [
        Row([Cell(one_line(name)), *(Cell(value_in_words(name, one.get(name))) for one in flat)])
        for name in names
        if _differs(name, runs, flat)
    ]
    if not lines:
        return None
    headings = ["setting", *(one_line(facts.name) for facts in runs)]
    return Table("The settings that differ", headings, lines)


def _differs(name: str, runs: Sequence[RunFacts], flat: Sequence[dict[str, Any]]) -> bool:
    """Whether runs differ in a setting, or one run of the same command lacks it."""
    owners = [at for at, one in enumerate(flat) if name in one]
    commands = {runs[at].command for at in owners}
    lacking = any(at not in owners and facts.command in commands for at, facts in enumerate(runs))
    return lacking or any(flat[at][name] != flat[owners[0]][name] for at in owners)


def _flat(facts: RunFacts) -> dict[str, Any]:
    found = dict(_flattened(facts.config, ""))
    for name, label in OF_MACHINE.items():
        if name in facts.environment:
            found[label] = facts.environment[name]
    return {"command": facts.command} | found


def _flattened(content: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found = []
    for name, value in content.items():
        if isinstance(value, dict):
            found += _flattened(value, f"{prefix}{name}.")
        elif prefix or name not in NOT_COMPARED:
            found.append((f"{prefix}{name}", value))
    return found
