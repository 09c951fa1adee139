"""The ranks of each query's matches in the gallery, exact, without sorting the gallery.

The rank of a match is one more than the number of gallery images above it. So per chunk of queries the similarities of
the matches come first; then, block by block of the gallery, the product, and how many others reach each match. The
blocks' size does not depend on the gallery's: memory does not grow with it, and what is counted is still in the cache.

Ties are decided within a tolerance. A matrix product adds up the D products of each of its entries in an order that
depends on the BLAS, on the processor and on the entry's place: two images that are equal may differ in their
similarities' last bits. So a non-match ranks before a match if its similarity is at most

    sqrt(D) * eps * |query| * (length of the longest gallery row)

below the match's: 2.7e-6 for unit rows of 512 float32. Each of two sums of D terms is off by about sqrt(D) * eps / 2 at
most (Higham and Mary 2019, "A New Approach to Probabilistic Rounding Error Analysis"), hence equal images always tie,
and what the tolerance takes for a tie is no further apart than rounding could have moved it. Nothing else is asked of
the product.

Shapes: Q queries, G gallery images, D embedding, c queries of a chunk, b gallery images of a block, M most matches,
N pairs of a query of the chunk and a gallery image of its identity.
"""

import math
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import numpy as np
import torch

from clipfh.metrics.same_identity import Pairs, SameIdentity
from clipfh.metrics.threads import in_threads

CHUNK, BLOCK = 896, 2048  # queries and gallery images of one product; 7 MiB of similarities stay in the cache
MAX_SIMILARITIES = 1 << 27  # of a chunk where whole rows are sorted: 0.5 GiB, and four times that to sort them
MAX_PAIRS = 1 << 17  # of a chunk: what is kept of each pair adds up where identities are large


def match_ranks(
    query_features: torch.Tensor, gallery_features: torch.Tensor, same: SameIdentity
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, chunk by chunk, queries (c,) and the ranks of their matches (c, M) int64.

    Ranks are from 1, in increasing order; 0 fills the places of queries with fewer than M matches. A tied non-match
    ranks before a match; tied is what is nearer than the tolerance above, so that equal features are.

    Args:
        query_features, gallery_features: (Q, D) and (G, D), float32 or float64, on one device.
        same: the pairs of one identity.
    """
    if query_features.device.type == "cuda":
        yield from _match_ranks_by_sorting(query_features, gallery_features, same)
    else:  # MPS shares the CPU's memory
        yield from _match_ranks_by_counting(query_features.cpu(), gallery_features.cpu(), same)


def tie_tolerance(query_features: torch.Tensor, gallery_features: torch.Tensor) -> torch.Tensor:
    """How far below a query's match a similarity may be and still tie with it, (Q,), of (Q, D) and (G, D): see above.

    For everything that counts what is at least as similar as a match.
    """
    D, eps = query_features.shape[1], torch.finfo(query_features.dtype).eps
    longest = torch.linalg.vector_norm(gallery_features, dim=1).max()
    return math.sqrt(D) * eps * longest * torch.linalg.vector_norm(query_features, dim=1)


def _match_ranks_by_counting(
    query_features: torch.Tensor, gallery_features: torch.Tensor, same: SameIdentity
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    tolerance = tie_tolerance(query_features, gallery_features).numpy()
    threads = torch.get_num_threads()
    chunk = _even_part(len(query_features), max(-(-len(query_features) // CHUNK), threads))
    # numpy, not torch: on the CPU its matrix product is the faster one
    query_rows, gallery_rows = query_features.numpy(), gallery_features.numpy()
    free: SimpleQueue[_BlockProduct] = SimpleQueue()
    for _ in range(threads):
        free.put(_BlockProduct(gallery_rows, chunk))

    def ranks_of(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        product = free.get()
        try:
            product.queries = query_rows[queries]
            return queries, _ranks_of_chunk(product, same.pairs(queries), tolerance[queries])
        finally:
            free.put(product)

    yield from in_threads(ranks_of, same.chunks(chunk, MAX_PAIRS))


def match_ranks_of_rows(
    similarities_of: Callable[[np.ndarray], np.ndarray], tolerance: np.ndarray, same: SameIdentity, chunk: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same as `match_ranks`, by similarities of any kind: of whole rows, a chunk of queries at a time.

    Args:
        similarities_of: queries (c,) to their similarities to all of the gallery (c, G), float32 or float64, larger for
            more similar; the array is written on. It is called from several threads at once.
        tolerance: (Q,) how far below a match a non-match may be and still tie with it.
        same: the pairs of one identity.
        chunk: c at most; each thread holds one chunk's rows.
    """

    def ranks_of(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return queries, _ranks_of_chunk(_Rows(similarities_of(queries)), same.pairs(queries), tolerance[queries])

    yield from in_threads(ranks_of, same.chunks(chunk, MAX_PAIRS))


def _ranks_of_chunk(product: "_BlockProduct | _Rows", pairs: Pairs, tolerance: np.ndarray) -> np.ndarray:
    from clipfh.metrics.reach_counts import ReachCounts  # numba takes a second to import, which --help can do without

    values = product.similarities_of(pairs)
    matches, num = _in_rows(values[pairs.counted], pairs.row[pairs.counted], len(pairs.queries))
    above = ReachCounts(matches - tolerance[:, None], num)
    for similarities in product.non_matches(pairs):
        above.add(similarities)
    return _ranks(above.total(), num)


def _ranks(above: np.ndarray, num: np.ndarray) -> np.ndarray:
    place = np.arange(1, above.shape[1] + 1)  # among the matches: the better ones are above, too
    return np.where(place <= num[:, None], above + place, 0)


def _multiply(queries: np.ndarray, images: np.ndarray, out: np.ndarray) -> None:
    """The only product: (c, D) and (b, D) to (c, b). Its last bits may be any."""
    np.matmul(queries, images.T, out=out)


class _BlockProduct:
    """Similarities of a chunk of queries, a block of the gallery at a time, into the same buffer.

    Attributes:
        queries: (c, D) features, to be set for each chunk; c is at most `chunk`.
    """

    queries: np.ndarray

    def __init__(self, gallery: np.ndarray, chunk: int) -> None:
        self._gallery = gallery
        self._block = _even_part(len(gallery), -(-len(gallery) // BLOCK))
        self._buffer = np.empty(chunk * self._block, gallery.dtype)

    def _similarities(self, num_images: int) -> np.ndarray:
        """(c, num_images) to be filled; without gaps between the rows, which would cost a page of memory each."""
        c = len(self.queries)
        return self._buffer[: c * num_images].reshape(c, num_images)

    def similarities_of(self, pairs: Pairs) -> np.ndarray:
        """(N,) of the pairs alone."""
        wanted = np.zeros(len(self._gallery), dtype=bool)
        wanted[pairs.position] = True
        images, place = np.flatnonzero(wanted), (np.cumsum(wanted, dtype=np.int32) - 1)[pairs.position]
        values = np.empty(len(place), self._gallery.dtype)
        for start in range(0, len(images), self._block):
            block = self._gallery[images[start : start + self._block]]
            similarities = self._similarities(len(block))
            _multiply(self.queries, block, similarities)
            here = (place >= start) & (place < start + self._block)
            values[here] = similarities[pairs.row[here], place[here] - start]
        return values

    def non_matches(self, pairs: Pairs) -> Iterator[np.ndarray]:
        """(c, b) of the whole gallery, block by block; -inf for pairs."""
        G = len(self._gallery)
        block_of_pair = (pairs.position // self._block).astype(np.uint16)  # numpy sorts 16 bits by radix
        by_block = np.argsort(block_of_pair, kind="stable")
        ends = np.cumsum(np.bincount(block_of_pair, minlength=-(-G // self._block)))
        for number, start in enumerate(range(0, G, self._block)):
            images = self._gallery[start : start + self._block]
            similarities = self._similarities(len(images))
            _multiply(self.queries, images, similarities)
            inside = by_block[ends[number - 1] if number else 0 : ends[number]]
            similarities[pairs.row[inside], pairs.position[inside] - start] = -np.inf
            yield similarities


class _Rows:
    """Whole rows of similarities (c, G), which are there already; asked as a `_BlockProduct` is."""

    def __init__(self, similarities: np.ndarray) -> None:
        self._similarities = similarities

    def similarities_of(self, pairs: Pairs) -> np.ndarray:
        """(N,) of the pairs alone."""
        return self._similarities[pairs.row, pairs.position]

    def non_matches(self, pairs: Pairs) -> Iterator[np.ndarray]:
        """(c, G) of the whole gallery, at once; -inf for pairs."""
        self._similarities[pairs.row, pairs.position] = -np.inf
        yield self._similarities


def _even_part(length: int, num_parts: int) -> int:
    """The size of `num_parts` parts of about equal size."""
    return -(-length // num_parts)


def _in_rows(values: np.ndarray, row: np.ndarray, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of the pairs (N,) as rows (c, M) in decreasing order, and how many each has (c,); M is at least 1."""
    num = np.bincount(row, minlength=num_rows)
    place = np.arange(len(row), dtype=np.int32) - np.repeat((np.cumsum(num) - num).astype(np.int32), num)
    negated = np.full((num_rows, max(num.max(), 1)), np.inf, dtype=values.dtype)
    negated[row, place] = -values
    negated.sort(axis=1)
    return np.negative(negated, out=negated), num


def _match_ranks_by_sorting(
    query_features: torch.Tensor, gallery_features: torch.Tensor, same: SameIdentity
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same on the features' device, where sorting whole rows is cheap beside moving them to the host."""
    tolerance = tie_tolerance(query_features, gallery_features).cpu().numpy()
    queries_at_once = max(1, min(CHUNK, MAX_SIMILARITIES // max(1, len(gallery_features))))
    for pairs in map(same.pairs, same.chunks(queries_at_once, MAX_PAIRS)):
        queries, row, position = (torch.from_numpy(part).to(gallery_features.device) for part in pairs[:3])
        similarities = query_features[queries] @ gallery_features.T  # (c, G)
        values = similarities[row, position].cpu().numpy()
        matches, num = _in_rows(values[pairs.counted], pairs.row[pairs.counted], len(queries))
        similarities[row, position] = -torch.inf
        ascending = similarities.sort(dim=1).values
        reached = torch.from_numpy(matches - tolerance[pairs.queries, None]).to(gallery_features.device)
        above = ascending.shape[1] - torch.searchsorted(ascending, reached)  # (c, M)
        yield pairs.queries, _ranks(above.cpu().numpy(), num)
