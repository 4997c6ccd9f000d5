import json
import shlex

import pytest
import torch

from mvmae.config.evaluation import KnnConfig
from mvmae.errors import UserError
from mvmae.storage import results
from mvmae.version import __version__


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a run in it, where commands are given."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for file in ("config.json", "environment.json", "encoder.safetensors", "checkpoints/last.pt"):
        (tmp_path / "run" / file).write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def home(encoder: str, out=None) -> str:
    return str(results.home(encoder, out))


@pytest.mark.parametrize(
    "encoder", ["run", "run/", "./run", "run/encoder.safetensors", "run/checkpoints/last.pt"]
)
def test_a_run_and_what_lies_in_it_keep_their_results_in_the_run(here, encoder):
    assert home(encoder) == "run"


def test_inside_a_run_its_files_keep_their_results_there(here, monkeypatch):
    monkeypatch.chdir(here / "run")
    assert home("encoder.safetensors") == "."
    assert home("checkpoints/last.pt") == "."


@pytest.mark.parametrize(
    ("encoder", "folder"),
    [
        ("random:vit_pico", "runs/random-vit_pico"),
        ("timm:vit_base_patch16_224.mae", "runs/timm-vit_base_patch16_224.mae"),
        ("hf:facebook/vit-mae-base", "runs/hf-facebook-vit-mae-base"),
        ("models/vit.pth", "runs/vit"),
        ("models/", "runs/models"),
        ("models/no such", "runs/no-such"),
    ],
)
def test_of_any_other_encoder_results_get_a_folder_of_its_name(here, encoder, folder):
    (here / "models").mkdir()
    (here / "models" / "vit.pth").write_text("")
    assert home(encoder) == folder


@pytest.mark.parametrize("encoder", ["random:vit_pico", "timm:a", "hf:some/model"])
def test_an_encoder_from_elsewhere_does_not_write_into_the_run_around(here, monkeypatch, encoder):
    monkeypatch.chdir(here / "run")
    assert home(encoder).startswith("runs/")


def test_out_goes_before_everything(here):
    assert home("run", here / "there") == str(here / "there")


def test_a_folder_with_a_config_of_someone_else_is_no_run(here):
    (here / "transformers").mkdir()
    (here / "transformers" / "config.json").write_text("{}")
    assert home("transformers") == "runs/transformers"


def test_out_that_is_a_file_is_refused(here):
    (here / "notes.txt").write_text("notes")
    with pytest.raises(UserError, match=r"notes.txt is a file: --out must name a folder"):
        results.home("run", here / "notes.txt")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("photos", "photos"),
        ("my data/pets/", "my-data-pets"),
        ("../pets", "pets"),
        ("/", "data"),
        ("..", "data"),
        ("a.csv", "a.csv"),
        ("größe/ñ", "größe-ñ"),
        ("a$b*c?d\n", "a-b-c-d"),
        ("im\udcff", "im"),
        ("x" * 300, "x" * 80),
    ],
)
def test_a_name_becomes_what_any_disk_takes(text, name):
    assert results.slug(text) == name


@pytest.mark.parametrize("text", ["画" * 200, "é-" * 200, "../" * 99 + "a", "-" * 81 + "é"])
def test_a_long_name_is_cut_by_its_bytes(text, tmp_path):
    name = results.slug(text)
    assert 0 < len(name.encode()) <= 80
    assert not name.startswith(("-", "."))
    (tmp_path / f".probe-mae-{name}.json.tmp").write_text("fits")


def test_a_result_says_what_repeats_it(tmp_path):
    config = KnnConfig(encoder="my run", data="pets", k=(3, 5), seed=4)
    content = {"rows": [1, 2]}
    file = results.write(tmp_path, "knn", config, content, device=torch.device("cpu"), world_size=1)
    assert file == tmp_path / "results" / "knn-pets.json"
    kept = json.loads(file.read_text())
    assert kept["command"] == "knn"
    assert shlex.split(kept["command_line"]) == (
        ["mvmae", "knn", "my run", "pets", "--seed", "4", "--k", "3", "5"]
    )
    assert (kept["config"]["encoder"], kept["config"]["k"]) == ("my run", [3, 5])
    assert kept["rows"] == [1, 2]
    assert kept["environment"]["mvmae"] == __version__
    assert {"python", "torch", "torchvision", "device", "git_commit"} <= set(kept["environment"])
    other = results.write(
        tmp_path, "knn", config, {}, device=torch.device("cpu"), world_size=1, name="mine"
    )
    assert other.name == "mine.json"
    assert [path.name for path in (tmp_path / "results").glob(".*")] == []
