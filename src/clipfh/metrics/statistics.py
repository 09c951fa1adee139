"""How certain a figure is: mean and deviation over splits or seeds, bootstrap intervals and tests over identities.

Legend: N splits or seeds, Q queries, I identities, R resamples. Everything is pure numpy, deterministic by seed.
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


class Difference(NamedTuple):
    """A difference of two means over the same queries.

    Attributes:
        difference: the mean after less the mean before.
        low, high: of its bootstrap interval.
        p: two-sided.
        num_query: queries that have both figures.
        num_left_out: the others.
    """

    difference: float
    low: float
    high: float
    p: float
    num_query: int
    num_left_out: int


def mean_and_std(values: Sequence[float] | np.ndarray) -> MeanStd:
    """Mean and sample standard deviation over splits, or over the seeds of a training.

        mean = sum(x) / N,    std = sqrt(sum((x - mean)^2) / (N - 1))

    The splits are a sample of the possible ones, hence N - 1. They share their photos, so `std` is the spread from
    split to split; `std / sqrt(N)` would understate the error of the mean.

    Args:
        values: (N,) one figure a split or seed.

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
    means = _resampled_means(per_query, item_ids, confidence, num_resamples, seed)  # (R,)
    return Interval(float(per_query.mean()), *_percentiles(means, confidence))


def paired_bootstrap_difference(
    before: Sequence[float] | np.ndarray,
    after: Sequence[float] | np.ndarray,
    item_ids: Sequence[str] | np.ndarray,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """By how much the mean of a per-query figure differs between two models, measured on the same queries.

    Identities are drawn as by `bootstrap_interval`, the same ones for both models (Koehn 2004, "Statistical
    significance tests for machine translation evaluation"): what is hard for both cancels out, so that the interval is
    narrower than those of the two means suggest. With d_r the difference in resample r, the interval goes from the
    (1 - c) / 2 to the (1 + c) / 2 quantile of the d_r, and

        p = min(1, 2 * (1 + min(#{d_r <= 0}, #{d_r >= 0})) / (R + 1))

    is its inversion: but for the grid of R values, p < 0.05 says that the 95% interval leaves 0 out (Efron and
    Tibshirani 1993, chapters 13 and 15). The added ones count the observed data among the resamples (Davison and
    Hinkley 1997, section 4.2): p is never 0, its smallest value is 2 / (R + 1). It is about other identities of the
    same kind; gallery and weights are held fixed, and what another training seed would give is not in it.

    Args:
        before, after: (Q,) one value a query of each model, in the same order; NaN where a model has none. Queries that
            lack one of them are left out and counted. Of several training seeds, the mean over them.
        item_ids: (Q,) the identity of each query.
        confidence: c, between 0 and 1, exclusive.
        num_resamples: R.
        seed: of the draws; the same arguments give the same result.

    Raises:
        ValueError: not as many values before as after, no query that has both, an infinite value, not one identity a
            query, or an impossible confidence or number of resamples.
    """
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 1 or len(item_ids) != len(before):
        raise ValueError(
            f"values of shapes {before.shape} and {after.shape}, and identities of {len(item_ids)} queries"
        )
    has_both = ~(np.isnan(before) | np.isnan(after))
    gains = _checked((after - before)[has_both], "what before and after have in common")  # (Q,)
    item_ids = np.asarray(item_ids, dtype=str)[has_both]
    drawn = _resampled_means(gains, item_ids, confidence, num_resamples, seed)  # (R,)
    fewer = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    return Difference(
        float(gains.mean()),
        *_percentiles(drawn, confidence),
        p=min(1.0, 2 * (1 + int(fewer)) / (num_resamples + 1)),
        num_query=len(gains),
        num_left_out=int((~has_both).sum()),
    )


def _percentiles(means: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _resampled_means(
    per_query: np.ndarray, item_ids: Sequence[str] | np.ndarray, confidence: float, num_resamples: int, seed: int
) -> np.ndarray:
    """(R,) means of all values (Q,) of the identities that are drawn; in chunks that bound the memory."""
    if len(item_ids) != len(per_query):
        raise ValueError(f"{len(per_query)} values, but identities of {len(item_ids)} queries")
    if not 0 < confidence < 1 or num_resamples < 1:
        raise ValueError(f"confidence {confidence} is not within (0, 1), or num_resamples {num_resamples} is under 1")
    identity = np.unique(np.asarray(item_ids, dtype=str), return_inverse=True)[1]  # (Q,)
    sums, counts = np.bincount(identity, weights=per_query), np.bincount(identity)  # (I,)
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
