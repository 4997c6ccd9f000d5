"""`reconstruct`: a run that copies shows the image, beside others on the same images and masks."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import cells
from PIL import Image

from mvmae.cli.main import main
from mvmae.config.files import to_json
from mvmae.config.model import ModelConfig
from mvmae.config.pretrain import ObjectiveConfig, PretrainConfig
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.patches import patchify
from mvmae.training import checkpoint

CONFIG = PretrainConfig(
    model=ModelConfig(
        encoder="vit_pico", image_size=32, patch_size=8, mask_ratio=0.75, decoder_depth=1,
        decoder_dim=32,
    ),
    objective=ObjectiveConfig(normalize_targets=False),
)  # fmt: skip
TILE = torch.randint(
    20, 235, (1, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)


def make_run(folder: str, config: PretrainConfig, *, copies: bool, spoilt: bool = False) -> None:
    """A finished run whose model knows the tile by heart, or nothing."""
    model = MaskedAutoencoder(config.model)
    if copies:
        mean, std = (torch.tensor(s).view(1, -1, 1, 1) for s in config.pixel_statistics)
        side = config.model.height_width[0]
        tile = TILE.repeat(1, 1, side // 8, side // 8)
        target = patchify((tile / 255 - mean) / std, config.model.patch_size)
        with torch.no_grad():
            model.decoder_pred.weight.zero_()
            model.decoder_pred.bias.copy_(target[0, 0])
    if spoilt:
        model.decoder_pred.bias.data[0] = torch.nan
    place = Path(folder) / "checkpoints"
    place.mkdir(parents=True)
    Path(folder, "config.json").write_text(to_json(config))
    checkpoint.save(place, {"config": to_json(config), "model": model.state_dict()})


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Runs, and images made of one tile."""
    monkeypatch.chdir(tmp_path)
    make_run("knows", CONFIG, copies=True)
    make_run("deep", replace(CONFIG, model=replace(CONFIG.model, decoder_depth=3)), copies=False)
    coarse = replace(CONFIG.model, patch_size=16, mask_ratio=0.5)
    make_run("coarse", replace(CONFIG, model=coarse), copies=True)
    make_run("large", replace(CONFIG, model=replace(CONFIG.model, image_size=64)), copies=False)
    Path("images").mkdir()
    pixels = TILE.repeat(1, 1, 4, 4)[0].permute(1, 2, 0).numpy()
    for number in range(3):
        Image.fromarray(pixels).save(f"images/{number}.png")
    return tmp_path


def does(command: str) -> None:
    """Give a command that must succeed."""
    assert main(command.split()) == 0


def error(first: np.ndarray, second: np.ndarray) -> float:
    """Mean difference in grey levels."""
    assert abs(len(first) - len(second)) <= 1
    size = min(len(first), len(second))
    return float(np.abs(first[:size, :size] - second[:size, :size]).mean())


def test_a_run_that_copies_shows_the_original(here, capsys):
    does("reconstruct knows images --count 2 --out a.png --json")
    original, masked, prediction, pasted = cells("a.png")
    assert error(prediction, original) < 1.5
    assert error(pasted, original) < 1.5
    assert error(masked, original) > 30
    hidden = (np.abs(masked - 127.5) < 1).all(2).mean()
    assert hidden == pytest.approx(0.75, abs=0.03)
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["mse"]["knows"] < 1e-5


def test_runs_side_by_side_have_a_pair_each(here, capsys):
    command = "reconstruct knows images --against deep --count 2 --out a.png --json"
    does(command)
    original, masked, prediction, _, other, other_pasted = cells("a.png")
    assert error(prediction, original) < 1.5
    assert error(other, original) > 20
    # the same patches are visible in both
    hidden = (np.abs(masked - 127.5) < 1).all(2)
    assert np.abs(other_pasted - original)[~hidden].max() <= 2
    assert np.abs(other_pasted - other)[hidden].max() <= 2
    mse = json.loads(capsys.readouterr().out.splitlines()[-1])["mse"]
    assert list(mse) == ["knows (decoder 1 deep)", "deep (decoder 3 deep)"]
    assert mse["deep (decoder 3 deep)"] > 0.01


def test_another_grid_has_a_mask_of_its_own_and_the_same_share_hidden(here):
    command = "reconstruct knows images --against coarse large --count 2 --out a.png"
    does(command)
    shown = cells("a.png")
    assert len(shown) == 2 + 2 + 3 + 4  # `large` sees finer pixels: a separate original
    for masked in (shown[1], shown[4], shown[8]):
        hidden = (np.abs(masked[:150, :150] - 127.5) < 1).all(2).mean()
        assert 0.4 < hidden < 1


def test_the_first_run_is_drawn_the_same_alone_and_beside_others(here):
    does("reconstruct deep images --count 2 --out a.png")
    alone = cells("a.png")
    does("reconstruct deep images --against knows --count 2 --out b.png")
    for mine, beside in zip(alone, cells("b.png"), strict=False):
        assert error(mine, beside) < 0.1


def test_a_checkpoint_in_a_run_is_compared_with_its_last(here):
    make_run("before", CONFIG, copies=False)
    Path("before/checkpoints/last.pt").rename("knows/checkpoints/previous.pt")
    command = "reconstruct knows images --against knows/checkpoints/previous.pt --count 1"
    does(f"{command} --out a.png")
    original, _, now, _, before, _ = cells("a.png")
    assert error(now, original) < 1.5
    assert error(before, original) > 20


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("reconstruct knows images --against gone", "no checkpoint gone"),
        ("reconstruct knows images --against knows", "names an encoder twice"),
        ("reconstruct knows images --against lost", "lost was trained without reconstruction"),
        ("reconstruct knows images --against broken", "broken is damaged: .* infinite numbers"),
        ("reconstruct knows images --against coarse --mask-ratio 0.8", "0 of 4 patches of coarse"),
        ("reconstruct knows images --channels 4", "images of knows have 3, counted from 1"),
        ("reconstruct knows images --out images", "must end in .png"),
        ("reconstruct knows images --out images/0.png/a.png", "0.png is a file, not a folder"),
        ("reconstruct knows/checkpoints/last.pt images", "--out FILE.png"),
    ],
)
def test_what_cannot_work_is_said_in_a_line_and_writes_nothing(here, capsys, command, says):
    lost = ObjectiveConfig(normalize_targets=False, reconstruction_weight=0.0)
    make_run("lost", replace(CONFIG, objective=lost), copies=False)
    make_run("broken", CONFIG, copies=False, spoilt=True)
    before = sorted(here.rglob("*"))
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(says, line), line
    assert sorted(here.rglob("*")) == before
