"""A page about a run, or about several. Read `run` from top to bottom.

`gather.py` reads the folders, `scores.py` and `verdict.py` judge them, `settings.py`, `curves.py`,
`tables.py` and `pictures.py` make the parts of the page, `compare.py` sets runs side by side, and
`html.py` turns the parts into HTML.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from mvmae import terminal
from mvmae.config.figures import ReportConfig
from mvmae.errors import UserError
from mvmae.inspect.report import compare, curves, html, pictures, settings, tables
from mvmae.inspect.report.gather import RunFacts, gather
from mvmae.inspect.report.html import Block, Code, Facts, Fold, Page, Section, Text
from mvmae.inspect.report.verdict import COMMANDS, verdict
from mvmae.inspect.report.wording import count, one_line, without_home
from mvmae.storage import run_folder
from mvmae.storage.atomic import write_bytes
from mvmae.storage.outputs import require_place
from mvmae.training import precision
from mvmae.version import __version__

FILE = "report.html"


def run(config: ReportConfig) -> None:
    """Write one HTML file about the runs.

    Raises:
        UserError: A run or the images of --data cannot be read, or the page cannot be written.
    """
    began = time.perf_counter()
    known = gather(config.runs)
    file = output_file(config, known)
    made = one_run(known[0], config) if len(known) == 1 else several_runs(known, config)
    content = html.render(made)
    run_folder.make(file.parent)
    try:
        write_bytes(file, content)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error
    seconds = time.perf_counter() - began
    terminal.people().print(
        f"written: {file} ({size_in_words(len(content))}, {seconds:.1f} s). It needs no other file "
        f"and no network; open it in a browser, or: python -m webbrowser {file}"
    )
    facts = {"file": str(file), "bytes": len(content), "runs": len(known)}
    terminal.emit("result", {"command": "report"} | facts)


def output_file(config: ReportConfig, known: Sequence[RunFacts]) -> Path:
    """Return the path of the page.

    Raises:
        UserError: It is a folder, its folder cannot be made or written to, or it is a file that
            `report` did not write.
    """
    home = known[0].folder if len(known) == 1 else known[0].folder.resolve().parent
    file = config.out or home / FILE
    if file.is_dir():
        raise UserError(f"{file} is a folder: --out must name a file that ends in .html")
    nearest = next(place for place in file.absolute().parents if place.exists())
    if not nearest.is_dir():
        raise UserError(f"{nearest} is a file, not a folder: name another place with --out")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{nearest} is not writable: name another place with --out")
    require_place(file)
    if file.exists() and html.GENERATOR.encode() not in file.read_bytes()[:4096]:
        raise UserError(
            f"{file} was not written by mvmae report and is not replaced: name another file with "
            "--out"
        )
    return file


def size_in_words(size: int) -> str:
    """Write a number of bytes in kB or MB."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def one_run(facts: RunFacts, config: ReportConfig) -> Page:
    """Make the page of one run."""
    sections = [
        Section("settings", "What was run", "", list(settings.what_was_run(facts))),
        *_curves([facts]),
        *(_pictures(facts, config) if config.pictures else ()),
        *_judgements(facts),
        *_skipped(facts),
        Section("use", "How to use it", "", list(settings.how_to_use(facts))),
        Section("repeat", "How to repeat it", "", list(settings.how_to_repeat(facts))),
    ]
    return Page(
        title=one_line(facts.name),
        kicker="mvmae report",
        subtitle=COMMANDS[facts.command],
        verdict=verdict(facts),
        sections=sections,
        footer=_footer(),
    )


def several_runs(known: Sequence[RunFacts], config: ReportConfig) -> Page:
    """Make the page that compares runs."""
    differences = compare.differences(known)
    same: list[Block] = [Text(["All settings are the same."], "note")]
    sections = [
        Section("ranking", "Side by side", compare.READING, [compare.ranking(known)]),
        Section("differences", "What differs", "", [differences] if differences else same),
        *_curves(known),
        *(_pictures_side_by_side(known, config) if config.pictures else ()),
        Section("each", "Each run", "", list(_each(known))),
    ]
    return Page(
        title=f"{len(known)} runs compared",
        kicker="mvmae report",
        subtitle=", ".join(one_line(facts.name) for facts in known),
        verdict=compare.winner(known),
        sections=sections,
        footer=_footer(),
    )


def _footer() -> str:
    written = datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC")
    return f"Written by mvmae {__version__} on {written}. This page needs no network."


def _curves(known: Sequence[RunFacts]) -> Iterator[Section]:
    drawn = curves.curves(known)
    if drawn is None:
        note = Text(["There are no metrics yet, so there are no curves."], "note")
        yield Section("curves", "Curves", "", [note])
        return
    blocks: list[Block] = [drawn]
    if more := curves.more_curves(known):
        blocks.append(Fold("More curves", [more]))
    steps = sum(len(facts.records) for facts in known)
    lead = (
        f"{count(steps)} measurements. Point at a curve, or use the slider under it, to read "
        "its values."
    )
    yield Section("curves", "Curves", lead, blocks)


READING = {
    "rebuilt": (
        "Rebuilt",
        "The encoder saw only the patches that are not gray; the decoder drew the others.",
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
SEVERAL_REBUILT = (
    "Each run saw only some patches of an image, the sharp ones; its decoder drew the others."
)
ESTIMATED = (
    " It does not predict a patch's brightness and contrast: they are estimated from visible "
    "patches near it."
)


def _estimated(known: Sequence[RunFacts]) -> str:
    """Explain estimated brightness, where targets are normalised and it is not predicted."""
    trained = [facts.pretraining for facts in known]
    return ESTIMATED if any(one and one.objective.normalize_targets for one in trained) else ""


def _readings(facts: RunFacts, drawn: pictures.Drawn) -> Facts:
    """Explain the pictures that there are."""
    there = {
        "rebuilt": drawn.panels,
        "attention": drawn.looks,
        "features": drawn.features,
    }
    extra = {"rebuilt": _estimated([facts])}
    return Facts(
        [
            (title, reading + extra.get(kind, ""))
            for kind, (title, reading) in READING.items()
            if there[kind] is not None
        ]
    )


def _pictures(facts: RunFacts, config: ReportConfig) -> Iterator[Section]:
    shown = pictures.shown_images(config, facts)
    drawn = pictures.draw(facts, shown, config, precision.choose_device(config.device))
    gallery = pictures.gallery(drawn, shown)
    blocks: list[Block] = [Text([reason], "note") for reason in drawn.reasons]
    if gallery:
        blocks += [gallery, _readings(facts, drawn)]
    if blocks:
        yield Section("pictures", "What it sees", shown.origin if gallery else "", blocks)


def _pictures_side_by_side(known: Sequence[RunFacts], config: ReportConfig) -> Iterator[Section]:
    shown = pictures.shown_images(config, known[0])
    device = precision.choose_device(config.device)
    drawn = [pictures.draw(facts, shown, config, device) for facts in known]
    for place, (kind, gallery) in enumerate(
        pictures.side_by_side(drawn, shown, pictures.original_pixels(shown, known[0]))
    ):
        title, reading = READING[kind]
        if kind == "rebuilt":
            reading = SEVERAL_REBUILT + _estimated(known)
        lead = f"{shown.origin} {reading}" if place == 0 else reading
        yield Section(kind, title, lead, [gallery])
    reasons = [f"{one_line(one.name)}: {reason}" for one in drawn for reason in one.reasons]
    if reasons:
        yield Section("missing", "What is not drawn", "", [Text(reasons, "note")])


def _judgements(facts: RunFacts) -> Iterator[Section]:
    blocks = list(tables.judgements(facts))
    lead = "Best first. The encoder's main result is in bold."
    if not blocks:
        lead = (
            "It has not been evaluated yet. This command shows whether it separates your classes:"
        )
        folder = shlex.quote(without_home(str(facts.folder)))
        blocks = [Code(f"mvmae knn {folder} LABELLED_IMAGES")]
    yield Section("results", "Results", lead, blocks)


def _skipped(facts: RunFacts) -> Iterator[Section]:
    if facts.skipped:
        yield Section("skipped", "Images left out", "", list(tables.skipped(facts)))


def _each(known: Sequence[RunFacts]) -> Iterator[Block]:
    for facts in known:
        judged = verdict(facts)
        parts: list[Block] = [Text([f"{judged.word}. {judged.summary}", *judged.reasons])]
        parts += list(settings.what_was_run(facts))
        parts += list(tables.judgements(facts))
        yield Fold(one_line(facts.name), parts)
