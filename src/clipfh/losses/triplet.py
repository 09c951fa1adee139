"""Batch-hard triplet loss. B: batch, D: embedding."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from clipfh.losses.inputs import check_labelled_features, to_full_precision, without_autocast, zero_of

ANCHORS_AT_ONCE = 512  # bounds the memory of the search: 512 x B distances
TINY = 1e-30  # stands for a distance of zero where it divides


def batch_hard_triplet_loss(features: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
    """Pull each anchor's furthest positive closer than its closest negative, by a margin.

    For an anchor a with hardest positive p = argmax d(a, .) over the other images of its identity and hardest
    negative n = argmin d(a, .) over the other identities, d the Euclidean distance of the features as given:

        loss = mean over a of  max(0, margin + d(a, p) - d(a, n))        (margin a number)
                               log(1 + exp(d(a, p) - d(a, n)))           (margin None: soft margin)

    The search runs without gradient over one matrix product; gradient flows through the 2 B chosen distances alone.
    Anchors without a positive or without a negative are left out of the mean; where none is left, the loss is a
    differentiable zero. The distance of identical features has gradient zero, never NaN. The gradient is computed along
    with the loss and cannot be differentiated again (there is no second derivative).

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
        loss = _TripletMargin.apply(features, anchors, positives, negatives, margin)
        # The search orders nothing among NaN; a row that is not finite must show even where no chosen pair holds it.
        return loss + zero_of(features.detach())


class _TripletMargin(torch.autograd.Function):
    """The loss of chosen triplets with its gradient, in place where it can be, where autograd would keep each step.

    With f(x) = max(0, margin + x) or log(1 + exp(x)), f' its slope, and g = f'(d(a, p) - d(a, n)) / A of a triplet:

        loss      = 1/A * sum over triplets of  f(d(a, p) - d(a, n))
        dloss/dx_p = sum over triplets with p of   g * (x_p - x_a) / d(a, p)
        dloss/dx_n = sum over triplets with n of  -g * (x_n - x_a) / d(a, n)
        dloss/dx_a = minus the terms of its own p and n
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, anchors: Tensor, positives: Tensor, negatives: Tensor, margin: float | None
    ) -> Tensor:
        anchor_features = features.index_select(0, anchors)  # (A, D)
        to_positive = features.index_select(0, positives).sub_(anchor_features)  # (A, D)
        to_negative = features.index_select(0, negatives).sub_(anchor_features)  # (A, D)
        positive_distance = torch.linalg.vector_norm(to_positive, dim=1)  # (A,)
        negative_distance = torch.linalg.vector_norm(to_negative, dim=1)  # (A,)
        difference = positive_distance - negative_distance
        if margin is None:
            losses, slope = F.softplus(difference), difference.sigmoid()
        else:
            losses, slope = F.relu(difference + margin), (difference + margin > 0).to(difference.dtype)
        if ctx.needs_input_grad[0]:
            slope /= len(anchors)
            # a distance of zero has gradient zero: its x_p - x_a is zero, and stays so divided by any number
            positive_gradient = to_positive.mul_((slope / positive_distance.clamp(min=TINY))[:, None])
            negative_gradient = to_negative.mul_((-slope / negative_distance.clamp(min=TINY))[:, None])
            gradient = torch.zeros_like(features)  # (B, D)
            gradient.index_add_(0, positives, positive_gradient).index_add_(0, negatives, negative_gradient)
            gradient.index_add_(0, anchors, positive_gradient.add_(negative_gradient), alpha=-1)
            ctx.save_for_backward(gradient)
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad_loss * gradient, None, None, None, None


@torch.no_grad()
def _hardest_pairs(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices (A,) of the anchors that have both, of their hardest positives and of their hardest negatives."""
    # In the order of labels, all rows with the labels of a block of anchors lie between two columns: positives are
    # looked for there alone, and nothing else is to be kept from the search for negatives.
    labels, to_batch = labels.sort()
    _, class_index, class_size = torch.unique_consecutive(labels, return_inverse=True, return_counts=True)
    class_end = class_size.cumsum(0)
    first_same, end_same = (class_end - class_size)[class_index], class_end[class_index]  # (B,)
    num_same = class_size[class_index]  # with the anchor itself
    # Distances do not change with the origin; near the mean, the expanded square below loses the least to rounding.
    features = features.index_select(0, to_batch).sub_(features.mean(dim=0))
    squared_norm = features.square().sum(dim=1)  # (B,)
    hardest_positives, hardest_negatives = [], []
    for start in range(0, len(features), ANCHORS_AT_ONCE):
        rows = slice(start, min(start + ANCHORS_AT_ONCE, len(features)))
        columns = slice(int(first_same[start]), int(end_same[rows.stop - 1]))
        # |b|^2 - 2 a.b orders the b of an anchor as |a - b|^2 does
        order = torch.addmm(squared_norm, features[rows], features.T, alpha=-2)  # (R, B)
        same = labels[rows, None] == labels[columns]  # (R, C)
        negatives_only = torch.where(same, torch.inf, order[:, columns])  # (R, C)
        same.diagonal(start - columns.start).fill_(False)  # an anchor is not its own positive
        positives_only = torch.where(same, order[:, columns], -torch.inf)  # (R, C)
        hardest_positives.append(positives_only.argmax(dim=1) + columns.start)
        order[:, columns] = negatives_only
        hardest_negatives.append(order.argmin(dim=1))
    usable = ((num_same > 1) & (num_same < len(labels))).nonzero().squeeze(1)  # (A,)
    positives, negatives = torch.cat(hardest_positives)[usable], torch.cat(hardest_negatives)[usable]
    return to_batch[usable], to_batch[positives], to_batch[negatives]
