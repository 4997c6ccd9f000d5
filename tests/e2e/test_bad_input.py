"""Mistakes of users end with status 2, one line with what would be right, and no traceback."""

import json
import pickle
import re
import shutil
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from PIL import Image

from mvmae.cli.main import main
from mvmae.errors import UserError
from mvmae.storage import atomic
from mvmae.training import checkpoint

A_SECOND = (
    "--recipe demo --model.image-size 16 --model.decoder-dim 32 --batch-size 8 --epochs 2 "
    "--warmup-epochs 0 --device cpu --workers 0"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with images of several kinds, and a run."""
    home = tmp_path_factory.mktemp("home")
    for label, colour in (("blue", (20, 40, 200)), ("red", (200, 40, 20))):
        (home / "images" / label).mkdir(parents=True)
        for index in range(8):
            shade = tuple(value + 3 * index for value in colour)
            Image.new("RGB", (20, 16), shade).save(home / "images" / label / f"{index}.png")
    shutil.copytree(home / "images" / "red", home / "flat")
    shutil.copytree(home / "images" / "red", home / "one" / "red")
    shutil.copytree(home / "images", home / "broken")
    for file in (home / "broken").rglob("*.png"):
        file.write_bytes(b"no image")
    (home / "empty").mkdir()
    (home / "folder.json").mkdir()
    (home / "folder.png").mkdir()
    (home / "notes").mkdir()
    (home / "notes" / "a.txt").write_text("notes")
    (home / "digits").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(f"pretrain images --out run {A_SECOND}".split()) == 0
    return home


def on_disk(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in folder.rglob("*")
    }


def assert_refused(here: Path, capsys, command: str | list[str], says: str) -> None:
    """Assert that a command is refused as a user's mistake should be."""
    capsys.readouterr()
    before = on_disk(here)
    words = command.split() if isinstance(command, str) else command
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mvmae: ")
    assert re.search(says, line), line
    assert "Traceback" not in line
    assert len(line) < 400
    assert on_disk(here) == before


def case(name: str, command: str, says: str):
    """A case of a table."""
    return pytest.param(command, says, id=name)


WORDS = [
    case("unknown command", "pretrian images", "no command 'pretrian': did you mean 'pretrain'"),
    case(
        "unknown command far from all", "xyzzy", r"no command 'xyzzy' \(`mvmae --help` lists them\)"
    ),
    case("flag without a command", "--epochs 3", "no command '--epochs'"),
    case("unknown name for recipes", "recipes dmo", "no recipe 'dmo': did you mean 'demo'?"),
    case("unknown flag", "pretrain --epohcs 3", "unknown option --epohcs: did you mean --epochs"),
    case("unknown nested flag", "pretrain --model.mask 0.5", "unknown option --model.mask"),
    case("flag without a value", "pretrain --epochs", "--epochs"),
    case("recipe without a value", "pretrain --recipe", "--recipe needs a value"),
    case("recipe followed by a flag", "pretrain --recipe --out new", "--recipe needs a value"),
    case("unknown recipe", "pretrain --recipe dmo", "no recipe 'dmo': did you mean 'demo'"),
    case("unknown variant", "pretrain --recipe demo+mea", "no variant 'mea': did you mean 'mae'"),
    case("recipe with an empty variant", "pretrain --recipe demo+", "no variant ''"),
    case("missing recipe file", "pretrain --recipe gone.json", "cannot read gone.json"),
    case("recipe file that is a folder", "pretrain --recipe folder.json", "cannot read folder"),
    case("whole number", "pretrain --epochs many", "--epochs: 'many' is not a whole number"),
    case("fraction for a whole number", "pretrain --epochs 2.5", "'2.5' is not a whole number"),
    case("number", "pretrain --base-lr fast", "--base-lr: 'fast' is not a number"),
    case("choice", "pretrain --device tpu", "invalid choice 'tpu' .*'auto', 'cpu', 'cuda'"),
    case("encoder", "pretrain --model.encoder vit_smal", "vit_smal.*vit_small"),
    case("one of two values", "pretrain --betas 0.9", "--betas"),
    case("encoder missing", "reconstruct", "ENCODER"),
    case("unknown flag of another command", "reconstruct run --cuont 3", "unknown option --cuont"),
]

SETTINGS = [
    case("size", "--model.image-size 17", "17 is not a multiple of patch_size 4: 16 would be"),
    case("two sizes", "--model.image-size 16 18", "16 x 18 is not a multiple .*: 16 x 16 would"),
    case("no size", "--model.image-size 0", "image_size 0"),
    case("patch too large", "--model.patch-size 32", "32 would be"),
    case("no patch", "--model.patch-size 0", "patch_size must be at least 1"),
    case("mask ratio of 0", "--model.mask-ratio 0", "must be between 0 and 1"),
    case("mask ratio of 1", "--model.mask-ratio 1", "must be between 0 and 1"),
    case("mask ratio above 1", "--model.mask-ratio 75", "must be between 0 and 1, not 75"),
    case("negative mask ratio", "--model.mask-ratio=-0.5", "must be between 0 and 1"),
    case("mask ratio that is not a number", "--model.mask-ratio nan", "between 0 and 1, not nan"),
    case("nothing visible", "--model.mask-ratio 0.95", "leaves 0 of 16 patches visible"),
    case("nothing masked", "--model.mask-ratio 0.00000001", "leaves 16 of 16 patches visible"),
    case("one patch", "--model.patch-size 16", "of 1 patches visible"),
    case("decoder width", "--model.decoder-dim 33", "not a multiple of 32"),
    case("channels", "--model.in-channels 2", "have 3 channels, not 2|has 3 values for 2"),
    case("batch of one", "--batch-size 1", "batch_size must be at least 2"),
    case("no batch", "--batch-size 0", "--batch-size: at least 1, or auto, not 0"),
    case(
        "batch larger than the data",
        "--batch-size 17",
        "16 training images are fewer than a batch of 17",
    ),
    case("no epochs", "--epochs 0", "epochs must be at least 1"),
    case("long warm-up", "--warmup-epochs 2", "warmup_epochs 2 must be less than epochs 2"),
    case("no learning rate", "--base-lr 0", "base_lr must be finite and above 0"),
    case("betas", "--betas 0.9 1.0", r"betas must be in \[0, 1\)"),
    case("clipping", "--clip-grad 0", "clip_grad must be above 0"),
    case("workers", "--workers=-1", "workers must be between 0 and"),
    case("seed", "--seed=-1", "seed must be between 0 and"),
    case("one view", "--views.num-views 1", "contrast needs two views"),
    case(
        "no loss", "--objective.reconstruction-weight 0 --objective.contrastive-weight 0", "nothing"
    ),
    case("temperature", "--objective.temperature 0", "temperature must be above 0"),
    case(
        "head without contrast",
        "--objective.contrastive-weight 0 --model.head mlp",
        "model.head has no effect without contrast",
    ),
    case("crop scale", "--views.crop-scale 0.9 0.2", "crop_scale 0.9 0.2 must be two"),
    case("mean", "--views.mean 0.5 0.5", "views.mean has 2 values for 3 channels"),
    case("std", "--views.std 0.2 0 0.2", "std must be between"),
    case("two wishes", "--resume --overwrite", "--resume and --overwrite exclude each other"),
    case("missing eval data", "--eval-data gone", "no such folder: gone"),
    case("unlabelled eval data", "--eval-data flat", "flat has no labels"),
    case("eval data of training", "--eval-data images", "test images .*are also trained on"),
    case("built in or not", "--eval-data digits", "write ./digits for the folder"),
]

FOLDERS = [
    case("no such folder", "pretrain gone --out new", "no such folder: gone"),
    case("no images", "pretrain empty --out new", "no images below empty: looked for .*png"),
    case("no images but notes", "pretrain notes --out new", "no images below notes"),
    case("built in or not", "pretrain digits --out new", "builtin:digits for the other"),
    case("a file that is not a list", "pretrain run/config.json --out new", "neither a folder nor"),
    case("list of nothing there", "pretrain notes/a.txt --out new", "entry 1: no such file"),
    case("two, one no folder", "pretrain images gone --out new", "gone is not a folder"),
    case("endless name", f"pretrain {'x' * 300} --out new", "x{50}"),
    case("another run", "pretrain images --out run", "run already holds a run: .*--overwrite"),
    case("other files", "pretrain images --out notes", "notes holds other files"),
    case("overwrite other files", "pretrain images --out notes --overwrite", "holds other files"),
    case("out is a file", "pretrain images --out notes/a.txt", "a.txt is a file"),
    case("out below a file", f"pretrain images --out notes/a.txt/run {A_SECOND}", "cannot make"),
    case("resume nothing", "pretrain images --out new --resume", "no run in new to resume"),
    case("resume the default", "pretrain --resume", "no run in runs/pretrain to resume"),
    case("resume notes", "pretrain --resume --out notes", "no run in notes to resume"),
    case("resume with a seed", "pretrain --resume --out run --seed 1", "run with seed 0, not 1"),
    case(
        "resume with another mask",
        "pretrain --resume --out run --model.mask-ratio 0.5",
        "model.mask_ratio 0.8, not 0.5: resume with the same settings",
    ),
    case("resume other data", "pretrain flat --resume --out run", "run with data .*images"),
]

RECONSTRUCTIONS = [
    case("reconstruct nothing", "reconstruct gone images", "no checkpoint gone"),
    case("reconstruct missing images", "reconstruct run gone", "no such folder: gone"),
    case("reconstruct notes", "reconstruct notes images", "no checkpoint notes"),
    case("reconstruct at random", "reconstruct random:vit_pico images", "random:vit_pico"),
    case(
        "random encoder", "reconstruct random:vit_nano images", "encoder alone and has no decoder"
    ),
    case("encoder alone", "reconstruct run/encoder.safetensors images", "holds the encoder alone"),
    case("broken images", "reconstruct run broken", "none of the 16 images of broken can be read"),
    case("no pictures", "reconstruct run images --count 0", "count must be at least 1"),
    case("mask ratio", "reconstruct run images --mask-ratio 2", "between 0 and 1"),
    case("all masked", "reconstruct run images --mask-ratio 0.999", "leaves 0 of 16 patches"),
    case("picture of another kind", "reconstruct run images --out a.jpg", "must end in .png"),
    case(
        "picture below a file",
        "reconstruct run images --out notes/a.txt/b.png",
        "a.txt",
    ),
    case("picture is a folder", "reconstruct run images --out folder.png", "folder.png"),
    case("nowhere to draw", "reconstruct run/checkpoints/last.pt images", "--out FILE.png"),
]


@pytest.mark.parametrize(("command", "says"), [*WORDS, *FOLDERS, *RECONSTRUCTIONS])
def test_command_is_refused(here, capsys, command, says):
    assert_refused(here, capsys, command, says)


@pytest.mark.parametrize(("options", "says"), SETTINGS)
def test_setting_is_refused(here, capsys, options, says):
    given = {word.split("=")[0] for word in options.split() if word.startswith("--")}
    words = re.split(r" (?=--)", A_SECOND)
    kept = [word for word in words if word.split()[0] not in given]
    assert_refused(here, capsys, f"pretrain images --out new {' '.join(kept)} {options}", says)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("command", ["pretrain images", "reconstruct run images"])
def test_cuda_that_is_not_there_is_refused(here, capsys, command):
    assert_refused(here, capsys, f"{command} --device cuda --out new.png", "no CUDA device found")


def test_missing_tensorboard_is_refused(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    command = f"pretrain images --out new --log tensorboard {A_SECOND}"
    assert_refused(here, capsys, command, r"pip install 'mvmae\[logging\]'")


# configs that were edited


def edited_config(here: Path, **changes) -> None:
    config = json.loads((here / "run" / "config.json").read_text())
    (here / "edited.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epohcs": 3}, "unknown key 'epohcs': did you mean 'epochs'"),
        ({"model": {"mask_ration": 0.5}}, "unknown key 'mask_ration': did you mean 'mask_ratio'"),
        ({"epochs": "many"}, "epochs"),
        ({"batch_size": None}, "batch_size"),
        ({"model": 7}, "model"),
        ({"model": {"encoder": "vit_smal"}}, "vit_smal"),
        ({"betas": [0.9]}, "betas"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"model": {"image_size": [16]}}, "image_size|unpack"),
        ({"epochs": 2.5}, "epochs"),
        ({"overwrite": "false"}, "overwrite"),
    ],
    ids=str,
)
def test_edited_config_is_refused(here, capsys, changes, says):
    edited_config(here, **changes)
    assert_refused(here, capsys, "pretrain --recipe edited.json --out run", says)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe{}"], ids=str)
def test_file_that_is_no_config_is_refused(here, capsys, content):
    (here / "edited.json").write_bytes(content)
    assert_refused(here, capsys, "pretrain --recipe edited.json --out new", "edited.json")


# data and checkpoints that were damaged

LAST = Path("run/checkpoints/last.pt")
PRODUCT = Path("run/encoder.safetensors")
FACTS = Path("run/encoder.json")


def truncate(file: Path, share: float = 0.5) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])


def edit(change) -> None:
    """Change what the checkpoint holds, and leave it a sound file."""
    saved = checkpoint.load(LAST)
    del saved[checkpoint.CHECKSUM]
    change(saved)
    torch.save(saved | {checkpoint.CHECKSUM: atomic.digest(saved)}, LAST)


def without_reconstruction(saved: dict) -> None:
    weight = '"reconstruction_weight": 1.0'
    assert weight in saved["config"]
    saved["config"] = saved["config"].replace(weight, '"reconstruction_weight": 0.0')


def facts(**changes) -> None:
    """Change what encoder.json says; None removes it."""
    said = json.loads(FACTS.read_text()) | changes
    FACTS.write_text(json.dumps({k: v for k, v in said.items() if v is not None}))


DAMAGE = {
    "truncated": lambda: truncate(LAST),
    "emptied": lambda: truncate(LAST, 0),
    "removed": lambda: LAST.unlink(),
    "another shape": lambda: edit(lambda s: s["model"].update({"norm.weight": torch.ones(3)})),
    "another model": lambda: edit(lambda s: s["model"].pop("norm.weight")),
    "older": lambda: edit(lambda s: s.pop("drawn")),
    "no decoder": lambda: edit(without_reconstruction),
    "foreign": lambda: torch.save({"epoch": 3}, LAST),
    "list": lambda: torch.save([1, 2], LAST),
    "hostile": lambda: LAST.write_bytes(pickle.dumps(UserError("made by a pickle"))),
    "image gone": lambda: Path("images/red/3.png").unlink(),
    "image added": lambda: shutil.copy("flat/0.png", "images/red/new.png"),
    "config cut": lambda: truncate(Path("run/config.json")),
    "product cut": lambda: truncate(PRODUCT),
    "facts cut": lambda: truncate(FACTS),
    "facts gone": lambda: FACTS.unlink(),
    "facts of a list": lambda: FACTS.write_text("[]"),
    "width gone": lambda: facts(width=None),
    "negative width": lambda: facts(width=-64),
    "another width": lambda: facts(width=128),
    "no patch": lambda: facts(patch_size=0),
    "another pool": lambda: facts(pool="median"),
    "another interpolation": lambda: facts(interpolation="lanczos"),
}
RESUME = "pretrain --resume --out run"
KNN = "knn run images"
RECONSTRUCT = "reconstruct run images"


def damage_case(what: str, command: str, says: str):
    return pytest.param(what, command, says, id=f"{what}: {command.split()[0]}")


@pytest.mark.parametrize(
    ("what", "command", "says"),
    [
        damage_case("truncated", RESUME, "last.pt is damaged or not a checkpoint"),
        damage_case("emptied", RESUME, "last.pt is damaged or not a checkpoint"),
        damage_case("removed", RESUME, "no checkpoint run/checkpoints/last.pt"),
        damage_case(
            "another shape", RESUME, "last.pt does not fit the model: norm.weight has shape"
        ),
        damage_case("another model", RESUME, "does not fit the model: missing keys: norm.weight"),
        damage_case("older", RESUME, "last.pt is not a checkpoint of mvmae pretrain"),
        damage_case(
            "foreign", RESUME, "last.pt is damaged or from another program: it has no checksum"
        ),
        damage_case("list", RESUME, "last.pt is not a checkpoint: it holds a list"),
        damage_case("hostile", RESUME, "last.pt is damaged or not a checkpoint"),
        damage_case("image gone", RESUME, "the images in images are not those that run began with"),
        damage_case(
            "image added", RESUME, "the images in images are not those that run began with"
        ),
        damage_case("config cut", RESUME, "run/config.json is not a config"),
        damage_case("truncated", RECONSTRUCT, "last.pt is damaged or not a checkpoint"),
        damage_case(
            "another shape", RECONSTRUCT, "last.pt does not fit the model: norm.weight has shape"
        ),
        damage_case(
            "foreign",
            RECONSTRUCT,
            "is not a training checkpoint of a pretrain run and has no decoder",
        ),
        damage_case("hostile", RECONSTRUCT, "last.pt is damaged or not a checkpoint"),
        damage_case("no decoder", RECONSTRUCT, "was trained without reconstruction"),
        damage_case("product cut", KNN, "encoder.safetensors is damaged or not a safetensors file"),
        damage_case("facts cut", KNN, "run/encoder.json is damaged"),
        damage_case("facts gone", KNN, "no such file: run/encoder.json"),
        damage_case(
            "facts of a list", KNN, "encoder.json is damaged: it does not hold a JSON object"
        ),
        damage_case("width gone", KNN, "encoder.json does not describe an encoder"),
        damage_case("negative width", KNN, "encoder.json does not describe an encoder"),
        damage_case("another width", KNN, "does not fit the model"),
        damage_case("no patch", KNN, "describe"),
        damage_case("another pool", KNN, "describe"),
        damage_case("another interpolation", KNN, "describe"),
    ],
)
def test_damage_is_named(here, capsys, what, command, says):
    DAMAGE[what]()
    assert_refused(here, capsys, command, says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("images/red/0.png,red\nimages/red/1.png\n", "all.csv, entry 2: no label"),
        ("images/red/0.png\nimages/red/gone.png\n", "all.csv, entry 2: no such file"),
        ("", "all.csv lists no images"),
        pytest.param(
            '"' + "x" * 200_000,
            "all.csv",
        ),
    ],
    ids=["no label", "no file", "nothing", "endless field"],
)
def test_bad_list_is_refused(here, capsys, content, says):
    (here / "all.csv").write_text(content)
    assert_refused(here, capsys, "pretrain all.csv --out new", says)
