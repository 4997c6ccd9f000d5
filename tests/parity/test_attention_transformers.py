"""Attention weights are those that transformers gives with `output_attentions`."""

import pytest
import torch
from torch import Generator

from mvmae.encoders import open_encoder
from mvmae.encoders.attention import attention_weights

pytestmark = pytest.mark.parity
transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "attn_implementation": "eager",  # the fused kernels give no weights
}
KINDS = {
    "ViT": (transformers.ViTConfig, transformers.ViTModel, {"intermediate_size": 256}),
    "DINOv2 with registers": (
        transformers.Dinov2WithRegistersConfig,
        transformers.Dinov2WithRegistersModel,
        {"mlp_ratio": 2, "num_register_tokens": 3},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_transformers(tmp_path, kind):
    config, model, more = KINDS[kind]
    theirs = model(config(**SIZES, **more)).eval()
    generator = Generator().manual_seed(3)
    for parameter in theirs.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    theirs.save_pretrained(tmp_path / "model")
    images = torch.randn(2, 3, 32, 32, generator=generator)
    with torch.no_grad():
        expected = theirs(pixel_values=images, output_attentions=True).attentions
        found = attention_weights(open_encoder(tmp_path / "model").encoder, images)
    assert len(found) == len(expected) == 3
    for ours, their in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, their, atol=1e-5, rtol=1e-5)
        assert their.std() > 1e-3
