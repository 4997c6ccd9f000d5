"""Embed features in the plane by t-SNE or UMAP.

Shapes: M images, D width.
"""

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

PERPLEXITY = 30.0  # effective number of neighbours; van der Maaten advises 5 to 50
NUM_COMPONENTS = 50  # principal components, computed first, as in the t-SNE paper
UMAP_NEIGHBOURS = 15  # its own default
START_DEVIATION = 1e-4  # of t-SNE's initial positions, as in scikit-learn


def embed_in_plane(
    features: Float[Tensor, "M D"], method: Literal["tsne", "umap"], seed: int
) -> Float[np.ndarray, "M 2"]:
    """Embed at least five images in the plane so that neighbours in the features stay neighbours.

    Vectors are normalised, so that distances follow cosines, and reduced to their first principal
    components. t-SNE (van der Maaten and Hinton 2008) starts from the first two, which preserves
    the global structure best (Kobak and Berens 2019). It runs in one thread, because with several
    the last bits, and finally the positions, change from run to run. UMAP: McInnes et al. 2018.

    Raises:
        UserError: UMAP is requested but not installed.
    """
    vectors = _project(F.normalize(features.double(), dim=1).cpu().numpy())
    with threadpool_limits(1):
        if method == "umap":
            return _umap(vectors, seed)
        deviation = vectors[:, 0].std()
        init = vectors[:, :2] * (START_DEVIATION / deviation if deviation > 0 else 0)
        if init.shape[1] < 2:
            init = np.pad(init, ((0, 0), (0, 1)))
        perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
        tsne = TSNE(init=init.astype(np.float32), perplexity=perplexity, random_state=seed)
        return tsne.fit_transform(vectors.astype(np.float32)).astype(np.float64)


def require_map_library(method: Literal["tsne", "umap"]) -> None:
    """Check that the method's package is installed.

    Raises:
        UserError: It is not.
    """
    if method == "umap":
        _umap_class()


def _project(vectors: Float[np.ndarray, "M D"]) -> Float[np.ndarray, "M K"]:
    """Project on the principal components, with signs set as in `principal.principal_basis`."""
    centred = torch.from_numpy(vectors - vectors.mean(axis=0))
    directions = torch.linalg.eigh(centred.T @ centred)[1].flip(1)[:, :NUM_COMPONENTS]
    largest = directions.abs().argmax(dim=0)
    signs = torch.sign(directions[largest, torch.arange(directions.shape[1])])
    return (centred @ (directions * signs)).numpy()


def _umap_class() -> Callable[..., Any]:
    with warnings.catch_warnings():
        # On import umap warns that tensorflow is missing, which only one of its models needs.
        warnings.simplefilter("ignore")
        try:
            from umap import UMAP  # pyrefly: ignore[missing-import]  # an extra
        except ImportError as error:
            raise UserError(f"--map umap needs: pip install 'mvmae[umap]' ({error})") from error
    return UMAP


def _umap(vectors: Float[np.ndarray, "M K"], seed: int) -> Float[np.ndarray, "M 2"]:
    nearest = min(UMAP_NEIGHBOURS, len(vectors) - 1)
    # The spectral initialisation needs more images than neighbours.
    init = "spectral" if len(vectors) > UMAP_NEIGHBOURS else "random"
    model = _umap_class()(n_neighbors=nearest, init=init, random_state=seed, n_jobs=1)
    with warnings.catch_warnings():
        # It warns of failed spectral starts and disconnected graphs, both of which it handles.
        warnings.simplefilter("ignore")
        return np.asarray(model.fit_transform(vectors.astype(np.float32)), dtype=np.float64)
