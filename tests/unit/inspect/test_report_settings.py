"""Settings on a report's page: every option has the help text of the command line."""

from dataclasses import asdict
from pathlib import Path

import pytest

from mvmae.config.files import to_plain
from mvmae.config.pretrain import PretrainConfig
from mvmae.inspect.report.gather import KINDS, RunFacts
from mvmae.inspect.report.settings import flatten, meaning, what_was_run


@pytest.mark.parametrize("command", KINDS)
def test_every_setting_of_a_run_is_explained(command):
    kind = KINDS[command]
    config = to_plain(kind() if kind is PretrainConfig else kind(encoder="runs/a", data="photos"))
    facts = RunFacts(Path("a"), "a", command, config, {}, {}, [], [], [], True, None)
    main, others = what_was_run(facts)
    (rest,) = others.blocks
    rows = {name: text for name, _, text in (*main.rows, *rest.rows)}
    assert rows.keys() == flatten(config).keys()
    assert [name for name, text in rows.items() if not text] == []


def test_a_text_of_a_class_replaces_that_of_the_class_it_inherits_from():
    config = asdict(PretrainConfig())
    facts = RunFacts(Path("a"), "a", "pretrain", config, {}, {}, [], [], [], True, None)
    _, others = what_was_run(facts)
    rows = {name: text for name, _, text in others.blocks[0].rows}
    assert rows["workers"] == "Processes that read images, per training process."


def test_a_setting_is_explained_without_what_holds_for_other_values():
    text = "Flip a view. horizontal: left to right. both: also top\n    to bottom. Default: none."
    assert meaning(text, "horizontal") == "Flip a view. horizontal: left to right."
    assert meaning(text, "both") == "Flip a view. both: also top to bottom."
    assert meaning(text, "none") == "Flip a view."
    assert meaning("predict: smallest score.", 0.5) == "predict: smallest score."
