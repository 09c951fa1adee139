"""Distance of features to those of another model for the same inputs. N: rows (photos or texts), D: embedding."""

import torch.nn.functional as F
from torch import Tensor

from clipfh.losses.inputs import to_full_precision, without_autocast


def distillation_loss(features: Tensor, anchors: Tensor) -> Tensor:
    """How far features have turned from their anchors, such as what a model made of the same inputs before training.

        loss = mean over i of  1 - cos(features_i, anchors_i)

    0 where all directions are the anchors', 2 where all are opposite; of unit vectors it is half the mean squared
    distance. Lengths do not matter: the gradient on a feature is at right angles to it.

    Args:
        features: (N, D), of any length but 0, any floating dtype; half precision is computed in float32.
        anchors: (N, D), likewise; row i belongs to feature i. They get no gradient.

    Returns:
        A scalar, float32 (float64 for float64 features).

    Raises:
        ValueError: shapes do not fit.

    Source: Mukhoti, Gal, Torr, Dokania 2024, "Fine-Tuning Can Cripple Your Foundation Model; Preserving Features May Be
    the Solution" (LDIFS), there the squared distance over several layers; here the direction of the embedding alone.
    """
    if features.ndim != 2 or len(features) == 0 or features.shape != anchors.shape:
        raise ValueError(
            f"features and anchors must be (N, D) alike with N >= 1, not {tuple(features.shape)} and "
            f"{tuple(anchors.shape)}"
        )
    features = to_full_precision(features)
    with without_autocast(features):
        return (1 - F.cosine_similarity(features, anchors.detach().to(features.dtype), dim=1)).mean()
