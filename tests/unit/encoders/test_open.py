import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from mvmae import encoders
from mvmae.config.files import to_json
from mvmae.config.model import ENCODERS, ModelConfig
from mvmae.config.views import ViewsConfig
from mvmae.data.sources.folders import open_images
from mvmae.encoders import Preprocessing, load_autoencoder, load_encoder, open_encoder
from mvmae.errors import UserError
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.vit import sincos_positions
from mvmae.training import checkpoint

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
CPU = torch.device("cpu")


@pytest.fixture
def run(tiny):
    """A run folder with what training leaves in it, and the model that was trained."""
    config = replace(
        tiny,
        model=replace(tiny.model, latent="cls"),
        views=ViewsConfig(mean=(0.5, 0.4, 0.3), interpolation="bilinear"),
    )
    model = MaskedAutoencoder(config.model, torch.Generator().manual_seed(7))
    config.out.mkdir()
    state = {"model": model.state_dict(), "config": to_json(config)}
    checkpoint.save(config.out / "checkpoints", state)
    encoders.save_encoder(config.out, encoders.attach_preprocessing(model.encoder, config))
    return config.out, model


# Where encoders come from


@pytest.mark.parametrize(
    "name", ["", "encoder.safetensors", "checkpoints/last.pt"], ids=["folder", "product", "state"]
)
def test_a_trained_encoder_comes_back_from_its_run(run, name):
    folder, model = run
    opened = open_encoder(folder / name)
    assert torch.equal(opened.encoder(IMAGES), model.encoder(IMAGES))
    assert opened.pool == "cls"
    assert opened.preprocessing == Preprocessing((0.5, 0.4, 0.3), (0.229, 0.224, 0.225), "bilinear")
    assert not opened.encoder.training


def test_a_stopped_runs_encoder_is_in_its_checkpoint(run):
    folder, model = run
    (folder / "encoder.safetensors").unlink()
    assert torch.equal(load_encoder(str(folder))(IMAGES), model.encoder(IMAGES))


def test_a_head_is_no_part_of_the_encoder(tiny):
    config = replace(tiny, model=replace(tiny.model, head="mlp"))
    model = MaskedAutoencoder(config.model)
    state = {"model": model.state_dict(), "config": to_json(config)}
    checkpoint.save(config.out.parent / "checkpoints", state)
    encoder = load_encoder(config.out.parent / "checkpoints" / "last.pt")
    assert torch.equal(encoder(IMAGES), model.encoder(IMAGES))


def test_a_whole_autoencoder_comes_back(run):
    folder, model = run
    noise = torch.rand(2, 16)
    for source in (folder, folder / "checkpoints" / "last.pt"):
        loaded = load_autoencoder(source)
        assert torch.equal(loaded(IMAGES, noise).prediction, model(IMAGES, noise).prediction)
        assert not loaded.training


def test_a_random_encoder_is_always_the_same():
    first, again = (load_encoder("random:vit_pico", 64) for _ in range(2))
    assert first.size == ENCODERS["vit_pico"]
    assert first.image_size == (64, 64)
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(first(images), again(images))


def test_a_random_encoder_takes_other_sizes_and_channels():
    opened = open_encoder("random:vit_pico", (64, 96), in_channels=1)
    assert opened.encoder(torch.rand(1, 1, 64, 96)).shape == (1, 1 + 4 * 6, 64)
    assert len(opened.preprocessing.mean) == 1
    assert load_encoder("random:vit_pico").image_size == (224, 224)


def test_encoder_json_says_what_a_stranger_must_know(run):
    folder, _ = run
    assert json.loads((folder / "encoder.json").read_text()) == {
        "format": 1,
        "width": 64,
        "depth": 4,
        "num_heads": 2,
        "patch_size": 4,
        "image_size": [16, 16],
        "in_channels": 3,
        "pool": "cls",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
    }


# Other sizes of images


@pytest.mark.parametrize(("size", "grid"), [(32, (8, 8)), ((8, 24), (2, 6))])
def test_an_encoder_takes_images_of_another_size(run, size, grid):
    folder, model = run
    encoder = load_encoder(folder, size)
    height, width = 4 * grid[0], 4 * grid[1]
    assert encoder(torch.rand(2, 3, height, width)).shape == (2, 1 + grid[0] * grid[1], 64)
    weights, before = encoder.state_dict(), model.encoder.state_dict()
    for key in before.keys() - {"pos_embed"}:
        assert torch.equal(weights[key], before[key])


def test_positions_are_stretched_over_the_new_grid(run):
    folder, model = run
    wide = load_encoder(folder, (16, 32)).pos_embed
    assert torch.equal(wide[:, 0], model.encoder.pos_embed[:, 0])
    old = model.encoder.pos_embed[0, 1:].reshape(4, 4, 64)
    new = wide[0, 1:].reshape(4, 8, 64)
    # Two new columns stand where one old one stood; the rows stay.
    torch.testing.assert_close((new[:, 2] + new[:, 3]) / 2, old[:, 1], rtol=0, atol=0.1)
    torch.testing.assert_close(new[:, :, 48:], old[:, :1, 48:].expand(-1, 8, -1))


def test_its_own_size_changes_nothing(run):
    folder, model = run
    for size in (None, 16, (16, 16)):
        encoder = load_encoder(folder, size)
        assert torch.equal(encoder.pos_embed, model.encoder.pos_embed)
    assert torch.equal(encoder.pos_embed[0, 1:], sincos_positions(64, (4, 4)))


# What cannot be loaded


def test_what_cannot_be_an_encoder_is_refused(run, tmp_path):
    folder, _ = run
    (tmp_path / "empty").mkdir()
    checkpoint.save(tmp_path / "foreign", {"weights": torch.zeros(3)})
    refused = {
        "random:vit_bse": "no encoder 'vit_bse': did you mean 'vit_base'?",
        str(tmp_path / "nowhere"): "no such encoder: ",
        str(tmp_path / "empty"): "holds no encoder: neither encoder.safetensors nor",
        str(tmp_path / "foreign" / "last.pt"): "holds no Vision Transformer that mvmae knows",
    }
    for source, message in refused.items():
        with pytest.raises(UserError, match=message):
            load_encoder(source)
    with pytest.raises(UserError, match=r"image size 18 x 18 is not a multiple of the patch size"):
        load_encoder(folder, 18)
    with pytest.raises(UserError, match="in_channels must be at least 1, not 0"):
        load_encoder(folder, in_channels=0)


def test_an_encoder_alone_is_no_autoencoder(run):
    folder, _ = run
    with pytest.raises(UserError, match="holds the encoder alone: give the run folder"):
        load_autoencoder(folder / "encoder.safetensors")
    with pytest.raises(UserError, match="no checkpoint "):
        load_autoencoder(folder / "checkpoints")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("encoder.safetensors", b"\x00" * 40),
        ("encoder.safetensors", b""),
        ("encoder.json", b"{"),
        ("encoder.json", b'{"width": 64}'),
    ],
)
def test_a_damaged_product_is_named(run, name, content):
    folder, _ = run
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|does not describe an encoder") as caught:
        load_encoder(folder)
    assert str(folder) in str(caught.value)


def test_a_product_without_its_json_is_refused(run):
    folder, _ = run
    (folder / "encoder.json").unlink()
    with pytest.raises(UserError, match=r"no such file: .*encoder.json"):
        load_encoder(folder)


def test_a_cut_checkpoint_is_named(run):
    folder, _ = run
    file = folder / "checkpoints" / "last.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"last.pt is damaged or not a checkpoint"):
        load_autoencoder(folder)


def test_weights_of_another_shape_are_refused(run):
    folder, _ = run
    facts = json.loads((folder / "encoder.json").read_text())
    for change, message in [
        ({"depth": 5}, "missing keys: blocks.4.attn.proj.bias, .* and 2 more"),
        ({"depth": 3}, "unknown keys: blocks.3.attn.proj.bias, .* and 2 more"),
        ({"width": 128}, r"does not fit the model: .* in the model "),
    ]:
        (folder / "encoder.json").write_text(json.dumps(facts | change))
        with pytest.raises(UserError, match=message):
            load_encoder(folder)


# Features


def embed(source, encoder, batch_size: int = 3) -> encoders.Features:
    preprocessing = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic")
    return encoders.compute_features(
        encoder,
        source,
        preprocessing,
        device=CPU,
        precision_name="fp32",
        batch_size=batch_size,
        workers=0,
    )


def test_features_are_the_pooled_tokens_of_every_image(run, image_folder):
    _, model = run
    source = open_images([str(image_folder(size=(16, 16), per_class=4, suffix=".png"))], 3)
    result = embed(source, model.encoder)
    images = torch.stack([source.read(index) for index in range(8)])
    tokens = model.encoder((images.float() / 255 - 0.5) / 0.25)
    torch.testing.assert_close(result.mean, tokens[:, 1:].mean(1).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.cls, tokens[:, 0].detach(), rtol=1e-4, atol=1e-5)
    assert result.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert not result.skipped


def test_features_leave_out_what_cannot_be_read(run, image_folder):
    _, model = run
    images = image_folder(per_class=4, suffix=".png")
    (images / "blue" / "1.png").write_bytes(b"no image")
    source = open_images([str(images)], 3)
    result = embed(source, model.encoder, batch_size=1)
    assert result.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert len(result.mean) == len(result.cls) == 7
    assert [skip.path for skip in result.skipped] == [str(images / "blue" / "1.png")]
    pixels = encoders.extract_features(encoders.pixel_extractor(side=4, workers=None), source)
    assert pixels.mean.shape == (7, 3 * 4 * 4)
    assert pixels.labels.tolist() == result.labels.tolist()


def test_too_many_unreadable_images_are_an_error(run, image_folder):
    _, model = run
    images = image_folder(per_class=2, suffix=".png")
    for name in ("blue/0.png", "blue/1.png", "red/0.png"):
        (images / name).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"3 of the 4 images of .* cannot be read, .*0\.png"):
        embed(open_images([str(images)], 3), model.encoder)


def test_features_leave_the_encoder_as_it_was(run, image_folder):
    _, model = run
    source = open_images([str(image_folder(suffix=".png"))], 3)
    for training in (True, False):
        model.encoder.train(training)
        embed(source, model.encoder)
        assert model.encoder.training == training


def test_raw_pixels_are_shares_of_white(image_folder):
    source = open_images([str(image_folder(size=(8, 8), suffix=".png"))], 3)
    pixels = encoders.extract_features(encoders.pixel_extractor(side=8, workers=None), source)
    expected = torch.stack([source.read(index).flatten() for index in range(8)]) / 255
    torch.testing.assert_close(pixels.mean, expected)
    assert pixels.cls is None


def test_random_encoders_follow_the_seed():
    config = ModelConfig(encoder="vit_pico", image_size=16, patch_size=4)
    first, again, other = (encoders.random_encoder(config, seed) for seed in (0, 0, 1))
    assert torch.equal(first(IMAGES), again(IMAGES))
    assert not torch.equal(first(IMAGES), other(IMAGES))


@pytest.mark.parametrize("size", [16, 32, (16, 48)])
def test_a_random_encoder_takes_small_images(size):
    assert load_encoder("random:vit_pico", size).patch_size == 16


def test_a_json_that_is_no_object_is_damaged(tmp_path):
    import safetensors.torch

    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "encoder.safetensors")
    (tmp_path / "encoder.json").write_text(json.dumps([]))
    with pytest.raises(UserError, match="damaged"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"num_heads": 3}, "3 heads do not divide width 64"),
        ({"width": -1}, "sizes must be whole numbers of at least 1"),
        ({"depth": 2.5}, "sizes must be whole numbers of at least 1"),
        ({"std": [0.0, 1.0, 1.0]}, "std above 0"),
        ({"mean": [0.5]}, "one number per channel"),
        ({"image_size": [30, 30]}, "patch_size does not divide image_size"),
    ],
)
def test_facts_that_describe_nonsense_are_refused(run, facts, reason):
    folder, _ = run
    file = folder / "encoder.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    with pytest.raises(UserError, match=reason):
        load_encoder(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(run, value):
    folder, model = run
    weights = model.encoder.state_dict()
    weights["norm.bias"][3] = value
    safetensors.torch.save_file(weights, folder / "encoder.safetensors")
    with pytest.raises(UserError, match=r"norm\.bias holds infinite or NaN values"):
        load_encoder(folder)


def test_whole_numbers_are_no_weights(run):
    folder, model = run
    weights = {key: value.to(torch.int8) for key, value in model.encoder.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "encoder.safetensors")
    with pytest.raises(UserError, match=r"holds torch\.int8"):
        load_encoder(folder)


def test_an_untrained_encoder_has_the_shape_of_a_run(run):
    folder, model = run
    other = load_encoder(f"random:{folder}")
    assert other.size == model.encoder.size
    assert other.image_size == model.encoder.image_size
    assert torch.equal(other.cls_token, load_encoder(f"random:{folder}").cls_token)


@pytest.mark.parametrize("size", [0, -64, (0, 32)])
def test_no_size_at_all_is_refused(run, size):
    folder, _ = run
    for source in (folder, "random:vit_pico"):
        with pytest.raises(UserError, match="is not a multiple of the patch size"):
            load_encoder(source, size)
