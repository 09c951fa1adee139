"""How certain a figure is: mean and deviation over splits, bootstrap intervals over identities.

Legend: N splits, Q queries, I identities, R resamples. Everything is pure numpy, deterministic by seed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_DRAWS_PER_CHUNK = 1 << 22  # 32 MB of indices at a time, however many queries there are


class MeanStd(NamedTuple):
    """A mean and a sample standard deviation; `std` is nan where there is one value only."""

    mean: float
    std: float


class Interval(NamedTuple):
    """A mean with the bounds of its bootstrap interval."""

    mean: float
    low: float
    high: float


def mean_and_std(values: Sequence[float] | np.ndarray) -> MeanStd:
    """Mean and sample standard deviation over splits.

        mean = sum(x) / N,    std = sqrt(sum((x - mean)^2) / (N - 1))

    The splits are a sample of the possible ones, hence N - 1. They share their photos, so `std` is the spread from
    split to split; `std / sqrt(N)` would understate the error of the mean.

    Args:
        values: (N,) one figure a split.

    Raises:
        ValueError: no values, more than one axis, or a value that is not finite.
    """
    values = _checked(values, "values")
    std = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    return MeanStd(float(values.mean()), std)


def bootstrap_interval(
    per_query: Sequence[float] | np.ndarray,
    item_ids: Sequence[str] | np.ndarray,
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of the mean of a per-query figure (average precision, hit at rank k, ...).

    R times, I identities are drawn with replacement, and all queries of those drawn are averaged (an identity that is
    drawn twice counts twice); with c the confidence, the interval goes from the (1 - c) / 2 quantile of those R means
    to the (1 + c) / 2 quantile (Efron and Tibshirani 1993, chapter 13). Identities are drawn, not queries, because the
    photos of one identity are found or missed together: single queries would feign more independent evidence than
    there is (Field and Welsh 2007, "Bootstrapping clustered data"). It tells how the figure would vary with other
    identities of the same kind; the gallery and the weights are held fixed.

    Args:
        per_query: (Q,) one value a query.
        item_ids: (Q,) the identity of each query.
        confidence: between 0 and 1, exclusive.
        num_resamples: R.
        seed: of the draws; the same arguments give the same interval.

    Raises:
        ValueError: no queries, a value that is not finite, not one identity a query, or an impossible confidence or
            number of resamples.
    """
    per_query = _checked(per_query, "per_query")
    if len(item_ids) != len(per_query):
        raise ValueError(f"{len(per_query)} values, but identities of {len(item_ids)} queries")
    if not 0 < confidence < 1 or num_resamples < 1:
        raise ValueError(f"confidence {confidence} is not within (0, 1), or num_resamples {num_resamples} is under 1")
    identity = np.unique(np.asarray(item_ids, dtype=str), return_inverse=True)[1]  # (Q,)
    sums, counts = np.bincount(identity, weights=per_query), np.bincount(identity)  # (I,)
    means = _resampled_means(sums, counts, num_resamples, seed)  # (R,)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(per_query.mean()), float(low), float(high))


def _resampled_means(sums: np.ndarray, counts: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """(R,) means of R resamples of identities with `counts` values that add up to `sums`, both (I,).

    They are drawn in chunks that bound the memory.
    """
    generator = np.random.default_rng(seed)
    rows = max(1, _DRAWS_PER_CHUNK // len(sums))
    chunks = []
    for start in range(0, num_resamples, rows):
        drawn = generator.integers(len(sums), size=(min(rows, num_resamples - start), len(sums)))  # (rows, I)
        chunks.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(chunks)


def _checked(values: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{name} has the shape {values.shape}; expected one axis with at least one value")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds a value that is not finite")
    return values
