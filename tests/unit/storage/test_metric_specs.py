"""One table describes every metric; a metric that it does not know is shown all the same."""

from pathlib import Path

from mvmae.inspect import curves
from mvmae.inspect.report import curves as report_curves
from mvmae.inspect.report.gather import RunFacts
from mvmae.storage import metrics_file
from mvmae.storage.metric_specs import METRICS, find_metric, group_by_chart
from mvmae.training.log import in_words

RECORDS = [
    {"step": step, "images": 8 * step, "loss": 3.0 / step, "uniformity": -0.25 * step}
    for step in (1, 2, 3)
]


def run_facts(name: str) -> RunFacts:
    return RunFacts(Path(name), name, "pretrain", {}, {}, {}, RECORDS, [], [], True, None)


def test_an_unknown_metric_is_shown_in_the_log():
    assert in_words(RECORDS[-1])["uniformity"] == "uniformity -0.75"


def test_an_unknown_metric_gets_a_panel_among_the_curves():
    run = curves.Run(Path("a"), "a", RECORDS, metrics_file.columns(RECORDS))
    panels = curves.build_panels([run])
    assert [panel.title for panel in panels] == ["loss", "uniformity"]
    assert panels[1].lines[0].y.tolist() == [-0.25, -0.5, -0.75]


def test_an_unknown_metric_gets_a_chart_in_the_report_of_one_run_and_of_several():
    for runs in ([run_facts("a")], [run_facts("a"), run_facts("b")]):
        _, more = report_curves.curves(runs)
        (chart,) = more.blocks[0].charts
        assert chart.title == "uniformity"
        assert "from -0.25 to -0.75" in chart.drawings[0]


def test_every_level_is_a_metric_of_the_table_that_is_not_drawn_itself():
    levels = {row.level for row in METRICS.values() if row.level}
    assert levels == {"chance", "colour_error"}
    assert group_by_chart(levels) == []


def test_metrics_of_one_chart_are_drawn_together_whatever_their_order_in_the_file():
    ((first, second),) = group_by_chart(["top5", "step", "top1"])
    assert (first.name, second.name) == ("top1", "top5")
    assert find_metric("top1").caption
