"""Supervised contrastive loss. N: rows (images, or images and texts together), D: embedding, C: identities."""

from itertools import combinations_with_replacement
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clipfh.losses.inputs import check_labelled_features, scale_like, to_full_precision, without_autocast, zero_of
from clipfh.losses.tiles import LogitTiles, add_to_log_normaliser, blocks, softmax_both_ways


def supcon_loss(features: Tensor, labels: Tensor, logit_scale: float | Tensor) -> Tensor:
    """Supervised contrastive loss with the positives' mean outside of the logarithm (L_out).

    With s(i, j) = logit_scale * z_i . z_j, A(i) all rows but i, and P(i) the rows of A(i) with the label of i:

        loss = mean over i with P(i) not empty of
               -1 / |P(i)| * sum over p in P(i) of  [ s(i, p) - log sum over a in A(i) of exp s(i, a) ]

    Rows without a positive are no anchors, but stay negatives of the others. Where no row has a positive, the loss is a
    differentiable zero. For images and texts together, pass their concatenation with the labels twice: every image and
    every prompt of an identity is then a positive of the others.

    The gradient is computed along with the loss, by tiles: the extra memory grows with N * D, never with N * N. It
    cannot be differentiated again (there is no second derivative).

    Args:
        features: (N, D), rows of unit length, any floating dtype; half precision is computed in float32.
        labels: (N,), integer identities.
        logit_scale: 1 / temperature, a number or a 0-d tensor, which then gets a gradient.

    Returns:
        A scalar, float32 (float64 for float64 features).

    Raises:
        ValueError: shapes do not fit.

    Source: Khosla et al. 2020, "Supervised Contrastive Learning", eq. 2; its gradient, supplementary section 2, there
    for one anchor.
    """
    check_labelled_features(features, labels)
    features = to_full_precision(features)
    _, class_index, class_size = torch.unique(labels, return_inverse=True, return_counts=True)
    if class_size.max() == 1:
        return zero_of(features)
    with without_autocast(features):
        return _SupCon.apply(features, scale_like(features, logit_scale), class_index, class_size)


class _SupCon(torch.autograd.Function):
    """The loss with its gradient.

    Let n_i = log sum over a in A(i) of exp s(i, a), and m_k the mean of the z_p, p in P(k). All of P(k) have |P(k)|
    positives themselves, so that z_k meets m_k twice, as an anchor and as the others' positive. Over A anchors:

        loss      = 1/A * sum over anchors i of  [ n_i - logit_scale * z_i . m_i ]
        dloss/dz_k = logit_scale / A * [ sum over j of w(k, j) z_j  -  2 m_k ]
        w(k, j)   = exp(s(k, j) - n_k) + exp(s(k, j) - n_j),  a term only where its row, k or j, is an anchor

    s and w are symmetric: a tile above the diagonal also stands for the one below. The loss depends on logit_scale
    and features through the products s alone, hence
    dloss/dlogit_scale = sum over k of z_k . dloss/dz_k / (2 logit_scale).
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, scale: Tensor, class_index: Tensor, class_size: Tensor) -> Tensor:
        num_positives = (class_size - 1)[class_index]  # (N,)
        is_anchor = num_positives > 0
        num_anchors = is_anchor.sum()
        class_sum = features.new_zeros(len(class_size), features.shape[1]).index_add_(
            0, class_index, features
        )  # (C, D)
        positive_mean = class_sum.index_select(0, class_index).sub_(features)  # (N, D)
        positive_mean.div_(num_positives.clamp(min=1)[:, None])
        mean_positive_logit = scale * (features * positive_mean).sum(dim=1)  # (N,)

        tiles = LogitTiles(
            features, features, scale, list(combinations_with_replacement(blocks(features), 2)), _leave_out_self
        )
        log_normaliser = features.new_full((len(features),), -torch.inf)  # n
        for rows, columns, logits in tiles:
            add_to_log_normaliser(log_normaliser[rows], logits, dim=1)
            if rows != columns:
                add_to_log_normaliser(log_normaliser[columns], logits, dim=0)
        losses = log_normaliser - mean_positive_logit  # (N,)
        loss = losses.masked_fill(~is_anchor, 0.0).sum() / num_anchors
        if not any(ctx.needs_input_grad):
            return loss

        log_normaliser.masked_fill_(~is_anchor, torch.inf)  # exp(s - inf) = 0: no anchor, no term
        gradient = positive_mean.mul_(-2.0)
        for rows, columns, logits in tiles:
            weights = softmax_both_ways(logits, log_normaliser[rows], log_normaliser[columns])
            gradient[rows].addmm_(weights, features[columns])
            if rows != columns:
                gradient[columns].addmm_(weights.T, features[rows])
        gradient /= num_anchors
        scale_gradient = (features * gradient).sum() / 2
        ctx.save_for_backward(gradient.mul_(scale), scale_gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        gradient, scale_gradient = ctx.saved_tensors
        return grad_loss * gradient, grad_loss * scale_gradient, None, None


def _leave_out_self(logits: Tensor, rows: slice, columns: slice) -> None:
    """A(i) is without i."""
    if rows == columns:
        logits.fill_diagonal_(-torch.inf)
