"""Recipes of the commands that train on labelled images."""

from dataclasses import replace

from mvmae.config.detect import DetectConfig
from mvmae.config.evaluation import ProbeConfig
from mvmae.config.finetune import FinetuneConfig
from mvmae.config.segment import SegmentConfig
from mvmae.recipes import Recipe

PAPER_FINETUNE = FinetuneConfig(encoder="runs/pretrain", data="imagenet")
SMALL_FINETUNE = replace(
    PAPER_FINETUNE,
    epochs=20,
    batch_size=32,
    base_lr=1.6e-2,
    layer_decay=0.75,
    warmup_epochs=2.0,
    drop_path=0.0,
    mixup=0.0,
    cutmix=0.0,
    erasing=0.0,
    rand_augment=0.0,
    crop_scale=(0.35, 1.0),
    save_every_minutes=2.0,
)

FINETUNE: dict[str, Recipe] = {
    "paper-finetune": Recipe(
        "Table 1: MAE's recipe, 100 epochs at batch 512; the paper 84.3 %, MAE 83.6 %.",
        PAPER_FINETUNE,
    ),
    "small-finetune": Recipe(
        "A few thousand images on a laptop: 20 epochs, light augmentation.", SMALL_FINETUNE
    ),
}


PAPER_ADE20K = SegmentConfig(encoder="runs/pretrain")
SMALL_SEGMENT = replace(
    PAPER_ADE20K,
    crop=128,
    short_side=176,
    jitter=(0.75, 2.0),
    channels=64,
    auxiliary_channels=64,
    drop_path=0.0,
    iterations=2000,
    batch_size=8,
    lr=3e-3,
    layer_decay=0.8,
    warmup_iterations=100,
    eval_every=500,
    log_every=20,
    save_every_minutes=2.0,
)

PROBE: dict[str, Recipe] = {
    "paper-probe": Recipe(
        "Table 2: MAE's probe, 100 epochs at batch 1024; the paper 76.7 %, MAE 68.0 %.",
        ProbeConfig(encoder="runs/pretrain", data="imagenet", protocol="mae"),
    ),
}

SEGMENT: dict[str, Recipe] = {
    "paper-ade20k": Recipe(
        "Table 4: UperNet, ADE20K, 160,000 steps of batch 16; paper 50.2 mIoU, MAE 48.1.",
        PAPER_ADE20K,
    ),
    "small": Recipe("A few hundred images on a laptop: crops of 128, 2,000 steps.", SMALL_SEGMENT),
}


LI2021 = DetectConfig(encoder="runs/pretrain")
VITDET = replace(
    LI2021,
    window=14,
    pyramid="simple",
    norm="layer",
    lr=1e-4,
    layer_decay=0.7,
    schedule="steps",
    warmup_steps=250,
)
SMALL_DETECT = replace(
    LI2021,
    image_size=256,
    window=None,
    relative_positions=False,
    norm="layer",
    channels=64,
    hidden=256,
    proposals=1000,
    samples=128,
    epochs=30,
    batch_size=8,
    lr=1e-3,
    layer_decay=0.8,
    warmup_epochs=1.0,
    weight_decay=0.05,
    drop_path=0.0,
    scale_jitter=(0.6, 1.6),
    eval_every=10,
    save_every_minutes=2.0,
)

DETECT: dict[str, Recipe] = {
    "paper-coco": Recipe(
        "Table 3 on COCO: li2021; the paper 51.3 AP box, 45.6 AP mask; days of a large GPU.",
        LI2021,
    ),
    "li2021": Recipe(
        "Mask R-CNN of Li et al. 2021 at 1024, 100 epochs at batch 64; MAE 50.3 and 44.9.", LI2021
    ),
    "vitdet": Recipe(
        "ViTDet: simple pyramid, layer-wise decay, learning rate in steps; MAE 51.6, 45.9.",
        VITDET,
    ),
    "small": Recipe("A few hundred images on a laptop: 256 pixels, 30 epochs.", SMALL_DETECT),
}
