"""Distances between two sets of image features: FID and KID. N, M: images of either set, D: features.

Computed in float64. Which network makes the features decides what the figures mean: with Inception's they can be
compared between papers, with any other's only between runs that use the same one.
"""

import numpy as np


def frechet_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """The Frechet distance of two Gaussians with the sets' means and covariances (FID, with Inception's features).

        |m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2))

    Biased upwards for small sets: compare only figures of equally many images.

    Args:
        real: (N, D); generated: (M, D).

    Raises:
        ValueError: fewer than two images in a set, or feature sizes that differ.

    Source: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium".
    """
    real, generated = _checked(real, generated)
    difference = real.mean(axis=0) - generated.mean(axis=0)
    covariance, other = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    # trace((C1 C2)^(1/2)) is the sum of the roots of C1 C2's eigenvalues: those of the symmetric C1^(1/2) C2 C1^(1/2)
    values, vectors = np.linalg.eigh(np.atleast_2d(covariance))
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ np.atleast_2d(other) @ root)
    trace = np.trace(np.atleast_2d(covariance)) + np.trace(np.atleast_2d(other))
    return float(difference @ difference + trace - 2 * np.sqrt(product.clip(min=0)).sum())


def kernel_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """The squared maximum mean discrepancy with the kernel (x . y / D + 1)^3 (KID, with Inception's features).

    The unbiased estimate on all images, without drawing subsets: of two sets of one distribution it is 0 on average,
    and slightly below 0 half of the time.

    Args:
        real: (N, D); generated: (M, D).

    Raises:
        ValueError: as `frechet_distance`.

    Source: Binkowski et al. 2018, "Demystifying MMD GANs", section 4.
    """
    real, generated = _checked(real, generated)
    N, M, D = len(real), len(generated), real.shape[1]

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / D + 1) ** 3

    within_real, within_generated = kernel(real, real), kernel(generated, generated)
    first = (within_real.sum() - np.trace(within_real)) / (N * (N - 1))
    second = (within_generated.sum() - np.trace(within_generated)) / (M * (M - 1))
    return float(first + second - 2 * kernel(real, generated).mean())


def _checked(real: np.ndarray, generated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    real, generated = np.asarray(real, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    if min(len(real), len(generated)) < 2 or real.shape[1] != generated.shape[1]:
        raise ValueError(f"features of shapes {real.shape} and {generated.shape}: two images or more, equal sizes")
    return real, generated
