"""k-reciprocal re-ranking: two photos are alike if the same photos are near both (Zhong et al. 2017, CVPR).

With N(p, k) the photos nearest to p of all N photos of queries and gallery:

    R(p, k)  = {q in N(p, k) : p in N(q, k)}                                           k-reciprocal neighbours
    R*(p, k) = R(p, k) with each R(q, k/2) of a q in R(p, k), |R(p, k) & R(q, k/2)| > 2/3 |R(q, k/2)|
    V(p)     = exp(-d(p, g)) for g in R*(p, k1), else 0, divided by its sum;           then
    V(p)    <- mean of V(q) over p and its k2 - 1 nearest                              local query expansion
    dJ(p, g) = 1 - sum_i min(V(p)_i, V(g)_i) / sum_i max(V(p)_i, V(g)_i)               Jaccard distance
    final    = (1 - lambda) dJ + lambda d(p, g)

d is what the authors' public code has, by which figures are published: the squared Euclidean distance, 2 - 2 x cosine
similarity of unit rows, divided by the largest of photo p to any of the N. N(p, k) is there p itself and k others, and
k/2 is rounded to the even number (5 / 2 is 2). Unlike there, p comes first in N(p, k) however many photos equal it, so
that its R* is never empty.

V is sparse, some dozens of entries a row, and the sum of minima goes by an inverted index, from an entry of the query's
to the gallery images that have it. So memory grows with N, never with N x N.

Shapes: N photos, the Q queries before the G gallery images; D embedding, c queries of a chunk, K neighbours kept.
"""

from dataclasses import dataclass

import numba
import numpy as np

from clipfh.metrics.neighbours import consecutive, nearest_of_all, rows_at_once, similarity
from clipfh.metrics.sparse_rows import SparseRows, by_column, mean_rows, rows_in_parts
from clipfh.metrics.threads import in_threads

ROWS = 512  # at a time, where they are small


@dataclass(frozen=True)
class KReciprocalDistances:
    """What the final distances of any query are computed from.

    Attributes:
        query_features, gallery_features: (Q, D) and (G, D), unit rows.
        vectors: V of the Q queries.
        holders: V of the gallery by column: row i of the N has the gallery images with an entry there, and the entries.
        farthest: (Q,) the largest squared distance of each query to any photo, by which its distances are divided.
        weight: lambda, of the original distance.
    """

    query_features: np.ndarray
    gallery_features: np.ndarray
    vectors: SparseRows
    holders: SparseRows
    farthest: np.ndarray
    weight: float

    def of(self, queries: np.ndarray) -> np.ndarray:
        """The final distances (c, G) of some queries, in 0..1, in the features' dtype."""
        distances = self.query_features[queries] @ self.gallery_features.T  # still products
        _finish(distances, queries, self.vectors, self.holders, self.farthest, self.weight)
        return distances

    def rounding(self, product_tolerance: np.ndarray) -> np.ndarray:
        """How far equal final distances of each query (Q,) may be apart, products being so by `product_tolerance` (Q,).

        The Jaccard distance is off by 2 eps at most through the entries of V, the sum of both by half an eps.
        """
        eps = np.finfo(np.float32).eps
        of_original = 2 * self.weight * product_tolerance / self.farthest
        return np.minimum(4 * eps + of_original, 1.0).astype(self.query_features.dtype)


def k_reciprocal_distances(
    query_features: np.ndarray, gallery_features: np.ndarray, *, k1: int, k2: int, weight: float
) -> KReciprocalDistances:
    """Find the neighbours and vectors of all photos.

    Args:
        query_features, gallery_features: (Q, D) and (G, D), both float32 or both float64, unit rows.
        k1, k2, weight: as above, weight being lambda; neighbours beyond all N photos are no more than all.
    """
    Q, N = len(query_features), len(query_features) + len(gallery_features)
    features = np.concatenate([query_features, gallery_features])
    nearest, lowest = nearest_of_all(features, max(k1 + 1, k2))
    farthest = np.maximum(2 - 2 * lowest, 0)
    farthest[farthest == 0] = 1  # all photos are equal, and all distances 0
    nearest_k1 = np.ascontiguousarray(nearest[:, : k1 + 1])
    half = round(k1 / 2) + 1
    most = min(N, nearest_k1.shape[1] * (1 + half))  # entries of a row
    close = _reciprocal_neighbours(np.ascontiguousarray(nearest[:, :half]))

    def weights(part: np.ndarray) -> tuple[np.ndarray, ...]:
        return _weights(part, nearest_k1, close, features, farthest, most)

    vectors = rows_in_parts(weights, N, min(ROWS, rows_at_once(8 * most)))
    nearest_k2 = nearest[:, :k2]

    def mean_of_nearest(part: np.ndarray) -> tuple[np.ndarray, ...]:
        return mean_rows(nearest_k2[part], vectors, N)

    if k2 > 1:
        vectors = rows_in_parts(mean_of_nearest, N, min(ROWS, rows_at_once(8 * most * nearest_k2.shape[1])))
    cut = vectors.start[Q]
    of_queries = SparseRows(vectors.start[: Q + 1], vectors.place[:cut], vectors.value[:cut])
    of_gallery = SparseRows(vectors.start[Q:] - cut, vectors.place[cut:], vectors.value[cut:])
    holders = SparseRows(*by_column(of_gallery, N))
    return KReciprocalDistances(query_features, gallery_features, of_queries, holders, farthest[:Q], weight)


def _reciprocal_neighbours(nearest: np.ndarray) -> np.ndarray:
    """Of the nearest photos (N, k) those in whose row the photo is itself: (N, k) int32, -1 where there are fewer."""
    mutual = np.empty(nearest.shape, dtype=np.int32)
    for _ in in_threads(lambda part: _mutual(part, nearest, mutual), consecutive(len(nearest), ROWS)):
        pass
    return mutual


@numba.njit(nogil=True, cache=True)
def _contains(places: np.ndarray, wanted: int) -> bool:
    found = False
    for place in places:  # a few: all of them take less time than a branch
        found |= place == wanted
    return found


@numba.njit(nogil=True, cache=True)
def _mutual(rows: np.ndarray, nearest: np.ndarray, mutual: np.ndarray) -> None:
    for p in rows:
        size = 0
        for q in nearest[p]:
            if _contains(nearest[q], p):
                mutual[p, size] = q
                size += 1
        mutual[p, size:] = -1


@numba.njit(nogil=True, cache=True)
def _weights(
    rows: np.ndarray, nearest: np.ndarray, close: np.ndarray, features: np.ndarray, farthest: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """V of some rows, before the local expansion: entries of each row, their columns and values.

    `close` (N, h) are the sets R(q, k1/2), -1 behind the last.
    """
    N = len(nearest)
    counts = np.zeros(len(rows), dtype=np.int64)
    columns, values = np.empty(len(rows) * most, dtype=np.int32), np.empty(len(rows) * most, dtype=np.float32)
    mutual, added = np.full(N, -1, dtype=np.int32), np.full(N, -1, dtype=np.int32)  # of which row, the last time
    weights = np.empty(most)
    end = 0
    for r in range(len(rows)):
        p, begin = rows[r], end
        for q in nearest[p]:
            if _contains(nearest[q], p):
                mutual[q] = added[q] = p
                columns[end] = q
                end += 1
        for q in columns[begin:end]:
            size = shared = 0
            while size < close.shape[1] and close[q, size] >= 0:
                shared += mutual[close[q, size]] == p
                size += 1
            if 3 * shared > 2 * size:
                for other in close[q, :size]:
                    if added[other] != p:
                        added[other] = p
                        columns[end] = other
                        end += 1
        counts[r] = end - begin
        total = 0.0
        for n in range(end - begin):
            distance = max(2 - 2 * similarity(features[p], features[columns[begin + n]]), 0.0)
            weights[n] = np.exp(-distance / farthest[p])
            total += weights[n]
        for n in range(end - begin):
            values[begin + n] = weights[n] / total
    return counts, columns[:end].copy(), values[:end].copy()


@numba.njit(nogil=True, cache=True)
def _finish(
    distances: np.ndarray,
    queries: np.ndarray,
    vectors: SparseRows,
    holders: SparseRows,
    farthest: np.ndarray,
    weight: float,
) -> None:
    """Turn products (c, G) into final distances, in place."""
    start, place, value = vectors
    column_start, row, column_value = holders
    shared = np.empty(distances.shape[1])  # sums of minima
    for r in range(len(queries)):
        q = queries[r]
        shared[:] = 0
        for entry in range(start[q], start[q + 1]):
            column = place[entry]
            for other in range(column_start[column], column_start[column + 1]):
                shared[row[other]] += min(value[entry], column_value[other])
        for g in range(distances.shape[1]):
            jaccard = 1 - shared[g] / (2 - shared[g])  # the rows add up to 1 each: sum of maxima = 2 - sum of minima
            original = max(2 - 2 * distances[r, g], 0.0) / farthest[q]
            distances[r, g] = (1 - weight) * jaccard + weight * original
