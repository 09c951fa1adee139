"""The nearest photos of a photo, exact, without a matrix of all photos: products of a chunk of rows at a time.

Which photos are nearest, and in which order, does not depend on the BLAS, on the size of the chunks or on the number of
threads. A matrix product only finds the candidates, those within its rounding of the last place (see `match_ranks` on
why it rounds as it likes). Their similarities are then added up anew in float64, each in the same order, and rounded
to 2^-40; equal ones come in the order of their places. What is left: photos whose true similarities differ by less
than 2^-40 (about 1e-12), without being equal, may come in either order on another processor. And where more than K
photos are equal, those that stand first are the neighbours of all.

Shapes: N photos (Q queries, G gallery images), D embedding, c rows of a chunk, K nearest.
"""

import numba
import numpy as np
import torch

from clipfh.metrics.match_ranks import MAX_PAIRS, tie_tolerance
from clipfh.metrics.same_identity import SameIdentity
from clipfh.metrics.threads import in_threads

CHUNK_BYTES = 1 << 24  # of each thread's products; larger ones are no faster
_GRID = 2.0**40


def rows_at_once(bytes_a_row: int) -> int:
    """How many rows of that size a thread works on at once."""
    return max(1, CHUNK_BYTES // bytes_a_row)


def nearest_of_gallery(
    query_features: np.ndarray, gallery_features: np.ndarray, same: SameIdentity, num_nearest: int
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest gallery images of each query, without those that the protocol leaves out of its ranking.

    Args:
        query_features, gallery_features: (Q, D) and (G, D), both float32 or both float64, unit rows.
        same: the pairs of one identity, which says what is left out.
        num_nearest: K, at most G of them.

    Returns:
        Places in the gallery (Q, K) int32, nearest first, -1 where there are fewer; similarities (Q, K) float64.
    """
    K = min(num_nearest, len(gallery_features))
    index = np.empty((len(query_features), K), dtype=np.int32)
    similarities = np.empty((len(query_features), K))
    tolerance = _tolerance(query_features, gallery_features)

    def find(queries: np.ndarray) -> None:
        rows = query_features[queries]
        products = rows @ gallery_features.T  # (c, G)
        pairs = same.pairs(queries)
        left_out = ~pairs.counted
        products[pairs.row[left_out], pairs.position[left_out]] = -np.inf
        nobody = np.full(len(queries), -1)
        found = np.empty((len(queries), K), dtype=np.int32), np.empty((len(queries), K))
        _nearest(products, rows, gallery_features, nobody, tolerance[queries], *found)
        index[queries], similarities[queries] = found

    chunk = rows_at_once(len(gallery_features) * gallery_features.itemsize)
    for _ in in_threads(find, same.chunks(chunk, MAX_PAIRS)):
        pass
    return index, similarities


def nearest_of_all(features: np.ndarray, num_nearest: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of all photos for each of them, itself first, whatever equals it; and how unlike it another can be.

    Args:
        features: (N, D) float32 or float64, unit rows.
        num_nearest: K, at most N of them.

    Returns:
        Places (N, K) int32, nearest first; the lowest similarity of each row (N,) float64.
    """
    N = len(features)
    index, lowest = np.empty((N, min(num_nearest, N)), dtype=np.int32), np.empty(N)
    tolerance = _tolerance(features, features)

    def find(places: np.ndarray) -> None:
        part = slice(places[0], places[-1] + 1)
        rows = features[part]
        products = rows @ features.T  # (c, N)
        _lowest(products, rows, features, tolerance[part], lowest[part])
        _nearest(products, rows, features, places, tolerance[part], index[part], np.empty(index[part].shape))

    for _ in in_threads(find, consecutive(N, rows_at_once(N * features.itemsize))):
        pass
    return index, lowest


def consecutive(length: int, size: int) -> list[np.ndarray]:
    """The places 0..`length` - 1 in parts of at most `size`."""
    return np.split(np.arange(length), range(size, length, size))


def _tolerance(rows: np.ndarray, images: np.ndarray) -> np.ndarray:
    return tie_tolerance(torch.from_numpy(rows), torch.from_numpy(images)).numpy()


@numba.njit(nogil=True, cache=True, fastmath={"reassoc"})  # in several sums at once, the same ones for all rows
def _product(a: np.ndarray, b: np.ndarray) -> float:
    total = 0.0
    for d in range(len(a)):
        total += np.float64(a[d]) * np.float64(b[d])
    return total


@numba.njit(nogil=True, cache=True)
def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Of two rows (D,), by which photos are ordered; within 2^-41 of the exact one."""
    return np.floor(_product(a, b) * _GRID + 0.5) / _GRID


@numba.njit(nogil=True, cache=True)
def _nearest(
    products: np.ndarray,
    rows: np.ndarray,
    images: np.ndarray,
    own: np.ndarray,
    tolerance: np.ndarray,
    index: np.ndarray,
    similarities: np.ndarray,
) -> None:
    """Fill `index` and `similarities` (c, K) by `products` (c, N), which are changed; -inf is no neighbour.

    `own` (c,) is a row's own place, which comes first, or -1.
    """
    K = index.shape[1]
    highest = np.empty(K, dtype=products.dtype)
    for r in range(len(products)):
        num = 0
        if own[r] >= 0:
            index[r, 0], similarities[r, 0], num = own[r], similarity(rows[r], rows[r]), 1
            products[r, own[r]] = -np.inf
        first = num
        reach = _last_of_highest(products[r], highest[first:]) - tolerance[r]
        for j in range(products.shape[1]):
            if products[r, j] >= reach and products[r, j] > -np.inf and first < K:
                exact = similarity(rows[r], images[j])
                if num == K and exact <= similarities[r, K - 1]:  # of equal ones, the earlier place stays
                    continue
                num = min(num + 1, K)
                place = num - 1
                while place > first and similarities[r, place - 1] < exact:
                    index[r, place], similarities[r, place] = index[r, place - 1], similarities[r, place - 1]
                    place -= 1
                index[r, place], similarities[r, place] = j, exact
        index[r, num:] = -1
        similarities[r, num:] = -np.inf


@numba.njit(nogil=True, cache=True)
def _last_of_highest(values: np.ndarray, highest: np.ndarray) -> float:
    """The n-th largest of the values, with `highest` (n,) to work in."""
    n = len(highest)
    highest[:] = -np.inf
    for value in values:
        if n and value > highest[n - 1]:
            place = n - 1
            while place > 0 and highest[place - 1] < value:
                highest[place] = highest[place - 1]
                place -= 1
            highest[place] = value
    return highest[n - 1] if n else np.inf


@numba.njit(nogil=True, cache=True)
def _lowest(
    products: np.ndarray, rows: np.ndarray, images: np.ndarray, tolerance: np.ndarray, lowest: np.ndarray
) -> None:
    for r in range(len(products)):
        reach = products[r].min() + tolerance[r]
        lowest[r] = np.inf
        for j in range(products.shape[1]):
            if products[r, j] <= reach:
                lowest[r] = min(lowest[r], similarity(rows[r], images[j]))
