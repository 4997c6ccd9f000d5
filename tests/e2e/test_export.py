"""`mvmae export`: encoders that other software loads and that compute the same there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Generator

from mvmae import encoders
from mvmae.cli.main import main
from mvmae.config.files import to_json
from mvmae.config.model import ModelConfig, Size
from mvmae.config.pretrain import ObjectiveConfig, PretrainConfig
from mvmae.encoders import OpenedEncoder, Preprocessing, load_encoder
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.patches import masking_from_noise
from mvmae.method.vit import Encoder, Variant, initialize
from mvmae.storage import atomic
from mvmae.training import checkpoint

IMAGES = torch.randn(2, 3, 16, 16, generator=Generator().manual_seed(1))


def shaken(model):
    """Perturb every weight: in an untrained model biases are 0 and norms 1, which hides errors."""
    generator = Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def make_run(folder: Path, **changes) -> tuple[PretrainConfig, MaskedAutoencoder]:
    """Make a run folder with the files that training writes."""
    objective = ObjectiveConfig(**changes.pop("objective", {}))
    model_config = ModelConfig(
        **{
            "encoder": "vit_pico",
            "image_size": 16,
            "patch_size": 4,
            "decoder_dim": 64,
            "decoder_depth": 2,
        }
        | changes
    )
    config = PretrainConfig(out=folder, model=model_config, objective=objective)
    model = shaken(MaskedAutoencoder(config.model))
    folder.mkdir()
    state = {"model": model.state_dict(), "config": to_json(config)}
    checkpoint.save(folder / "checkpoints", state)
    encoders.save_encoder(folder, encoders.attach_preprocessing(model.encoder, config))
    (folder / "config.json").write_text(to_json(config))
    atomic.write_json(folder / "environment.json", {"num_images": 99, "mvmae": "0", "format": 1})
    atomic.write_json(folder / "health.json", {"status": "healthy", "sentence": "it learns"})
    (folder / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20}\n')
    return config, model


def odd_encoder(folder: Path, variant: Variant, **sizes) -> OpenedEncoder:
    """Save an encoder with another maker's architecture in a folder."""
    size = {"image_size": (16, 16), "patch_size": 4, "in_channels": 3} | sizes
    encoder = Encoder(Size(64, 2, 2), **size, variant=variant)
    initialize(encoder, Generator().manual_seed(0))
    channels = size["in_channels"]
    preprocessing = Preprocessing((0.5,) * channels, (0.25,) * channels, "bilinear")
    pool = "cls" if variant.cls_token else "mean"
    opened = OpenedEncoder(shaken(encoder), preprocessing, pool)
    folder.mkdir()
    encoders.save_encoder(folder, opened)
    return opened


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The working folder of the commands, with three images to check with."""
    (tmp_path / "images").mkdir()
    for index in range(3):
        noise = np.random.default_rng(index).integers(256, size=(20, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def export(*words: str) -> None:
    assert main(["export", *words, "--data", "images"]) == 0


def list_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def run_snippet(text: str, name: str):
    """Run a snippet of Python and return its variable `name`."""
    scope: dict = {}
    exec(text, scope)
    return scope[name]


def snippet(readme: Path) -> str:
    return readme.read_text().split("```python\n")[1].split("```")[0]


# timm


def test_several_formats_print_the_paths_of_their_cards(here, capsys):
    make_run(here / "run")
    export("run", "--format", "pt2", "safetensors")
    out = capsys.readouterr().out
    assert "\n  run/export/pt2/README.md\n  run/export/safetensors/README.md\n" in out
    assert "import" not in out


def test_the_printed_line_creates_a_timm_model_from_a_run(here, capsys):
    pytest.importorskip("timm")
    _, model = make_run(here / "run")
    export("run", "--format", "safetensors")
    export("run", "--format", "timm")
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("model = timm"))
    theirs = run_snippet(f"import timm\n{line}", "model")
    expected = model.encoder.embed(IMAGES)
    torch.testing.assert_close(theirs(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert list_files(here / "run" / "export") == [
        "safetensors/README.md",
        "safetensors/encoder.json",
        "safetensors/encoder.safetensors",
        "timm/README.md",
        "timm/model.safetensors",
    ]
    assert "3 images of images" in out
    modes = {
        path.stat().st_mode for path in (here / "run" / "export").rglob("*.*") if path.is_file()
    }
    assert modes == {(here / "run" / "encoder.json").stat().st_mode}


VARIANTS = {
    "registers": Variant(num_registers=3),
    "registers alone": Variant(num_registers=2, cls_token=False),
    "no class token": Variant(cls_token=False),
    "layer scale": Variant(layer_scale=True),
    "no final norm": Variant(final_norm=False),
    "narrow MLP and another eps": Variant(mlp_ratio=49 / 64, norm_eps=1e-2),
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_kind_of_encoder_becomes_a_timm_model(here, variant):
    pytest.importorskip("timm")
    opened = odd_encoder(here / "odd", variant, image_size=(16, 24), in_channels=1)
    export("odd", "--format", "timm", "--out", "out")
    os.chdir(here / "out" / "timm")
    theirs = run_snippet(snippet(Path("README.md")), "model")
    images = torch.randn(2, 1, 16, 24)
    expected = opened.encoder.embed(images, opened.pool)
    torch.testing.assert_close(theirs(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("vit_tiny", 224, "vit_tiny_patch16_224"),
        ("vit_tiny", 384, "vit_tiny_patch16_384"),
        ("vit_tiny", 96, "vit_tiny_patch16_224', checkpoint_path='d/f', img_size=96"),
        ("vit_pico", (32, 48), "f', img_size=(32, 48), embed_dim=64, depth=4, num_heads=2"),
    ],
)
def test_the_model_names_of_timm_are_used_where_they_exist(name, size, expected):
    pytest.importorskip("timm")
    from mvmae.export.to_timm import snippet as timm_snippet

    text = timm_snippet(Path("d"), encoders.open_encoder(f"random:{name}", size), "f")
    words = expected.split(", ")
    assert all(word in text for word in words), text


def test_the_safetensors_card_loads_with_mvmae_and_with_timm(here):
    pytest.importorskip("timm")
    _, model = make_run(here / "run", latent="cls")
    export("run", "--format", "safetensors")
    os.chdir(here / "run" / "export" / "safetensors")
    text = Path("README.md").read_text()
    assert torch.equal(
        run_snippet(snippet(Path("README.md")), "encoder")(IMAGES), model.encoder(IMAGES)
    )
    theirs = run_snippet(snippet(Path("README.md")), "model")
    torch.testing.assert_close(theirs(IMAGES), model.encoder(IMAGES)[:, 0], rtol=1e-4, atol=1e-5)
    for words in (
        "steps: 20 of 256 images",
        "trained on: photos, 99 images",
        "healthy. it learns.",
        "vit_pico/4",
    ):
        assert words in text


# transformers


def test_a_run_becomes_a_transformers_vit(here):
    transformers = pytest.importorskip("transformers")
    _, model = make_run(here / "run")
    export("run", "--format", "hf")
    theirs, report = transformers.ViTModel.from_pretrained(
        "run/export/hf", add_pooling_layer=False, output_loading_info=True
    )
    assert not any(report.values())
    assert theirs.config.mvmae_pool == "mean"
    tokens = theirs.eval()(IMAGES).last_hidden_state
    torch.testing.assert_close(tokens, model.encoder(IMAGES), rtol=1e-4, atol=1e-5)
    assert torch.equal(load_encoder("hf:run/export/hf")(IMAGES), model.encoder(IMAGES))


@pytest.mark.slow
def test_transformers_does_not_complain_about_our_key(here):
    """Its complaints go to a logger and not to warnings."""
    pytest.importorskip("transformers")
    make_run(here / "run", latent="cls")
    export("run", "--format", "hf", "hf-mae")
    code = (
        "import transformers as t\n"
        "vit = t.ViTModel.from_pretrained('run/export/hf', add_pooling_layer=False)\n"
        "mae = t.ViTMAEForPreTraining.from_pretrained('run/export/hf-mae')\n"
        "print(vit.config.mvmae_pool, mae.config.mvmae_pool)\n"
        "vit.save_pretrained('again')\n"
    )
    quiet = os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=quiet
    )
    assert done.stdout == "cls cls\n"
    assert "warn" not in done.stderr.lower()
    assert "mvmae" not in done.stderr
    assert '"mvmae_pool": "cls"' in Path("again/config.json").read_text()


def test_transformers_preprocesses_images_as_mvmae_does(here):
    transformers = pytest.importorskip("transformers")
    from mvmae.data.sources.open import open_source
    from mvmae.method.views import normalize, whole_view

    make_run(here / "run", image_size=32)
    export("run", "--format", "hf")
    processor = transformers.AutoImageProcessor.from_pretrained("run/export/hf")
    mean, std, _ = encoders.open_encoder("run").preprocessing
    # transformers crops other shapes than squares after resizing, mvmae before.
    for width, tolerance in ((64, 0.005), (50, 0.06)):
        pixels = open_source(("photos",), 3).read(0)[:, :, :width]
        theirs = processor(images=pixels, return_tensors="pt")["pixel_values"]
        ours = normalize(whole_view(pixels, (32, 32))[None], mean, std, torch.device("cpu"))
        assert theirs.shape == ours.shape
        assert (theirs - ours).abs().mean() < tolerance


@pytest.mark.parametrize("options", [{}, {"mask_ratio": 0.8, "image_size": 20, "head": "mlp"}])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_run_becomes_a_vitmae_with_its_decoder(here, options, normalize):
    transformers = pytest.importorskip("transformers")
    config, model = make_run(here / "run", objective={"normalize_targets": normalize}, **options)
    export("run", "--format", "hf-mae")
    theirs, report = transformers.ViTMAEForPreTraining.from_pretrained(
        "run/export/hf-mae", output_loading_info=True
    )
    assert not any(report.values())
    assert theirs.config.mvmae_pool == "mean"
    assert theirs.config.norm_pix_loss == normalize
    assert theirs.config.mask_ratio == pytest.approx(config.model.mask_ratio, abs=1e-5)
    images = torch.randn(2, 3, *config.model.height_width)
    noise = torch.rand(2, config.model.num_patches)
    outputs = theirs.eval()(images, noise=noise)
    assert torch.equal(outputs.mask, masking_from_noise(noise, config.model.num_visible).mask)
    view = model(images, noise, rebuild="all")
    torch.testing.assert_close(outputs.logits, view.prediction, rtol=1e-4, atol=1e-5)
    ours, state = model.state_dict(), theirs.state_dict()
    assert torch.equal(state["vit.embeddings.position_embeddings"], ours["pos_embed"])
    assert torch.equal(state["decoder.decoder_pos_embed"], ours["decoder_pos_embed"])
    query = ours["decoder_blocks.1.attn.qkv.weight"][:64]
    assert torch.equal(state["decoder.decoder_layers.1.attention.q_proj.weight"], query)


# graphs


def test_a_run_becomes_an_onnx_file_for_any_number_of_images(here):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    _, model = make_run(here / "run")
    export("run", "--format", "onnx")
    session = runtime.InferenceSession("run/export/onnx/encoder.onnx")
    assert [(one.name, one.shape[1:]) for one in session.get_inputs()] == [("images", [3, 16, 16])]
    facts = json.loads(session.get_modelmeta().custom_metadata_map["encoder"])
    assert facts["mean"] == [0.485, 0.456, 0.406]
    for count in (1, 5):
        images = torch.randn(count, 3, 16, 16)
        pooled, patches = session.run(["pooled", "patches"], {"images": images.numpy()})
        tokens = model.encoder(images)
        torch.testing.assert_close(torch.tensor(patches), tokens[:, 1:], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            torch.tensor(pooled), tokens[:, 1:].mean(1), rtol=1e-4, atol=1e-4
        )


def test_a_run_becomes_a_torch_program_for_any_number_of_images(here):
    _, model = make_run(here / "run", latent="cls")
    export("run", "--format", "pt2")
    facts = {"encoder.json": ""}
    program = torch.export.load("run/export/pt2/encoder.pt2", extra_files=facts)
    assert json.loads(facts["encoder.json"])["pool"] == "cls"
    for count in (1, 5):
        images = torch.randn(count, 3, 16, 16)
        pooled, patches = program.module()(images)
        tokens = model.encoder(images)
        torch.testing.assert_close(pooled, tokens[:, 0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(patches, tokens[:, 1:], rtol=1e-5, atol=1e-5)


# refused exports, and files that stay


def refuse(command: str, capsys) -> str:
    capsys.readouterr()
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("mvmae: ")
    return error


@pytest.mark.parametrize(
    ("variant", "says"),
    [
        (Variant(num_registers=1), "registers"),
        (Variant(layer_scale=True), "layer scale"),
        (Variant(cls_token=False), "no class token"),
        (Variant(final_norm=False, layer_scale=True), "layer scale and no norm at the end"),
    ],
)
def test_encoders_that_transformers_cannot_hold_are_refused(here, capsys, variant, says):
    odd_encoder(here / "odd", variant)
    text = refuse("export odd --format timm hf", capsys)
    assert f"odd has {says}, which transformers' ViTModel cannot hold" in text
    assert not Path("runs").exists()


def test_a_missing_decoder_is_refused(here, capsys):
    make_run(here / "contrast", objective={"reconstruction_weight": 0.0})
    assert "trained without reconstruction" in refuse("export contrast --format hf-mae", capsys)
    make_run(here / "wide", image_size=(16, 32))
    assert "squares only" in refuse("export wide --format hf-mae", capsys)
    odd_encoder(here / "odd", Variant())
    assert "holds the encoder alone" in refuse("export odd --format hf-mae", capsys)
    text = refuse("export wide/encoder.safetensors --format hf-mae", capsys)
    assert "holds the encoder alone" in text
    text = refuse("export random:vit_pico --format hf-mae", capsys)
    assert "--format hf-mae writes the decoder of a pretrain run, and random:" in text
    assert not list(here.rglob("export"))


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("export", "ENCODER"),
        ("export run", "--format"),
        ("export run --format", "--format"),
        ("export run --format tflite", "tflite"),
        ("export run --format pt2 pt2", "format lists a value twice: pt2 pt2"),
        ("export nowhere --format pt2", "no such encoder: nowhere"),
        ("export run --format pt2 --data nowhere", "no such folder: nowhere"),
        ("export run --format pt2 --data empty", "no images"),
        ("export run --format pt2 --data bad", "none of the 2 images of bad can be read"),
        ("export run --format pt2 --out file", "file is a file"),
        ("export run --format pt2 --out file/in", "file is a file"),
        ("export run --format onnx --out a.onnx", "a.onnx must name a folder"),
        ("export run --format pt2 --data=", "DATA is empty"),
    ],
)
def test_mistakes_are_refused_and_leave_no_files(here, capsys, command, says):
    make_run(here / "run")
    (here / "file").write_text("")
    (here / "empty").mkdir()
    (here / "bad").mkdir()
    for name in ("a.png", "b.jpg"):
        (here / "bad" / name).write_bytes(b"no image")
    before = list_files(here)
    assert says in refuse(command, capsys)
    assert list_files(here) == before
    assert not (here / "run" / "export").exists()


def test_existing_exports_are_replaced_only_with_overwrite(here, capsys):
    make_run(here / "run")
    export("run", "--format", "safetensors", "--out", "out")
    file = here / "out" / "safetensors" / "encoder.safetensors"
    (file.parent / "notes.txt").write_text("mine")
    before = file.stat().st_mtime_ns
    text = refuse("export run --format pt2 safetensors --out out", capsys)
    assert "out/safetensors already exists: replace it with --overwrite" in text
    assert file.stat().st_mtime_ns == before
    export("run", "--format", "safetensors", "--out", "out", "--overwrite")
    assert file.stat().st_mtime_ns > before
    assert sorted(path.name for path in (here / "out").iterdir()) == ["safetensors"]
    assert list_files(here / "out" / "safetensors") == [
        *("README.md", "encoder.json", "encoder.safetensors")
    ]


def test_an_encoder_with_weights_that_are_not_finite_is_refused(here, capsys):
    opened = odd_encoder(here / "odd", Variant())
    opened.encoder.norm.bias.data[3] = float("nan")
    encoders.save_encoder(here / "odd", opened)
    assert "holds infinite or NaN values" in refuse(
        "export odd --format safetensors --out a/b", capsys
    )
    assert not Path("a").exists()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_export_leaves_existing_files(here, monkeypatch, failure):
    make_run(here / "run")
    export("run", "--format", "safetensors", "--out", "out")
    before = list_files(here)

    def interrupt(*_):
        raise failure

    monkeypatch.setattr(safetensors.torch, "save", interrupt)
    status = 130 if failure is KeyboardInterrupt else 2
    command = ["export", "run", "--format", "safetensors", "--data", "images", "--out"]
    assert main([*command, "out", "--overwrite"]) == status
    assert list_files(here) == before
    assert main([*command, "new/er"]) == status
    assert list_files(here) == before
    assert not Path("new").exists()


def test_a_file_that_computes_something_else_is_removed(here, monkeypatch):
    make_run(here / "run")
    save = safetensors.torch.save

    def spoil(tensors):
        return save(tensors | {"norm.bias": tensors["norm.bias"] + 0.01})

    monkeypatch.setattr(safetensors.torch, "save", spoil)
    with pytest.raises(RuntimeError, match="safetensors: the written file computes something else"):
        main(["export", "run", "--format", "safetensors"])
    assert not (here / "run" / "export").exists()


def test_a_missing_package_is_named(here, capsys, monkeypatch):
    make_run(here / "run")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    text = refuse("export run --format pt2 onnx", capsys)
    assert text == "mvmae: --format onnx needs onnxscript: pip install 'mvmae[onnx]'\n"


def test_an_encoder_with_four_channels_is_compared_on_noise(here, capsys):
    opened = odd_encoder(here / "odd", Variant(), in_channels=4)
    export("odd", "--format", "pt2", "--out", "out")
    assert "8 images of noise" in capsys.readouterr().out
    images = torch.randn(3, 4, 16, 16)
    program = torch.export.load("out/pt2/encoder.pt2").module()
    torch.testing.assert_close(program(images)[0], opened.encoder.embed(images, "cls"))


@pytest.mark.parametrize("format", ["timm", "hf", "hf-mae"])
def test_an_export_records_which_token_is_the_feature(here, format):
    make_run(here / "run")  # its feature is the mean, not the class token as in other makers' files
    export("run", "--format", format)
    folder = Path("run/export") / format
    opened = encoders.open_encoder(folder / "model.safetensors" if format == "timm" else folder)
    assert opened.pool == "mean"
    assert opened.preprocessing == encoders.open_encoder("run").preprocessing


FULL_DISK = """
import resource, signal, sys
from mvmae.cli.main import main
import onnxruntime, onnxscript, timm, transformers  # which write caches when first imported
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
for name in ("timm", "hf", "hf-mae", "onnx", "pt2", "safetensors"):
    print(name, main(["export", "run", "--format", name, "--data", "images", "--out", "out"]))
"""


@pytest.mark.slow
def test_a_full_disk_prints_one_line_and_leaves_no_files(here):
    make_run(here / "run")
    command = [sys.executable, "-W", "ignore", "-c", FULL_DISK]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    names = ("timm", "hf", "hf-mae", "onnx", "pt2", "safetensors")
    assert done.stdout.splitlines() == [f"{name} 2" for name in names], done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("mvmae: ")]
    assert len(lines) == len(names)
    assert all(line.startswith("mvmae: File too large") for line in lines)
    assert not Path("out").exists()
