"""Identity classification behind a BNNeck. B: batch, D: embedding, C: identities."""

import torch.nn.functional as F
from torch import Tensor, nn

from clipfh.losses.inputs import check_labelled_features, to_full_precision, without_autocast


class BNNeckClassifier(nn.Module):
    """Batch normalisation, then a linear classifier without bias, so that metric and ID loss do not pull apart.

    Distance-based losses (triplet, center) take the features *before* the neck, the ID loss the logits behind it. The
    neck's shift is frozen at zero and the classifier has no bias, so that classes are separated by direction alone.

    Attributes:
        neck: BatchNorm1d over D; its `bias` is zero and does not train.
        classifier: Linear D -> C without bias, started at N(0, 0.001).

    Source: Luo et al. 2019, "Bag of Tricks and A Strong Baseline for Deep Person Re-identification", section 3.6.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.neck = nn.BatchNorm1d(dim)
        self.neck.bias.requires_grad_(False)
        self.classifier = nn.Linear(dim, num_classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features behind the neck (B, D) and the logits (B, C), both float32 or wider.

        Args:
            features: (B, D), any floating dtype; half precision is computed in float32.

        Raises:
            ValueError: features are not (B, D), or B = 1 in training mode, which has no batch statistics.
        """
        features = to_full_precision(features)
        with without_autocast(features):
            normalised = self.neck(features)  # (B, D)
            return normalised, self.classifier(normalised)


def identity_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.1) -> Tensor:
    """Cross entropy with smoothed labels: the target has 1 - e + e / C, every other class e / C.

    Args:
        logits: (B, C), any floating dtype; half precision is computed in float32.
        labels: (B,), int64 classes, 0 <= label < C.
        label_smoothing: e, 0 <= e <= 1.

    Returns:
        A scalar, the mean over the batch, float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes do not fit.
        IndexError: a label outside 0..C-1 (on a GPU, a device-side assertion).

    Source: Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", section 7.
    """
    check_labelled_features(logits, labels)
    return F.cross_entropy(to_full_precision(logits), labels, label_smoothing=label_smoothing)
