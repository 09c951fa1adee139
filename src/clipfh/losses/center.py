"""Center loss. B: batch size, D: embedding, C: identities."""

import torch
from torch import Tensor, nn

from clipfh.losses.inputs import check_labelled_features, to_full_precision, without_autocast


class CenterLoss(nn.Module):
    """Pull features to the center of their identity, which follows them at a rate of its own.

        loss = 1/B * sum over i of  1/2 * |x_i - c_{y_i}|^2
        c_j <- c_j - alpha * sum over i with y_i = j of (c_j - x_i) / (1 + n_j)        (`update`)

    with n_j the images of identity j in the batch. The centers are no parameters of an optimiser: neither the loss's
    weight nor a learning rate slows them down. With alpha 0.5 and four images of an identity in each batch, a center
    goes 40% of the way to their mean at each appearance.

    Centers start at zero, so that the first step of a center goes to its own images.

    Attributes:
        centers: (C, D) float32 buffer.

    Source: Wen, Zhang, Li, Qiao 2016, "A Discriminative Feature Learning Approach for Deep Face Recognition", eq. 2 and
    4 (there the loss is a sum over the batch; here the mean, so that its weight does not depend on the batch size).
    """

    centers: Tensor

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        if num_classes < 1 or dim < 1:
            raise ValueError(f"num_classes and dim must be 1 or more, not {num_classes} and {dim}")
        self.register_buffer("centers", torch.zeros(num_classes, dim))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar in float32 (float64 for float64 features); the centers stay where they are.

        Args:
            features: (B, D), any floating dtype; half precision is computed in float32.
            labels: (B,), int64 classes, 0 <= label < C.

        Raises:
            ValueError: shapes do not fit.
            IndexError: a label outside 0..C-1 (on a GPU, a device-side assertion).
        """
        self._check(features, labels)
        features = to_full_precision(features)
        with without_autocast(features):
            difference = features - self.centers[labels]  # (B, D)
            return 0.5 * difference.square().sum(dim=1).mean()

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor, alpha: float = 0.5) -> None:
        """Move the centers of the identities of a batch, once, after its loss.

        Args:
            features: (B, D), as for the loss.
            labels: (B,), likewise.
            alpha: rate, above 0 and at most 1; the paper's is 0.5.

        Raises:
            ValueError: shapes do not fit.
        """
        self._check(features, labels)
        features = to_full_precision(features).to(self.centers.dtype)
        present, place, count = torch.unique(labels, return_inverse=True, return_counts=True)  # (J,), (B,), (J,)
        towards = torch.zeros_like(self.centers[present]).index_add_(0, place, features - self.centers[labels])
        self.centers[present] += alpha * towards / (1 + count)[:, None]

    def _check(self, features: Tensor, labels: Tensor) -> None:
        check_labelled_features(features, labels)
        if features.shape[1] != self.centers.shape[1]:
            raise ValueError(f"features have {features.shape[1]} dimensions, the centers {self.centers.shape[1]}")
