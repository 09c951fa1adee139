"""How alike two models' features of the same images are. Shapes: N images, D and E embeddings."""

import torch

FEWEST_IMAGES = 4  # that the estimator is defined of


def linear_cka(before: torch.Tensor, after: torch.Tensor) -> float:
    """Linear CKA of features (N, D) and (N, E) of the same N images: 1 where they differ by a rotation and a scale.

        HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),  K = X X^T, L = Y Y^T

    with the unbiased estimator of HSIC (Song et al. 2012, eq. 5), so that independent features give about 0 on average,
    however few images there are; single values of few spread widely, those of 4 from -1 to 1. 0 where one of them is
    constant: nothing is left in common.

    Raises:
        ValueError: fewer than 4 images.
    """
    if len(before) < FEWEST_IMAGES:
        raise ValueError(f"{len(before)} images; the estimator needs {FEWEST_IMAGES}")
    centred = (features - features.mean(0) for features in (before, after))
    K, L = (features @ features.T for features in (part.cpu().double() for part in centred))  # MPS has no float64
    own = _hsic(K, K) * _hsic(L, L)
    return _hsic(K, L) / own**0.5 if own > 0 else 0.0


def _hsic(K: torch.Tensor, L: torch.Tensor) -> float:
    """The unbiased estimate from two kernels (N, N), up to a factor of N."""
    N = len(K)
    K, L = (kernel - kernel.diag().diag() for kernel in (K, L))
    trace, sums = (K * L).sum(), K.sum() * L.sum() / ((N - 1) * (N - 2))
    return float(trace + sums - 2 / (N - 2) * (K.sum(dim=0) @ L.sum(dim=0)))
