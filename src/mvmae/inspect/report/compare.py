"""Several runs: which is best, and what differs between them."""

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
MOST_SCORES = 4  # columns of scores
IDLE = {"out", "resume", "overwrite"}
OF_MACHINE = {  # of environment.json, and how it is called
    "num_images": "number of images",
    "data_fingerprint": "fingerprint of the images' paths",
    "mvmae": "mvmae",
    "torch": "torch",
    "device": "device",
    "world_size": "processes",
}


class Score(NamedTuple):
    """One question that results of several runs answer."""

    command: str
    data: str

    @property
    def title(self) -> str:
        """A heading."""
        return f"{COMMAND_NAMES.get(self.command, self.command)}, {short(self.data)}"


def scores(runs: Sequence[RunFacts]) -> list[Score]:
    """The questions that most runs answer first, kNN before others."""
    asked: dict[Score, int] = {}
    for facts in runs:
        for score in {Score(one.command, one.data) for one in facts.results if _counts(one)}:
            asked[score] = asked.get(score, 0) + 1
    ranked = sorted(asked, key=lambda one: (-asked[one], ORDER.index(one.command), one.data))
    return ranked[:MOST_SCORES]


def _counts(result: Result) -> bool:
    return result.command in ORDER and headline_of(result) is not None


def answer(facts: RunFacts, score: Score) -> Result | None:
    """A run's result for a question, the best where there are several."""
    found = [
        one for one in facts.results if _counts(one) and (one.command, one.data) == tuple(score)
    ]
    return max(found, key=_value, default=None)


def _value(result: Result) -> float:
    figure = headline_of(result)
    return figure[1] if figure else 0.0


def ranking(runs: Sequence[RunFacts]) -> Table:
    """A line a run, best first by the first score."""
    asked = scores(runs)
    alike = len({facts.command for facts in runs}) == 1
    told = [("rebuilding error", _rebuilding(runs)), ("other crop found", _found)]
    extra = [(name, of) for name, of in told if any(of(facts) for facts in runs)]
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
    "Scores are shares of test images that are given the right class, or average precision. The "
    "rebuilding error is that on hidden patches, as a share of what filling each with its average "
    "colour makes: lower is better, among runs that hide equally much of the same crops. Press a "
    "heading to sort by it."
)


def _state(facts: RunFacts) -> str:
    """How a run is, in a few words."""
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
    """The error of the reconstruction, with what it was measured on where that differs."""
    masks = {_hidden(facts) for facts in runs if health.filled_with(numbers_of(facts), 3)}

    def cell(facts: RunFacts) -> Cell | None:
        values = numbers_of(facts)
        if not health.filled_with(values, 3):
            return None
        part = 100 * health.rebuilt_share(values)
        hidden = _hidden(facts)
        notes = [f"{share(hidden)} hidden"] if len(masks) > 1 and hidden is not None else []
        if "colour_error" not in values:
            notes.append("beside one gray value a patch")
        return Cell(percent(part), part, note=", ".join(notes))

    return cell


def _hidden(facts: RunFacts) -> float | None:
    """The share of patches that training hid."""
    model = facts.config.get("model")
    ratio = model.get("mask_ratio") if isinstance(model, dict) else None
    return float(ratio) if isinstance(ratio, int | float) else None


def _found(facts: RunFacts) -> Cell | None:
    value = numbers_of(facts).get("contrastive_top1")
    return None if value is None else Cell(percent(value), value)


def _last_cell(facts: RunFacts, name: str, said: Any) -> Cell:
    value = metrics_file.last(facts.records).get(name)
    return Cell("-") if value is None else Cell(said(value), value)


def winner(runs: Sequence[RunFacts]) -> Verdict:
    """Which run is ahead, and by how much more than chance would make."""
    shared = [
        score for score in scores(runs) if sum(answer(one, score) is not None for one in runs) > 1
    ]
    tiles = [
        Tile(percent(best), score.title, said)
        for score in scores(runs)
        for best, said in [_best(runs, score)]
    ]
    if not shared:
        hint = (
            "No two of these runs were judged on the same images. The command mvmae knn RUN "
            "LABELLED_IMAGES, given for each, makes a score to compare."
        )
        return Verdict("none", f"{len(runs)} runs", hint, tiles, [])
    judged = sorted(
        ((answer(facts, shared[0]), facts) for facts in runs),
        key=lambda one: -_value(one[0]) if one[0] else 1.0,
    )
    (first, leader), (second, next_one) = judged[0], judged[1]
    assert first is not None
    assert second is not None
    said = (
        f"On {short(shared[0].data)} ({COMMAND_NAMES.get(first.command, first.command)}) "
        f"{leader.name} "
        f"reaches {percent(_value(first))}, {next_one.name} {percent(_value(second))}"
    )
    gap = _value(first) - _value(second)
    error = standard_error(first, second)
    if error is not None and not _is_clear(first, second):
        sentence = (
            f"{said}: within what a sample of that size makes by chance (±{error:.1f} points)."
        )
        return Verdict("weak", "No clear winner", one_line(sentence), tiles, [])
    extra = f" (one standard error: {error:.1f})" if error is not None else ""
    sentence = f"{said}: {gap:.1f} points less{extra}."
    return Verdict("good", f"{one_line(leader.name)} is ahead", one_line(sentence), tiles, [])


def _best(runs: Sequence[RunFacts], score: Score) -> tuple[float, str]:
    """The highest score, and whose it is, with those that chance may have put behind it."""
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
    """Whether a score is above another by more than chance makes, where that can be said."""
    gap, error = _value(first) - _value(second), standard_error(first, second)
    return gap > 0 and (error is None or gap >= CLEAR * error)


def differences(runs: Sequence[RunFacts]) -> Table | None:
    """The settings in which runs differ, a column a run; none where they are all alike."""
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
    """Whether runs that have a setting differ in it, or one of the same command lacks it."""
    owners = [at for at, one in enumerate(flat) if name in one]
    commands = {runs[at].command for at in owners}
    lacking = any(at not in owners and facts.command in commands for at, facts in enumerate(runs))
    return lacking or any(flat[at][name] != flat[owners[0]][name] for at in owners)


def _flat(facts: RunFacts) -> dict[str, Any]:
    found = dict(_flattened(facts.config, ""))
    for name, said in OF_MACHINE.items():
        if name in facts.environment:
            found[said] = facts.environment[name]
    return {"command": facts.command} | found


def _flattened(content: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found = []
    for name, value in content.items():
        if isinstance(value, dict):
            found += _flattened(value, f"{prefix}{name}.")
        elif prefix or name not in IDLE:
            found.append((f"{prefix}{name}", value))
    return found
