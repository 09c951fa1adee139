"""How many of many numbers reach each of a row's values: what is left of ranking once similarities are there.

Compiled by numba: in numpy, a pass over the similarities for each match is five times slower, and where a query has
hundreds of matches, sorting is the best that it offers.

Shapes: c rows, b columns, M most values of a row.
"""

from typing import NamedTuple

import numba
import numpy as np

FEW_VALUES = 48  # up to so many, comparing everything with each of them is faster than a table
INTERVALS = 2048  # of the table


class _Table(NamedTuple):
    """What the compiled functions share.

    Attributes:
        values: (c, M) the distinct values of each row, in increasing order; num_values: (c,) how many they are.
        by_table: (c,) bool, whether there are so many that the row goes by intervals.
        scale: (c,) intervals over the range of the row's values.
        first: (c, K + 1) how many of a row's values lie in the intervals before the k-th.
        histogram: (c, K) the similarities counted so far, by interval.
        reached: (c, M + 1) by interval: of those that share it with values, how many reach m values of the row.
            Without: how many reach value m.
    """

    values: np.ndarray
    num_values: np.ndarray
    by_table: np.ndarray
    scale: np.ndarray
    first: np.ndarray
    histogram: np.ndarray
    reached: np.ndarray


class ReachCounts:
    """Counts, part by part, how many similarities reach each match.

    Few values are compared with everything. For many, a table cuts their range into equal intervals: a similarity
    counts for all values in lower intervals at once, and is compared only with those that share its interval.
    """

    def __init__(self, matches: np.ndarray, num: np.ndarray) -> None:
        """`matches` (c, M), of which the first `num` (c,) of a row count, in decreasing order."""
        c, M = matches.shape
        values = np.zeros_like(matches)
        self._place = np.zeros((c, M), dtype=np.int32)  # of each match among the distinct values
        num_values = _distinct(matches, num, values, self._place)
        by_table = num_values > FEW_VALUES
        K = INTERVALS if by_table.any() else 0
        spread = values.max(axis=1) - values[:, 0]
        self._table = _Table(
            values,
            num_values,
            by_table,
            scale=K / np.maximum(spread, INTERVALS * np.finfo(matches.dtype).tiny),  # finite
            first=np.zeros((c, K + 1), dtype=np.uint16 if M < 2**16 else np.uint32),
            histogram=np.zeros((c, K), dtype=np.uint32),
            reached=np.zeros((c, M + 1), dtype=np.uint32),
        )
        _fill_first(self._table)

    def add(self, similarities: np.ndarray) -> None:
        """Count (c, b) more; -inf counts nowhere."""
        _add(similarities, self._table)

    def total(self) -> np.ndarray:
        """(c, M) how many reached each match."""
        return np.take_along_axis(_sum_up(self._table), self._place, axis=1)


@numba.njit(nogil=True, cache=True)
def _distinct(matches: np.ndarray, num: np.ndarray, values: np.ndarray, place: np.ndarray) -> np.ndarray:
    num_values = np.zeros(len(num), dtype=np.int64)
    for r in range(len(num)):
        n = 0
        for m in range(num[r] - 1, -1, -1):
            if n == 0 or matches[r, m] != values[r, n - 1]:
                values[r, n] = matches[r, m]
                n += 1
            place[r, m] = n - 1
        num_values[r] = n
    return num_values


@numba.njit(cache=True, inline="always")
def _interval(value, lowest, scale, top):
    # increases with `value`, whatever the rounding: that is all that the table needs
    return min(max((value - lowest) * scale, lowest - lowest), top)


@numba.njit(nogil=True, cache=True)
def _fill_first(table: _Table) -> None:
    values, num_values, by_table, scale, first, _, _ = table
    top = values.dtype.type(first.shape[1] - 2)
    for r in range(len(num_values)):
        if by_table[r]:
            for value in values[r, : num_values[r]]:
                first[r, int(_interval(value, values[r, 0], scale[r], top)) + 1] += 1
            for k in range(1, first.shape[1]):
                first[r, k] += first[r, k - 1]


@numba.njit(nogil=True, cache=True)
def _add(similarities: np.ndarray, table: _Table) -> None:
    b = similarities.shape[1]
    values, num_values, by_table, scale, first, histogram, reached = table
    top = values.dtype.type(first.shape[1] - 2)
    interval, shared = np.empty(b, dtype=np.uint16), np.empty(b + 1, dtype=np.uint32)
    for r in range(len(num_values)):
        row = similarities[r]
        if not by_table[r]:
            for m in range(num_values[r]):
                value, count = values[r, m], 0
                for j in range(b):
                    count += row[j] >= value
                reached[r, m] += count
            continue
        lowest, row_scale = values[r, 0], scale[r]
        for j in range(b):
            interval[j] = np.uint16(_interval(row[j], lowest, row_scale, top))
        num_shared = np.uint32(0)
        for j in range(b):  # without a branch: it would be guessed wrong too often
            k = interval[j]
            histogram[r, k] += np.uint32(1)
            shared[num_shared] = j
            num_shared += np.uint32(first[r, k + 1] != first[r, k])
        for j in shared[:num_shared]:
            start, end = first[r, interval[j]], first[r, interval[j] + 1]
            m = start
            while m < end and values[r, m] <= row[j]:
                m += 1
            reached[r, m] += m > start


@numba.njit(nogil=True, cache=True)
def _sum_up(table: _Table) -> np.ndarray:
    """How many similarities reach each value, (c, M)."""
    values, num_values, by_table, scale, first, histogram, reached = table
    top = values.dtype.type(first.shape[1] - 2)
    counts = np.zeros((len(num_values), reached.shape[1] - 1), dtype=np.int64)
    for r in range(len(num_values)):
        if not by_table[r]:
            counts[r] = reached[r, :-1]
            continue
        higher, above = 0, histogram.shape[1] - 1  # similarities in the intervals after `above`
        m = num_values[r]
        while m > 0:
            k = int(_interval(values[r, m - 1], values[r, 0], scale[r], top))
            higher += histogram[r, k + 1 : above + 1].sum()
            above, here = k, 0
            while m > first[r, k]:
                here += reached[r, m]
                counts[r, m - 1] = higher + here
                m -= 1
    return counts
