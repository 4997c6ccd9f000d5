"""`mvmae pretrain` on small images: what it leaves, what it takes, what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from run_folders import (
    PRODUCTS,
    RUN,
    assert_same_run,
    metrics,
    names,
    skipped_paths,
    state,
)
from safetensors.torch import load_file

from mvmae import load_autoencoder, load_encoder
from mvmae.cli.main import main
from mvmae.config.files import from_json
from mvmae.config.pretrain import PretrainConfig
from mvmae.method import messages


@pytest.fixture
def images(image_folder) -> Path:
    return image_folder(per_class=12)


# what a run leaves


def test_run_leaves_its_folder_and_says_where_the_encoder_is(tmp_path, images, pretrain, capsys):
    run = tmp_path / "runs" / "first"
    assert pretrain(images, run) == 0
    assert names(run) == RUN
    assert names(run / "checkpoints") == {"last.pt"}
    config = from_json((run / "config.json").read_text(), PretrainConfig, source="config.json")
    assert config.data == (str(images),)
    assert config.out == run
    assert config.epochs == 4
    facts = json.loads((run / "environment.json").read_text())
    assert facts["num_images"] == 24
    assert facts["world_size"] == 1
    assert len(facts["data_fingerprint"]) == 16
    said = capsys.readouterr().out
    assert "24 images, vit_pico/4" in said
    assert "4 epochs of 3 steps of 8 images" in said
    assert f"The encoder: {run / 'encoder.safetensors'}. Judge it: mvmae knn {run}" in said


def test_product_is_the_encoder_of_the_last_checkpoint(tmp_path, images, pretrain):
    run = tmp_path / "run"
    pretrain(images, run)
    product, trained = load_file(run / "encoder.safetensors"), state(run)["model"]
    assert set(product) < set(trained)
    assert all(torch.equal(product[key], trained[key]) for key in product)
    shown = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        tokens = load_encoder(run)(shown)
        assert tokens.shape == (2, 17, 64)
        assert torch.equal(tokens, load_encoder(run / "checkpoints" / "last.pt")(shown))
        assert torch.equal(tokens, load_autoencoder(run).encoder(shown))


def test_metrics_have_a_line_every_few_steps_and_at_the_end(tmp_path, images, pretrain):
    run = tmp_path / "run"
    pretrain(images, run, {"log-every": 5})
    lines = metrics(run)
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert [line["epoch"] for line in lines] == [1.6667, 3.3333, 4.0]
    assert [line["images"] for line in lines] == [40, 80, 96]
    for line in lines:
        total = line["reconstruction"] + line["contrastive"]  # the demo's lambda is 1
        assert line["loss"] == pytest.approx(total, rel=1e-5)
        assert line["images_per_second"] > 0
        assert 0 <= line["data_wait"] <= 1
    assert lines[0]["lr"] > lines[-1]["lr"] > 0
    health = json.loads((run / "health.json").read_text())
    assert health["status"] in ("good", "weak", "collapsed")
    assert health["loss"] == lines[-1]["loss"]


def test_metrics_tell_the_time(tmp_path, images, pretrain):
    run = tmp_path / "run"
    pretrain(images, run)
    seconds = [line["seconds"] for line in metrics(run)]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


def test_metrics_fall(tmp_path, image_folder, pretrain):
    """On 24 images in 24 colours, which can be told apart."""
    images = image_folder("coloured", classes=tuple("abcdefghijklmnopqrstuvwx"), per_class=1)
    run = tmp_path / "run"
    pretrain(images, run, {"epochs": 20, "base-lr": 0.02, "log-every": 10})
    first, *_, last = metrics(run)
    for name in ("loss", "reconstruction", "contrastive"):
        assert last[name] < 0.8 * first[name], name


def test_run_is_repeated_from_its_own_config(tmp_path, images, pretrain):
    first, second = tmp_path / "first", tmp_path / "second"
    assert pretrain(images, first) == 0
    assert main(["pretrain", "--recipe", str(first / "config.json"), "--out", str(second)]) == 0
    assert_same_run(second, first)


def test_another_seed_is_another_run(tmp_path, images, pretrain):
    first, second = tmp_path / "first", tmp_path / "second"
    pretrain(images, first)
    pretrain(images, second, {"seed": 1})
    assert metrics(first)[0]["loss"] != metrics(second)[0]["loss"]


def test_workers_change_nothing(tmp_path, images, pretrain):
    alone, helped = tmp_path / "alone", tmp_path / "helped"
    pretrain(images, alone)
    pretrain(images, helped, {"workers": 2})
    assert_same_run(helped, alone)


# data that are not perfect


def test_a_few_bad_files_are_passed_over_and_listed_once(tmp_path, images, pretrain, capsys):
    bad = {images / "blue" / "3.jpg", images / "red" / "5.jpg"}
    for file in bad:
        file.write_bytes(b"no image")
    run = tmp_path / "run"
    assert pretrain(images, run) == 0
    assert names(run) == {*RUN, "skipped.csv"}
    assert sorted(skipped_paths(run)) == sorted(map(str, bad))
    assert f"images that could not be read: {run / 'skipped.csv'}" in capsys.readouterr().out


def test_resumed_run_lists_bad_files_once(tmp_path, images, pretrain):
    (images / "blue" / "3.jpg").write_bytes(b"no image")
    run = tmp_path / "run"
    pretrain(images, run, {"save-every-minutes": 0})
    assert main(["pretrain", "--resume", "--out", str(run)]) == 0
    assert skipped_paths(run) == [str(images / "blue" / "3.jpg")]


def test_more_bad_files_than_good_ones_stop_the_run(tmp_path, images, pretrain, capsys):
    files = sorted(images.rglob("*.jpg"))
    for file in files[: len(files) * 3 // 4]:
        file.write_bytes(b"no image")
    assert pretrain(images, tmp_path / "run", {"epochs": 50}) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "attempts to read an image failed" in line
    assert str(images) in line
    assert line.endswith("is this the right DATA?")


def test_nothing_but_bad_files_stops_the_run_at_once(tmp_path, images, pretrain, capsys):
    for file in images.rglob("*.jpg"):
        file.write_bytes(b"")
    assert pretrain(images, tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "512 of the first 520 attempts to read an image failed" in line
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()


# while training


def test_labelled_images_are_judged_every_few_epochs_and_at_the_end(
    tmp_path, images, image_folder, pretrain, capsys
):
    judged = image_folder("judged", per_class=5, seed=1)
    run = tmp_path / "run"
    assert pretrain(images, run, {"epochs": 5, "eval-data": judged, "eval-every": 2}) == 0
    scores = {line["step"]: line["knn_top1"] for line in metrics(run) if "knn_top1" in line}
    assert list(scores) == [6, 12, 15]
    assert all(0 <= score <= 100 for score in scores.values())
    health = json.loads((run / "health.json").read_text())
    assert health["knn_top1"] == scores[15]
    rise = f"{scores[6]:.1f} → {scores[15]:.1f} % on {judged}"
    assert f"kNN top-1     {rise}\n" in capsys.readouterr().out


def test_judging_changes_nothing_in_the_training(tmp_path, images, image_folder, pretrain):
    judged = image_folder("judged", per_class=5, seed=1)
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    pretrain(images, plain)
    pretrain(images, watched, {"eval-data": judged, "eval-every": 1})
    encoders = [(run / "encoder.safetensors").read_bytes() for run in (plain, watched)]
    assert encoders[0] == encoders[1]


def test_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(
    tmp_path, images, pretrain, capsys
):
    run = tmp_path / "run"
    options = {"base-lr": 1e30, "save-every-minutes": 0, "log-every": 1, "warmup-epochs": 1}
    assert pretrain(images, run, options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a lower --base-lr, or with --clip-grad 1" in line
    step = int(line.split("not finite at step ")[1].split(":")[0])
    kept = state(run)
    assert f"{run}/checkpoints/last.pt was saved before it, at step {kept['step']}" in line
    assert 1 <= kept["step"] < step
    assert [record["step"] for record in metrics(run)] == list(range(1, step))
    assert names(run) == RUN - PRODUCTS | {"health.json"}
    health = json.loads((run / "health.json").read_text())
    assert health == {"status": "diverged", "sentence": health["sentence"], "step": step}
    assert health["sentence"] in line


def test_a_run_that_goes_on_from_before_it_diverged_is_no_longer_said_to_have(
    tmp_path, images, pretrain
):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert pretrain(images, whole) == 0
    assert pretrain(images, run) == 0
    for name in PRODUCTS:
        (run / name).unlink()
    told = {"status": "diverged", "sentence": "the loss is not finite at step 99", "step": 99}
    (run / "health.json").write_text(json.dumps(told))
    assert pretrain(images, run, {"resume": True}) == 0
    assert_same_run(whole, run)
    (run / "health.json").write_text(json.dumps(told))
    options = {"base-lr": 1e30, "overwrite": True, "warmup-epochs": 1}
    assert pretrain(images, run, options) == 2
    assert json.loads((run / "health.json").read_text())["step"] < 99
    assert names(run) == RUN - PRODUCTS - {"checkpoints"} | {"health.json"}


def test_while_a_run_goes_on_an_earlier_divergence_is_not_in_its_folder(tmp_path):
    file = tmp_path / "health.json"
    for status, stays in (("diverged", False), ("good", True)):
        file.write_text(json.dumps({"status": status}))
        with messages.divergence_recorded(tmp_path):
            assert file.exists() == stays


def test_checkpoint_kept_before_a_loss_that_is_no_number_has_weights_that_are_numbers(
    tmp_path, images, pretrain
):
    run = tmp_path / "run"
    options = {"base-lr": 1e30, "save-every-minutes": 0, "log-every": 1, "warmup-epochs": 1}
    assert pretrain(images, run, options) == 2
    assert all(tensor.isfinite().all() for tensor in state(run)["model"].values())


def test_loss_that_is_no_number_between_two_lines_of_metrics_is_named_by_its_step(
    tmp_path, images, pretrain, capsys
):
    first, second = tmp_path / "first", tmp_path / "second"
    pretrain(images, first, {"base-lr": 1e30, "log-every": 1})
    every = capsys.readouterr().err
    assert pretrain(images, second, {"base-lr": 1e30, "log-every": 12}) == 2
    few = capsys.readouterr().err
    assert "no checkpoint had been saved yet" in few
    assert every.split("saved")[0] == few.split("saved")[0]


# what else may be trained


@pytest.mark.parametrize(
    ("variant", "terms", "views"),
    [
        ("mae", {"reconstruction"}, 1),
        ("no-contrast", {"reconstruction"}, 2),
        ("one-target", {"reconstruction", "contrastive"}, 2),
        ("contrast-only", {"contrastive"}, 2),
    ],
)
def test_variants_run(tmp_path, images, pretrain, variant, terms, views):
    run = tmp_path / "run"
    options = {"recipe": f"demo+{variant}", "eval-every": None}
    assert pretrain(images, run, options) == 0
    (*_, last) = metrics(run)
    assert {"reconstruction", "contrastive"} & last.keys() == terms
    assert last["step"] == 12
    config = from_json((run / "config.json").read_text(), PretrainConfig, source="config.json")
    assert config.views.num_views == views
    assert (run / "encoder.safetensors").exists()


def test_contrast_alone_leaves_the_decoder_untrained(tmp_path, images, pretrain):
    run = tmp_path / "run"
    pretrain(images, run, {"recipe": "demo+contrast-only"})
    from torch import Generator

    from mvmae.method.model import MaskedAutoencoder

    config = from_json((run / "config.json").read_text(), PretrainConfig, source="config.json")
    fresh = MaskedAutoencoder(config.model, Generator().manual_seed(0)).state_dict()
    trained = state(run)["model"]
    for key, tensor in trained.items():
        decoder = key.startswith(("decoder", "mask_token"))
        fixed = decoder or key == "pos_embed"
        assert torch.equal(tensor, fresh[key]) == fixed, key


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("not square", {"model.image-size": (16, 24)}),
        ("gray", {"model.in-channels": 1}),
        ("head", {"model.head": "mlp"}),
        ("class token", {"model.latent": "cls"}),
        ("all patches", {"objective.reconstruct": "all"}),
        ("pixels", {"objective.no-normalize-targets": True}),
        ("clipped", {"clip-grad": 1}),
        ("bf16", {"precision": "bf16"}),
        ("own statistics", {"views.mean": (0.5, 0.4, 0.3), "views.std": (0.2, 0.2, 0.2)}),
        ("bilinear", {"views.interpolation": "bilinear", "views.flip": "none"}),
    ],
)
def test_settings_run(tmp_path, images, pretrain, name, options):
    run = tmp_path / "run"
    assert pretrain(images, run, {"epochs": 1} | options) == 0
    encoder = load_encoder(run)
    with torch.inference_mode():
        vector = encoder.embed(torch.rand(1, encoder.in_channels, *encoder.image_size))
    assert vector.isfinite().all()


def test_digits_are_trained_on_in_one_channel(tmp_path, pretrain):
    run = tmp_path / "run"
    options = {
        "model.in-channels": 1,
        "model.image-size": 8,
        "model.patch-size": 2,
        "batch-size": 64,
        "epochs": 1,
    }
    assert pretrain("digits", run, options) == 0
    facts = json.loads((run / "encoder.json").read_text())
    assert facts["in_channels"] == 1
    assert facts["image_size"] == [8, 8]
    assert len(facts["mean"]) == len(facts["std"]) == 1
    assert metrics(run)[-1]["step"] == 1438 // 64


def test_list_file_and_several_folders_are_trained_on(tmp_path, images, pretrain_command):
    listed = tmp_path / "all.txt"
    listed.write_text("\n".join(str(path) for path in sorted(images.rglob("*.jpg"))))
    assert main(pretrain_command(listed, tmp_path / "list", {"epochs": 1})) == 0
    command = pretrain_command(images / "red", tmp_path / "folders", {"epochs": 1})
    command.insert(2, str(images / "blue"))
    assert main(command) == 0
    numbers = [
        json.loads((tmp_path / run / "environment.json").read_text())["num_images"]
        for run in ("list", "folders")
    ]
    assert numbers == [24, 24]


def test_metrics_go_to_tensorboard_too(tmp_path, images, pretrain):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    assert pretrain(images, run, {"log": "tensorboard"}) == 0
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6, 8, 10, 12]
