"""Multi-similarity loss with its miner. N: rows, D: embedding."""

import torch
from torch import Tensor

from clipfh.losses.inputs import check_labelled_features, to_full_precision, without_autocast


def multi_similarity_loss(
    features: Tensor, labels: Tensor, *, alpha: float, beta: float, base: float, epsilon: float
) -> Tensor:
    """Multi-similarity loss over the pairs that its miner picks.

    With s(i, j) = z_i . z_j, P(i) and N(i) the other rows with the label of i, and with others, anchor i keeps

        P'(i) = the p of P(i) with s(i, p) - epsilon < the largest s(i, n)
        N'(i) = the n of N(i) with s(i, n) + epsilon > the smallest s(i, p)

        loss = mean over i of  1/alpha * log(1 + sum over P'(i) of exp(-alpha * (s(i, p) - base)))
                             + 1/beta  * log(1 + sum over N'(i) of exp( beta * (s(i, n) - base)))

    A positive pulls with a force of up to 1 where it is less similar than `base`, relative to the other positives, and
    hardly at all beyond: identities keep their spread, where losses of the softmax draw each of them to a point. Rows
    that keep no pair count with 0. Which pairs are kept has no gradient.

    Args:
        features: (N, D), rows of unit length, any floating dtype; half precision is computed in float32.
        labels: (N,), integer identities.
        alpha: sharpness on positives.
        beta: on negatives.
        base: the similarity that parts them.
        epsilon: margin of the miner.

    Returns:
        A scalar, float32 (float64 for float64 features). Memory grows with N * N.

    Raises:
        ValueError: shapes do not fit.

    Source: Wang et al. 2019, "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", eqs. 11, 12
    and 15.
    """
    check_labelled_features(features, labels)
    features = to_full_precision(features)
    with without_autocast(features):
        similarity = features @ features.T  # (N, N)
        same = labels[:, None] == labels
        positive, negative = same.clone().fill_diagonal_(False), ~same
        fixed = similarity.detach()
        hardest_positive = fixed.masked_fill(~positive, torch.inf).amin(dim=1, keepdim=True)  # (N, 1)
        hardest_negative = fixed.masked_fill(~negative, -torch.inf).amax(dim=1, keepdim=True)
        positive &= fixed - epsilon < hardest_negative
        negative &= fixed + epsilon > hardest_positive
        pull = _log_one_plus_sum(-alpha * (similarity - base), positive) / alpha
        push = _log_one_plus_sum(beta * (similarity - base), negative) / beta
        return (pull + push).mean()


def _log_one_plus_sum(exponents: Tensor, keep: Tensor) -> Tensor:
    """log(1 + sum of exp) over the kept ones of each row, (N,), without overflow."""
    kept = exponents.masked_fill(~keep, -torch.inf)
    return torch.logsumexp(torch.cat([kept, kept.new_zeros(len(kept), 1)], dim=1), dim=1)
