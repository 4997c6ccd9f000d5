"""Results as tables, best first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Any

from mvmae.inspect.report.curves import label_curve
from mvmae.inspect.report.gather import Result, RunFacts
from mvmae.inspect.report.html import Block, Cell, Charts, Code, Fold, Row, Table, Text
from mvmae.inspect.report.scores import encoder_name, label_points, main_data, rows_of
from mvmae.inspect.report.wording import count, one_line, percent, short, without_home
from mvmae.storage.metric_specs import METRICS, metric

TITLES = {
    "knn": "Nearest neighbours",
    "probe": "Linear classifier on frozen features",
    "labels": "With few labels",
    "finetune": "Fine-tuning",
    "detect": "Detection",
    "segment": "Segmentation",
}
COLUMNS = tuple(row.name for row in METRICS.values() if row.unit == "%")
TOKENS = {
    "mean": "mean of the patches",
    "cls": "class token",
    "pixels": "pixels",
}
ORDER = tuple(TITLES)
MAX_LISTED = 10  # skipped images
MAX_CLASSES = 400  # rows of a table


def judgements(facts: RunFacts) -> Iterator[Block]:
    """Show every result: its rows, its classes, and the command that repeats it."""
    known = [one for one in facts.results if one.command in ORDER]
    first = main_data(facts)
    ranked = sorted(known, key=lambda o: (ORDER.index(o.command), o.data != first, o.data))
    for result in ranked:
        if result.command != "labels":
            yield from _judgement(result)
    yield from _label_curves([one for one in ranked if one.command == "labels"])
    strange = [one for one in facts.results if one.command not in ORDER]
    for result in strange:
        yield figures_table(result, f"{one_line(result.command)} ({one_line(result.file)})")


def _judgement(result: Result) -> Iterator[Block]:
    caption = f"{TITLES[result.command]}: {data_in_words(result)}"
    folded: list[Block] = []
    if rows := rows_of(result):
        chosen = headline_rows(result, rows)
        neighbours = {_notes(row).get("k") for row in chosen} - {None}
        if len(neighbours) == 1:
            caption += f"; {next(iter(neighbours))} neighbours vote"
        yield rows_table(result, chosen, caption)
        if len(chosen) < len(rows):
            folded.append(rows_table(result, rows, "All settings that were scored"))
    else:
        yield figures_table(result, caption)
    yield from _more(result, [*folded, *class_tables(result)])


def _label_curves(results: Sequence[Result]) -> Iterator[Block]:
    """Show the curves of `labels` side by side, then their numbers."""
    if made := [chart for result in results if (chart := label_curve(result))]:
        yield Charts(made)
    for result in results:
        caption = f"{TITLES['labels']}: {data_in_words(result)}"
        yield from _more(result, [labels_table(result, caption), *class_tables(result)])


def _more(result: Result, folded: list[Block]) -> Iterator[Block]:
    """Fold away the details of a result."""
    if result.command_line:
        folded.append(Code(without_home(result.command_line), "To repeat it"))
    if folded:
        yield Fold(f"More of this: {TITLES[result.command].lower()}, {short(result.data)}", folded)


def data_in_words(result: Result) -> str:
    """Name the images of a result, their numbers and their split."""
    data = result.content.get("data")
    name = one_line(short(result.data))
    if not isinstance(data, dict):
        return name
    numbers = [
        f"{count(data[key])} {purpose}"
        for key, purpose in (("num_train", "for training"), ("num_test", "for testing"))
        if isinstance(data.get(key), int)
    ]
    split = [str(data["split"])] if isinstance(data.get("split"), str) else []
    extra = ", ".join(numbers + split)
    return f"{name} ({extra})" if extra else name


def headline_rows(result: Result, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with the settings of the main result, for every token."""
    own = result.content.get("headline")
    own = own if isinstance(own, dict) else {}
    if "k" not in own:
        return rows
    return [row for row in rows if _notes(row).get("k") == own["k"]] or rows


def _notes(row: dict[str, Any]) -> dict[str, Any]:
    notes = row.get("notes")
    return notes if isinstance(notes, dict) else {}


def rows_table(result: Result, rows: list[dict[str, Any]], caption: str) -> Table:
    """Return a table of rows, best first, with the main result in bold."""
    shown = [key for key in COLUMNS if any(_number(row.get(key)) is not None for row in rows)]
    tokens = any(isinstance(row.get("token"), str) for row in rows)
    ranked = sorted(rows, key=lambda row: -(_number(row.get(shown[0])) or 0.0))
    many = len({_notes(row).get("k") for row in rows}) > 1
    own = result.content.get("headline")
    lines = []
    for row in ranked:
        cells = [
            Cell(
                one_line(encoder_name(result, str(row.get("name")))), note=_setting(row, many=many)
            )
        ]
        if tokens:
            cells.append(Cell(TOKENS.get(str(row.get("token")), str(row.get("token")))))
        cells += [_figure_cell(row.get(key), bar=key == shown[0]) for key in shown]
        lines.append(Row(cells, strong=_is_headline(row, own, result)))
    headings = [
        "encoder",
        *(["token"] if tokens else []),
        *(metric(key).label for key in shown),
    ]
    return Table(caption, headings, lines)


def _setting(row: dict[str, Any], *, many: bool) -> str:
    """Name what distinguishes rows of one encoder."""
    notes = _notes(row)
    parts = []
    if many and "k" in notes:
        parts.append(f"{notes['k']} neighbours")
    if notes.get("converged") is False:
        parts.append("stopped before it converged")
    return ", ".join(parts)


def _is_headline(row: dict[str, Any], own: Any, result: Result) -> bool:
    if not isinstance(own, dict) or encoder_name(result, str(row.get("name"))) != "this encoder":
        return False
    same_k = "k" not in own or _notes(row).get("k") == own["k"]
    return same_k and row.get("token") == own.get("token")


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and isfinite(value) else None


def _figure_cell(value: Any, *, bar: bool = False) -> Cell:
    number = _number(value)
    if number is None:
        return Cell("-")
    return Cell(percent(number), number, min(100.0, max(0.0, number)) if bar else None)


def figures_table(result: Result, caption: str) -> Table:
    """Return a table of all metrics of a result without rows."""
    lines = [
        Row([Cell(one_line(metric(name).label)), _plain_cell(name, value)])
        for name, value in result.headline.items()
    ]
    return Table(caption, ["figure", "value"], lines)


def _plain_cell(name: str, value: float) -> Cell:
    return _figure_cell(value, bar=True) if name in COLUMNS else Cell(f"{value:.6g}", value)


def labels_table(result: Result, caption: str) -> Table:
    """Return a table of the mean accuracies for each number of labels."""
    found = label_points(result)
    counts = sorted({amount for points in found.values() for amount in points})
    lines = []
    for name, points in found.items():
        means = [sum(points[c]) / len(points[c]) if c in points else None for c in counts]
        row = [
            Cell(one_line(encoder_name(result, name))),
            *(_figure_cell(value) for value in means),
        ]
        lines.append(Row(row, strong=encoder_name(result, name) == "this encoder"))
    lines.sort(key=lambda line: -(line.cells[-1].value or 0.0))
    headings = ["encoder", *(f"{count(amount)} labels" for amount in counts)]
    return Table(f"{caption}, top-1", headings, lines)


def class_tables(result: Result) -> list[Block]:
    """Return tables of each class's metrics, best first."""
    found = dict(_class_figures(result.content))
    tables: list[Block] = []
    for name, figures in found.items():
        if len(figures) < 2:
            continue
        ranked = sorted(figures.items(), key=lambda one: -one[1])[:MAX_CLASSES]
        lines = [Row([Cell(one_line(label)), _figure_cell(v, bar=True)]) for label, v in ranked]
        tables.append(Table(f"Each class: {name}", ["class", name], lines, sortable=True))
    return tables


def _class_figures(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    """Find metrics by class: a mapping, a list, or in box and mask, by command."""
    per_class = content.get("per_class")
    if isinstance(per_class, dict):
        yield "top-1", _finite(per_class)
    if isinstance(per_class, list):
        rows = [row for row in per_class if isinstance(row, dict)]
        yield "IoU", _finite({str(row.get("class")): row.get("iou") for row in rows})
    for part in ("box", "mask"):
        figures = content.get(part)
        if isinstance(figures, dict) and isinstance(figures.get("by_class"), dict):
            yield f"{part} AP", _finite(figures["by_class"])


def _finite(figures: dict[Any, Any]) -> dict[str, float]:
    read = {str(name): _number(value) for name, value in figures.items()}
    return {name: value for name, value in read.items() if value is not None}


def skipped(facts: RunFacts) -> Iterator[Block]:
    """Show how many images could not be read, why, and the first few."""
    total = len(facts.skipped)
    reasons = Counter(one.reason for one in facts.skipped)
    yield Text(
        [f"{count(total)} image{'s' if total != 1 else ''} could not be read and were left out."]
    )
    yield Table(
        "Why",
        ["reason", "images"],
        [
            Row([Cell(one_line(reason)), Cell(count(number), number)])
            for reason, number in reasons.most_common(MAX_LISTED)
        ],
    )
    rows = [
        Row([Cell(one_line(without_home(one.path))), Cell(one_line(one.reason))])
        for one in facts.skipped[:MAX_LISTED]
    ]
    more = f"The first {MAX_LISTED} of {count(total)}" if total > MAX_LISTED else "Which"
    yield Fold(more, [Table("All are in skipped.csv", ["image", "reason"], rows)])
