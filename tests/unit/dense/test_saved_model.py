"""Trained models on disk: their command, their fixed settings, and what a resumed run needs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mvmae import encoders
from mvmae.cli.main import main
from mvmae.cli.parse import parse
from mvmae.config.detect import DetectConfig
from mvmae.config.files import to_json
from mvmae.config.model import ModelConfig
from mvmae.config.pretrain import PretrainConfig
from mvmae.config.segment import SegmentConfig
from mvmae.data.annotations.mask_values import Rule
from mvmae.dense.detect.predict import open_detector
from mvmae.dense.saved_model import command_of_run, saved_predictor
from mvmae.dense.segment.finished import SavedSegmenter, open_segmenter
from mvmae.dense.segment.model import Segmenter
from mvmae.dense.train import has_metric, load_initial_encoder, require_8_bit
from mvmae.encoders import OpenedEncoder, Preprocessing
from mvmae.errors import UserError

SEGMENT = SegmentConfig(encoder="e", data="d")
FIXED = {"crop": 64, "stride": 42, "short_side": 80}


def apply_fixed_settings(config: SegmentConfig) -> SegmentConfig:
    """Options with which a trained model is applied."""
    opened = encoders.open_encoder("random:vit_pico", 64)
    model = Segmenter(opened.encoder, 2, channels=8, auxiliary_channels=None)
    saved = SavedSegmenter(model, opened, ("a", "b"), Rule(None), FIXED, frozenset())
    return saved_predictor(saved, "segment", config, torch.device("cpu")).config


@pytest.mark.parametrize(
    ("config", "command"),
    [
        (PretrainConfig(), "pretrain"),
        (SEGMENT, "segment"),
        (DetectConfig(encoder="e", data="d"), "detect"),
    ],
)
def test_an_unfinished_run_is_named_by_its_command(tmp_path, config, command):
    (tmp_path / "config.json").write_text(to_json(config))
    assert command_of_run(tmp_path) == command
    for opened, own in ((open_segmenter, "segment"), (open_detector, "detect")):
        with pytest.raises(UserError) as caught:
            opened(str(tmp_path))
        unfinished = "the run has not finished: continue it with --resume"
        message = unfinished if command == own else f"it is a run of mvmae {command}"
        assert str(caught.value).endswith(f"({message})")


def test_a_folder_without_a_run_gets_no_hint(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    assert command_of_run(tmp_path) == ""
    with pytest.raises(UserError, match=r"model.safetensors does not exist$"):
        open_segmenter(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"stride": 10},
            "--stride 10 has no effect on a trained model, which uses 42: leave --stride out",
        ),
        ({"crop": 100}, "--crop 100 has no effect on a trained model, which uses 64"),
        ({"short_side": None}, "--short-side None has no effect on a trained model, which uses 80"),
    ],
)
def test_other_values_of_fixed_settings_are_rejected(changes, message):
    with pytest.raises(UserError, match=message):
        apply_fixed_settings(replace(SEGMENT, **changes))


def test_values_of_a_recipe_or_the_run_are_accepted():
    for words in ([], ["--recipe", "small"], ["--crop", "64", "--stride", "42"]):
        config = parse("segment", ["run", "data", "--protocol", "test", *words])
        fixed = apply_fixed_settings(config)
        assert (fixed.crop, fixed.stride, fixed.short_side) == (64, 42, 80)


def test_a_resumed_run_needs_no_encoder(tmp_path):
    """Shape and preprocessing come from the run folder."""
    model = ModelConfig(encoder="vit_pico", image_size=16, patch_size=4, decoder_dim=32)
    plain = encoders.open_encoder("random:vit_pico", 16)
    odd = encoders.Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")
    opened = plain._replace(encoder=encoders.random_encoder(model, 0), preprocessing=odd)
    facts = {"encoder": encoders.encoder_metadata(opened)}
    (tmp_path / "environment.json").write_text(json.dumps(facts))
    config = DetectConfig(encoder="nowhere", data="d", out=tmp_path, resume=True)
    again = load_initial_encoder(config)
    assert encoders.encoder_metadata(again) == facts["encoder"]
    with pytest.raises(UserError, match="no such encoder: nowhere"):
        load_initial_encoder(replace(config, resume=False))
    (tmp_path / "environment.json").write_text("{}")  # of an older run
    with pytest.raises(UserError, match="no such encoder: nowhere"):
        load_initial_encoder(config)


def test_metrics_of_a_step_are_found(tmp_path):
    assert not has_metric(tmp_path, 3, "miou")
    lines = [{"step": 3, "loss": 1.0}, {"step": 3, "miou": 2.0}, {"step": 4, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert has_metric(tmp_path, 3, "miou")
    assert not has_metric(tmp_path, 4, "miou")
    assert not has_metric(tmp_path, 3, "box_ap")


@pytest.mark.parametrize(
    ("channels", "depth", "message"),
    [
        (3, "float", "enc was trained on floating-point images of 3 channels. "),
        (1, "16", "on 16-bit images of 1 channel. "),
        (12, "8", "on 8-bit images of 12 channels. "),
    ],
)
def test_an_encoder_of_deep_pixels_is_rejected(
    tmp_path, monkeypatch, capsys, channels, depth, message
):
    encoder = encoders.random_encoder(
        ModelConfig(encoder="vit_pico", in_channels=channels, image_size=32, patch_size=8), 0
    )
    preprocessing = Preprocessing((0.5,) * channels, (0.3,) * channels, "bicubic")
    opened = OpenedEncoder(encoder, preprocessing, "mean", depth=depth)
    monkeypatch.chdir(tmp_path)
    Path("enc").mkdir()
    encoders.save_encoder(Path("enc"), opened)
    for words in (
        "detect enc data --out run --device cpu",
        "segment enc data --out run --device cpu",
        "segment enc data --protocol knn --out run --device cpu",
    ):
        assert main(words.split()) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
        assert line.endswith("an encoder of 8-bit grey or colour images: choose another ENCODER")
        assert not Path("run").exists()


def test_an_encoder_of_8_bit_pixels_is_accepted():
    opened = encoders.open_encoder("random:vit_pico")
    assert require_8_bit(opened, "enc") is opened
