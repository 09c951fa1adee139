"""Supervised contrastive loss. N: rows (images, or images and texts together), D: embedding."""

import torch
from torch import Tensor

from clipfh.losses.inputs import check_labelled_features, to_full_precision, without_autocast, zero_of


def supcon_loss(features: Tensor, labels: Tensor, logit_scale: float | Tensor) -> Tensor:
    """Supervised contrastive loss with the positives' mean outside of the logarithm (L_out).

    With s(i, j) = logit_scale * z_i . z_j, A(i) all rows but i, and P(i) the rows of A(i) with the label of i:

        loss = mean over i with P(i) not empty of
               -1 / |P(i)| * sum over p in P(i) of  [ s(i, p) - log sum over a in A(i) of exp s(i, a) ]

    Rows without a positive are no anchors, but stay negatives of the others. Where no row has a positive, the loss is a
    differentiable zero. For images and texts together, pass their concatenation with the labels twice: every image and
    every prompt of an identity is then a positive of the others.

    Args:
        features: (N, D), rows of unit length, any floating dtype; half precision is computed in float32.
        labels: (N,), integer identities.
        logit_scale: 1 / temperature, a number or a 0-d tensor, which then gets a gradient.

    Returns:
        A scalar, float32 (float64 for float64 features).

    Raises:
        ValueError: shapes do not fit.

    Source: Khosla et al. 2020, "Supervised Contrastive Learning", eq. 2.
    """
    check_labelled_features(features, labels)
    features = to_full_precision(features)
    classes, class_index, class_size = torch.unique(labels, return_inverse=True, return_counts=True)
    anchors = (class_size[class_index] > 1).nonzero().squeeze(1)  # (A,)
    if len(anchors) == 0:
        return zero_of(features)
    with without_autocast(features):
        scaled = features * logit_scale  # (N, D); scaling the N x N logits instead would keep one more of them
        # The sum over positives of s(i, p) is z_i times the sum of its class's other rows: no N x N mask is needed.
        class_sum = features.new_zeros(len(classes), features.shape[1]).index_add(0, class_index, features)  # (C, D)
        positive_sum = class_sum[class_index] - features  # (N, D)
        num_positives = (class_size[class_index] - 1).clamp(min=1)
        mean_positive_logit = (scaled * positive_sum).sum(dim=1) / num_positives  # (N,)
        logits = scaled @ features.T  # (N, N)
        logits.fill_diagonal_(-torch.inf)  # A(i) is without i
        losses = torch.logsumexp(logits, dim=1) - mean_positive_logit  # (N,)
        return losses[anchors].mean()
