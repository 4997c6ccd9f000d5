"""The objective of pre-training on one output of the model."""

from jaxtyping import Int
from torch import Tensor

from mvmae.config.pretrain import ObjectiveConfig
from mvmae.method.losses import embedding_terms, equation_7, patch_terms
from mvmae.method.model import View


def named_losses(
    view: View,
    objective: ObjectiveConfig,
    groups: Int[Tensor, " B"] | None = None,
    num_views: int = 2,
) -> dict[str, Tensor]:
    """Return the loss and the trained terms by name."""
    terms = patch_terms(view, objective, 3)
    terms |= embedding_terms(view.embedding.float(), objective, num_views, groups)
    trained = {name: term.value for name, term in terms.items() if term.weight}
    return {"loss": equation_7(terms)} | trained
