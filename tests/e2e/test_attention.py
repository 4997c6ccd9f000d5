"""`attention`: from files to the picture; a hand-made encoder looks where it was made to look."""

import json
import re
from pathlib import Path

import drawn
import numpy as np
import pytest
import torch
from PIL import Image

from mvmae.cli.main import main
from mvmae.config.model import Size
from mvmae.encoders import OpenedEncoder, Preprocessing, save_encoder
from mvmae.method.vit import Encoder, Variant

ROWS, COLUMNS, PATCH = 4, 6, 8
PLACE = (1, 4)


def looking(channel: int = 0, variant: Variant | None = None, **more) -> Encoder:
    """All heads look at what is bright in a channel; tokens pass the blocks as they are."""
    encoder = Encoder(
        Size(16, 2, 2),
        image_size=(ROWS * PATCH, COLUMNS * PATCH),
        patch_size=PATCH,
        variant=variant or Variant(),
        **more,
    )
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
        encoder.pos_embed.zero_()
        encoder.patch_embed.proj.weight[0, channel] = 1.0
        encoder.patch_embed.proj.bias[0] = -20.0  # dark gray is below 0: norms forget sizes
        for block in encoder.blocks:
            block.norm1.weight.fill_(1.0)
            for head in (0, 1):
                block.attn.qkv.bias[8 * head] = 4.0
                block.attn.qkv.weight[16 + 8 * head, 0] = 4.0
    return encoder


def save(folder: Path, encoder: Encoder) -> None:
    folder.mkdir()
    channels = encoder.in_channels
    save_encoder(
        folder,
        OpenedEncoder(
            encoder, Preprocessing((0.0,) * channels, (1.0,) * channels, "bicubic"), "mean"
        ),
    )


@pytest.fixture
def here(tmp_path, monkeypatch, capsys) -> Path:
    """Encoders, and images with a red patch and a green one on dark gray."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    pixels = np.full((ROWS * PATCH, COLUMNS * PATCH, 3), 30, np.uint8)
    for (row, column), colour in ((PLACE, (255, 30, 30)), ((3, 0), (30, 255, 30))):
        pixels[PATCH * row :, PATCH * column :][:PATCH, :PATCH] = colour
    for number in range(3):
        Image.fromarray(pixels).save(f"images/{number}.png")
    save(tmp_path / "red", looking(0))
    save(tmp_path / "green", looking(1, Variant(cls_token=False)))
    save(tmp_path / "registers", looking(0, Variant(num_registers=3)))
    save(tmp_path / "gray", looking(0, in_channels=1))
    return tmp_path


def does(command: str) -> None:
    """Give a command that must succeed."""
    assert main(command.split()) == 0


def cells(file: str) -> list[np.ndarray]:
    """The pictures of the first row."""
    return drawn.cells(file, ROWS / COLUMNS)


def brightest_patch(picture: np.ndarray) -> tuple[int, int]:
    """The patch with the brightest pixels."""
    light = picture.mean(2)
    places = np.argwhere(light > light.max() - 2).mean(0)
    return int(places[0] * ROWS / len(light)), int(places[1] * COLUMNS / light.shape[1])


@pytest.mark.parametrize("kind", ["rollout", "last"])
@pytest.mark.parametrize(
    ("encoder", "place"), [("red", PLACE), ("green", (3, 0)), ("registers", PLACE)]
)
def test_the_picture_is_brightest_where_the_encoder_looks(here, encoder, place, kind):
    command = f"attention {encoder} images --kind {kind} --count 1 --out a.png"
    does(command)
    original, heat, overlay = cells("a.png")
    assert brightest_patch(heat) == place
    assert brightest_patch(overlay) == place
    assert original[..., 0].max() > 240
    reddest = original[..., 0] - original[..., 1]
    row, column = np.unravel_index(reddest.argmax(), reddest.shape)
    assert (row * ROWS // len(original), column * COLUMNS // original.shape[1]) == PLACE


def test_encoders_side_by_side_see_the_same_images(here):
    command = "attention red images --against green random:red --count 2 --out a.png"
    does(command)
    _, heat, over, other_heat, other_over, random_heat, _ = cells("a.png")
    assert [brightest_patch(one) for one in (heat, over)] == [PLACE, PLACE]
    assert [brightest_patch(one) for one in (other_heat, other_over)] == [(3, 0), (3, 0)]
    assert random_heat.max() < heat.max()  # on one scale


def test_heads_stand_in_columns(here):
    does("attention red images --kind heads --count 1 --out a.png")
    _, *heads = cells("a.png")
    assert [brightest_patch(head) for head in heads] == [PLACE, PLACE]


def test_larger_images_make_finer_maps(here):
    command = "attention red images --count 1 --image-size 64 96 --out fine.png"
    does(command)
    does("attention red images --count 1 --out coarse.png")
    fine, coarse = (cells(name)[1] for name in ("fine.png", "coarse.png"))
    assert brightest_patch(fine) == brightest_patch(coarse) == PLACE
    bright = [(one.mean(2) > 200).sum() for one in (fine, coarse)]
    assert bright[0] != bright[1]


def test_gray_images_and_chosen_channels_are_drawn(here):
    does("attention gray images --count 1 --out gray.png")
    original = cells("gray.png")[0]
    assert np.ptp(original, axis=2).max() <= 2
    does("attention red images --channels 1 --count 1 --out red.png")
    original = cells("red.png")[0]
    assert np.ptp(original, axis=2).max() <= 2
    assert brightest_patch(original) == PLACE
    does("attention red images --channels 3 2 1 --count 1 --out bgr.png")
    original = cells("bgr.png")[0]
    assert brightest_patch(original[..., 2:]) == PLACE


def test_a_run_folder_gets_the_picture_among_its_figures(here, capsys):
    Path("red/config.json").write_text("{}")
    does("attention red images --count 5")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["3 of 5 images: there are no more", "written: red/figures/attention.png"]
    first = Path("red/figures/attention.png").read_bytes()
    does("attention red images --count 5")
    assert Path("red/figures/attention.png").read_bytes() == first
    assert list(Path("red/figures").iterdir()) == [Path("red/figures/attention.png")]


def test_what_was_passed_over_is_named(here, capsys):
    Path("images/1.png").write_bytes(b"no image")
    does("attention red images --count 3 --out a.png")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 of 3 images: no more can be read"
    assert lines[1] == "passed over: images/1.png (not an image of a supported kind)"


def test_the_seed_chooses_the_images(here):
    for number in range(3):
        Image.new("RGB", (48, 32), (80 * number, 0, 0)).save(f"images/{number}.png")
    shades = set()
    for seed in range(6):
        does(f"attention red images --count 1 --seed {seed} --out a.png")
        shades.add(round(cells("a.png")[0][..., 0].mean() / 80))
    assert shades == {0, 1, 2}


def test_for_a_program_the_file_is_told_in_json(here, capsys):
    does("attention red images --count 1 --out a.png --json")
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["command"], last["file"]) == ("attention", "a.png")


def test_names_of_files_are_only_text(here):
    Path("images/0.png").rename(r"images/[bold]$\frac$ 写.png")
    Path("images/1.png").unlink()
    Path("images/2.png").unlink()
    assert main(["attention", "red", "images", "--out", "a.png"]) == 0
    assert brightest_patch(cells("a.png")[1]) == PLACE


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("attention gone images --out a.png", "no such encoder: gone"),
        ("attention gone images", "no such encoder: gone"),
        ("attention red images", "red is not a run folder: say where .* --out FILE.png"),
        ("attention red gone --out a.png", "no such folder: gone"),
        ("attention red images --out a.jpg", "must end in .png"),
        ("attention red images --out red.png", "red.png is a folder"),
        ("attention red images --out images/0.png/a.png", "0.png is a file, not a folder"),
        ("attention red images --out a.png --against red", "names an encoder twice"),
        ("attention red images --out a.png --against gone", "no such encoder: gone"),
        ("attention red images --out a.png --image-size 33", "33 x 33 is not a multiple"),
        ("attention red images --out a.png --channels 1 2 4", "images of red have 3"),
        ("attention red images --out a.png --channels 1 2", "1 channel, drawn gray, or 3"),
        ("attention red images --out a.png --kind mean", "--kind"),
        ("attention red broken --out a.png", "none of the 2 images of broken can be read"),
        ("attention red images --out a.png --count 1000", "count must be at most 200"),
        ("attention red images --against red/encoder.json --out a.png", "encoder.json"),
    ],
)
def test_what_cannot_work_is_said_in_a_line_and_writes_nothing(here, capsys, command, says):
    Path("red.png").mkdir()
    Path("broken").mkdir()
    for number in range(2):
        Path(f"broken/{number}.png").write_bytes(b"no image")
    before = sorted(here.rglob("*"))
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(says, line), line
    assert sorted(here.rglob("*")) == before
