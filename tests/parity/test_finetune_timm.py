"""Fine-tuning against timm: the classifier, the layers, the mixed labels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Generator, nn

from mvmae.config.model import ENCODERS
from mvmae.evaluation.finetune.classifier import Classifier, timm_keys
from mvmae.method.vit import Encoder, initialize
from mvmae.training.optim import layer_groups

pytestmark = pytest.mark.parity
timm = pytest.importorskip("timm")


def our_model(name: str, image_size: tuple[int, int], classes: int) -> Classifier:
    encoder = Encoder(ENCODERS[name], image_size=image_size, patch_size=16)
    initialize(encoder, Generator().manual_seed(0))
    model = Classifier(encoder, classes)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model.eval()


def timm_model(name: str, image_size: tuple[int, int], classes: int, **options) -> nn.Module:
    """Make timm's model; `create_model` has the larger ones by name."""
    known = {"vit_tiny": "vit_tiny_patch16_224", "vit_small": "vit_small_patch16_224"}
    if name in known:
        return timm.create_model(
            known[name], global_pool="avg", num_classes=classes, img_size=image_size, **options
        ).eval()
    size = ENCODERS[name]
    return timm.models.VisionTransformer(
        img_size=image_size,
        patch_size=16,
        num_classes=classes,
        embed_dim=size.width,
        depth=size.depth,
        num_heads=size.num_heads,
        global_pool="avg",
        **options,
    ).eval()


@pytest.mark.parametrize(
    ("name", "image_size", "classes"),
    [("vit_pico", (32, 32), 3), ("vit_nano", (32, 64), 10), ("vit_tiny", (64, 64), 5)],
)
def test_classifier_is_timms_vit_with_average_pooling_under_the_same_names(
    name, image_size, classes
):
    ours, theirs = (make(name, image_size, classes) for make in (our_model, timm_model))
    theirs.load_state_dict(timm_keys(ours.state_dict()), strict=True)
    images = torch.randn(2, 3, *image_size)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer_decay", [0.65, 1.0])
@pytest.mark.parametrize("name", ["vit_pico", "vit_tiny"])
def test_layers_are_timms(name, layer_decay):
    from timm.optim import param_groups_layer_decay

    ours, theirs = (make(name, (32, 32), 4) for make in (our_model, timm_model))
    groups = param_groups_layer_decay(
        theirs,
        weight_decay=0.05,
        no_weight_decay_list=theirs.no_weight_decay(),
        layer_decay=layer_decay,
    )

    def name_groups(model: nn.Module, groups: list[dict], prefix: str) -> list:
        names = {id(p): n.removeprefix(prefix) for n, p in model.named_parameters()}
        return sorted(
            (
                sorted(names[id(p)] for p in group["params"]),
                pytest.approx(group["lr_scale"], rel=1e-12),
                group["weight_decay"],
            )
            for group in groups
        )

    own = layer_groups(ours, weight_decay=0.05, layer_decay=layer_decay)
    expected = name_groups(theirs, groups, "")
    found = [
        (names, scale.expected, decay) for names, scale, decay in name_groups(ours, own, "encoder.")
    ]
    assert found == expected


def test_drop_path_rises_as_timms():
    theirs = timm_model("vit_tiny", (32, 32), 2, drop_path_rate=0.1)
    encoder = Encoder(ENCODERS["vit_tiny"], image_size=(32, 32), patch_size=16)
    ours = Classifier(encoder, 2, drop_path=0.1)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in theirs.blocks]
    assert [block.drop_path for block in ours.encoder.blocks] == pytest.approx(rates)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_loss_of_mixed_labels_is_timms(share):
    from timm.data.mixup import mixup_target
    from timm.loss import SoftTargetCrossEntropy

    labels, scores = torch.tensor([0, 3, 1, 1]), torch.randn(4, 5)
    target = mixup_target(labels, 5, lam=share, smoothing=0.1)
    hard = F.one_hot(labels, 5).float()
    shares = share * hard + (1 - share) * hard.flip(0)
    ours = F.cross_entropy(scores, shares, label_smoothing=0.1)
    torch.testing.assert_close(ours, SoftTargetCrossEntropy()(scores, target))


def test_rand_augment_shares_timms_strengths():
    """What an operation does at timm's magnitude 9 is what torchvision does in step 90 of 100."""
    from timm.data import auto_augment
    from torchvision.transforms import v2

    space = v2.RandAugment._AUGMENTATION_SPACE
    at_90 = {
        name: float(strengths(101, 100, 100)[90])
        for name, (strengths, _) in space.items()
        if strengths(101, 100, 100) is not None
    }
    hparams = {"translate_pct": 0.45}
    rotate = abs(auto_augment._rotate_level_to_arg(9.0, hparams)[0])
    assert at_90["Rotate"] == pytest.approx(rotate)
    shear = abs(auto_augment._shear_level_to_arg(9.0, hparams)[0])
    assert at_90["ShearX"] == at_90["ShearY"] == pytest.approx(shear)
    moved = abs(auto_augment._translate_rel_level_to_arg(9.0, hparams)[0])
    assert at_90["TranslateX"] / 100 == pytest.approx(moved, abs=0.01)
    enhanced = {
        round(auto_augment._enhance_increasing_level_to_arg(9.0, hparams)[0], 6) for _ in range(50)
    }
    assert enhanced == {0.19, 1.81}
    for name in ("Brightness", "Color", "Contrast", "Sharpness"):
        assert at_90[name] == pytest.approx(0.81)
    solarized = auto_augment._solarize_increasing_level_to_arg(9.0, hparams)[0]
    assert at_90["Solarize"] * 255 == pytest.approx(solarized, abs=1)
    posterized = auto_augment._posterize_increasing_level_to_arg(9.0, hparams)[0]
    assert (at_90["Posterize"], posterized) == (4, 1)  # where they differ


def test_operations_that_only_one_of_them_has():
    from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS
    from torchvision.transforms import v2

    theirs = {
        name.removesuffix("Increasing").removesuffix("Rel") for name in _RAND_INCREASING_TRANSFORMS
    }
    ours = set(v2.RandAugment._AUGMENTATION_SPACE)
    assert theirs - ours == {"Invert", "SolarizeAdd"}
    assert ours - theirs == {"Identity"}


def test_erased_boxes_are_as_large_as_timms():
    from timm.data.random_erasing import RandomErasing

    from mvmae.data.augment import random_erasing

    images = torch.zeros(400, 1, 48, 48)
    theirs = RandomErasing(probability=1.0, mode="pixel", device="cpu")(images.clone())
    ours = random_erasing(images, 1.0, np.random.default_rng(0))
    shares = [(erased != 0).float().mean().item() for erased in (ours, theirs)]
    assert shares[0] == pytest.approx(shares[1], abs=0.02)
