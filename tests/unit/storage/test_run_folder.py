"""A run takes only a folder that is its own, and removes nothing that is not."""

import csv
import json
import os

import pytest
import torch

from mvmae.errors import UserError
from mvmae.storage import atomic, run_folder
from mvmae.version import __version__


def a_run(folder):
    """A folder with everything a run may leave."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.pt").write_bytes(b"state")
    (folder / "figures").mkdir()
    (folder / "figures" / "reconstructions.png").write_bytes(b"png")
    for name in ("config.json", "environment.json", "metrics.jsonl", "encoder.safetensors"):
        (folder / name).write_text("{}")
    return folder


def claim(folder, *, resume=False, overwrite=False) -> None:
    run_folder.claim(folder, resume=resume, overwrite=overwrite)


# claiming


@pytest.mark.parametrize("overwrite", [False, True])
def test_new_or_empty_folder_is_taken_and_not_yet_made(tmp_path, overwrite):
    claim(tmp_path / "new" / "deep", overwrite=overwrite)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    claim(tmp_path / "empty", overwrite=overwrite)
    assert list((tmp_path / "empty").iterdir()) == []


def test_folder_of_another_run_is_refused_with_the_three_ways_on(tmp_path):
    with pytest.raises(UserError, match=r"already holds a run: .*--out, --resume .*--overwrite"):
        claim(a_run(tmp_path / "run"))


@pytest.mark.parametrize("how", [{"resume": True}, {"overwrite": True}])
def test_folder_of_another_run_is_taken_where_asked_for(tmp_path, how):
    folder = a_run(tmp_path / "run")
    before = sorted(folder.rglob("*"))
    claim(folder, **how)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_with_other_files_is_refused(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds other files: choose an --out that is new or empty"):
        claim(tmp_path, overwrite=overwrite)


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
def test_file_is_refused(tmp_path, how):
    (tmp_path / "file").write_text("text")
    with pytest.raises(UserError, match="is a file: --out must name a folder"):
        claim(tmp_path / "file", **how)


@pytest.mark.parametrize("name", ["gone", "empty", "other"])
def test_nothing_to_resume_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("text")
    with pytest.raises(UserError, match=r"no run in .* to resume"):
        claim(tmp_path / name, resume=True)


# clearing


def test_clearing_removes_what_a_run_leaves(tmp_path):
    folder = a_run(tmp_path / "run")
    run_folder.clear(folder)
    assert list(folder.iterdir()) == []


def test_clearing_leaves_everything_else(tmp_path):
    folder = a_run(tmp_path / "run")
    (folder / "notes.md").write_text("mine")
    (folder / "my_figures").mkdir()
    (folder / "my_figures" / "a.png").write_bytes(b"mine")
    run_folder.clear(folder)
    assert sorted(path.name for path in folder.rglob("*")) == ["a.png", "my_figures", "notes.md"]


def test_clearing_removes_a_link_and_not_what_it_leads_to(tmp_path):
    folder = a_run(tmp_path / "run")
    elsewhere = a_run(tmp_path / "elsewhere") / "checkpoints"
    (folder / "checkpoints" / "last.pt").unlink()
    (folder / "checkpoints").rmdir()
    (folder / "checkpoints").symlink_to(elsewhere)
    run_folder.clear(folder)
    assert not (folder / "checkpoints").is_symlink()
    assert (elsewhere / "last.pt").read_bytes() == b"state"


def test_clearing_an_empty_folder_does_nothing(tmp_path):
    run_folder.clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


# what a run says of itself


def test_environment_says_what_a_number_depends_on():
    facts = run_folder.environment(torch.device("cpu"), 2, num_images=7)
    assert facts["mvmae"] == __version__
    assert facts["torch"] == torch.__version__
    assert facts["device"] == "cpu"
    assert facts["threads"] == torch.get_num_threads()
    assert facts["world_size"] == 2
    assert facts["num_images"] == 7
    assert {"python", "torchvision", "platform", "git_commit"} <= facts.keys()
    json.dumps(facts)


def test_json_is_written_whole_with_an_end_of_line(tmp_path):
    atomic.write_json(tmp_path / "a.json", {"a": [1]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"a": [1]}
    assert text.endswith("\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


# skipped.csv


def read_skipped(folder) -> list[list[str]]:
    with (folder / "skipped.csv").open(newline="", errors="surrogateescape") as stream:
        return list(csv.reader(stream))


def test_nothing_skipped_leaves_no_file(tmp_path):
    run_folder.append_skipped(tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def test_each_skipped_image_is_noted_once(tmp_path):
    run_folder.append_skipped(
        tmp_path, [("a.jpg", "empty"), ("b.jpg", "cut, short"), ("a.jpg", "again")]
    )
    run_folder.append_skipped(tmp_path, [("b.jpg", "cut, short"), ("c.jpg", 'has "quotes"')])
    run_folder.append_skipped(tmp_path, [("c.jpg", "again")])
    assert [row[0] for row in read_skipped(tmp_path)] == ["path", "a.jpg", "b.jpg", "c.jpg"]
    assert read_skipped(tmp_path)[2:] == [["b.jpg", "cut, short"], ["c.jpg", 'has "quotes"']]


def test_names_that_are_no_utf8_come_back_as_they_are(tmp_path):
    name = os.fsdecode(b"caf\xe9,\n.jpg")
    run_folder.append_skipped(tmp_path, [(name, "empty")])
    run_folder.append_skipped(tmp_path, [(name, "empty")])
    assert read_skipped(tmp_path) == [["path", "reason"], [name, "empty"]]


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"mvmae": "0.1.0"}, "written by mvmae 0.1.0, whose run folders mvmae .* does not read"),
        ({"mvmae": "9.0", "format": 99}, "in format 99, .* install a newer mvmae"),
    ],
)
def test_a_run_folder_of_another_format_is_refused(tmp_path, facts, says):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "environment.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=says):
        run_folder.claim(tmp_path, resume=True, overwrite=False)


@pytest.mark.parametrize("text", [None, "[]", "{", "{}", '{"python": "3"}'])
def test_a_folder_without_our_environment_has_no_format_to_refuse(tmp_path, text):
    if text is not None:
        (tmp_path / "environment.json").write_text(text)
    run_folder.require_format(tmp_path)


def test_the_format_is_in_the_environment(tmp_path):
    facts = run_folder.environment(torch.device("cpu"), 1)
    (tmp_path / "environment.json").write_text(json.dumps(facts))
    run_folder.require_format(tmp_path)
    assert facts["format"] == run_folder.FORMAT
