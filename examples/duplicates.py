"""Find near-duplicates by an encoder, including shifted, recoloured and re-encoded copies.

    mvmae embed runs/pretrain my_images/ --out embeddings
    python examples/duplicates.py embeddings 0.98

Look at the pairs before you delete anything: they may also be images that the encoder cannot tell
apart. `mvmae data check` needs no encoder and finds exact copies with certainty.
"""

from __future__ import annotations

import sys

import torch

from mvmae.embed.storage import read_embeddings
from mvmae.metrics.typicality import centre, near_duplicates


def main(folder: str, threshold: str = "0.98") -> None:
    """Print the pairs whose cosine is at least `threshold`, most similar first."""
    parts = list(read_embeddings(folder))
    paths = [path for part in parts for path in part.paths]
    vectors = torch.cat([torch.tensor(part.embeddings) for part in parts])
    pairs = near_duplicates(centre(vectors), float(threshold))
    for first, second, cosine in pairs:
        print(f"{cosine:.4f}  {paths[first]}  {paths[second]}")
    print(f"{len(pairs)} pairs among {len(paths)} images")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
