"""Classify a labelled folder with scikit-learn on the features of an encoder, in plain PyTorch.

    python examples/features.py runs/pretrain my_images/      # my_images/CLASS/image.jpg

Of mvmae, only the encoder and the description of its input are used.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from mvmae.encoders import OpenedEncoder, open_encoder


def make_transform(opened: OpenedEncoder) -> v2.Compose:
    """Transform a PIL image into the encoder's input, as its encoder.json describes."""
    height, width = opened.encoder.image_size
    preprocessing = opened.preprocessing
    interpolation = v2.InterpolationMode(preprocessing.interpolation)
    return v2.Compose(
        [
            v2.Resize(min(height, width), interpolation=interpolation),
            v2.CenterCrop((height, width)),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )


@torch.inference_mode()
def compute_features(opened: OpenedEncoder, images: ImageFolder) -> tuple[np.ndarray, np.ndarray]:
    """Features, M x D, and class numbers, M."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = opened.encoder.to(device)
    vectors, labels = [], []
    for batch, classes in DataLoader(images, batch_size=64):
        vectors.append(encoder.embed(batch.to(device), opened.pool).cpu().numpy())
        labels.append(classes.numpy())
    return np.concatenate(vectors), np.concatenate(labels)


def main(source: str, folder: str) -> None:
    """Print the accuracy of two classifiers on the features, by five-fold cross-validation."""
    opened = open_encoder(source)
    images = ImageFolder(folder, make_transform(opened))
    vectors, labels = compute_features(opened, images)
    print(f"{len(vectors)} images of {len(images.classes)} classes, {vectors.shape[1]} numbers")
    for name, classifier in (
        ("nearest neighbours", KNeighborsClassifier(5, metric="cosine")),
        ("logistic regression", LogisticRegression(max_iter=2000)),
    ):
        scores = 100 * cross_val_score(classifier, vectors, labels, cv=5)
        print(f"{name}: {scores.mean():.1f} ±{scores.std(ddof=1):.1f} %")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
