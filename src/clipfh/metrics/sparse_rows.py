"""Rows of which few entries are not 0: made in threads, averaged, and turned to columns.

Compiled by numba, as each is a loop over entries.

Shapes: c rows of a part, k rows that are averaged.
"""

from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np

from clipfh.metrics.neighbours import consecutive
from clipfh.metrics.threads import in_threads


class SparseRows(NamedTuple):
    """Rows of which few entries are not 0.

    Attributes:
        start: (rows + 1,) int64; row r has the entries start[r] to start[r + 1].
        place: (entries,) int32, the column of each.
        value: (entries,) float32.
    """

    start: np.ndarray
    place: np.ndarray
    value: np.ndarray


def rows_in_parts(make: Callable[[np.ndarray], tuple[np.ndarray, ...]], num_rows: int, size: int) -> SparseRows:
    """Rows made in threads; `make` gives of the rows at some places how many entries each has, columns and values."""
    counts, places, values = zip(*in_threads(make, consecutive(num_rows, size)), strict=True)
    start = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    return SparseRows(start, np.concatenate(places), np.concatenate(values))


@numba.njit(nogil=True, cache=True)
def mean_rows(nearest: np.ndarray, rows: SparseRows, num_columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean of the rows that each row of `nearest` (c, k2) names: entries of each, their columns and values."""
    start, place, value = rows
    counts, most = np.zeros(len(nearest), dtype=np.int64), 0
    for r in range(len(nearest)):
        for p in nearest[r]:
            most += start[p + 1] - start[p]
    columns, values = np.empty(most, dtype=np.int32), np.empty(most, dtype=np.float32)
    total, seen = np.zeros(num_columns), np.full(num_columns, -1, dtype=np.int32)
    end = 0
    for r in range(len(nearest)):
        begin = end
        for p in nearest[r]:
            for entry in range(start[p], start[p + 1]):
                column = place[entry]
                if seen[column] != r:
                    seen[column] = r
                    total[column] = 0
                    columns[end] = column
                    end += 1
                total[column] += value[entry]
        counts[r] = end - begin
        for n in range(begin, end):
            values[n] = total[columns[n]] / nearest.shape[1]
    return counts, columns[:end].copy(), values[:end].copy()


@numba.njit(nogil=True, cache=True)
def by_column(rows: SparseRows, num_columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same entries by their column: start, row and value of each."""
    start, place, value = rows
    column_start = np.zeros(num_columns + 1, dtype=np.int64)
    for column in place:
        column_start[column + 1] += 1
    column_start = np.cumsum(column_start)
    row, sorted_value = np.empty(len(place), dtype=np.int32), np.empty(len(place), dtype=np.float32)
    free = column_start[:-1].copy()
    for r in range(len(start) - 1):
        for entry in range(start[r], start[r + 1]):
            at = free[place[entry]]
            row[at], sorted_value[at] = r, value[entry]
            free[place[entry]] += 1
    return column_start, row, sorted_value
