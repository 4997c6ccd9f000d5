"""Names of drawn runs, and settings that `reconstruct` refuses before it begins."""

import pytest

from mvmae.config.figures import ReconstructConfig
from mvmae.errors import UserError
from mvmae.storage.outputs import join_names, short_names


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (("runs/a",), ["a"]),
        (("runs/a", "runs/b"), ["a", "b"]),
        (("one/run", "two/run"), ["one/run", "two/run"]),
        (("runs/a", "random:runs/a"), ["a", "random:runs/a"]),
        (("runs/a/checkpoints/last.pt", "random:vit_small"), ["a", "random:vit_small"]),
        (("timm:vit_base", "hf:org/model"), ["timm:vit_base", "hf:org/model"]),
    ],
)
def test_runs_have_short_names_no_two_alike(sources, names):
    assert short_names(sources) == names


def test_a_checkpoint_in_a_run_is_called_by_both(tmp_path):
    for name in ("previous.pt", "last.pt"):
        (tmp_path / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / "checkpoints" / name).touch()
    folder = tmp_path / "run"
    sources = [f"random:{folder}", str(folder), f"{folder}/checkpoints/previous.pt"]
    assert short_names(sources) == ["random:run", "run", "run/previous.pt"]


def test_a_title_names_three_and_counts_more():
    assert join_names(["a"]) == "a"
    assert join_names(["a", "b", "c"]) == "a, b and c"
    assert join_names(["a", "b", "c", "d"]) == "a and 3 more"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"count": 201}, "count must be at most 200"),
        ({"against": ("run",)}, "names an encoder twice"),
        ({"channels": (1, 2, 3, 4)}, "1 channel, drawn gray, or 3"),
        ({"mask_ratio": 1.0}, "between 0 and 1"),
    ],
    ids=str,
)
def test_setting_that_cannot_work_is_refused(changes, says):
    with pytest.raises(UserError, match=says):
        ReconstructConfig(encoder="run", **changes)
