"""Results as tables, best first."""

from collections import Counter
from collections.abc import Iterator
from statistics import mean
from typing import Any

from mvmae.errors import pluralize
from mvmae.inspect.report import scores
from mvmae.inspect.report.curves import label_curve
from mvmae.inspect.report.gather import Result, RunFacts, numbers, part
from mvmae.inspect.report.html import (
    Block,
    Cell,
    Charts,
    Code,
    Fold,
    Table,
    Text,
    figure_cell,
    short,
)
from mvmae.storage.metric_specs import METRICS, find_metric

TITLES = {
    "knn": "Nearest neighbours",
    "probe": "Linear classifier on frozen features",
    "labels": "With few labels",
    "finetune": "Fine-tuning",
    "detect": "Detection",
    "segment": "Segmentation",
}
COLUMNS = tuple(row.name for row in METRICS.values() if row.unit == "%")
TOKENS = {"mean": "mean of the patches", "cls": "class token"}
MAX_LISTED = 10  # skipped images
MAX_CLASSES = 400  # rows of a table


def results(facts: RunFacts) -> Iterator[Block]:
    """Show every result: its rows, its classes, and the command that repeats it."""
    order, first = list(TITLES), scores.main_data(facts)
    known = [one for one in facts.results if one.command in order]
    known.sort(key=lambda one: (order.index(one.command), one.data != first, one.data))
    for result in known:
        if result.command != "labels":
            yield from _result(result)
    labels = [result for result in known if result.command == "labels"]
    if drawn := [chart for result in labels if (chart := label_curve(result))]:
        yield Charts(drawn)
    for result in labels:
        caption = f"{TITLES['labels']}: {_data_in_words(result)}"
        yield from _more(result, [labels_table(result, caption)])
    for result in facts.results:
        if result.command not in order:
            yield figures_table(result, f"{result.command} ({result.file})")


def _result(result: Result) -> Iterator[Block]:
    caption = f"{TITLES[result.command]}: {_data_in_words(result)}"
    folded: list[Block] = []
    if rows := scores.scored_rows(result):
        chosen = [row for row in rows if scores.has_main_setting(result, row)] or rows
        neighbours = {part(row, "notes").get("k") for row in chosen} - {None}
        if len(neighbours) == 1:
            caption += f"; {neighbours.pop()} neighbours vote"
        yield rows_table(result, chosen, caption)
        if len(chosen) < len(rows):
            folded.append(rows_table(result, rows, "All settings that were scored"))
    else:
        yield figures_table(result, caption)
    yield from _more(result, folded)


def _more(result: Result, folded: list[Block]) -> Iterator[Block]:
    """Fold away the details of a result."""
    folded += class_tables(result)
    if result.command_line:
        folded.append(Code(result.command_line, "To repeat it"))
    if folded:
        yield Fold(f"More of this: {TITLES[result.command].lower()}, {short(result.data)}", folded)


def _data_in_words(result: Result) -> str:
    """Name the images of a result, their numbers and their split."""
    data = part(result.content, "data")
    known = numbers(data)
    words = [
        f"{known[key]:,.0f} {purpose}"
        for key, purpose in (("num_train", "for training"), ("num_test", "for testing"))
        if key in known
    ]
    words += [data["split"]] if isinstance(data.get("split"), str) else []
    return f"{short(result.data)} ({', '.join(words)})" if words else short(result.data)


def rows_table(result: Result, rows: list[dict[str, Any]], caption: str) -> Table:
    """Return a table of rows, best first, with the main result in bold."""
    shown = [key for key in COLUMNS if any(key in numbers(row) for row in rows)]
    has_tokens = any(isinstance(row.get("token"), str) for row in rows)
    has_several_k = len({part(row, "notes").get("k") for row in rows}) > 1
    own = part(result.content, "headline")
    lines = []
    for row in sorted(rows, key=lambda row: -numbers(row).get(shown[0], 0.0)):
        notes, known, token = part(row, "notes"), numbers(row), str(row.get("token"))
        name = scores.encoder_name(result, str(row.get("name")))
        details = [f"{notes['k']} neighbours"] if has_several_k and "k" in notes else []
        details += ["stopped before it converged"] if notes.get("converged") is False else []
        is_main = name == "this encoder" and scores.has_main_setting(result, row)
        is_main = is_main and "token" in own and row.get("token") == own["token"]
        cells = [Cell(name, note=", ".join(details), strong=is_main)]
        cells += [Cell(TOKENS.get(token, token))] if has_tokens else []
        lines.append(
            [*cells, *(figure_cell(known.get(key), has_bar=key == shown[0]) for key in shown)]
        )
    tokens = ["token"] if has_tokens else []
    return Table(caption, ["encoder", *tokens, *(find_metric(key).label for key in shown)], lines)


def figures_table(result: Result, caption: str) -> Table:
    """Return a table of all metrics of a result without rows."""
    lines = [
        [Cell(find_metric(name).label), figure_cell(value, has_bar=True)]
        if name in COLUMNS
        else [Cell(find_metric(name).label), figure_cell(value, "{:.6g}".format)]
        for name, value in result.headline.items()
    ]
    return Table(caption, ["figure", "value"], lines)


def labels_table(result: Result, caption: str) -> Table:
    """Return a table of the mean accuracies for each number of labels."""
    found = scores.label_points(result)
    counts = sorted({amount for points in found.values() for amount in points})
    lines = []
    for name, points in found.items():
        encoder = scores.encoder_name(result, name)
        cells = [figure_cell(mean(points[c]) if c in points else None) for c in counts]
        lines.append([Cell(encoder, strong=encoder == "this encoder"), *cells])
    lines.sort(key=lambda line: -(line[-1].value or 0.0))
    headings = ["encoder", *(f"{amount:,} labels" for amount in counts)]
    return Table(f"{caption}, top-1", headings, lines)


def class_tables(result: Result) -> Iterator[Table]:
    """Return tables of each class's metrics, best first: a mapping, a list, or box and mask."""
    per_class = result.content.get("per_class")
    found = {"top-1": numbers(per_class)}
    if isinstance(per_class, list):
        rows = [row for row in per_class if isinstance(row, dict)]
        found["IoU"] = numbers({str(row.get("class")): row.get("iou") for row in rows})
    for name in ("box", "mask"):
        found[f"{name} AP"] = numbers(part(result.content, name).get("by_class"))
    for name, figures in found.items():
        if len(figures) > 1:
            ranked = sorted(figures.items(), key=lambda one: -one[1])[:MAX_CLASSES]
            lines = [[Cell(label), figure_cell(v, has_bar=True)] for label, v in ranked]
            yield Table(f"Each class: {name}", ["class", name], lines, sortable=True)


def skipped_images(facts: RunFacts) -> Iterator[Block]:
    """Show how many images could not be read, why, and the first few; nothing where all could."""
    if not facts.skipped:
        return
    total = pluralize(len(facts.skipped), "image")
    yield Text([f"{total} could not be read. Training leaves such images out."])
    reasons = Counter(reason for _, reason in facts.skipped).most_common(MAX_LISTED)
    lines = [[Cell(reason), Cell(f"{number:,}", number)] for reason, number in reasons]
    yield Table("Why", ["reason", "images"], lines)
    rows = [[Cell(path), Cell(reason)] for path, reason in facts.skipped[:MAX_LISTED]]
    caption = f"The first {MAX_LISTED}; all are in skipped.csv"
    yield Fold("Which", [Table(caption, ["image", "reason"], rows)])
