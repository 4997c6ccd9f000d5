import pytest
import torch
from torch import Generator, nn

from mvmae.config.model import ENCODERS
from mvmae.method.vit import Encoder, initialize

pytestmark = pytest.mark.parity
timm = pytest.importorskip("timm")


def make_encoder(name: str, image_size: tuple[int, int], channels: int) -> Encoder:
    """An encoder whose every weight counts; untrained ones have biases of 0."""
    encoder = Encoder(ENCODERS[name], image_size=image_size, patch_size=8, in_channels=channels)
    initialize(encoder, Generator().manual_seed(0))
    for parameter in encoder.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return encoder.eval()


def timms(name: str, image_size: tuple[int, int], channels: int) -> nn.Module:
    size = ENCODERS[name]
    return timm.models.VisionTransformer(
        img_size=image_size,
        patch_size=8,
        in_chans=channels,
        num_classes=0,
        embed_dim=size.width,
        depth=size.depth,
        num_heads=size.num_heads,
    ).eval()


CASES = pytest.mark.parametrize(
    ("name", "image_size", "channels"),
    [
        ("vit_pico", (32, 32), 3),
        ("vit_nano", (24, 56), 3),
        ("vit_nano", (56, 24), 1),
        ("vit_tiny", (16, 32), 4),
    ],
)


@CASES
def test_the_encoder_is_timms_vit_under_the_same_names(name, image_size, channels):
    ours, theirs = make_encoder(name, image_size, channels), timms(name, image_size, channels)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, channels, *image_size)
    torch.testing.assert_close(ours(images), theirs.forward_features(images), rtol=1e-4, atol=1e-5)


@CASES
def test_timms_weights_load_into_the_encoder(name, image_size, channels):
    ours, theirs = make_encoder(name, image_size, channels), timms(name, image_size, channels)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, channels, *image_size)
    torch.testing.assert_close(ours(images), theirs.forward_features(images), rtol=1e-4, atol=1e-5)


@CASES
def test_intermediate_maps_are_timms(name, image_size, channels):
    ours, theirs = make_encoder(name, image_size, channels), timms(name, image_size, channels)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, channels, *image_size)
    maps = ours.forward_intermediates(images, [0, 2, 3])
    expected = theirs.forward_intermediates(images, indices=[0, 2, 3], intermediates_only=True)
    assert len(maps) == len(expected) == 3
    for our_map, their_map in zip(maps, expected, strict=True):
        torch.testing.assert_close(our_map, their_map, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("pool", "global_pool"), [("mean", "avg"), ("cls", "token")])
def test_vectors_of_images_are_timms(pool, global_pool):
    ours = make_encoder("vit_pico", (32, 32), 3)
    theirs = timms("vit_pico", (32, 32), 3)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 32, 32)
    expected = theirs.pool(theirs.forward_features(images), pool_type=global_pool)
    torch.testing.assert_close(ours.embed(images, pool), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny", "vit_small", "vit_base", "vit_large"])
def test_a_named_encoder_has_the_keys_and_shapes_of_timms_model_of_that_name(name):
    with torch.device("meta"):
        ours = Encoder(ENCODERS[name], image_size=(224, 224), patch_size=16).state_dict()
        theirs = timm.create_model(f"{name}_patch16_224", num_classes=0).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items()
    }
