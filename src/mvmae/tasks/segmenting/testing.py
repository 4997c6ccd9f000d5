"""`mvmae segment RUN DATA --protocol test`: a finished segmenter on any images with masks."""

from __future__ import annotations

import time

from rich.console import Console

from mvmae.config import SegmentConfig
from mvmae.engine import distributed, precision, results
from mvmae.tasks.evaluation import Bar
from mvmae.tasks.segmenting import product, report
from mvmae.tasks.segmenting.judging import judgement_of
from mvmae.tasks.segmenting.opening import open_segmented


def run(config: SegmentConfig) -> None:
    """Print and keep the figures of a finished run.

    Raises:
        UserError: The run or the images cannot be opened, or have other classes.
    """
    began = time.perf_counter()
    device = precision.choose_device(config.device)
    with distributed.process_group(device):
        made = product.open_segmenter(config.encoder)
        home = results.home(config.encoder, config.out)
        data, _ = open_segmented(config, made.opened.encoder.in_channels, made.classes)
        examiner = product.examiner_of(made, config, device)
        with Bar(len(data.test) // distributed.world_size()) as bar:
            bar.name("testing")
            judgement = judgement_of(
                examiner, data.test, len(data.classes), workers=config.workers, advance=bar.advance
            )
        if not distributed.is_main():
            return
        console = Console(soft_wrap=True, highlight=False, markup=False)
        console.print(f"{len(data.test)} images of {data.name} test; {len(made.classes)} classes")
        Console().print(report.table_of(judgement, data))
        console.print(report.sentence(judgement))
        what = "segment-test" + ("-multi-scale" if config.multi_scale else "")
        title = f"{config.encoder} on {data.name}"
        picture = report.draw(home, judgement, data, title=title, name=f"{what}")
        content = report.content_of(judgement, data)
        content["seconds"] = round(time.perf_counter() - began, 1)
        file = report.write(home, config, content, device, what=what)
        console.print(f"written: {file} and {picture}")
