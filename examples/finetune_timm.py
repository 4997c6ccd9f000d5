"""Fine-tune an encoder that `mvmae export --format timm` wrote, with timm alone.

    mvmae export runs/pretrain --format timm
    python examples/finetune_timm.py runs/pretrain/export/timm/model.safetensors my_images/

Use this plain loop as a start for your own; `mvmae finetune` follows MAE's full recipe.
"""

from __future__ import annotations

import json
import sys

import safetensors
import timm
import torch
import torch.nn.functional as F
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from torch import nn
from torch.utils.data import DataLoader, random_split
from torchvision.datasets import ImageFolder

EPOCHS = 5
BATCH = 32
LEARNING_RATE = 1e-3


def load_model(file: str, num_classes: int) -> tuple[nn.Module, dict]:
    """Load the network with a new classifier, and the description that the file holds."""
    with safetensors.safe_open(file, "pt") as opened:
        facts = json.loads(opened.metadata()["encoder"])
    model = timm.create_model(
        "vit_base_patch16_224",  # its arguments can describe any plain ViT
        checkpoint_path=file,
        img_size=tuple(facts["image_size"]),
        patch_size=facts["patch_size"],
        in_chans=facts["in_channels"],
        embed_dim=facts["width"],
        depth=facts["depth"],
        num_heads=facts["num_heads"],
        global_pool="avg" if facts["pool"] == "mean" else "token",
        fc_norm=False,
        num_classes=0,
    )
    model.reset_classifier(num_classes)
    return model, facts


def accuracy(model: nn.Module, loader: DataLoader, device: torch.device) -> float:
    """Percentage of images whose true class gets the highest score."""
    model.eval()
    with torch.inference_mode():
        correct = [(model(x.to(device)).argmax(1).cpu() == y).float() for x, y in loader]
    return 100 * torch.cat(correct).mean().item()


def main(file: str, folder: str) -> None:
    """Train on 80 % of the images, and test on the other 20 % after each epoch."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = ImageFolder(folder)
    model, facts = load_model(file, len(images.classes))
    model.to(device)
    size = {"input_size": (3, *facts["image_size"]), "mean": facts["mean"], "std": facts["std"]}
    images.transform = create_transform(**size, interpolation=facts["interpolation"])
    train, test = random_split(images, [0.8, 0.2], torch.Generator().manual_seed(0))
    train_loader, test_loader = DataLoader(train, BATCH, shuffle=True), DataLoader(test, BATCH)
    optimizer = create_optimizer_v2(
        model, "adamw", lr=LEARNING_RATE, weight_decay=0.05, layer_decay=0.75
    )
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for x, y in train_loader:
            loss = F.cross_entropy(model(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        percent = accuracy(model, test_loader, device)
        print(f"epoch {epoch}: {percent:.1f} % of {len(test)} test images")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
