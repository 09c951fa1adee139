"""Center loss. B: batch, D: embedding, C: identities."""

import torch
from torch import Tensor, nn

from clipfh.losses.inputs import check_labelled_features, to_full_precision, without_autocast


class CenterLoss(nn.Module):
    """Pull features to the learned center of their identity.

        loss = 1/B * sum over i of  1/2 * |x_i - c_{y_i}|^2

    The centers are parameters with an optimiser of their own, made by the caller. The gradient of a center is
    1/B * sum over its images of (c - x), so plain SGD with learning rate a * B / (1 + K), K images an identity, is the
    paper's update with rate a (eq. 4), and any rate under B / K converges. Where the loss enters an objective
    with a weight, divide the centers' gradients by that weight before their optimiser steps.

    Centers start at zero, so that the first step of a center goes to its own images.

    Attributes:
        centers: (C, D) float32 parameter.

    Source: Wen, Zhang, Li, Qiao 2016, "A Discriminative Feature Learning Approach for Deep Face Recognition", eq. 2
    (there a sum over the batch; here the mean, so that the weight does not depend on the batch size).
    """

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        if num_classes < 1 or dim < 1:
            raise ValueError(f"num_classes and dim must be 1 or more, not {num_classes} and {dim}")
        self.centers = nn.Parameter(torch.zeros(num_classes, dim))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar in float32 (float64 for float64 features).

        Args:
            features: (B, D), any floating dtype; half precision is computed in float32.
            labels: (B,), int64 classes, 0 <= label < C.

        Raises:
            ValueError: shapes do not fit.
            IndexError: a label outside 0..C-1 (on a GPU, a device-side assertion).
        """
        check_labelled_features(features, labels)
        if features.shape[1] != self.centers.shape[1]:
            raise ValueError(f"features have {features.shape[1]} dimensions, the centers {self.centers.shape[1]}")
        features = to_full_precision(features)
        with without_autocast(features):
            difference = features - self.centers[labels]  # (B, D)
            return 0.5 * difference.square().sum(dim=1).mean()
