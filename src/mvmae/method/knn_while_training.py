"""KNN accuracy on labelled images while pre-training runs (--eval-data)."""

from collections.abc import Callable

import torch

from mvmae.config.pretrain import PretrainConfig
from mvmae.data.sources.base import Source
from mvmae.data.sources.labelled import Labelled, open_labelled
from mvmae.encoders.encoder_json import attach_preprocessing
from mvmae.encoders.features import compute_features
from mvmae.errors import UserError
from mvmae.method.vit import Encoder
from mvmae.metrics.knn import knn_predictions, top1_accuracy
from mvmae.training import distributed


def open_knn(
    config: PretrainConfig, source: Source, device: torch.device
) -> Callable[[Encoder], float]:
    """Open the labelled images of --eval-data; return the function that scores an encoder on them.

    All processes call it together: the main process computes kNN top-1 in percent, the others
    return 0.

    Raises:
        UserError: As `open_eval_data`.
    """
    labelled = open_eval_data(config, source)

    def knn_top1(encoder: Encoder) -> float:
        accuracy = 0.0
        if distributed.is_main():
            preprocessing = attach_preprocessing(encoder, config).preprocessing
            train, test = (
                compute_features(
                    encoder,
                    part,
                    preprocessing,
                    device=device,
                    precision_name=config.precision,
                    batch_size=config.batch_size,
                    workers=config.workers,
                )
                for part in (labelled.train, labelled.test)
            )
            token = config.model.latent
            predicted = knn_predictions(getattr(train, token), train.labels, getattr(test, token))
            accuracy = round(top1_accuracy(predicted, test.labels), 4)
        distributed.barrier()
        return accuracy

    return knn_top1


def open_eval_data(config: PretrainConfig, source: Source) -> Labelled:
    """Open the labelled images of --eval-data.

    Raises:
        UserError: They cannot be read, or their test images are also trained on.
    """
    assert config.eval_data is not None
    labelled = open_labelled(config.eval_data, config.model.in_channels, config.views.pixel_depth)
    trained_on = {source.path(index) for index in range(len(source))}
    leaked = sum(labelled.test.path(index) in trained_on for index in range(len(labelled.test)))
    if leaked:
        raise UserError(
            f"{leaked} of the {len(labelled.test)} test images of --eval-data {config.eval_data} "
            "are also trained on: take them out of DATA"
        )
    return labelled
