"""`--dry-run` says what a run would take, and leaves nothing."""

import json

import pytest
import torch

from mvmae.cli.main import main
from mvmae.config.pretrain import PretrainConfig
from mvmae.errors import UserError
from mvmae.method.preflight.dry_run import Cost, advice, extrapolate, forecast, smaller_part

CPU = torch.device("cpu")


def test_it_says_what_the_run_takes_and_writes_nothing(
    image_folder, pretrain_command, tmp_path, monkeypatch, capfd
):
    images = image_folder(per_class=12)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(pretrain_command(images, "run", {"dry-run": True})) == 0
    said = capfd.readouterr().out
    for row in ("the whole run", "an epoch", "a step of 8 images", "images per second", "memory"):
        assert row in said
    assert sorted(tmp_path.rglob("*")) == before


def test_its_figures_hang_together(image_folder, pretrain_command, capfd):
    images = image_folder(per_class=12)
    assert main(["--json", *pretrain_command(images, "run", {"dry-run": True})]) == 0
    (line,) = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert (line["event"], line["command"], line["dry_run"]) == ("result", "pretrain", True)
    # 24 images in batches of 8 for 4 epochs, read by the process that trains
    step = line["step_seconds"] + 8 * line["read_seconds"]
    assert line["seconds_per_step"] == pytest.approx(step)
    assert line["seconds_per_epoch"] == pytest.approx(3 * step)
    assert line["seconds"] == pytest.approx(12 * step)
    assert line["images_per_second"] == pytest.approx(8 / step)


def test_a_run_that_is_there_is_left_alone(image_folder, pretrain_command, tmp_path):
    images, run = image_folder(per_class=12), tmp_path / "run"
    run.mkdir()
    (run / "mine.txt").write_text("mine")
    assert main(pretrain_command(images, run, {"dry-run": True})) == 0
    assert [path.name for path in run.iterdir()] == ["mine.txt"]


def test_nothing_is_resumed_to_be_measured(capsys):
    assert main(["pretrain", "photos", "--dry-run", "--resume"]) == 2
    assert "leave out --resume" in capsys.readouterr().err


def prospect(config: PretrainConfig, cost: Cost, workers: int):
    return forecast(config, cost, 10, CPU)._replace(memory_there_gib=24.0, readers=workers)


def test_too_few_readers_are_named():
    config = PretrainConfig(batch_size=100, epochs=50, workers=2)
    cost = Cost(step_seconds=1.0, read_seconds=0.05, memory_gib=1.0, micro_batch_size=None)
    found = forecast(config, cost, 10, CPU)
    assert found.seconds_per_step == pytest.approx(2.5)  # 100 images of 0.05 s by two processes
    assert found.readers_needed == 5
    (line,) = advice(config, cost, prospect(config, cost, 2), CPU)
    assert line.startswith(
        "2 reading processes are too few, the network would wait: use --workers 5"
    )
    assert advice(config, cost, prospect(config, cost, 5), CPU) == ["nothing to change"]


def test_too_much_memory_is_named_and_what_would_do():
    config = PretrainConfig(batch_size=100, epochs=50, workers=2)
    cost = Cost(step_seconds=1.0, read_seconds=0.0, memory_gib=48.0, micro_batch_size=None)
    (line,) = advice(config, cost, prospect(config, cost, 2), CPU)
    assert "--micro-batch-size 32 would fit" in line  # 45 would just fit


def test_days_on_a_cpu_are_named():
    config = PretrainConfig(batch_size=100, epochs=1600, workers=2)
    cost = Cost(step_seconds=60.0, read_seconds=0.0, memory_gib=1.0, micro_batch_size=None)
    (line,) = advice(config, cost, prospect(config, cost, 2), CPU)
    assert "--recipe tiny-cpu" in line


def test_lines_through_two_sizes():
    assert extrapolate([8, 24], [2.0, 4.0], 24) == 4.0
    assert extrapolate([8, 24], [2.0, 4.0], 256) == pytest.approx(4 + 232 / 8)
    assert extrapolate([8, 24], [4.0, 3.9], 256) == 3.9  # noise makes no batch cheaper
    assert extrapolate([4], [3.0], 4) == 3.0


def test_parts_become_smaller_until_there_are_none():
    assert [smaller_part(size) for size in (1000, 512, 3, 2)] == [512, 256, 2, 1]
    with pytest.raises(UserError, match="not even one image fits"):
        smaller_part(1)
