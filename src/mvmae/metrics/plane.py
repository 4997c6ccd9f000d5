"""Features in the plane, like near like.

Shapes: M images, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor

from mvmae.errors import UserError

PERPLEXITY = 30.0  # about as many neighbours count; the middle of what van der Maaten advises
NUM_COMPONENTS = 50  # principal components that are left to the map, as in the paper on t-SNE
UMAP_NEIGHBOURS = 15  # UMAP's neighbours, its own default
START_DEVIATION = 1e-4  # deviation of t-SNE's first places, as scikit-learn's


def embed_in_plane(
    features: Float[Tensor, "M D"], method: Literal["tsne", "umap"], seed: int
) -> Float[np.ndarray, "M 2"]:
    """Places of at least five images such that neighbours in the features stay neighbours.

    Vectors of length 1 less their mean, in their first principal components: distances are those of
    cosines. t-SNE (van der Maaten and Hinton 2008) begins with the first two of these, which keeps
    what it can of the whole (Kobak and Berens 2019), and runs in one thread: with several the last
    bits, and in the end the places, would change from run to run. UMAP: McInnes et al. 2018.

    Raises:
        UserError: UMAP is asked for and not installed.
    """
    vectors = _components(F.normalize(features.double(), dim=1).cpu().numpy())
    with threadpool_limits(1):
        if method == "umap":
            return _umap(vectors, seed)
        deviation = vectors[:, 0].std()
        begin = vectors[:, :2] * (START_DEVIATION / deviation if deviation > 0 else 0)
        if begin.shape[1] < 2:
            begin = np.pad(begin, ((0, 0), (0, 1)))
        perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
        tsne = TSNE(init=begin.astype(np.float32), perplexity=perplexity, random_state=seed)
        return tsne.fit_transform(vectors.astype(np.float32)).astype(np.float64)


def require_map_library(method: Literal["tsne", "umap"]) -> None:
    """Make sure that the map can be drawn.

    Raises:
        UserError: A package is missing.
    """
    if method == "umap":
        _umap_class()


def _components(vectors: Float[np.ndarray, "M D"]) -> Float[np.ndarray, "M K"]:
    """Projections on the principal components, signs set as in `principal.principal_basis`."""
    centred = torch.from_numpy(vectors - vectors.mean(axis=0))
    directions = torch.linalg.eigh(centred.T @ centred)[1].flip(1)[:, :NUM_COMPONENTS]
    largest = directions.abs().argmax(dim=0)
    signs = torch.sign(directions[largest, torch.arange(directions.shape[1])])
    return (centred @ (directions * signs)).numpy()


def _umap_class() -> Callable[..., Any]:
    with warnings.catch_warnings():
        # umap says on import that it lacks tensorflow, which only one of its models would need.
        warnings.simplefilter("ignore")
        try:
            from umap import UMAP  # pyrefly: ignore[missing-import]  # an extra
        except ImportError as error:
            raise UserError(f"--map umap needs: pip install 'mvmae[umap]' ({error})") from error
    return UMAP


def _umap(vectors: Float[np.ndarray, "M K"], seed: int) -> Float[np.ndarray, "M 2"]:
    nearest = min(UMAP_NEIGHBOURS, len(vectors) - 1)
    # Of so few images there is no spectrum to begin with.
    begin = "spectral" if len(vectors) > UMAP_NEIGHBOURS else "random"
    model = _umap_class()(n_neighbors=nearest, init=begin, random_state=seed, n_jobs=1)
    with warnings.catch_warnings():
        # Of spectral starts that fail and of graphs in pieces, both of which it copes with.
        warnings.simplefilter("ignore")
        return np.asarray(model.fit_transform(vectors.astype(np.float32)), dtype=np.float64)
