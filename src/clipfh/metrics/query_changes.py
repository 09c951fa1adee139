"""What became of each query from one model to another, beside the difference of the means.

Shapes: Q queries.
"""

from typing import NamedTuple

import numpy as np

# `per_query.csv` has nine decimals, and two machines differ in the last bit before
EQUAL = 2e-9


class QueryChanges(NamedTuple):
    """How many queries gained and lost average precision, and which.

    Attributes:
        better, worse, equal: numbers of queries that both models have a figure for.
        num_left_out: the others.
        change: (Q,) after less before; NaN for those that are left out.
    """

    better: int
    worse: int
    equal: int
    num_left_out: int
    change: np.ndarray

    def most(self, count: int, *, gained: bool) -> np.ndarray:
        """The places of at most `count` queries that gained most (or lost most), the largest change first."""
        signed = self.change if gained else -self.change
        changed = np.flatnonzero(signed > EQUAL)  # False for NaN
        return changed[np.argsort(-signed[changed], kind="stable")][:count]


def query_changes(before: np.ndarray, after: np.ndarray) -> QueryChanges:
    """Compare the figures of the same queries.

    Args:
        before, after: (Q,) one value a query, in the same order; NaN where a model has none.

    Raises:
        ValueError: not as many values before as after, or more than one axis.
    """
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 1:
        raise ValueError(f"values of shapes {before.shape} and {after.shape}; expected one axis, alike")
    change = after - before
    better, worse = int((change > EQUAL).sum()), int((change < -EQUAL).sum())
    num_left_out = int(np.isnan(change).sum())
    return QueryChanges(better, worse, len(change) - better - worse - num_left_out, num_left_out, change)
