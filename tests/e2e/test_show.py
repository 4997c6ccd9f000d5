"""`mvmae show`: what an encoder is."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from mvmae.cli.main import main
from mvmae.config.model import Size
from mvmae.method.vit import Encoder

A_SECOND = (
    "--recipe demo --model.image-size 16 --model.decoder-dim 32 --batch-size 8 --epochs 2 "
    "--warmup-epochs 0 --device cpu --workers 0"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of two steps on images of noise."""
    home = tmp_path_factory.mktemp("home")
    (home / "images").mkdir()
    for index in range(8):
        Image.new("RGB", (20, 16), (20 * index, 99, 40)).save(home / "images" / f"{index}.png")
    assert (
        main(["pretrain", str(home / "images"), "--out", str(home / "run"), *A_SECOND.split()]) == 0
    )
    return home / "run"


def run_show(capsys, *words: str) -> str:
    capsys.readouterr()
    assert main(["show", *words]) == 0
    return capsys.readouterr().out


def test_a_run_is_shown_with_its_training(run, capsys):
    lines = dict(line.split(maxsplit=1) for line in run_show(capsys, str(run)).splitlines())
    assert lines["size"].startswith("vit_pico/4, width 64, 4 blocks, 2 heads, 0.2 M parameters")
    assert lines["input"] == "16 x 16 pixels, 3 channels, 4 x 4 patches of 4 x 4"
    assert lines["steps"] == "2 of 8 images, 2 epochs planned"
    assert lines["trained"].endswith("images, 8 images")
    assert "health" in lines
    assert lines["made"] == "by       mvmae"


def test_json_is_for_machines(run, capsys):
    facts = json.loads(run_show(capsys, str(run / "encoder.safetensors"), "--json"))
    assert facts["known_as"] == "vit_pico"
    assert (facts["width"], facts["depth"], facts["num_heads"]) == (64, 4, 2)
    assert facts["grid"] == [4, 4]
    assert facts["run"]["steps"] == 2
    assert facts["run"]["config"]["model"]["decoder_dim"] == 32
    assert facts["results"] == []
    assert facts["parameters"] == sum(
        value.numel()
        for key, value in torch.load(run / "checkpoints" / "last.pt")["model"].items()
        if not key.startswith(("decoder", "mask", "pos_embed"))
    )


def test_results_so_far_are_shown(run, capsys):
    (run / "results").mkdir(exist_ok=True)
    result = {
        "command": "knn",
        "config": {"data": "pets"},
        "headline": {"token": "cls", "top1": 71.25},
    }
    (run / "results" / "knn-pets.json").write_text(json.dumps(result))
    (run / "results" / "broken.json").write_text("{")
    (run / "results" / "list.json").write_text("[1]")
    text = run_show(capsys, str(run))
    assert f"knn           pets: token cls, top1 71.25 ({run}/results/knn-pets.json)\n" in text
    assert "broken" not in text
    for file in (run / "results").iterdir():
        file.unlink()


def test_a_run_whose_records_are_damaged_is_still_shown(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    for name in ("health.json", "metrics.jsonl", "environment.json"):
        (tmp_path / "run" / name).write_text('{"step"')
    text = run_show(capsys, str(tmp_path / "run"))
    assert "steps         unknown of 8 images" in text
    assert "health" not in text


def test_a_strangers_file_is_shown_with_what_was_left_out(tmp_path, capsys):
    encoder = Encoder(Size(64, 1, 1), image_size=(8, 8), patch_size=4)
    more = {f"head.{number}.weight": torch.zeros(3) for number in range(5)}
    state = (
        encoder.state_dict()
        | more
        | {"reg_token": torch.zeros(1, 2, 64), "blocks.0.ls1.gamma": torch.ones(64)}
    )
    state |= {"blocks.0.ls2.gamma": torch.ones(64)}
    torch.save({"model": state}, tmp_path / "w.pth")
    text = run_show(capsys, str(tmp_path / "w.pth"))
    assert "made by       ViT with timm's keys\n" in text
    assert "left out      5 keys: head.0.weight, head.1.weight, head.2.weight ...\n" in text
    assert "unlike MAE's  2 registers, layer scale\n" in text
    assert "size          width 64, 1 blocks, 1 heads" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "ENCODER"),
        (["nowhere"], "no such encoder: nowhere"),
        (["random:vit_bse"], "did you mean 'vit_base'?"),
        (["timm:vit_tny_patch16_224"], "did you mean 'vit_tiny_patch16_224'?"),
        (["random:vit_pico", "more"], "unexpected argument more"),
        (["random:vit_pico", "--jsn"], "unknown option --jsn"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(capsys, words, says):
    capsys.readouterr()
    assert main(["show", *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert says in told.err
    assert told.err.count("\n") == 1
