"""Batch-hard triplet loss. B: batch, D: embedding."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clipfh.losses.inputs import check_labelled_features, to_full_precision, without_autocast, zero_of

ANCHORS_AT_ONCE = 1024  # bounds the memory of the search: 1024 x B distances


def batch_hard_triplet_loss(features: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
    """Pull each anchor's furthest positive closer than its closest negative, by a margin.

    For an anchor a with hardest positive p = argmax d(a, .) over the other images of its identity and hardest
    negative n = argmin d(a, .) over the other identities, d the Euclidean distance of the features as given:

        loss = mean over a of  max(0, margin + d(a, p) - d(a, n))        (margin a number)
                               log(1 + exp(d(a, p) - d(a, n)))           (margin None: soft margin)

    The search runs without gradient over one matrix product; gradient flows through the 2 B chosen distances alone.
    Anchors without a positive or without a negative are left out of the mean; where none is left, the loss is a
    differentiable zero. The distance of identical features has gradient zero, never NaN.

    Args:
        features: (B, D), any floating dtype; half precision is computed in float32.
        labels: (B,), integer identities.
        margin: of the hinge, in units of distance, or None for the soft margin.

    Returns:
        A scalar, float32 (float64 for float64 features).

    Raises:
        ValueError: shapes do not fit, or a negative margin.

    Source: Hermans, Beyer, Leibe 2017, "In Defense of the Triplet Loss for Person Re-Identification", eq. 5 and
    section 2.3 for the soft margin (there a sum; here the mean).
    """
    check_labelled_features(features, labels)
    if margin is not None and margin < 0:
        raise ValueError(f"margin must be 0 or more, or None for the soft margin, not {margin}")
    features = to_full_precision(features)
    with without_autocast(features):
        anchors, positives, negatives = _hardest_pairs(features.detach(), labels)
        if len(anchors) == 0:
            return zero_of(features)
        anchor_features = features[anchors]  # (A, D)
        # vector_norm has subgradient 0 at 0, where sqrt would have an infinite one
        positive_distance = torch.linalg.vector_norm(anchor_features - features[positives], dim=1)  # (A,)
        negative_distance = torch.linalg.vector_norm(anchor_features - features[negatives], dim=1)  # (A,)
        difference = positive_distance - negative_distance
        losses = F.softplus(difference) if margin is None else F.relu(difference + margin)  # (A,)
        # The search orders nothing among NaN; a row that is not finite must show even where no chosen pair holds it.
        return losses.mean() + zero_of(features.detach())


@torch.no_grad()
def _hardest_pairs(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices (A,) of the anchors that have both, of their hardest positives and of their hardest negatives."""
    # Distances do not change with the origin; near the mean, the expanded square below loses the least to rounding.
    features = features - features.mean(dim=0)
    squared_norm = features.square().sum(dim=1)  # (B,)
    found = []
    for start in range(0, len(features), ANCHORS_AT_ONCE):
        rows = slice(start, start + ANCHORS_AT_ONCE)
        # |b|^2 - 2 a.b orders the b of an anchor as |a - b|^2 does
        order = torch.addmm(squared_norm, features[rows], features.T, alpha=-2)  # (R, B)
        same = labels[rows, None] == labels  # (R, B)
        num_same = same.sum(dim=1)  # with the anchor itself
        negatives = order.masked_fill(same, torch.inf).argmin(dim=1)
        same.diagonal(start).fill_(False)  # an anchor is not its own positive
        positives = order.masked_fill_(~same, -torch.inf).argmax(dim=1)
        usable = ((num_same > 1) & (num_same < len(labels))).nonzero().squeeze(1)
        found.append((usable + start, positives[usable], negatives[usable]))
    anchors, positives, negatives = (torch.cat(parts) for parts in zip(*found, strict=True))
    return anchors, positives, negatives
