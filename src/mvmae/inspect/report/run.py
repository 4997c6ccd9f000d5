"""A page about a run, or about several. Read `run` from top to bottom.

`gather.py` reads the folders, `scores.py` and `verdict.py` judge them, `settings.py`, `curves.py`,
`tables.py` and `pictures.py` make the parts of the page, `compare.py` sets runs side by side, and
`html.py` turns the parts into HTML.
"""

import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mvmae import terminal
from mvmae.config.figures import ReportConfig
from mvmae.inspect.report import compare, curves, html, pictures, settings, tables
from mvmae.inspect.report.gather import RunFacts, gather
from mvmae.inspect.report.html import Block, Code, Facts, Fold, Page, Section, Text
from mvmae.inspect.report.scores import NAMES
from mvmae.inspect.report.verdict import capitalize, verdict
from mvmae.storage import run_folder
from mvmae.storage.atomic import write_bytes
from mvmae.storage.outputs import require_output
from mvmae.training import precision

FILE = "report.html"
READING = {
    "rebuilt": (
        "Rebuilt",
        "The encoder saw only some patches: those that are not gray, or the sharp ones. The "
        "decoder drew the others.",
    ),
    "attention": (
        "Attention",
        "Brighter parts contribute more to the encoder's output (attention rollout, Abnar and "
        "Zuidema 2020). The colour scale spans at least half to twice even attention, so a single "
        "colour all over means that the encoder prefers no part. It was never given labels.",
    ),
    "features": (
        "Features",
        "Each square is a patch. Patches with similar features have similar colours, over all "
        "images here (first three principal components).",
    ),
}
ESTIMATED = (
    " It does not predict a patch's brightness and contrast: they are estimated from visible "
    "patches near it."
)


def run(config: ReportConfig) -> None:
    """Write one HTML file about the runs.

    Raises:
        UserError: A run or the images of --data cannot be read, or the page cannot be written.
    """
    began = time.perf_counter()
    known = gather(config.runs)
    file = output_file(config, known)
    page = one_run(known[0], config) if len(known) == 1 else several_runs(known, config)
    content = html.render(page)
    run_folder.make(file.parent)
    write_bytes(file, content)
    seconds = time.perf_counter() - began
    terminal.console().print(
        f"written: {file} ({len(content) / 1e3:,.0f} kB, {seconds:.1f} s). It needs no other "
        f"file and no network; open it in a browser, or: python -m webbrowser {file}"
    )
    facts = {"file": str(file), "bytes": len(content), "runs": len(known)}
    terminal.emit("result", {"command": "report"} | facts)


def output_file(config: ReportConfig, known: Sequence[RunFacts]) -> Path:
    """Return the path of the page.

    Raises:
        UserError: No file can be made there, or there is one that mvmae did not write.
    """
    home = known[0].folder if len(known) == 1 else known[0].folder.resolve().parent
    file = config.out or home / FILE
    require_output(file)
    return file


def one_run(facts: RunFacts, config: ReportConfig) -> Page:
    """Make the page of one run."""
    sections = [
        Section("settings", "What was run", "", list(settings.what_was_run(facts))),
        _curves([facts]),
        *([_pictures(facts, config)] if config.pictures else []),
        _results(facts),
        Section("skipped", "Images left out", "", list(tables.skipped_images(facts))),
        Section("use", "How to use it", "", list(settings.how_to_use(facts))),
        Section("repeat", "How to repeat it", "", list(settings.how_to_repeat(facts))),
    ]
    return Page(facts.name, capitalize(NAMES[facts.command]), verdict(facts), sections)


def several_runs(known: Sequence[RunFacts], config: ReportConfig) -> Page:
    """Make the page that compares runs."""
    differences = compare.differences(known) or Text(["All settings are the same."], "note")
    sections = [
        Section("ranking", "Side by side", compare.READING, [compare.ranking(known)]),
        Section("differences", "What differs", "", [differences]),
        _curves(known),
        *(_pictures_side_by_side(known, config) if config.pictures else ()),
        Section("each", "Each run", "", [Fold(facts.name, list(_each(facts))) for facts in known]),
    ]
    names = ", ".join(facts.name for facts in known)
    return Page(f"{len(known)} runs compared", names, compare.winner(known), sections)


def _each(facts: RunFacts) -> Iterator[Block]:
    judged = verdict(facts)
    yield Text([f"{judged.word}. {judged.summary}", *judged.reasons])
    yield from settings.what_was_run(facts)
    yield from tables.results(facts)


def _curves(known: Sequence[RunFacts]) -> Section:
    note = Text(["There are no metrics yet, so there are no curves."], "note")
    drawn = curves.curves(known)
    lead = (
        f"{sum(len(facts.records) for facts in known):,} measurements. Point at a curve, or "
        "use the slider under it, to read its values."
    )
    return Section("curves", "Curves", lead if drawn else "", drawn or [note])


def _reading(kind: str, known: Sequence[RunFacts]) -> str:
    """Explain a kind of pictures, with what holds only for normalised targets."""
    trained = [facts.pretraining for facts in known]
    is_estimated = any(one and one.objective.normalize_targets for one in trained)
    return READING[kind][1] + (ESTIMATED if kind == "rebuilt" and is_estimated else "")


def _pictures(facts: RunFacts, config: ReportConfig) -> Section:
    shown = pictures.shown_images(config, facts)
    drawn = pictures.draw(facts, shown, config, precision.choose_device(config.device))
    blocks: list[Block] = [Text([reason], "note") for reason in drawn.reasons]
    gallery = pictures.gallery(drawn, shown)
    if gallery:
        kinds = ["rebuilt"] if drawn.panels else []
        kinds += ["attention", "features"] if drawn.looks else []
        readings = [(READING[kind][0], _reading(kind, [facts]), "") for kind in kinds]
        blocks += [gallery, Facts(readings)]
    return Section("pictures", "What it sees", shown.origin if gallery else "", blocks)


def _pictures_side_by_side(known: Sequence[RunFacts], config: ReportConfig) -> Iterator[Section]:
    shown = pictures.shown_images(config, known[0])
    device = precision.choose_device(config.device)
    drawn = [pictures.draw(facts, shown, config, device) for facts in known]
    origin = f"{shown.origin} "  # once, above the first kind
    for kind, gallery in pictures.side_by_side(drawn, shown):
        yield Section(kind, READING[kind][0], origin + _reading(kind, known), [gallery])
        origin = ""
    reasons = [Text([f"{one.name}: {reason}"], "note") for one in drawn for reason in one.reasons]
    yield Section("missing", "What is not drawn", "", reasons)


def _results(facts: RunFacts) -> Section:
    if blocks := list(tables.results(facts)):
        lead = "Best first. The encoder's main result is in bold."
        return Section("results", "Results", lead, blocks)
    lead = "It has not been evaluated yet. This command shows whether it separates your classes:"
    command = f"mvmae knn {shlex.quote(str(facts.folder))} LABELLED_IMAGES"
    return Section("results", "Results", lead, [Code(command, "On the command line")])
